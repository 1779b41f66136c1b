"""The memory of a cell is predicted before it is built: its inputs exactly, its peak within a margin."""

from __future__ import annotations

import pytest

from benchmarks.harness.cases import footprint, problems, registry
from benchmarks.harness.cases.case import Case
from benchmarks.harness.levels import level_of

SCRATCH_BYTES = 2 << 20  # a tile's working set does not grow with the problem, and no model counts it
LEVELS = ("attention", "block", "stack", "encoder", "decoder")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mode", ["fwd", "fwdbwd"])
def test_inputs_are_counted_before_they_are_built(level: str, mode: str) -> None:
    from benchmarks.harness.cases import inputs

    problem, source = problems.resolve(
        problems.Axes(level=level, mode=mode, workload="ubiquitin", atoms="heavy", window=8)
    )
    built = inputs.build(problem, source)
    tensors = [*built.tensors.values(), *built.fixed.values(), *built.cotangents.values()]
    held = sum(t.numel() * t.element_size() for t in tensors)
    assert level_of(level).input_bytes(problem) == held


def measured_and_predicted(axes: problems.Axes, backend: str) -> tuple[int, int]:
    from benchmarks.harness.cases import inputs
    from benchmarks.harness.ruler.memory import peak_memory

    problem, source = problems.resolve(axes)
    built = inputs.build(problem, source)
    case = Case(built, registry.converted(backend, built.module))
    case()
    case.release()
    return peak_memory(case, "cpu")[0], level_of(problem.level).peak_bytes(
        problem, registry.seam_peak_bytes(backend, problem)
    )


@pytest.mark.parametrize("level", ["encoder", "decoder"])
@pytest.mark.parametrize("mode", ["fwd", "fwdbwd"])
def test_of_all_residue_pairs_only_z_and_its_gradient_are_counted(level: str, mode: str) -> None:
    """z is 37 times p here: a forward makes nothing of its size, a backward one."""
    axes = problems.Axes(level=level, mode=mode, n_atom=2048, atoms="backbone", window=8)
    problem, _ = problems.resolve(axes)
    z_bytes = problem.n_res**2 * problem.c_pair * 4
    peak, predicted = measured_and_predicted(axes, "banded")
    assert peak <= predicted * footprint.MARGIN + SCRATCH_BYTES
    if mode == "fwd":
        assert predicted < 0.4 * z_bytes
    else:
        assert predicted < 1.3 * peak


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("backend", ["gather", "banded"])
def test_no_cell_takes_more_than_was_predicted(level: str, backend: str) -> None:
    for mode in ("fwd", "fwdbwd"):
        axes = problems.Axes(level=level, mode=mode, workload="gfp", atoms="backbone", window=16)
        peak, predicted = measured_and_predicted(axes, backend)
        assert peak <= predicted * footprint.MARGIN + SCRATCH_BYTES
        assert predicted < 6 * peak  # and it is no wild guess that would refuse what fits
