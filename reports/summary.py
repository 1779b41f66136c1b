"""The tables of the answer: which backend to use where, and what will fit."""

from __future__ import annotations

from collections.abc import Sequence

from reports import words
from reports.analyse import BASELINE, Contest, median_ms
from reports.answer import Region, against_baseline, against_next
from reports.curves import Capacity
from reports.load import Cell, Setting
from reports.table import Column, Table, Td, missing
from reports.words import DASH


def answer(anchor: str, found: Sequence[Region], labels: dict[Setting, str]) -> Table:
    columns = (
        Column("where"), Column("use"), Column("time", True, "median at the largest size of the row"),
        Column("against the next best", True), Column(f"against {BASELINE}", True),
        Column("% of limit", True, "floor time of the operation / measured time"), Column("how sure"),
    )  # fmt: skip
    rows = []
    for r in found:
        cell = r.shown.winner
        where = Td(labels[r.setting], labels[r.setting], detail=f"{r.sizes}; {r.family.label}")
        spent = Td(words.time(median_ms(cell)), median_ms(cell), kind="num", detail=_at(r.shown, r))
        rows.append([where, _use(r), spent, _next(r), _baseline(r), _limit(cell), _sure(r)])
    return Table(anchor, "Which backend to use where", columns, rows, cards=True)


def _at(contest: Contest, region: Region) -> str:
    """The sizes that stand for a region, where the region holds several."""
    fields = {"N": "n_atom", "W": "window", "K": "n_neighbor"}
    varying = [k for k, f in fields.items() if len({getattr(c.problem, f) for c in region.contests}) > 1]
    return "at " + ", ".join(f"{k} {getattr(contest.problem, fields[k]):,}" for k in varying) if varying else ""


def _use(r: Region) -> Td:
    tie = r.alternatives
    return Td(r.use, r.use, backend=r.use, detail=f"or {', '.join(tie)}: not told apart" if tie else "")


def _next(r: Region) -> Td:
    pair = against_next(r.shown)
    if pair is None:
        return missing("no other backend was measured in the same group")
    other = r.shown.ranked[1].record.backend
    ratio, said = pair.seen_from(r.use), pair.verdict_for(r.use)
    than = {"same": "same as", "unresolved": "unresolved against"}.get(said, f"{said} than")
    return Td(words.ratio(ratio), ratio.ratio, kind="num", detail=f"{than} {other}")


def _baseline(r: Region) -> Td:
    if r.use == BASELINE:
        return missing(f"{BASELINE} itself is the fastest")
    found = against_baseline(r)
    if found is None:
        return missing(f"{BASELINE} was not measured in the same group")
    contest, pair = found
    ratio = pair.seen_from(r.use)
    return Td(words.ratio(ratio), ratio.ratio, kind="num", detail="" if contest is r.shown else _at(contest, r))


def _limit(cell: Cell) -> Td:
    limit = cell.record.limit
    if limit is None or limit.percent is None:
        return missing("no ceiling was measured")
    return Td(f"{words.number(limit.percent, 2)}%", limit.percent, kind="num", detail=f"bound by {limit.bound}")


def _sure(r: Region) -> Td:
    contested = [c for c in r.contests if len(c.ranked) > 1]
    if not contested:
        return missing("nothing to compare with")
    pair = against_next(r.shown)
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
        end = f"{c.stopped.record.status} at {c.stopped.record.problem.n_atom:,}" if c.stopped else ""
    if c.largest is None:
        return Td(DASH, None, _why_none(c), kind="na", detail=end)
    n = c.largest.record.problem.n_atom
    return Td(f"{n:,}", n, c.first_oom.record.reason if c.first_oom else None, kind="num", detail=end)


def _why_none(c: Capacity) -> str:
    cell = c.first_oom or c.stopped
    return (cell.record.reason or cell.record.status) if cell else "nothing was measured"
