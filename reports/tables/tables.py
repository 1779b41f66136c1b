"""The tables of the evidence: ratios, exponents, crossovers, phases, memory, what was not there, noise."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import pandas as pd

from benchmarks.harness.ruler import statistics
from benchmarks.harness.ruler.statistics import PowerLaw
from benchmarks.harness.schema.axes import axis, unusual
from benchmarks.harness.schema.problem import Problem
from reports import words
from reports.find.analyse import Contest, Pair, Repeat
from reports.find.curves import Crossing, Fit, is_predicted
from reports.marks import code
from reports.read.load import SHORT_DTYPE, Cell, Setting
from reports.read.measured import HOST_BOUND_MEANS, graph_ms, has_two_times, hot_ms, time_words
from reports.tables.summary import wall
from reports.tables.table import (
    Column,
    Table,
    Td,
    long,
    missing,
    name,
    num,
    problem_columns,
    text,
    unrecorded,
    verdict,
    without_unrecorded,
)
from reports.words import DASH


def memory(anchor: str, cells: Sequence[Cell]) -> Table:
    sources = "; ".join(sorted({c.record.memory.source for c in cells if c.record.memory}))
    known, cells_of = problem_columns(c.record.problem for c in cells)
    columns = (
        *known, Column("backend"), Column("peak above the inputs", True, sources),
        Column("peak / p", True, "p is the pair tensor"), Column("model", True), Column("measured / model", True),
        Column("inputs", True),
    )  # fmt: skip
    rows = []
    for c in cells:
        m = c.record.memory
        if m is None:
            continue
        share = m.peak_bytes / m.p_bytes if m.peak_bytes is not None and m.p_bytes else None
        fit = m.peak_bytes / m.model_bytes if m.peak_bytes is not None and m.model_bytes else None
        rows.append([
            *cells_of(c.record.problem), name(c.record.backend),
            num(m.peak_bytes, words.size(m.peak_bytes or 0), "the peak was not measured"),
            num(share, words.times(share or 0), "no pair tensor"), num(m.model_bytes, words.size(m.model_bytes or 0)),
            num(fit, words.number(fit or 0, 2), "no model value"), num(m.input_bytes, words.size(m.input_bytes)),
        ])  # fmt: skip
    return Table(anchor, "Memory, measured and modelled", columns, rows)


def ratios(anchor: str, found: Sequence[Pair]) -> Table:
    known, cells_of = problem_columns(p.problem for p in found)
    columns = (
        *known, Column("faster"), Column("slower"), Column("ratio", True), Column("95% interval", True),
        Column("verdict"), Column("p (Holm)", True), Column("blocks", True),
    )  # fmt: skip
    rows = []
    for p in found:
        r = p.speedup
        rows.append([
            *cells_of(p.problem), name(p.fast), name(p.slow), num(r.ratio, words.times(r.ratio)),
            num(r.low, words.interval(r.low, r.high), "fewer than two paired blocks"),
            verdict(p.verdict), num(p.p_adjusted, words.p_value(p.p_adjusted)), num(r.n, str(r.n)),
        ])  # fmt: skip
    return Table(anchor, "All paired ratios", columns, rows)


def repeats(anchor: str, found: Sequence[Repeat]) -> Table:
    known, cells_of = problem_columns(r.problem for r in found)
    columns = (
        *known, Column("faster"), Column("slower"), Column("runs", True), Column("lowest ratio", True),
        Column("highest ratio", True), Column("apart by", True),
    )  # fmt: skip
    rows = []
    for r in found:
        low, high = min(r.ratios), max(r.ratios)
        rows.append([
            *cells_of(r.problem), name(r.fast), name(r.slow), num(len(r.ratios), str(len(r.ratios))),
            num(low, words.times(low)), num(high, words.times(high)), num(r.spread, words.percent(r.spread)),
        ])  # fmt: skip
    note = "The same pair measured in several runs, so in several processes: what one run's interval cannot cover."
    return Table(anchor, "Between runs", columns, rows, note)


def exponents(anchor: str, found: Iterable[Fit], labels: dict[Setting, str]) -> Table:
    columns = (
        Column("along"), Column("where"), Column("backend"), Column("exponent, all sizes", True),
        Column("points", True),        Column("exponent, larger half", True), Column("from", True),
    )  # fmt: skip
    rows = []
    for f in found:
        where = f"{labels[f.curve.setting]}; {f.curve.family.label}; {f.curve.fixed_label}"
        rows.append([
            text(f.curve.axis), long(where), name(f.backend), _law(f.all_sizes),
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
            text(c.curve.axis), long(f"{labels[c.curve.setting]}; {c.curve.family.label}; {c.curve.fixed_label}"),
            name(below), name(above), num(c.at.n, words.short(c.at.n)),
            Td(f"{c.at.below:,.0f} and {c.at.above:,.0f}", c.at.below),
            text("resolved on both sides" if c.resolved else "not resolved on both sides"),
        ])  # fmt: skip
    return Table(anchor, "Crossovers", columns, rows, "Interpolated on log axes between two measured sizes.")


def starts(anchor: str, cells: Sequence[Cell]) -> Table:
    """Every time of every cell, and the command that measures it again; where there are two times, all of them."""
    timed = [c for c in cells if c.record.timing is not None]
    two = any(has_two_times(c.record) for c in timed)
    steady = (
        Column("device time", True, "median, steady state, cold L2 cache"), Column("95% interval", True),
        Column("wall time", True, HOST_BOUND_MEANS), Column("graph", True, "median of CUDA graph replay"),
        Column("hot", True, "median with a warm L2 cache"),
    ) if two else (Column("steady state", True), Column("95% interval", True))  # fmt: skip
    known, cells_of = problem_columns(c.record.problem for c in timed)
    columns = (
        *known, Column("backend"), *steady, Column("plan", True), Column("first call", True),
        Column("the same, in calls", True, "(first call + plan) / steady state"), Column("cache"),
        Column("stopped by"), Column("outliers", True, "Tukey's fences; labelled, never dropped"),
        Column("again", False, "the command that measures this cell again"),
    )  # fmt: skip
    rows = [[*cells_of(c.record.problem), *_start(c, two)] for c in timed]
    return without_unrecorded(Table(anchor, "First call and plan against steady state", columns, rows))


def _start(c: Cell, two: bool) -> list[Td]:
    r, t = c.record, c.record.timing
    assert t is not None
    once = None if r.first_call_ms is None else r.first_call_ms + (r.plan_ms or 0.0)
    labels = [label for label in statistics.tukey_outliers(t.samples_ms) if label]
    repaid = once / t.median_ms if once is not None and t.median_ms else None
    more = [wall(c), _or_why(graph_ms(r), t.graph_reason), _or_why(hot_ms(r), t.hot_reason)] if two else []
    return [
        name(r.backend, c.impossible), num(t.median_ms, words.time(t.median_ms)),
        num(t.ci_low_ms, f"{words.time(t.ci_low_ms)} … {words.time(t.ci_high_ms)}"), *more,
        num(r.plan_ms, words.time(r.plan_ms or 0), "this backend has no plan"),
        num(r.first_call_ms, words.time(r.first_call_ms or 0)), num(repaid, words.number(repaid or 0, 2)),
        text(t.cache), text(t.stop),
        num(len(labels), f"{len(labels)} of {len(t.samples_ms)}", tip=", ".join(sorted(set(labels))) or None),
        Td("", None, again=r.again) if r.again else unrecorded(),
    ]  # fmt: skip


def _or_why(ms: float | None, reason: str | None) -> Td:
    """A time, or the reason that there is none where that was recorded."""
    if ms is not None:
        return num(ms, words.time(ms))
    return Td(DASH, None, reason, kind="na", detail=reason) if reason else unrecorded()


def unavailable(anchor: str, cells: Sequence[Cell]) -> Table:
    columns = (Column("backend"), Column("status"), Column("why"), Column("cells", True), Column("where"))
    found: dict[tuple[str, str, str], list[Cell]] = {}
    for c in cells:
        if not c.ok:
            status = "oom (predicted)" if is_predicted(c) else c.status
            found.setdefault((c.record.backend, status, _pattern(c.reason or "")), []).append(c)
    rows = []
    for (backend, status, _), mine in sorted(found.items()):
        problems = [c.record.problem for c in mine]
        where = sorted({_place(p) for p in problems})
        listed = "; ".join(where[:4]) + (f"; {len(where) - 4} more" if len(where) > 4 else "")
        why = mine[0].reason or status
        if len({c.reason for c in mine}) > 1:
            why += " (the others alike)"
        rows.append([
            name(backend), Td(status, status, kind=f"s-{mine[0].status}"), long(why, mine[0].record.error),
            num(len(mine), str(len(mine))), long(listed, "; ".join(where)),
        ])  # fmt: skip
    return Table(anchor, "What was not available, and why", columns, rows)


def _place(p: Problem) -> str:
    sizes = [f"{a.symbol} {a.value(p):,}" for a in (axis("n_atom"), *unusual(p))]
    return ", ".join([p.level, p.mode, SHORT_DTYPE[p.dtype], *sizes])


def _pattern(reason: str) -> str:
    """Reasons that differ in their numbers only are one reason."""
    return re.sub(r"\d[\d.,]*", "#", reason)


def noise(anchor: str, cells: Sequence[Cell]) -> Table:
    known, cells_of = problem_columns(c.record.problem for c in cells)
    columns = (*known, Column("backend"), Column("A/A ratio", True), Column("95% interval", True),
               Column("noise floor", True), Column("blocks", True))  # fmt: skip
    rows = []
    for c in cells:
        t = c.record.timing
        if not c.ok or t is None or not t.aa_samples_ms:
            continue
        r = statistics.paired_ratio(t.samples_ms, t.aa_samples_ms)
        floor = statistics.noise_floor(t.samples_ms, t.aa_samples_ms)
        rows.append([
            *cells_of(c.record.problem), name(c.record.backend), num(r.ratio, words.number(r.ratio, 4)),
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


def rank_note(contests: Iterable[Contest]) -> list[str]:
    """Cells with a speed that stand apart from the winner's group: told, never compared; a sentence a backend."""
    found: dict[str, list[str]] = {}
    for x in contests:
        for c in x.apart:
            found.setdefault(c.record.backend, []).append(f"{words.all_sizes(x.problem)}: {time_words(c.record)}")
    return [
        f"{code(backend)} was measured in another group at {len(where)} problem{'' if len(where) == 1 else 's'}, so no "
        f"ratio to the others is given there ({'; '.join(where[:2])}{'; …' if len(where) > 2 else ''})."
        for backend, where in found.items()
    ]
