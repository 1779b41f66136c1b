"""The tables of the answer: which backend to use where, and what will fit."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from benchmarks.harness.schema.axes import of_role
from reports import words
from reports.find.analyse import BASELINE, Contest, median_ms
from reports.find.curves import Capacity
from reports.find.regions import Region
from reports.find.rivals import Rival, largest_shared, missing_rival, strongest
from reports.read.load import Cell, Setting
from reports.read.measured import HOST_BOUND, HOST_BOUND_MEANS, has_two_times, wall_ms
from reports.tables.table import Column, Table, Td, missing, num, tabulate, unrecorded, whole
from reports.words import DASH


def answer(anchor: str, regions: Sequence[Region], labels: dict[Setting, str], contests: Sequence[Contest]) -> Table:
    """``contests``: all of the place, so that a row can say which strong rival is missing from it."""
    two = any(has_two_times(r.shown.winner.record) for r in regions)
    overall = {b: strongest([c for c in contests if c.ranked and c.winner.record.backend == b], b)
               for b in {r.use for r in regions}}  # fmt: skip
    columns = [
        Column("where", lambda r: _where(labels[r.setting], f"{r.sizes}; {r.family.label}")),
        Column("use", _use),
        Column("device time" if two else "time", _time, True, "median at the largest size of the row"),
        *([Column("wall time", lambda r: wall(r.shown.winner), True, HOST_BOUND_MEANS)] if two else []),
        Column("against the strongest rival", lambda r: _rival(r, overall[r.use]), True,
               "the one that comes nearest over the sizes that both ran; the ratio is that of the largest of them"),
        Column(f"against {BASELINE}", _baseline, True, "a yardstick: what the layer itself does"),
        Column("% of limit", _limit, True, "floor time of the operation / measured time"),
        Column("how sure", _sure),
    ]  # fmt: skip
    return tabulate(anchor, "Which backend to use where", columns, regions, cards=True)


def _where(label: str, detail: str) -> Td:
    return Td(label, label, detail=detail)


def most_informative(regions: Sequence[Region], rows: int = 5) -> list[Region]:
    """The regions that say most, in their order: of each level the one of most problems, forward first, then the next
    mode of each level, until there are ``rows``."""
    by_kind: dict[tuple[str, str], Region] = {}
    for r in sorted(regions, key=lambda r: -len(r.contests)):
        by_kind.setdefault((r.setting.level, r.setting.mode), r)
    seen: Counter[str] = Counter()
    turns = []
    for level, _ in (kinds := sorted(by_kind, key=lambda k: by_kind[k].setting.order)):
        turns.append(seen[level])
        seen[level] += 1
    chosen = [by_kind[k] for _, k in sorted(zip(turns, kinds, strict=True), key=lambda turn: turn[0])][:rows]
    return [r for r in regions if r in chosen]


def _time(r: Region) -> Td:
    ms = median_ms(r.shown.winner)
    return Td(words.time(ms), ms, kind="num", detail=_at(r.shown, r), again=r.shown.winner.record.again)


def wall(cell: Cell) -> Td:
    """The wall time of a cell, and whether its host is what takes it."""
    value, timing = wall_ms(cell.record), cell.record.timing
    if value is None or timing is None:
        return unrecorded()
    return num(value, words.time, detail=HOST_BOUND if timing.host_bound else "")


def _at(contest: Contest, region: Region) -> str:
    """The sizes that stand for a region, where the region holds several."""
    varying = [a for a in of_role("size") if len({a.value(c.problem) for c in region.contests}) > 1]
    return "at " + ", ".join(f"{a.symbol} {a.value(contest.problem):,}" for a in varying) if varying else ""


def _use(r: Region) -> Td:
    tie = r.alternatives
    return Td(r.use, r.use, backend=r.use, detail=f"or {', '.join(tie)}: not told apart" if tie else "")


def _rival(r: Region, overall: Rival | None) -> Td:
    rival = r.rival
    if rival is None:
        return missing("no other backend was measured in the same group")
    than = {"same": "same as", "unresolved": "unresolved against"}.get(rival.verdict, f"{rival.verdict} than")
    parts = [f"{than} {rival.name}", _at(rival.contest, r)]
    if rival.wall is not None:
        parts.append(f"{words.times(rival.wall.ratio)} by wall time")
    parts.append(missing_rival(r.contests, rival, overall) or "")
    return Td(words.ratio(rival.ratio), rival.ratio.ratio, kind="num", detail="; ".join(p for p in parts if p))


def _baseline(r: Region) -> Td:
    if r.use == BASELINE:
        return missing(f"{BASELINE} itself is the fastest")
    shared = largest_shared(r.contests, r.use, BASELINE)
    if shared is None:
        return missing(f"{BASELINE} was not measured in the same group")
    contest, pair = shared
    ratio = pair.seen_from(r.use)
    return Td(words.ratio(ratio), ratio.ratio, kind="num", detail=_at(contest, r))


def _limit(r: Region) -> Td:
    limit = r.shown.winner.record.limit
    if limit is None:
        return missing("no ceiling was measured")
    percent = limit.percent
    return num(
        percent, lambda v: f"{words.two_digits(v)}%", "no ceiling was measured", detail=f"bound by {limit.bound}"
    )


def _sure(r: Region) -> Td:
    contested = [c for c in r.contests if len(c.ranked) > 1]
    if not contested:
        return missing("nothing to compare with")
    pair = r.rival.pair if r.rival else None
    half = pair.speedup.half_width if pair else None
    parts = []
    if half is not None:
        parts.append(f"±{words.percent(half)}")
    if pair is not None and pair.noise is not None:
        parts.append(f"noise ±{words.percent(pair.noise)}")
    tip = f"{pair.speedup.n} blocks, Holm-adjusted p {words.p_value(pair.p_adjusted)}" if pair else None
    word = f"{r.resolved} of {len(contested)} resolved"
    if len(contested) == 1:
        word = "resolved" if r.resolved else "unresolved"
    return Td(word, r.resolved / len(contested), tip, detail=", ".join(parts))


def capacity(anchor: str, capacities: Sequence[Capacity], labels: dict[Setting, str], names: Sequence[str]) -> Table:
    """A row a curve, a column a backend: the largest N that ran, and what ended it."""
    curves: dict[int, dict[str, Capacity]] = defaultdict(dict)
    for c in capacities:
        curves[id(c.curve)][c.backend] = c

    def where(by_backend: dict[str, Capacity]) -> Td:
        curve = next(iter(by_backend.values())).curve
        return _where(labels[curve.setting], f"{curve.family.label}, {curve.fixed_label}")

    def of(backend: str) -> Callable[[dict[str, Capacity]], Td]:
        return lambda by_backend: _largest_n(by_backend.get(backend))

    shown = [b for b in names if any(c.backend == b for c in capacities)]
    note = (
        "Largest N that ran, and below it the first that did not fit: “oom” was tried, “oom*” is what the memory model "
        "predicted and was not tried. “≈ … extrap.”: nothing failed; extrapolated, to where "
        "a power law through inputs and memory model at the measured sizes fills the device."
    )
    columns = [Column("where", where), *(Column(b, of(b), True) for b in shown)]
    return tabulate(anchor, "What will fit", columns, curves.values(), note, cards=True)


def _largest_n(c: Capacity | None) -> Td:
    if c is None:
        return missing("not measured here")
    if c.first_oom is not None:
        end = f"oom{'*' if c.predicted else ''} at {c.first_oom.record.problem.n_atom:,}"
    elif c.extrapolated_n is not None:
        end = f"≈ {words.short(c.extrapolated_n)} extrap."
    else:
        end = f"{c.stopped.status} at {c.stopped.record.problem.n_atom:,}" if c.stopped else ""
    if c.largest is None:
        ended = c.first_oom or c.stopped
        why = (ended.reason or ended.status) if ended else "nothing was measured"
        return Td(DASH, None, why, kind="na", detail=end)
    return num(c.largest.record.problem.n_atom, whole, tip=c.first_oom.reason if c.first_oom else None, detail=end)
