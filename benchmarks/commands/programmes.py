"""What ``bench`` and ``gpu`` measure, in an order such that whatever time there is, what is done tells most.

A backend that compiles for every shape costs half a minute per problem: it takes part where it is compared, and is left
out of the *lean* steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from ..harness.cases import registry
from ..harness.cases.problems import Axes, Group, grid
from ..harness.sweep import sweep as harness
from ..harness.worker.options import Options

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Stage:
    """Groups that are only gated, or measured, one after another; or of which the best and the worst backend so far
    are profiled."""

    kind: Literal["gate", "sweep", "profile"]
    groups: list[Group]


@dataclass(frozen=True)
class Programme:
    """What to do, in this order."""

    stages: list[Stage]
    options: Options

    def groups(self, kind: str) -> list[Group]:
        """All groups of the stages of one kind."""
        return [group for stage in self.stages if stage.kind == kind for group in stage.groups]


def bench_programme(device: Device, compiling: frozenset[str] = frozenset()) -> Programme:
    """Two cores, four minutes: small ones first, one size with every backend, then gradients, windows and a cap."""
    every = registry.expand(["all"])
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
    stages = [Stage("gate", harness.plan(gate, lean, keep_order=True)), Stage("sweep", in_order(steps))]
    return Programme(stages, Options(budget_s=5.0))


def in_order(steps: Iterable[tuple[Iterable[Axes], tuple[str, ...]]]) -> list[Group]:
    """The groups of all steps, none twice: the first step that asks for a problem names its backends."""
    groups: dict[str, Group] = {}
    for axes, backends in steps:
        for group in harness.plan(axes, backends, keep_order=True):
            groups.setdefault(group.problem.key, group)
    return list(groups.values())


def gpu_programme(device: Device, compiling: frozenset[str] = frozenset()) -> Programme:
    """bf16 first: the size that tells most and its profiles, real proteins, N, the levels, W; then other dtypes, K, …

    Every cell is gated by itself; the gate over modes and dtypes of a small protein waits for what tells more.

    What compiles for every shape takes part where it is compared with the others block by block (the pivot and four
    times its size), and comes by itself, late, elsewhere: a compilation costs as much as two problems of all others.
    """
    on_gpu = device == "cuda"
    every = registry.expand(["all"])
    lean = tuple(spec for spec in every if spec not in compiling)
    late = tuple(spec for spec in every if spec in compiling)
    broad = every if on_gpu else lean  # where there is no GPU, this only tries the path
    grids = _gpu_grids(device)
    first = in_order([([axes], broad if axes in grids.paired else lean) for axes in grids.first])
    profiled = harness.plan(grids.profile, every, keep_order=True)
    pivots = {group.problem.key for group in profiled}
    stages = [
        Stage("sweep", [group for group in first if group.problem.key in pivots]),
        Stage("profile", profiled),
        Stage("sweep", [group for group in first if group.problem.key not in pivots]),
        Stage("gate", harness.plan(grids.gate, lean, keep_order=True)),
        Stage("sweep", in_order([(grids.second, lean)])),
    ]
    if late and on_gpu:
        alone = [axes for axes in grids.alone if axes not in grids.paired]
        stages += [
            Stage("gate", harness.plan(grids.gate, late, keep_order=True)),
            Stage("sweep", in_order([(alone, late)])),
        ]
    stages.append(Stage("sweep", in_order([(grids.last, lean)])))
    return Programme(stages, Options(budget_s=2.0, gate_pairs=1 << 23 if on_gpu else 1 << 17))


@dataclass(frozen=True)
class _Grids:
    """Problems by when they come; ``paired`` with every backend, ``alone`` with those that compile."""

    gate: list[Axes]
    first: list[Axes]
    second: list[Axes]
    last: list[Axes]
    paired: list[Axes]
    alone: list[Axes]
    profile: list[Axes]


def _gpu_grids(device: Device) -> _Grids:
    """The axes of issue and design: N 1k to 1M, W 16 to 128, K by atom set and cap, levels, dtypes, proteins."""
    on_gpu = device == "cuda"
    pivot, large, near, far = (
        (16384, 65536, (4096, 1024), (262144, 1_000_000)) if on_gpu else (128, 192, (256,), (512,))
    )
    proteins = ("ubiquitin", "gfp", "1bd2", "4jsv", "1aon") if on_gpu else ("ubiquitin",)
    both, others, windows = ("fwd", "fwdbwd"), ("float32", "float16"), (16, 64, 128)
    base = Axes(device=device, dtype="bfloat16", n_atom=pivot)
    protein = replace(base, atoms="heavy", n_atom=None)
    elsewhere = (large, *near, *far)
    paired = [*grid(base, mode=both), *grid(base, mode=both, n_atom=(large,))]
    gated = replace(protein, workload="ubiquitin") if on_gpu else base
    return _Grids(
        gate=list(grid(replace(gated, mode="fwdbwd"), dtype=("bfloat16", *others), level=("attention", "block"))),
        first=[
            *grid(base, mode=both),
            *grid(protein, workload=proteins),
            *grid(base, mode=both, n_atom=(large, *near)),
            *grid(base, level=("block", "stack", "encoder", "decoder"), mode=both),
            *grid(base, window=windows),
            *grid(base, mode=both, n_atom=far),
            replace(base, level="block", n_atom=far[-1]),
            *grid(base, dtype=others, mode=both),
            *grid(base, k_cap=(64, 128, 256)),
            *grid(base, atoms=("backbone", "heavy")),
        ],
        second=[
            *grid(protein, workload=proteins, mode=("fwdbwd",)),
            *grid(base, mode=("fwdbwd",), window=windows),
            *grid(base, window_style=("blocks",), mode=both),
            replace(base, level="block", mode="fwdbwd", n_atom=far[-1]),
        ],
        last=[
            *grid(base, dtype=others, n_atom=elsewhere),
            *grid(base, window=windows, n_atom=elsewhere),
            *grid(base, level=("block", "stack", "encoder"), mode=both, n_atom=(large, *near)),
            *grid(base, dtype=others, mode=("fwdbwd",), n_atom=elsewhere),
            *grid(base, window=windows, mode=("fwdbwd",), n_atom=elsewhere),
        ],
        paired=paired,
        alone=[
            *grid(base, level=("block",), mode=both), *grid(base, window=windows), *grid(base, n_atom=near),
            *grid(base, mode=("fwdbwd",), n_atom=near), *grid(protein, workload=proteins[-1:]),
        ],
        profile=list(grid(base, mode=both)),
    )  # fmt: skip
