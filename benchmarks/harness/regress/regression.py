"""Which cells got slower, heavier or stopped working between two states of the code, and how sure that is.

Input are the records of :mod:`.versus`: rounds of process pairs, blocks of one sample a side within a round.

Time
----
Within round ``r`` blocks pair: ``d_i = log b_i - log a_i``, and ``m_r = median_i d_i`` is what this pair of processes
has to say. More blocks make ``m_r`` firmer but cannot remove what the pair owes to chance (addresses, hash seeds,
placement of threads: often 1 to 5%), which is the same in all of its blocks. So the *round* is the unit: rounds are
independent draws, and with ``R`` of them

    ratio = exp(mean m_r),    interval = exp(mean m_r ± t(97.5%, R - 1) · s / sqrt(R)),    s = std m_r

No smaller spread than ``LEAST_SPREAD`` is believed: three rounds may agree by luck. With fewer than three rounds there
is neither interval nor verdict.

The verdict is that of :func:`.statistics.verdict`: *slower* and *faster* need the whole interval beyond the
``margin``, which is to reject ``ratio <= 1 + margin`` or ``ratio >= 1 / (1 + margin)`` by a one-sided t-test on the
``m_r``. A cell's p-value is twice the smaller, and Holm's method takes it over all cells of the run, so that the chance
of even one false alarm in the whole table is at most ``alpha``, and lower where nothing changed at all, since then the
truth lies well inside the margin. *same*: the interval lies within the margin. Everything else is *unresolved*, and no
alarm. There is no noise floor beside the margin: what the same code shows from process to process is in ``s``.

Memory
------
Peaks come from the allocator's own accounts and hardly vary, so no distribution is assumed: *heavier* when the least
peak of B over its processes exceeds the greatest of A by more than the margin and ``LEAST_BYTES``; *lighter* likewise;
*same* when no peak of either leaves the margin; else *unresolved*.

Outcome
-------
*broken*: A ran, B did not: a red gate, out of memory, a crash or a timeout, in every process that tried (two, where
time allowed). *fixed* is the reverse. A backend that either side lacks, or declares unsupported, or that runs on
neither, is *n/a* with its reason. Broken, slower and heavier are regressions. Free of torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..ruler.statistics import holm, student, verdict
from ..schema.problem import Problem
from ..schema.record import Record

Speed = Literal["slower", "faster", "same", "unresolved", "n/a"]
Weight = Literal["heavier", "lighter", "same", "unresolved", "n/a"]
Outcome = Literal["ran", "broken", "fixed", "n/a"]

MARGIN = 0.05
ALPHA = 0.05
LEAST_ROUNDS = 3
LEAST_SPREAD = 0.005
LEAST_BYTES = 1 << 16
MARK = "regress"  # in a record's environment: which side, which round


@dataclass(frozen=True)
class Change:
    """Time of B over time of A. ``spread``: of one pair of processes about the others, relative (1 sd)."""

    ratio: float
    low: float | None
    high: float | None
    p_value: float | None
    spread: float | None
    rounds: int
    blocks: int
    a_ms: float
    b_ms: float


@dataclass(frozen=True)
class Finding:
    """What became of one cell."""

    backend: str
    problem: Problem
    outcome: Outcome
    reason: str | None
    change: Change | None
    p_adjusted: float | None
    speed: Speed
    a_bytes: int | None
    b_bytes: int | None
    weight: Weight

    @property
    def regressed(self) -> tuple[str, ...]:
        """How it got worse; empty if it did not, or not for certain."""
        worse = (self.outcome == "broken", self.speed == "slower", self.weight == "heavier")
        return tuple(word for word, holds in zip(("broken", "slower", "heavier"), worse) if holds)


def change(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], *, margin: float = MARGIN) -> Change:
    """The ratio b over a from samples (ms) by round and block; ``a[r][i]`` pairs with ``b[r][i]``."""
    if len(a) != len(b) or not a or any(len(x) != len(y) or not len(x) for x, y in zip(a, b)):
        raise ValueError(f"a, b: expected as many rounds and blocks, got {[*map(len, a)]} and {[*map(len, b)]}")
    if margin <= 0:
        raise ValueError(f"margin: expected a relative difference above 0, got {margin}")
    m = np.array([np.median(np.log(y) - np.log(x)) for x, y in zip(a, b)])
    centre, n = float(m.mean()), m.size
    a_ms, b_ms = (float(np.median([np.median(round_) for round_ in side])) for side in (a, b))
    blocks = sum(map(len, a))
    if n < LEAST_ROUNDS:
        return Change(math.exp(centre), None, None, None, None, n, blocks, a_ms, b_ms)
    low, high, p = student(m, edge=margin, least_spread=LEAST_SPREAD)
    spread = math.expm1(float(m.std(ddof=1)))
    return Change(math.exp(centre), math.exp(low), math.exp(high), p, spread, n, blocks, a_ms, b_ms)


def speed_of(found: Change | None, p_adjusted: float | None, *, margin: float, alpha: float = ALPHA) -> Speed:
    """The verdict on a cell's time, its p-value adjusted for the family of cells."""
    if found is None:
        return "n/a"
    return verdict(found, margin=margin, p_adjusted=p_adjusted, alpha=alpha)


def weight_of(a: Sequence[int], b: Sequence[int], *, margin: float) -> Weight:
    """The verdict on peak bytes, a number for each process."""
    if not a or not b:
        return "n/a"

    def exceeds(x: int, y: int) -> bool:
        return x > y * (1 + margin) and x - y > LEAST_BYTES

    if exceeds(min(b), max(a)):
        return "heavier"
    if exceeds(min(a), max(b)):
        return "lighter"
    return "unresolved" if exceeds(max(b), min(a)) or exceeds(max(a), min(b)) else "same"


def outcome_of(a: Sequence[Record], b: Sequence[Record]) -> tuple[Outcome, str | None]:
    """Whether the cell ran on each side, over all processes that tried; and the reason if not."""
    if not a or not b:
        return "n/a", "the budget ended before it was measured"
    a_ran, b_ran = ([r.status == "ok" for r in side] for side in (a, b))
    if all(a_ran) and all(b_ran):
        return "ran", None
    for side, records in (("A", a), ("B", b)):
        for record in records:
            if record.status == "unsupported":
                return "n/a", f"not supported at {side}: {record.reason}"
    told = "; ".join(_told(side, records) for side, records in (("A", a), ("B", b)) if _failed(records))
    if all(a_ran) and not any(b_ran):
        return "broken", told
    if not any(a_ran) and all(b_ran):
        return "fixed", told
    return ("ran" if any(a_ran) and any(b_ran) else "n/a"), told


def _failed(records: Sequence[Record]) -> list[Record]:
    return [r for r in records if r.status != "ok"]


def _told(side: str, records: Sequence[Record]) -> str:
    failed = _failed(records)
    return f"{failed[0].status} at {side} in {len(failed)} of {len(records)} processes: {failed[0].reason}"


def judge(
    records: Sequence[Record], cells: Sequence[tuple[str, Problem]] = (), *, margin: float = MARGIN
) -> list[Finding]:
    """One finding per cell: of those that were planned, in their order, and of all that have records."""
    found: dict[str, tuple[str, Problem, dict[str, list[Record]]]] = {}
    for backend, problem in (*cells, *((r.backend, r.problem) for r in records)):
        found.setdefault(f"{backend}@{problem.key}", (backend, problem, {"a": [], "b": []}))
    for record in records:
        found[record.key][2][_side(record)].append(record)
    changes = {key: _change(sides, margin) for key, (_, _, sides) in found.items()}
    tested = [key for key, one in changes.items() if one is not None and one.p_value is not None]
    adjusted = dict(zip(tested, holm([_p(changes[key]) for key in tested])))
    return [
        _finding(backend, problem, sides, changes[key], adjusted.get(key), margin)
        for key, (backend, problem, sides) in found.items()
    ]


def _p(found: Change | None) -> float:
    assert found is not None
    assert found.p_value is not None
    return found.p_value


def _finding(
    backend: str,
    problem: Problem,
    sides: dict[str, list[Record]],
    found: Change | None,
    p_adjusted: float | None,
    margin: float,
) -> Finding:
    outcome, reason = outcome_of(sides["a"], sides["b"])
    peaks = {side: [r.memory.peak_bytes for r in rs if r.memory and r.memory.peak_bytes] for side, rs in sides.items()}
    a_bytes, b_bytes = (int(np.median(peaks[side])) if peaks[side] else None for side in ("a", "b"))
    return Finding(
        backend=backend,
        problem=problem,
        outcome=outcome,
        reason=reason,
        change=found,
        p_adjusted=p_adjusted,
        speed=speed_of(found, p_adjusted, margin=margin),
        a_bytes=a_bytes,
        b_bytes=b_bytes,
        weight=weight_of(peaks["a"], peaks["b"], margin=margin),
    )


def _side(record: Record) -> str:
    mark = record.provenance.environment.get(MARK)
    side = mark.get("side") if isinstance(mark, dict) else None
    if side not in ("a", "b"):
        raise ValueError(f"records: expected those of regress, {record.backend} in group {record.group} bears no side")
    return side


def _change(sides: dict[str, list[Record]], margin: float) -> Change | None:
    """From the rounds in which both sides were timed."""
    groups = {r.group: r.timing.samples_ms for r in sides["a"] if r.timing is not None}
    pairs = [(groups[r.group], r.timing.samples_ms) for r in sides["b"] if r.timing is not None and r.group in groups]
    if not pairs:
        return None
    return change([a for a, _ in pairs], [b for _, b in pairs], margin=margin)
