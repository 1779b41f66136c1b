"""Find, for every number in asv's results, the one record of the harness that it was taken from.

``python -m benchmarks.asv.trace [RESULTS]`` says of how many numbers that is so, and exits with 1 if one has no record.

A number belongs to a commit, an environment, a cell and a metric. Its record lies in the file of that commit and
environment, is of that cell, and is the last one written before asv looked the number up; the number computed from it
again must be the one that asv holds.
"""

from __future__ import annotations

import ast
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from pathlib import Path

from ..harness.schema import cells, kernels, record
from ..harness.schema.kernels import KernelRecord
from ..harness.schema.record import Record
from . import grid as asv_grid
from .metrics import KERNEL_METRICS, METRICS, Value

_SAME = 1e-9  # relative; asv stores what it was given


@dataclass(frozen=True)
class Number:
    """One number of asv's; ``record`` is where it is from, ``why`` says why there is none."""

    file: Path
    benchmark: str
    cell: tuple
    value: float
    record: Record | KernelRecord | None
    why: str | None = None


def trace(results: Path) -> Iterator[Number]:
    """Every number in a folder of asv's results, with its record."""
    from asv.results import Results, iter_results_paths

    for folder, name, machine in iter_results_paths(str(results)):
        path = Path(folder, name)
        found = Results.load(str(path), machine_name=machine)
        measured = _Records(path)
        for benchmark in sorted(found.get_all_result_keys()):
            params = found.get_result_params(benchmark)
            values = found.get_result_value(benchmark, params)
            started_s = found.started_at[benchmark] / 1e3
            for cell, value in zip(product(*params), values):
                if value is not None and not math.isnan(value):
                    yield measured.of(path, benchmark, tuple(map(ast.literal_eval, cell)), value, started_s)


class _Records:
    """The records beside one file of asv's."""

    def __init__(self, path: Path) -> None:
        beside = path.parent / "records" / path.stem
        files = beside.with_name(beside.name + ".jsonl"), beside.with_name(beside.name + ".kernels.jsonl")
        self._cells: dict[tuple, list[Record | KernelRecord]] = {}
        one: Record | KernelRecord
        for one in record.read(files[0]) if files[0].exists() else ():
            self._cells.setdefault((one.problem.level, cell_of(one)), []).append(one)
        for one in kernels.read(files[1]) if files[1].exists() else ():
            self._cells.setdefault((asv_grid.KERNELS, (one.kernel, one.arch, one.dtype)), []).append(one)

    def of(self, path: Path, benchmark: str, cell: tuple, value: float, started_s: float) -> Number:
        _, suite, track = benchmark.split(".")
        level, name = suite.lower(), track.removeprefix("track_")
        found = [one for one in self._cells.get((level, cells.brief(cell)), ()) if _written_s(one) <= started_s]
        if not found:
            return Number(path, benchmark, cell, value, None, "no record of this cell was written before it")
        metric = (KERNEL_METRICS if level == asv_grid.KERNELS else METRICS)[name]
        there = shown(metric.of(found[-1]))
        if there is None or not math.isclose(there, value, rel_tol=_SAME):
            return Number(path, benchmark, cell, value, None, f"its record says {there}")
        return Number(path, benchmark, cell, value, found[-1])


def cell_of(one: Record) -> tuple:
    """A record's cell in asv's grid."""
    return cells.cell_of(one.backend, one.problem.model_dump())


def shown(value: Value) -> float | None:
    """The number that asv makes of what a benchmark hands over: the median of samples, else the value itself."""
    if not isinstance(value, dict):
        return value
    from asv_runner.statistics import compute_stats

    return compute_stats(value["samples"], value["number"])[0]


def _written_s(one: Record | KernelRecord) -> float:
    return datetime.fromisoformat(one.provenance.utc).timestamp()


def main(arguments: list[str]) -> int:
    results = Path(arguments[0]) if arguments else asv_grid.ROOT / "results"
    if not results.is_dir():
        print(f"error: RESULTS: expected asv's folder of results, {results} is none", file=sys.stderr)
        return 2
    try:
        return _report(list(trace(results)), results)
    except record.MalformedRecord as e:
        print(f"error: {e}", file=sys.stderr)
        return 2


def _report(numbers: list[Number], results: Path) -> int:
    lost = [n for n in numbers if n.record is None]
    for n in lost:
        print(f"{n.file.relative_to(results)}: {n.benchmark}{n.cell} = {n.value}: {n.why}")
    files = {n.file for n in numbers}
    print(f"{len(numbers) - len(lost)} of {len(numbers)} numbers in {len(files)} files have their record.")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
