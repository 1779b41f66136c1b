"""What ``bench`` and ``gpu`` measure, in an order such that whatever time there is, what is done tells most.

A backend that compiles for every shape costs half a minute per problem: it takes part where it is compared, and is left
out of the *lean* steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from ..harness import arms
from ..harness import sweep as harness
from ..harness.cases import Axes, Group, grid
from ..harness.measure import Options

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Programme:
    """What to gate and what to sweep, in this order."""

    gate: list[Group]
    sweep: list[Group]
    options: Options


def bench_programme(device: Device, compiling: frozenset[str] = frozenset()) -> Programme:
    """Two cores, four minutes: small ones first, one size with every backend, then gradients, windows and a cap."""
    every = arms.expand(["all"])
    lean = tuple(spec for spec in every if spec not in compiling)
    base = Axes(device=device, n_atom=2048)
    protein = replace(base, atoms="heavy", n_atom=None, workload="ubiquitin")
    small = replace(base, n_atom=1024)
    steps: list[tuple[Iterable[Axes], tuple[str, ...]]] = [
        (grid(protein, workload=("ubiquitin", "gfp")), lean),
        (grid(base, n_atom=(512,)), lean),
        ([base], every),
        ([replace(base, mode="fwdbwd"), replace(base, level="block")], lean),
        (grid(small, window=(16, 64)), lean),
        ([replace(small, k_cap=64)], lean),
        (grid(base, n_atom=(1024, 4096, 256)), lean),
        (grid(protein, workload=("1a28", "1bd2")), lean),
        (
            [replace(protein, workload="gfp", mode="fwdbwd"), replace(protein, workload="gfp", level="encoder")],
            lean,
        ),
    ]
    gate = grid(replace(protein, mode="fwdbwd"), dtype=("float32", "bfloat16"))
    return Programme(
        gate=harness.plan(gate, lean, keep_order=True), sweep=in_order(steps), options=Options(budget_s=5.0)
    )


def in_order(steps: Iterable[tuple[Iterable[Axes], tuple[str, ...]]]) -> list[Group]:
    """The groups of all steps, none twice: the first step that asks for a problem names its backends."""
    groups: dict[str, Group] = {}
    for axes, backends in steps:
        for group in harness.plan(axes, backends, keep_order=True):
            groups.setdefault(group.problem.key, group)
    return list(groups.values())


def gpu_programme(device: Device, compiling: frozenset[str] = frozenset()) -> Programme:
    """bf16 at the size that tells most, then over N, above the seam and over W; then other dtypes and real proteins."""
    on_gpu = device == "cuda"
    every = arms.expand(["all"])
    lean = tuple(spec for spec in every if spec not in compiling)
    broad = every if on_gpu else lean  # where there is no GPU, this only tries the path
    pivot, near, far = (16384, (4096, 65536, 1024), (262144, 1_000_000)) if on_gpu else (256, (512,), (1024,))
    proteins = ("ubiquitin", "gfp", "1bd2", "4jsv", "1aon") if on_gpu else ("ubiquitin",)
    base = Axes(device=device, dtype="bfloat16", n_atom=pivot)
    protein = replace(base, atoms="heavy", n_atom=None)
    both = ("fwd", "fwdbwd")
    windows = (16, 64, 128)
    steps: list[tuple[Iterable[Axes], tuple[str, ...]]] = [
        (grid(base, mode=both), broad),
        (grid(base, mode=both, n_atom=near), broad),
        (grid(base, mode=both, n_atom=far), lean),
        (grid(base, level=("block",), mode=both), broad),
        ([replace(base, level="block", n_atom=far[-1])], lean),
        (grid(base, window=windows), broad),
        (grid(base, dtype=("float32", "float16"), mode=both), lean),
        (grid(base, level=("stack", "encoder"), mode=both), lean),
        (grid(protein, workload=proteins), lean),
        (grid(base, k_cap=(64, 128, 256)), lean),
        (grid(base, window_style=("blocks",), mode=both), lean),
        (grid(base, mode=("fwdbwd",), window=windows), lean),
        (grid(protein, workload=proteins, mode=("fwdbwd",)), lean),
        (grid(base, level=("block", "stack", "encoder"), mode=both, n_atom=near), lean),
        (grid(base, dtype=("float32", "float16"), mode=both, n_atom=(*near, *far)), lean),
        (grid(base, mode=both, window=windows, n_atom=(*near, *far)), lean),
    ]
    gates = grid(
        replace(protein, workload="ubiquitin", mode="fwdbwd"),
        dtype=("bfloat16", "float32", "float16"),
        level=("attention", "block"),
    )
    gated = list(gates)
    late = tuple(spec for spec in every if spec in compiling)  # a gate needs no pairs, so these may come last
    return Programme(
        gate=harness.plan(gated, lean, keep_order=True) + (harness.plan(gated, late, keep_order=True) if late else []),
        sweep=in_order(steps),
        options=Options(budget_s=3.0, gate_pairs=1 << 19 if on_gpu else 1 << 17),
    )
