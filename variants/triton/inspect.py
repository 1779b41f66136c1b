"""Offline inspection: compile a kernel for a GPU that is not here and read its machine code.

Registers, spills, shared memory, occupancy, tensor-core and wide-load instructions, and warp instructions per pair in
the main loop, with the ``cuobjdump`` that ships inside the triton package. Needs a process without the interpreter.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .config import Config, Sizes, backward_config, forward_config, gather_config, pairs_config

if TYPE_CHECKING:
    from collections.abc import Mapping

_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,5})\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
_SHORT_LOOP_BYTES = 0x400
_SM_REGISTERS, _SM_WARPS = 65536, 64
_SM_SHARED_BYTES = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}
_LEAST_SHARED_BYTES = 100 * 1024  # of an architecture that is not listed: consumer GPUs


@dataclass(frozen=True)
class Inspection:
    """What the compiler made of one kernel. ``loops``: for each innermost loop, how often each mnemonic occurs on the
    shortest path around it, which is that of an interior tile: it skips what only edge tiles do."""

    kernel: str
    arch: int
    num_warps: int
    pairs: int  # of one tile
    registers: int
    stack_bytes: int
    shared_bytes: int
    ctas_per_sm: int
    instructions: dict[str, int]
    loops: tuple[dict[str, int], ...]

    @property
    def spills(self) -> int:
        """Loads and stores of local memory, anywhere in the kernel."""
        return sum(n for op, n in self.instructions.items() if op.partition(".")[0] in ("LDL", "STL"))

    @property
    def tensor_core(self) -> int:
        return sum(n for op, n in self.instructions.items() if re.match(r"[HIDQ]G?MMA|UTC\w*MMA", op))

    @property
    def wide_loads(self) -> int:
        """128-bit loads from global memory, straight to shared memory (LDGSTS) or to registers."""
        return sum(n for op, n in self.instructions.items() if op.startswith("LDG") and "128" in op)

    @property
    def narrow_loads(self) -> int:
        return sum(n for op, n in self.instructions.items() if op.startswith("LDG") and "128" not in op)

    @property
    def launches(self) -> bool:
        """Whether a multiprocessor holds one program: else the launch fails, out of shared memory or registers."""
        return self.ctas_per_sm >= 1

    @property
    def occupancy(self) -> float:
        """Warps that fit a multiprocessor, of those it could hold."""
        return self.ctas_per_sm * self.num_warps / _SM_WARPS

    @property
    def per_pair(self) -> float:
        """Warp instructions per pair in the main loop.

        Of the shortest of the long loops: the peeled loops over edge tiles do the same work and apply masks.
        """
        sizes = [sum(loop.values()) for loop in self.loops]
        return min(s for s in sizes if s > max(sizes) / 3) * self.num_warps / self.pairs

    def summary(self) -> dict[str, Any]:
        """The figures to track, by name."""
        return {
            "kernel": self.kernel,
            "arch": f"sm_{self.arch}",
            "registers": self.registers,
            "stack_bytes": self.stack_bytes,
            "spills": self.spills,
            "shared_bytes": self.shared_bytes,
            "ctas_per_sm": self.ctas_per_sm,
            "occupancy": self.occupancy,
            "tensor_core": self.tensor_core,
            "wide_loads": self.wide_loads,
            "narrow_loads": self.narrow_loads,
            "warp_instructions_per_pair": round(self.per_pair, 3),
        }


_TYPES = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16"}
_BY_DTYPE = ("Q", "K", "V", "O", "LOW", "DO", "DK", "DV")
_OTHER = {"BASE": "*i32", "START": "*i32", "STOP": "*i32", "QUERIES": "*i32", "HOLDERS": "*i32", "IDX": "*i64",
          "FIRST": "*i64", "MASK": "*u8", "N": "i32", "SLOTS": "i32", "pairs": "i32"}  # fmt: skip


KERNELS: dict[str, dict[str, Any]] = {
    "forward": {"direction": "forward"},
    "forward, holes": {"direction": "forward", "holes": True},
    "backward": {"direction": "backward"},
    "backward, holes": {"direction": "backward", "holes": True},
    "backward, deterministic": {"direction": "backward", "deterministic": True},
    "backward, pairs": {"direction": "pairs"},
    "gather forward": {"direction": "forward", "gather": True},
    "gather backward": {"direction": "backward", "gather": True},
    "gather backward, deterministic": {"direction": "backward", "gather": True, "deterministic": True},
    "gather keys": {"direction": "keys", "gather": True, "deterministic": True},
}
"""Every main kernel that is shipped, as arguments of ``inspect_shipped``."""

SIZES = tuple(
    (heads[ragged], head_dim[ragged], channels[ragged])
    for channels in ((16, 5), (32, 24), (64, 48))
    for head_dim in ((16, 8), (32, 24), (64, 48))
    for heads in ((4, 3), (8, 7), (16, 13))
    for ragged in (False, True)
)
"""Heads, head_dim and channels: each padded size that the kernels are compiled for, filled and not."""


def inspect_shipped(
    direction: str,
    *,
    arch: int = 90,
    dtype: str = "bfloat16",
    pair_dtype: str | None = None,
    heads: int = 4,
    head_dim: int = 32,
    channels: int = 16,
    holes: bool = False,
    gather: bool = False,
    deterministic: bool = False,
    config: Config | None = None,
) -> Inspection:
    """The main kernel of ``direction`` ("forward", "backward") as ``triton_fused`` would launch it on ``sm_<arch>``.

    "pairs": the second pass of a split backward. ``gather``: that of the gather mode; there "keys" is the deterministic
    backward's second kernel.
    """
    sizes = sizes_of(dtype, pair_dtype or dtype, heads, head_dim, channels)
    config = config or shipped(direction, sizes, arch, gather=gather)
    kernel, constants = (_gather if gather else _band)(direction, sizes, config, deterministic)
    if "HAS_MASK" in kernel.arg_names:
        constants["HAS_MASK"] = holes
    if "KEEP_LOW" in kernel.arg_names:
        constants["KEEP_LOW"] = "float32" not in dtype
    types = {
        name: _argument_type(name, dtype, pair_dtype or dtype) for name in kernel.arg_names if name not in constants
    }
    if constants.get("ATOMIC") and gather:
        types |= {"DK": "*fp32", "DV": "*fp32"}
    if gather:
        types["DQ"] = _TYPES[dtype]
    signature = {name: types[name] for name in kernel.arg_names if name in types}
    return inspect(kernel, signature, constants, arch=arch, pairs=config.rows * config.cols, **config.options())


def sizes_of(dtype: str, pair_dtype: str, heads: int, head_dim: int, channels: int) -> Sizes:
    """``Sizes`` from dtypes by name."""
    import torch

    return Sizes(getattr(torch, dtype), getattr(torch, pair_dtype), heads, head_dim, channels)


def shipped(direction: str, sizes: Sizes, arch: int, *, gather: bool = False) -> Config:
    """The configuration that ``direction`` is launched with where nobody has tuned it."""
    if gather:
        return gather_config(direction, sizes, arch)
    if direction == "pairs":
        return pairs_config(sizes)
    return (forward_config if direction == "forward" else backward_config)(sizes, arch)


def _band(direction: str, sizes: Sizes, config: Config, deterministic: bool) -> tuple[Any, dict[str, Any]]:
    if direction == "forward":
        from .forward import forward_band

        return forward_band, sizes.padded() | config.forward_constants()
    from .backward import backward_band, backward_pairs

    if direction == "pairs":
        padded = {name: sizes.padded()[name] for name in ("H", "C", "HP", "CP")}
        return backward_pairs, padded | config.pairs_constants()
    return backward_band, sizes.padded() | config.backward_constants() | {"ATOMIC": not deterministic}


def _gather(direction: str, sizes: Sizes, config: Config, deterministic: bool) -> tuple[Any, dict[str, Any]]:
    from . import gather as kernels

    if direction == "backward":
        constants = sizes.padded() | config.gather_backward_constants()
        return kernels.backward_gather, constants | {"ATOMIC": not deterministic}
    constants = sizes.padded() | config.gather_constants()
    return kernels.forward_gather if direction == "forward" else kernels.backward_gather_keys, constants


def _argument_type(name: str, dtype: str, pair_dtype: str) -> str:
    if name in _BY_DTYPE:
        return _TYPES[dtype]
    if name in ("P", "DP", "G"):
        return _TYPES[pair_dtype]
    if name in _OTHER:
        return _OTHER[name]
    if name.isupper():
        return "*fp32"
    return "fp32" if name in ("scale", "eps") else "i32"


def inspect(
    kernel: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    *,
    arch: int,
    pairs: int,
    num_warps: int,
    num_stages: int,
    maxnreg: int | None = None,
) -> Inspection:
    """Compile ``kernel`` (a ``triton.jit`` function), whose tiles hold ``pairs`` pairs, for ``sm_<arch>`` and read it.

    ``signature`` gives every run-time argument's Triton type; pointers and the arguments named ``*:16`` are taken as
    divisible by 16, as the launcher would find them.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    at = {name: i for i, name in enumerate(kernel.arg_names)}
    types = {n: ("constexpr" if n in constants else signature[n].removesuffix(":16")) for n in kernel.arg_names}
    wide = [n for n in signature if signature[n].startswith("*") or signature[n].endswith(":16")]
    attrs = {(at[n],): [["tt.divisibility", 16]] for n in wide}
    source = ASTSource(kernel, types, {(at[n],): v for n, v in constants.items()}, attrs)
    options = {"num_warps": num_warps, "num_stages": num_stages} | ({"maxnreg": maxnreg} if maxnreg else {})
    built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return _read(kernel.__name__, built.asm["cubin"], built.metadata.shared, arch, num_warps, pairs)


def _read(name: str, cubin: bytes, shared: int, arch: int, num_warps: int, pairs: int) -> Inspection:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as f:
        f.write(cubin)
        f.flush()
        usage = _cuobjdump("-res-usage", f.name)
        sass = _cuobjdump("-sass", f.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump: expected a line with REG and STACK, got {usage[-300:]!r}")
    registers = int(found[1])
    code = parse(sass)
    return Inspection(
        name, arch, num_warps, pairs, registers, int(found[2]), shared,
        _ctas_per_sm(arch, registers, shared, num_warps), dict(Counter(i.op for i in code)), _loops(code),
    )  # fmt: skip


class Instruction(NamedTuple):
    at: int
    guarded: bool
    op: str
    rest: str

    @property
    def target(self) -> int | None:
        """Where a branch goes."""
        found = re.search(r"0x([0-9a-f]+)", self.rest) if self.op.startswith("BRA") else None
        return int(found[1], 16) if found else None


def parse(sass: str) -> list[Instruction]:
    return [Instruction(int(at, 16), bool(guard), op, rest) for at, guard, op, rest in _INSTRUCTION.findall(sass)]


def _loops(code: list[Instruction]) -> tuple[dict[str, int], ...]:
    """Innermost loops of some length, each as its shortest way from the target of the backward branch to the branch."""
    spans = [(i.target, i.at) for i in code if i.target is not None and i.at - i.target > _SHORT_LOOP_BYTES]
    inner = [s for s in spans if not any(s != t and s[0] <= t[0] and t[1] <= s[1] for t in spans)]
    return tuple(_shortest_way(code, first, last) for first, last in inner)


def _shortest_way(code: list[Instruction], first: int, last: int) -> dict[str, int]:
    """Mnemonics on the way from address ``first`` to ``last`` that executes the fewest instructions.

    A guarded branch may be taken or not; parts of a loop may lie behind its end.
    """
    place = {instruction.at: n for n, instruction in enumerate(code)}
    start, end = place[first], place[last]
    came_from, reached = {start: -1}, [start]
    for n in reached:  # breadth first: grows as it goes
        if n == end:
            break
        here = code[n]
        follows = [] if here.op.startswith(("BRA", "EXIT")) and not here.guarded else [n + 1]
        if here.target is not None:
            follows.append(place[here.target])
        for m in follows:
            if m < len(code) and m not in came_from:
                came_from[m] = n
                reached.append(m)
    way, n = [], end
    while n >= 0:
        way.append(code[n].op)
        n = came_from[n]
    return dict(Counter(way))


def _ctas_per_sm(arch: int, registers: int, shared: int, num_warps: int) -> int:
    per_warp = -(-registers * 32 // 256) * 256
    by_shared = _SM_SHARED_BYTES.get(arch, _LEAST_SHARED_BYTES) // (shared + 1024)
    return min(_SM_REGISTERS // per_warp // num_warps, by_shared, _SM_WARPS // num_warps, 32)


def _cuobjdump(flag: str, path: str) -> str:
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    return subprocess.run([tool, flag, path], capture_output=True, text=True, check=True).stdout
