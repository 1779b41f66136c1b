"""The numbers as files for other programs: CSV, and Parquet where pyarrow is installed."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from reports.find.analyse import Pair
from reports.find.history import History, Step
from reports.read.load import Cell, Collection
from reports.read.measured import graph_ms, has_two_times, hot_ms, wall_ms, worst_error, worst_slope

FORMULA = ("=", "+", "-", "@")  # a spreadsheet runs a cell that begins so
STEP_COLUMNS = ("machine", "device", "env", "level", "problem", "backend", "metric", "unit", "last_before",
                "first_after", "before", "after", "ratio", "commits_before", "commits_after")  # fmt: skip


def write(collection: Collection, pairs: Iterable[Pair], folder: Path) -> None:
    """cells.csv and cells.parquet (a row a record, superseded ones flagged) and pairs.csv (a row a pair)."""
    cells = pd.DataFrame([_cell(c) for c in collection.cells]).convert_dtypes()
    _csv(cells, folder / "cells.csv")
    _csv(pd.DataFrame([_pair(p) for p in pairs]), folder / "pairs.csv")
    _parquet(cells, folder / "cells.parquet")


def write_history(h: History, folder: Path) -> None:
    """history.csv (without samples), steps.csv and history.parquet (samples as lists)."""
    frame = h.results.frame.drop(columns="cell")
    _csv(frame.drop(columns="samples"), folder / "history.csv")
    _csv(pd.DataFrame([_step(s) for s in h.steps], columns=list(STEP_COLUMNS)), folder / "steps.csv")
    for p in h.results.parameters:
        held = [v for v in frame[p] if v is not None and v == v]
        if len({isinstance(v, str) for v in held}) > 1:  # a column of Parquet has one type
            frame[p] = [str(v) if v is not None and v == v else None for v in frame[p]]
    _parquet(frame.convert_dtypes(), folder / "history.parquet")


def _csv(frame: pd.DataFrame, path: Path) -> None:
    """Text that a spreadsheet would run as a formula gets an apostrophe before it; numbers stay numbers."""

    def inert(value: object) -> object:
        return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value

    texts = frame.select_dtypes(exclude=["number", "bool"]).columns
    frame.assign(**{name: frame[name].map(inert) for name in texts}).rename(columns=inert).to_csv(path, index=False)


def _parquet(frame: pd.DataFrame, path: Path) -> None:
    if find_spec("pyarrow"):
        frame.to_parquet(path, index=False)


def _cell(cell: Cell) -> dict[str, object]:
    r = cell.record
    t, m, lim, g, origin = r.timing, r.memory, r.limit, r.gate, r.provenance
    row: dict[str, object] = {"machine": cell.place.machine, "hardware": cell.place.hardware, "backend": r.backend}
    row |= r.problem.model_dump(mode="json")
    row |= {"status": cell.status, "reason": cell.reason, "path": r.path, "superseded": cell.superseded}
    row |= {
        "median_ms": t and t.median_ms, "device_ms": t.median_ms if t and has_two_times(r) else None,
        "wall_ms": wall_ms(r), "host_bound": t and t.host_bound, "hot_ms": hot_ms(r), "hot_reason": t and t.hot_reason,
        "graph_ms": graph_ms(r), "graph_reason": t and t.graph_reason,
        "ci_low_ms": t and t.ci_low_ms, "ci_high_ms": t and t.ci_high_ms,
        "half_width": t and t.half_width, "n_samples": t and len(t.samples_ms), "stop": t and t.stop,
        "cache": t and t.cache, "plan_ms": r.plan_ms, "first_call_ms": r.first_call_ms,
        "peak_bytes": m and m.peak_bytes, "model_bytes": m and m.model_bytes, "p_bytes": m and m.p_bytes,
        "input_bytes": m and m.input_bytes, "memory_source": m and m.source,
        "floor_ms": lim and lim.floor_ms, "percent_of_limit": lim and lim.percent, "bound": lim and lim.bound,
        "limit_definition": lim and lim.definition,
        "gate_passed": g and g.passed, "tolerance": g and g.tolerance, "worst_error": worst_error(r),
        "worst_slope": worst_slope(r), "rows_checked": g and g.rows_checked, "rows_total": g and g.rows_total,
        "negative_control": g and g.negative_control, "control": g and g.control,
        "trial_passed": g and g.trial and g.trial.passed, "calls_checked": t and t.calls_checked,
    }  # fmt: skip
    row |= {
        "commit": origin.commit, "dirty": origin.dirty, "utc": origin.utc, "code": origin.code, "run": r.run,
        "group": r.group, "source": cell.source, "again": r.again,
    }  # fmt: skip
    return row


def _pair(p: Pair) -> dict[str, object]:
    return {
        "machine": p.place.machine, "device": p.place.device, "hardware": p.place.hardware, "commit": p.place.commit,
        **p.problem.model_dump(mode="json"), "group": p.group, "faster": p.fast, "slower": p.slow,
        "ratio": p.speedup.ratio, "low": p.speedup.low, "high": p.speedup.high, "n_blocks": p.speedup.n,
        "method": p.speedup.method, "p_value": p.speedup.p_value, "p_holm": p.p_adjusted, "margin": p.margin,
        "noise": p.noise, "verdict": p.verdict,
    }  # fmt: skip


def _step(s: Step) -> tuple[object, ...]:
    series, host = s.series, s.series.host
    return (host.machine, host.device, host.env, series.problem.level, series.problem.sizes, series.backend,
            series.metric, series.unit, s.last.hash, s.first.hash, s.before, s.after, s.ratio, s.n_before,
            s.n_after)  # fmt: skip
