"""What no backend can have done: a record that says so is shown, with its reason, and recommended nowhere."""

from __future__ import annotations

from benchmarks.harness import levels
from benchmarks.harness.cases.limits import beyond
from benchmarks.harness.schema.problem import Problem
from benchmarks.harness.schema.record import Limit, Record, Timing
from reports import words

SHORTEST_MS = 1e-6  # a nanosecond


def impossible(record: Record) -> str | None:
    """Why the speed of ``record`` cannot be true: less than a clock can tell, faster than the operation's floor by
    more than the ceiling's own spread, or less memory allocated than its output fills. None where nothing speaks
    against it."""
    timing, limit, memory = record.timing, record.limit, record.memory
    if timing is None:
        return None
    if timing.median_ms < SHORTEST_MS or min(timing.samples_ms) < SHORTEST_MS:
        return f"impossible: a call of {min(timing.median_ms, *timing.samples_ms):g} ms, less than a clock can tell"
    if limit is not None and (limit.definition > 1 or record.problem.n_blocks == 1):  # 1 counted p once a block
        why = beyond(_as_measured(limit, timing))
        if why is not None:
            return why
    if memory is not None and memory.peak_bytes is not None and memory.peak_bytes < _output_bytes(record.problem):
        held = words.size(memory.peak_bytes)
        return f"impossible: a peak of {held} above the inputs, less than the output of one call fills"
    return None


def _as_measured(limit: Limit, timing: Timing) -> Limit:
    """With the share that floor and time give, where the record states a smaller one."""
    computed = 100 * limit.floor_ms / max(timing.median_ms, 1e-12)
    return limit.model_copy(update={"percent": max(limit.percent or 0.0, computed)})


def _output_bytes(p: Problem) -> int:
    """The least that one call must allocate: what it returns; nothing is known of a level that is no longer here."""
    return sum(o.bytes(p) for o in levels.level_of(p.level).outputs) if p.level in levels.names() else 1
