"""The tables of the evidence: ratios, exponents, crossovers, phases, memory, what was not there, noise."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from benchmarks.harness.ruler import statistics
from benchmarks.harness.ruler.statistics import PowerLaw
from benchmarks.harness.schema.axes import axis, unusual
from benchmarks.harness.schema.problem import Problem
from reports import words
from reports.find.analyse import Contest, Pair, Repeat, problem_order
from reports.find.curves import Crossing, Curve, Fit, is_predicted
from reports.markup import code
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
    tabulate,
    text,
    unrecorded,
    verdict,
    whole,
    without_unrecorded,
)
from reports.words import DASH

MANY_PAIRS = 400


def _of_cells(cells: Sequence[Cell]) -> list[Column]:
    known = problem_columns(lambda c: c.record.problem, cells)
    return [*known, Column("backend", lambda c: name(c.record.backend, c.impossible))]


def memory(anchor: str, cells: Sequence[Cell]) -> Table:
    def share(m, of: float | None) -> float | None:
        return m.peak_bytes / of if m.peak_bytes is not None and of else None

    held = [c for c in cells if c.record.memory is not None]
    columns = [
        *_of_cells(held),
        Column("peak above the inputs",
               lambda c: num(c.record.memory.peak_bytes, words.size, "the peak was not measured"), True,
               "; ".join(sorted({c.record.memory.source for c in held if c.record.memory}))),
        Column("peak / p", lambda c: num(share(m := c.record.memory, m.p_bytes), words.times, "no pair tensor"), True,
               "p is the pair tensor"),
        Column("model", lambda c: num(c.record.memory.model_bytes, words.size), True),
        Column("measured / model",
               lambda c: num(share(m := c.record.memory, m.model_bytes), words.two_digits, "no model value"), True),
        Column("inputs", lambda c: num(c.record.memory.input_bytes, words.size), True),
    ]  # fmt: skip
    return tabulate(anchor, "Memory, measured and modelled", columns, held)


def ratios(anchor: str, pairs: Sequence[Pair], contests: Sequence[Contest]) -> Table:
    """All pairs; beyond MANY_PAIRS those with the winner, the rest being in pairs.csv."""
    note = "Time of the slower over time of the faster, paired by block; Holm-adjusted over all pairs of this machine."
    kept = list(pairs)
    if len(kept) > MANY_PAIRS:
        best = {c.problem.key: c.winner.record.backend for c in contests if c.ranked}
        kept = [p for p in kept if best.get(p.problem.key) in (p.fast, p.slow)]
        note += f" Shown: {len(kept):,} with the fastest; pairs.csv has all {len(pairs):,}."
    kept.sort(key=lambda p: (problem_order(p.problem), p.fast, p.slow))
    columns = [
        *problem_columns(lambda p: p.problem, kept),
        Column("faster", lambda p: name(p.fast)),
        Column("slower", lambda p: name(p.slow)),
        Column("ratio", lambda p: num(p.speedup.ratio, words.times), True),
        Column("95% interval", lambda p: num(p.speedup.low, lambda low: words.interval(low, p.speedup.high),
                                             "fewer than two paired blocks"), True),
        Column("verdict", lambda p: verdict(p.verdict)),
        Column("p (Holm)", lambda p: num(p.p_adjusted, words.p_value), True),
        Column("blocks", lambda p: num(p.speedup.n, str), True),
    ]  # fmt: skip
    return tabulate(anchor, "All paired ratios", columns, kept, note)


def repeats(anchor: str, repeated: Sequence[Repeat]) -> Table:
    columns = [
        *problem_columns(lambda r: r.problem, repeated),
        Column("faster", lambda r: name(r.fast)),
        Column("slower", lambda r: name(r.slow)),
        Column("runs", lambda r: num(len(r.ratios), str), True),
        Column("lowest ratio", lambda r: num(min(r.ratios), words.times), True),
        Column("highest ratio", lambda r: num(max(r.ratios), words.times), True),
        Column("apart by", lambda r: num(r.spread, words.percent), True),
    ]
    note = "The same pair measured in several runs, so in several processes: what one run's interval cannot cover."
    return tabulate(anchor, "Between runs", columns, repeated, note)


def _along(labels: dict[Setting, str]) -> list[Column]:
    def where(curve: Curve) -> Td:
        return long(f"{labels[curve.setting]}; {curve.family.label}; {curve.fixed_label}")

    return [Column("along", lambda item: text(item.curve.axis)), Column("where", lambda item: where(item.curve))]


def exponents(anchor: str, fits: Iterable[Fit], labels: dict[Setting, str]) -> Table:
    few = "needs three sizes in the larger half"
    columns = [
        *_along(labels),
        Column("backend", lambda f: name(f.backend)),
        Column("exponent, all sizes", lambda f: _law(f.all_sizes), True),
        Column("points", lambda f: num(f.all_sizes.n_points, str), True),
        Column("exponent, larger half", lambda f: _law(f.tail) if f.tail else missing(few), True),
        Column("from", lambda f: num(f.tail_from, whole, few), True),
    ]
    note = (
        "time = constant · xᵃ, least squares on logarithms; interval by Student's t over the points. Where fixed costs "
        "count, the exponent over all sizes is below the one that large sizes show: read the larger half."
    )
    return tabulate(anchor, "Fitted exponents", columns, fits, note)


def _law(law: PowerLaw) -> Td:
    span = f" ({law.low:.2f} … {law.high:.2f})" if law.low is not None and law.high is not None else ""
    return Td(f"{law.exponent:.2f}{span}", law.exponent, None if span else "two points: no interval", kind="num")


def crossings(anchor: str, crossings: Iterable[Crossing], labels: dict[Setting, str]) -> Table:
    """Those that are resolved on both sides first."""
    columns = [
        *_along(labels),
        Column("faster below", lambda c: name(c.b if c.at.faster_above == "a" else c.a)),
        Column("faster above", lambda c: name(c.a if c.at.faster_above == "a" else c.b)),
        Column("at about", lambda c: num(c.at.n, words.short), True),
        Column("between", lambda c: Td(f"{c.at.below:,.0f} and {c.at.above:,.0f}", c.at.below)),
        Column("sure", lambda c: text("resolved on both sides" if c.resolved else "not resolved on both sides")),
    ]
    note = "Interpolated on log axes between two measured sizes."
    return tabulate(anchor, "Crossovers", columns, sorted(crossings, key=lambda c: not c.resolved), note)


def phases(anchor: str, cells: Sequence[Cell]) -> Table:
    """Every time of every cell, and the command that measures it again; where there are two times, all of them."""
    timed = [c for c in cells if c.record.timing is not None]
    two = any(has_two_times(c.record) for c in timed)
    median = ("device time", "median, steady state, cold L2 cache") if two else ("steady state", "")
    more = [
        Column("wall time", wall, True, HOST_BOUND_MEANS),
        Column("graph", lambda c: _or_why(graph_ms(c.record), c.record.timing.graph_reason), True,
               "median of CUDA graph replay"),
        Column("hot", lambda c: _or_why(hot_ms(c.record), c.record.timing.hot_reason), True,
               "median with a warm L2 cache"),
    ]  # fmt: skip
    columns = [
        *_of_cells(timed),
        Column(median[0], lambda c: num(c.record.timing.median_ms, words.time), True, median[1]),
        Column("95% interval", lambda c: _interval(c.record.timing.ci_low_ms, c.record.timing.ci_high_ms), True),
        *(more if two else []),
        Column("plan", lambda c: num(c.record.plan_ms, words.time, "this backend has no plan"), True),
        Column("first call", lambda c: num(c.record.first_call_ms, words.time), True),
        Column("the same, in calls", _once_in_calls, True, "(first call + plan) / steady state"),
        Column("cache", lambda c: text(c.record.timing.cache)),
        Column("stopped by", lambda c: text(c.record.timing.stop)),
        Column("outliers", _outliers, True, "Tukey's fences; labelled, never dropped"),
        Column("again", lambda c: Td("", None, again=c.record.again) if c.record.again else unrecorded(), False,
               "the command that measures this cell again"),
    ]  # fmt: skip
    return without_unrecorded(tabulate(anchor, "First call and plan against steady state", columns, timed))


def _interval(low: float, high: float) -> Td:
    return num(low, lambda low: f"{words.time(low)} … {words.time(high)}")


def _once_in_calls(c: Cell) -> Td:
    r, t = c.record, c.record.timing
    if r.first_call_ms is None or t is None or not t.median_ms:
        return num(None, words.two_digits)
    return num((r.first_call_ms + (r.plan_ms or 0.0)) / t.median_ms, words.two_digits)


def _outliers(c: Cell) -> Td:
    samples = c.record.timing.samples_ms if c.record.timing else []
    labels = [label for label in statistics.tukey_outliers(samples) if label]
    return num(len(labels), lambda n: f"{n} of {len(samples)}", tip=", ".join(sorted(set(labels))) or None)


def _or_why(ms: float | None, reason: str | None) -> Td:
    """A time, or the reason that there is none where that was recorded."""
    if ms is not None:
        return num(ms, words.time)
    return Td(DASH, None, reason, kind="na", detail=reason) if reason else unrecorded()


def unavailable(anchor: str, cells: Sequence[Cell]) -> Table:
    alike: dict[tuple[str, str, str], list[Cell]] = {}
    for c in cells:
        if not c.ok:
            status = "oom (predicted)" if is_predicted(c) else c.status
            # reasons that differ in their numbers only are one reason
            alike.setdefault((c.record.backend, status, re.sub(r"\d[\d.,]*", "#", c.reason or "")), []).append(c)
    columns = [
        Column("backend", lambda e: name(e[0][0])),
        Column("status", lambda e: Td(e[0][1], e[0][1], kind=f"s-{e[1][0].status}")),
        Column("why", lambda e: _why(e[0][1], e[1])),
        Column("cells", lambda e: num(len(e[1]), str), True),
        Column("where", lambda e: _listed([c.record.problem for c in e[1]])),
    ]
    return tabulate(anchor, "What was not available, and why", columns, sorted(alike.items(), key=lambda e: e[0]))


def _why(status: str, cells: Sequence[Cell]) -> Td:
    more = " (the others alike)" if len({c.reason for c in cells}) > 1 else ""
    return long((cells[0].reason or status) + more, cells[0].record.error)


def _listed(problems: Sequence) -> Td:
    where = sorted({_place(p) for p in problems})
    return long("; ".join(where[:4]) + (f"; {len(where) - 4} more" if len(where) > 4 else ""), "; ".join(where))


def _place(p: Problem) -> str:
    sizes = [f"{a.symbol} {a.value(p):,}" for a in (axis("n_atom"), *unusual(p))]
    return ", ".join([p.level, p.mode, SHORT_DTYPE[p.dtype], *sizes])


def noise(anchor: str, cells: Sequence[Cell]) -> Table:
    def of(measure):
        return lambda c: measure(c.record.timing.samples_ms, c.record.timing.aa_samples_ms)

    held = [c for c in cells if c.ok and c.record.timing and c.record.timing.aa_samples_ms]
    ratio, floor, few = of(statistics.paired_ratio), of(statistics.noise_floor), "fewer than two blocks"
    columns = [
        *_of_cells(held),
        Column("A/A ratio", lambda c: num(ratio(c).ratio, lambda r: words.number(r, 4)), True),
        Column("95% interval",
               lambda c: num((r := ratio(c)).low, lambda low: f"{low:.4f}{DASH}{r.high or 0:.4f}", few), True),
        Column("noise floor", lambda c: num(floor(c), lambda f: f"±{words.percent(f)}", few), True),
        Column("blocks", lambda c: num(ratio(c).n, str), True),
    ]  # fmt: skip
    note = "The same backend twice in one group: any difference is noise."
    return tabulate(anchor, "How noisy it was", columns, held, note)


def rank_note(contests: Iterable[Contest]) -> list[str]:
    """Cells with a speed that stand apart from the winner's group: told, never compared; a sentence a backend."""
    apart: dict[str, list[str]] = {}
    for x in contests:
        for c in x.apart:
            apart.setdefault(c.record.backend, []).append(f"{words.all_sizes(x.problem)}: {time_words(c.record)}")
    return [
        f"{code(backend)} was measured in another group at {len(where)} problem{'' if len(where) == 1 else 's'}, so no "
        f"ratio to the others is given there ({'; '.join(where[:2])}{'; …' if len(where) > 2 else ''})."
        for backend, where in apart.items()
    ]
