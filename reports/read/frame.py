"""The table of all records, a row each, for other programs."""

from __future__ import annotations

import pandas as pd

from reports.read.load import Cell, Collection
from reports.read.measured import graph_ms, has_two_times, hot_ms, wall_ms, worst_error, worst_slope


def to_frame(collection: Collection) -> pd.DataFrame:
    """One row a record, scalar columns only, missing as NA; superseded records are kept and flagged."""
    frame = pd.DataFrame([_row(c) for c in collection.cells])
    return frame.convert_dtypes()


def _row(cell: Cell) -> dict[str, object]:
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
