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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
_SM_REGISTERS, _SM_WARPS = 65536, 64
_SM_SHARED_BYTES = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}


@dataclass(frozen=True)
class Inspection:
    """What the compiler made of one kernel. ``loops`` counts each innermost loop's instructions by mnemonic."""

    kernel: str
    arch: int
    num_warps: int
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
        return sum(n for op, n in self.instructions.items() if op.startswith(("LDG", "LDGSTS")) and "128" in op)

    @property
    def narrow_loads(self) -> int:
        return sum(n for op, n in self.instructions.items() if op.startswith("LDG") and "128" not in op)

    def per_pair(self, pairs: int) -> float:
        """Warp instructions per pair of the interior loop, whose tile holds ``pairs`` pairs.

        The interior loop is the shortest of the long ones: edge tiles do the same work and masks on top.
        """
        sizes = [sum(loop.values()) for loop in self.loops]
        long = [s for s in sizes if s > max(sizes) / 3]
        return min(long) * self.num_warps / pairs


def inspect(
    kernel: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    *,
    arch: int,
    num_warps: int,
    num_stages: int,
    maxnreg: int | None = None,
) -> Inspection:
    """Compile ``kernel`` (a ``triton.jit`` function) for ``sm_<arch>`` and read the result.

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
    return _read(kernel.__name__, built.asm["cubin"], built.metadata.shared, arch, num_warps)


def _read(name: str, cubin: bytes, shared: int, arch: int, num_warps: int) -> Inspection:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as f:
        f.write(cubin)
        f.flush()
        usage = _cuobjdump("-res-usage", f.name)
        sass = _cuobjdump("-sass", f.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump: expected a line with REG and STACK, got {usage[-300:]!r}")
    registers = int(found[1])
    code = [(int(a, 16), op, rest) for a, op, rest in _INSTRUCTION.findall(sass)]
    return Inspection(
        name, arch, num_warps, registers, int(found[2]), shared, _ctas_per_sm(arch, registers, shared, num_warps),
        dict(Counter(op for _, op, _ in code)), _loops(code),
    )  # fmt: skip


def _loops(code: list[tuple[int, str, str]]) -> tuple[dict[str, int], ...]:
    """Innermost loops of some length: from the target of a backward branch to the branch."""
    spans = []
    for at, op, rest in code:
        target = re.search(r"0x([0-9a-f]+)", rest) if op.startswith("BRA") else None
        if target and 0x400 < at - int(target[1], 16):
            spans.append((int(target[1], 16), at))
    inner = [s for s in spans if not any(s != t and s[0] <= t[0] and t[1] <= s[1] for t in spans)]
    return tuple(dict(Counter(op for at, op, _ in code if lo <= at <= hi)) for lo, hi in inner)


def _ctas_per_sm(arch: int, registers: int, shared: int, num_warps: int) -> int:
    per_warp = -(-registers * 32 // 256) * 256
    by_shared = _SM_SHARED_BYTES[arch] // (shared + 1024)
    return min(_SM_REGISTERS // per_warp // num_warps, by_shared, _SM_WARPS // num_warps, 32)


def _cuobjdump(flag: str, path: str) -> str:
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    return subprocess.run([tool, flag, path], capture_output=True, text=True, check=True).stdout
