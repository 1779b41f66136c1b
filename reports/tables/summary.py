"""The tables of the answer: which backend to use where, and what will fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from benchmarks.harness.schema.axes import of_role
from reports import words
from reports.find.analyse import BASELINE, Contest, median_ms
from reports.find.curves import Capacity
from reports.find.regions import Region, against_baseline
from reports.find.rivals import Rival, missing_rival, strongest
from reports.read.load import Cell, Setting
from reports.read.measured import HOST_BOUND, HOST_BOUND_MEANS, has_two_times, wall_ms
from reports.tables.table import Column, Table, Td, missing, unrecorded
from reports.words import DASH


def answer(anchor: str, found: Sequence[Region], labels: dict[Setting, str], contests: Sequence[Contest]) -> Table:
    """``contests``: all of the place, so that a row can say which strong rival is missing from it."""
    two = any(has_two_times(r.shown.winner.record) for r in found)
    largest = "median at the largest size of the row"
    spent = (Column("device time", True, largest), Column("wall time", True, HOST_BOUND_MEANS)) if two else (
        Column("time", True, largest),)  # fmt: skip
    columns = (
        Column("where"), Column("use"), *spent,
        Column("against the strongest rival", True, "the one that comes nearest over the sizes that both ran; "
               "the ratio is that of the largest of them"),
        Column(f"against {BASELINE}", True, "a yardstick: what the layer itself does"),
        Column("% of limit", True, "floor time of the operation / measured time"), Column("how sure"),
    )  # fmt: skip
    everywhere = {b: strongest([c for c in contests if c.ranked and c.winner.record.backend == b], b)
                  for b in {r.use for r in found}}  # fmt: skip
    rows = []
    for r in found:
        cell = r.shown.winner
        where = Td(labels[r.setting], labels[r.setting], detail=f"{r.sizes}; {r.family.label}")
        spent = [_time(cell, _at(r.shown, r)), *([wall(cell)] if two else [])]
        rows.append([where, _use(r), *spent, _rival(r, everywhere[r.use]), _baseline(r), _limit(cell), _sure(r)])
    return Table(anchor, "Which backend to use where", columns, rows, cards=True)


def telling(found: Sequence[Region], rows: int = 5) -> list[Region]:
    """The regions that tell most, in their order: of each level the one of most problems, forward first, then the next
    mode of each level, until there are ``rows``."""
    by_kind: dict[tuple[str, str], Region] = {}
    for r in sorted(found, key=lambda r: -len(r.contests)):
        by_kind.setdefault((r.setting.level, r.setting.mode), r)
    seen: Counter[str] = Counter()
    turns = []
    for level, _ in (kinds := sorted(by_kind, key=lambda k: by_kind[k].setting.order)):
        turns.append(seen[level])
        seen[level] += 1
    chosen = [by_kind[k] for _, k in sorted(zip(turns, kinds, strict=True), key=lambda turn: turn[0])][:rows]
    return [r for r in found if r in chosen]


def _time(cell: Cell, where: str) -> Td:
    return Td(words.time(median_ms(cell)), median_ms(cell), kind="num", detail=where, again=cell.record.again)


def wall(cell: Cell) -> Td:
    """The wall time of a cell, and whether its host is what takes it."""
    value, timing = wall_ms(cell.record), cell.record.timing
    if value is None or timing is None:
        return unrecorded()
    return Td(words.time(value), value, kind="num", detail=HOST_BOUND if timing.host_bound else "")


def _at(contest: Contest, region: Region) -> str:
    """The sizes that stand for a region, where the region holds several."""
    varying = [a for a in of_role("size") if len({a.value(c.problem) for c in region.contests}) > 1]
    return "at " + ", ".join(f"{a.symbol} {a.value(contest.problem):,}" for a in varying) if varying else ""


def _use(r: Region) -> Td:
    tie = r.alternatives
    return Td(r.use, r.use, backend=r.use, detail=f"or {', '.join(tie)}: not told apart" if tie else "")


def _rival(r: Region, everywhere: Rival | None) -> Td:
    rival = r.rival
    if rival is None:
        return missing("no other backend was measured in the same group")
    than = {"same": "same as", "unresolved": "unresolved against"}.get(rival.verdict, f"{rival.verdict} than")
    parts = [f"{than} {rival.name}", _at(rival.contest, r)]
    if rival.wall is not None:
        parts.append(f"{words.times(rival.wall.ratio)} by wall time")
    parts.append(missing_rival(r.contests, rival, everywhere) or "")
    return Td(words.ratio(rival.ratio), rival.ratio.ratio, kind="num", detail="; ".join(p for p in parts if p))


def _baseline(r: Region) -> Td:
    if r.use == BASELINE:
        return missing(f"{BASELINE} itself is the fastest")
    found = against_baseline(r)
    if found is None:
        return missing(f"{BASELINE} was not measured in the same group")
    contest, pair = found
    ratio = pair.seen_from(r.use)
    return Td(words.ratio(ratio), ratio.ratio, kind="num", detail=_at(contest, r))


def _limit(cell: Cell) -> Td:
    limit = cell.record.limit
    if limit is None or limit.percent is None:
        return missing("no ceiling was measured")
    return Td(f"{words.number(limit.percent, 2)}%", limit.percent, kind="num", detail=f"bound by {limit.bound}")


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
    word = (
        f"{r.resolved} of {len(contested)} resolved"
        if len(contested) > 1
        else "resolved"
        if r.resolved
        else "unresolved"
    )
    return Td(word, r.resolved / len(contested), tip, detail=", ".join(parts))


def fit_matrix(anchor: str, found: Sequence[Capacity], labels: dict[Setting, str], names: Sequence[str]) -> Table:
    """A row a curve, a column a backend: the largest N that ran, and what ended it."""
    backends = [b for b in names if any(c.backend == b for c in found)]
    columns = (Column("where"), *(Column(b, True) for b in backends))
    rows = []
    for curve in dict.fromkeys(id(c.curve) for c in found):
        mine = {c.backend: c for c in found if id(c.curve) == curve}
        shown = next(iter(mine.values())).curve
        where = Td(labels[shown.setting], labels[shown.setting], detail=f"{shown.family.label}, {shown.fixed_label}")
        rows.append([where, *(_reach(mine.get(b)) for b in backends)])
    note = (
        "Largest N that ran, and below it the first that did not fit: “oom” was tried, “oom*” is what the memory model "
        "predicted and was not tried. “≈ … extrap.”: nothing failed; extrapolated, to where "
        "a power law through inputs and memory model at the measured sizes fills the device."
    )
    return Table(anchor, "What will fit", columns, rows, note, cards=True)


def _reach(c: Capacity | None) -> Td:
    if c is None:
        return missing("not measured here")
    if c.first_oom is not None:
        end = f"oom{'*' if c.predicted else ''} at {c.first_oom.record.problem.n_atom:,}"
    elif c.extrapolated_n is not None:
        end = f"≈ {words.short(c.extrapolated_n)} extrap."
    else:
        end = f"{c.stopped.status} at {c.stopped.record.problem.n_atom:,}" if c.stopped else ""
    if c.largest is None:
        return Td(DASH, None, _why_none(c), kind="na", detail=end)
    n = c.largest.record.problem.n_atom
    return Td(f"{n:,}", n, c.first_oom.reason if c.first_oom else None, kind="num", detail=end)


def _why_none(c: Capacity) -> str:
    cell = c.first_oom or c.stopped
    return (cell.reason or cell.status) if cell else "nothing was measured"
