"""The tables of the report, once, for HTML, Markdown and CSV alike. A missing value is a dash that says why."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pandas as pd

from benchmarks.harness import statistics
from benchmarks.harness.statistics import PowerLaw
from reports import words
from reports.analyse import BASELINE, Capacity, Contest, Crossing, Fit, Pair, is_predicted, median_ms
from reports.answer import Region, against_baseline, against_next
from reports.load import SHORT_DTYPE, Cell, Collection, Setting, setting
from reports.words import DASH


@dataclass(frozen=True)
class Td:
    """One entry: its text, what it sorts by, why it is missing or what more there is to say, and its kind."""

    text: str
    sort: float | str | None = None
    tip: str | None = None
    backend: str | None = None
    kind: str = ""


@dataclass(frozen=True)
class Column:
    label: str
    numeric: bool = False
    tip: str = ""


@dataclass(frozen=True)
class Table:
    anchor: str
    title: str
    columns: tuple[Column, ...]
    rows: list[list[Td]] = field(default_factory=list)
    note: str = ""
    cards: bool = False  # rows become cards on narrow screens


def text(value: str, tip: str | None = None) -> Td:
    return Td(value, value, tip)


def name(backend: str, tip: str | None = None) -> Td:
    return Td(backend, backend, tip, backend=backend)


def missing(why: str) -> Td:
    return Td(DASH, None, why, kind="na")


def num(value: float | None, shown: str, why: str = "not recorded", tip: str | None = None) -> Td:
    return missing(why) if value is None else Td(shown, value, tip, kind="num")


def verdict(value: str) -> Td:
    return Td(value, value, kind=f"v-{value}")


PROBLEM = (Column("level"), Column("mode"), Column("dtype"), Column("workload"), Column("N", True), Column("W", True),
           Column("K", True))  # fmt: skip


def problem_cells(cell_problem) -> list[Td]:
    p = cell_problem
    source = f"{p.workload}, {p.atoms}" + (", blocks" if p.window_style == "blocks" else "")
    return [
        text(p.level), text(p.mode), text(SHORT_DTYPE[p.dtype]), text(source), num(p.n_atom, f"{p.n_atom:,}"),
        num(p.window, str(p.window)), num(p.n_neighbor, f"{p.n_neighbor:,}", tip="capped" if p.k_cap else None),
    ]  # fmt: skip


def answer(anchor: str, found: Sequence[Region], labels: dict[Setting, str]) -> Table:
    columns = (
        Column("where"), Column("sizes"), Column("use"), Column("time", True, "median at the largest size of the row"),
        Column("against the next best", True), Column(f"against {BASELINE}", True),
        Column("% of limit", True, "floor time of the operation / measured time"), Column("how sure"),
    )  # fmt: skip
    rows = []
    for r in found:
        shown = r.shown
        cell = shown.winner
        at = f"at {words.sizes(shown.problem)}"
        rows.append([
            text(labels[r.setting]), text(f"{r.sizes}; {r.family.label}"), _use(r),
            num(median_ms(cell), words.time(median_ms(cell)), tip=at), _next(r), _baseline(r), _limit(cell), _sure(r),
        ])  # fmt: skip
    return Table(anchor, "Which backend to use where", columns, rows, cards=True)


def _use(r: Region) -> Td:
    tie = r.alternatives
    return Td(r.use, r.use, f"not told apart from {', '.join(tie)}" if tie else None, backend=r.use)


def _next(r: Region) -> Td:
    pair = against_next(r.shown)
    if pair is None:
        return missing("no other backend was measured in the same group")
    other = r.shown.ranked[1].record.backend
    ratio = pair.seen_from(r.use)
    return Td(f"{words.ratio(ratio)} {other}", ratio.ratio, f"{pair.verdict_for(r.use)} than {other}", kind="num")


def _baseline(r: Region) -> Td:
    if r.use == BASELINE:
        return missing(f"{BASELINE} itself is the fastest")
    found = against_baseline(r)
    if found is None:
        return missing(f"{BASELINE} was not measured in the same group")
    contest, pair = found
    where = "" if contest is r.shown else f" at N {contest.problem.n_atom:,}"
    ratio = pair.seen_from(r.use)
    return Td(words.ratio(ratio) + where, ratio.ratio, f"at {words.sizes(contest.problem)}", kind="num")


def _limit(cell: Cell) -> Td:
    limit = cell.record.limit
    if limit is None or limit.percent is None:
        return missing("no ceiling was measured")
    return num(limit.percent, f"{words.number(limit.percent, 2)}%", tip=f"bound by {limit.bound}")


def _sure(r: Region) -> Td:
    contested = [c for c in r.contests if len(c.ranked) > 1]
    if not contested:
        return missing("nothing to compare with")
    pair = against_next(r.shown)
    half = pair.speedup.half_width if pair else None
    parts = [f"{r.resolved} of {len(contested)} resolved"]
    if half is not None:
        parts.append(f"±{words.percent(half)}")
    if pair is not None and pair.noise is not None:
        parts.append(f"noise ±{words.percent(pair.noise)}")
    tip = f"{pair.speedup.n} blocks, Holm-adjusted p {words.p_value(pair.p_adjusted)}" if pair else None
    return Td(", ".join(parts), r.resolved / len(contested), tip)


def capacity(anchor: str, found: Iterable[Capacity], labels: dict[Setting, str]) -> Table:
    columns = (
        Column("where"), Column("backend"), Column("largest N that ran", True), Column("peak there", True),
        Column("peak / p", True, "the pair tensor p is the unit"), Column("measured / model", True),
        Column("first N that does not fit", True), Column("how known"),
    )  # fmt: skip
    rows = []
    for c in found:
        where = f"{labels[c.curve.setting]}; {c.curve.family.label}; {c.curve.fixed_label}"
        m = c.largest.record.memory if c.largest else None
        peak, p_bytes = (m.peak_bytes, m.p_bytes) if m else (None, None)
        share = peak / p_bytes if peak is not None and p_bytes else None
        fit = peak / m.model_bytes if m and peak is not None and m.model_bytes else None
        n = c.largest.record.problem.n_atom if c.largest else None
        rows.append([
            text(where), name(c.backend), num(n, f"{n or 0:,}", _why_none(c)), num(peak, words.size(peak or 0)),
            num(share, words.times(share or 0)), num(fit, words.number(fit or 0, 2), "no model value"), *_end(c),
        ])  # fmt: skip
    note = (
        "“Predicted”: the sweep's memory model said that it would not fit, and it was not tried. “Extrapolated”: nothing "
        "failed; a power law through inputs and the memory model at the measured sizes reaches the device's memory there."
    )
    return Table(anchor, "What will fit", columns, rows, note)


def _why_none(c: Capacity) -> str:
    cell = c.first_oom or c.stopped
    return (cell.record.reason or cell.record.status) if cell else "nothing was measured"


def _end(c: Capacity) -> list[Td]:
    if c.first_oom is not None:
        n = c.first_oom.record.problem.n_atom
        return [num(n, f"{n:,}", tip=c.first_oom.record.reason), text("predicted" if c.predicted else "observed")]
    if c.extrapolated_n is not None:
        return [num(c.extrapolated_n, f"≈ {words.short(c.extrapolated_n)}"), text("extrapolated")]
    if c.stopped is not None:
        return [missing(f"ended otherwise: {c.stopped.record.reason}"), text(c.stopped.record.status)]
    return [missing("nothing failed, and too few sizes or no device memory on record to extrapolate"), text(DASH)]


def ratios(anchor: str, found: Sequence[Pair]) -> Table:
    columns = (
        *PROBLEM, Column("faster"), Column("slower"), Column("ratio", True), Column("95% interval", True),
        Column("p (Holm)", True), Column("blocks", True), Column("verdict"),
    )  # fmt: skip
    rows = []
    for p in found:
        r = p.speedup
        rows.append([
            *problem_cells(p.problem), name(p.fast), name(p.slow), num(r.ratio, words.times(r.ratio)),
            num(r.low, words.interval(r.low, r.high), "fewer than two paired blocks"),
            num(p.p_adjusted, words.p_value(p.p_adjusted)), num(r.n, str(r.n)), verdict(p.verdict),
        ])  # fmt: skip
    return Table(anchor, "All paired ratios", columns, rows)


def exponents(anchor: str, found: Iterable[Fit], labels: dict[Setting, str]) -> Table:
    columns = (
        Column("along"), Column("where"), Column("backend"), Column("exponent, all sizes", True), Column("points", True),
        Column("exponent, larger half", True), Column("from", True),
    )  # fmt: skip
    rows = []
    for f in found:
        where = f"{labels[f.curve.setting]}; {f.curve.family.label}; {f.curve.fixed_label}"
        rows.append([
            text(f.curve.axis), text(where), name(f.backend), _law(f.all_sizes),
            num(f.all_sizes.n_points, str(f.all_sizes.n_points)),
            _law(f.tail) if f.tail else missing("needs three sizes in the larger half"),
            num(f.tail_from, f"{f.tail_from or 0:,.0f}", "needs three sizes in the larger half"),
        ])  # fmt: skip
    note = (
        "time = constant · xᵃ, least squares on logarithms; interval by Student's t over the points. Where fixed costs "
        "count, the exponent over all sizes is below the one that large sizes show: read the larger half."
    )
    return Table(anchor, "Fitted exponents", columns, rows, note)


def _law(law: PowerLaw) -> Td:
    span = f" ({law.low:.2f} … {law.high:.2f})" if law.low is not None and law.high is not None else ""
    return Td(f"{law.exponent:.2f}{span}", law.exponent, None if span else "two points: no interval", kind="num")


def crossings(anchor: str, found: Iterable[Crossing], labels: dict[Setting, str]) -> Table:
    columns = (
        Column("along"), Column("where"), Column("faster below"), Column("faster above"), Column("at about", True),
        Column("between"), Column("sure"),
    )  # fmt: skip
    rows = []
    for c in found:
        above, below = (c.a, c.b) if c.at.faster_above == "a" else (c.b, c.a)
        rows.append([
            text(c.curve.axis), text(f"{labels[c.curve.setting]}; {c.curve.family.label}; {c.curve.fixed_label}"),
            name(below), name(above), num(c.at.n, words.short(c.at.n)),
            Td(f"{c.at.below:,.0f} and {c.at.above:,.0f}", c.at.below),
            text("resolved on both sides" if c.resolved else "not resolved on both sides"),
        ])  # fmt: skip
    return Table(anchor, "Crossovers", columns, rows, "Interpolated on log axes between two measured sizes.")


def starts(anchor: str, cells: Sequence[Cell]) -> Table:
    columns = (
        *PROBLEM, Column("backend"), Column("steady state", True), Column("95% interval", True), Column("plan", True),
        Column("first call", True), Column("calls until the first is repaid", True, "(first call + plan) / steady state"),
        Column("stopped by"), Column("outliers", True, "Tukey's fences; labelled, never dropped"),
    )  # fmt: skip
    rows = []
    for c in cells:
        r, t = c.record, c.record.timing
        if t is None:
            continue
        once = None if r.first_call_ms is None else r.first_call_ms + (r.plan_ms or 0.0)
        labels = [label for label in statistics.tukey_outliers(t.samples_ms) if label]
        repaid = once / t.median_ms if once is not None else None
        rows.append([
            *problem_cells(r.problem), name(r.backend), num(t.median_ms, words.time(t.median_ms)),
            num(t.ci_low_ms, f"{words.time(t.ci_low_ms)} … {words.time(t.ci_high_ms)}"),
            num(r.plan_ms, words.time(r.plan_ms or 0), "this backend has no plan"),
            num(r.first_call_ms, words.time(r.first_call_ms or 0)), num(repaid, words.number(repaid or 0, 2)), text(t.stop),
            num(len(labels), f"{len(labels)} of {len(t.samples_ms)}", tip=", ".join(sorted(set(labels))) or None),
        ])  # fmt: skip
    return Table(anchor, "First call and plan against steady state", columns, rows)


def gates(anchor: str, cells: Sequence[Cell]) -> Table:
    columns = (
        *PROBLEM, Column("backend"), Column("gate"), Column("worst output", True), Column("tolerance", True),
        Column("worst gradient", True), Column("tolerance of gradients", True), Column("rows checked", True),
        Column("all-zero output", True, "the error that an all-zero output gets: it must be refused"),
    )  # fmt: skip
    rows = []
    for c in cells:
        g = c.record.gate
        if g is None:
            continue
        outputs = _worst(g.errors | {f"{k}, after timing": v for k, v in g.errors_after.items()}, gradients=False)
        grads = _worst(g.errors | {f"{k}, after timing": v for k, v in g.errors_after.items()}, gradients=True)
        rows.append([
            *problem_cells(c.record.problem), name(c.record.backend),
            Td("passed" if g.passed else "failed", kind="v-faster" if g.passed else "v-failed"), outputs,
            num(g.tolerance, f"{g.tolerance:.1e}"), grads,
            num(g.gradient_tolerance, f"{g.gradient_tolerance or 0:.1e}", "no gradients in this mode"),
            num(g.rows_checked, f"{g.rows_checked:,} of {g.rows_total:,}"),
            num(g.negative_control, f"{g.negative_control or 0:.2g}"),
        ])  # fmt: skip
    return Table(anchor, "Gate errors", columns, rows, "Relative error norms ‖x − ref‖ / ‖ref‖ against float64.")


def _worst(errors: dict[str, float | None], *, gradients: bool) -> Td:
    mine = {k: v for k, v in errors.items() if k.startswith("grad") == gradients}
    if not mine:
        return missing("no gradients in this mode" if gradients else "no output was checked")
    broken = [k for k, v in mine.items() if v is None]
    if broken:
        return Td("not finite", float("inf"), ", ".join(broken), kind="num")
    where = max(mine, key=lambda k: mine[k] or 0.0)
    return num(mine[where], f"{mine[where]:.1e}", tip=where)


def unavailable(anchor: str, cells: Sequence[Cell]) -> Table:
    columns = (Column("backend"), Column("status"), Column("why"), Column("cells", True), Column("where"))
    found: dict[tuple[str, str, str], list[Cell]] = {}
    for c in cells:
        if not c.ok and c.record.status != "ok":
            status = "oom (predicted)" if is_predicted(c) else c.record.status
            found.setdefault((c.record.backend, status, _pattern(c.record.reason or "")), []).append(c)
    rows = []
    for (backend, status, _), mine in sorted(found.items()):
        problems = [c.record.problem for c in mine]
        where = sorted({f"{p.level}, {p.mode}, {SHORT_DTYPE[p.dtype]}, N {p.n_atom:,}" for p in problems})
        listed = "; ".join(where[:4]) + (f"; {len(where) - 4} more" if len(where) > 4 else "")
        why = mine[0].record.reason or status
        if len({c.record.reason for c in mine}) > 1:
            why += " (the others alike)"
        rows.append([
            name(backend), Td(status, status, kind=f"s-{mine[0].record.status}"), text(why, mine[0].record.error),
            num(len(mine), str(len(mine))), text(listed, "; ".join(where)),
        ])  # fmt: skip
    return Table(anchor, "What was not available, and why", columns, rows)


def _pattern(reason: str) -> str:
    """Reasons that differ in their numbers only are one reason."""
    return re.sub(r"\d[\d.,]*", "#", reason)


def noise(anchor: str, cells: Sequence[Cell]) -> Table:
    columns = (*PROBLEM, Column("backend"), Column("A/A ratio", True), Column("95% interval", True),
               Column("noise floor", True), Column("blocks", True))  # fmt: skip
    rows = []
    for c in cells:
        t = c.record.timing
        if t is None or not t.aa_samples_ms:
            continue
        r = statistics.paired_ratio(t.samples_ms, t.aa_samples_ms)
        floor = statistics.noise_floor(t.samples_ms, t.aa_samples_ms)
        rows.append([
            *problem_cells(c.record.problem), name(c.record.backend), num(r.ratio, words.number(r.ratio, 4)),
            num(r.low, f"{r.low or 0:.4f}{DASH}{r.high or 0:.4f}", "fewer than two blocks"),
            num(floor, f"±{words.percent(floor or 0)}", "fewer than two blocks"), num(r.n, str(r.n)),
        ])  # fmt: skip
    return Table(
        anchor, "How noisy it was", columns, rows, "The same backend twice in one group: any difference is noise."
    )


def pair_frame(found: Iterable[Pair]) -> pd.DataFrame:
    """All paired ratios, one row a pair, scalar columns."""
    return pd.DataFrame([
        {"machine": p.place.machine, "device": p.place.device, "hardware": p.place.hardware, "commit": p.place.commit,
         **p.problem.model_dump(mode="json"), "group": p.group, "faster": p.fast, "slower": p.slow,
         "ratio": p.speedup.ratio, "low": p.speedup.low, "high": p.speedup.high, "n_blocks": p.speedup.n,
         "method": p.speedup.method, "p_value": p.speedup.p_value, "p_holm": p.p_adjusted, "margin": p.margin,
         "noise": p.noise, "verdict": p.verdict}
        for p in found
    ])  # fmt: skip


def labels(collection: Collection) -> dict[Setting, str]:
    """A label per setting; model sizes are named only where settings of one level differ in them."""
    found = {setting(c.record.problem) for c in collection.cells}
    out = {}
    for s in found:
        peers = [dict(o.extra) for o in found if o.level == s.level]
        differing = [f"{k} {v}" for k, v in s.extra if len({p[k] for p in peers}) > 1]
        out[s] = ", ".join([s.label, *differing])
    return out


def rank_note(contests: Iterable[Contest]) -> list[str]:
    """Cells with a speed that stand apart from the winner's group: told, never compared."""
    return [
        f"`{c.record.backend}` at {words.sizes(x.problem)} was measured in another group ({words.time(median_ms(c))}): "
        "no ratio to the others is given."
        for x in contests
        for c in x.apart
    ]
