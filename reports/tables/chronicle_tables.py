"""The tables of history: files for other programs, and what the page shows."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pandas as pd

from benchmarks.harness.schema.axes import AXES
from reports import words
from reports.find.history import KERNELS, LATENCY, Against, History, Host, Problem, Series, Step
from reports.read.asv_results import STATUS
from reports.read.load import MODE_WORDS, SHORT_DTYPE
from reports.tables.table import Column, Table, Td, long, missing, name, num, text

LISTED = 400
CARDS = 20  # so few rows are cards on a narrow screen
_ALONE = "one commit alone on a side: one noisy run looks like this"
PARAM_WORDS = {a.parameter: a.symbol for a in AXES}


def setting(p: Problem) -> str:
    """``attention, forward, fp32``"""
    held = dict(p.params)
    mode, dtype = str(held.get("mode", "")), str(held.get("dtype", ""))
    return ", ".join(x for x in (p.level, MODE_WORDS.get(mode, mode), SHORT_DTYPE.get(dtype, dtype)) if x)


def sizes(p: Problem) -> str:
    held = [(PARAM_WORDS.get(k, k), v) for k, v in p.params if k not in ("mode", "dtype")]
    return ", ".join(f"{k} = {v:,}" if isinstance(v, int | float) else f"{k} = {v}" for k, v in held)


def unpaired(h: History) -> str:
    return (f"How many times as fast as {h.against[0].there.label}, at the newest commit that both have. Different "
            "machines cannot be interleaved: the interval is asv's two 99% intervals pushed apart, and what another "
            "run would have shown is not in it.")  # fmt: skip


def write(h: History, folder: Path) -> None:
    """history.csv (without samples), steps.csv and, where pyarrow is, history.parquet (samples as lists)."""
    frame = h.results.frame.drop(columns="cell")
    frame.drop(columns="samples").to_csv(folder / "history.csv", index=False)
    pd.DataFrame([_step_row(s) for s in h.steps], columns=list(STEP_COLUMNS)).to_csv(folder / "steps.csv", index=False)
    try:
        import pyarrow  # noqa: F401
    except ModuleNotFoundError:
        return
    for p in h.results.parameters:
        held = [v for v in frame[p] if v is not None and v == v]
        if len({isinstance(v, str) for v in held}) > 1:  # a column of Parquet has one type
            frame[p] = [str(v) if v is not None and v == v else None for v in frame[p]]
    frame.convert_dtypes().to_parquet(folder / "history.parquet", index=False)


STEP_COLUMNS = ("machine", "device", "env", "level", "problem", "backend", "metric", "unit", "last_before",
                "first_after", "before", "after", "ratio", "commits_before", "commits_after")  # fmt: skip


def _step_row(s: Step) -> tuple[object, ...]:
    series = s.series
    host = series.host
    return (host.machine, host.device, host.env, series.problem.level, sizes(series.problem), series.backend,
            series.metric, series.unit, s.last.hash, s.first.hash, s.before, s.after, s.ratio, s.n_before,
            s.n_after)  # fmt: skip


PROBLEM = (Column("problem"), Column("sizes"), Column("backend"))


def _cut(n: int, file: str) -> str:
    return f" The first {LISTED} of {n:,}; {file} has all." if n > LISTED else ""


def _problem_cells(s: Series | Against) -> list[Td]:
    return [text(setting(s.problem)), text(sizes(s.problem)), name(s.backend)]


def steps(h: History) -> Table:
    columns = (Column("machine"), *PROBLEM, Column("what"), Column("commit"), Column("before", True),
               Column("after", True), Column("change", True),
               Column("commits", tip="with the old level + with the new one"))  # fmt: skip
    ordered = sorted(h.steps, key=lambda s: (not s.held, not s.worse, -abs(s.ratio - 1)))
    rows = [
        [
            text(s.series.host.machine), *_problem_cells(s.series), text(s.series.metric.replace("_", " ")),
            text(s.first.short, f"first commit with the new level; last with the old one: {s.last.short}"),
            num(s.before, words.in_unit(s.before, s.series.unit)), num(s.after, words.in_unit(s.after, s.series.unit)),
            num(s.ratio, words.times(s.ratio)),
            text(f"{s.n_before} + {s.n_after}", None if s.held else _ALONE),
        ]
        for s in ordered[:LISTED]
    ]  # fmt: skip
    note = ("Levels of asv's step detection that differ by 5% or more, by more than their scatter and than asv's "
            "intervals at the step; a bump of a few commits may be passed over.")  # fmt: skip
    return Table("h-steps", "Steps", columns, rows, note + _cut(len(ordered), "steps.csv"),
                 cards=len(rows) <= CARDS)  # fmt: skip


def side_by_side(h: History) -> Table:
    """The newest time of every cell, a column a machine."""
    newest: dict[tuple[Problem, str], dict[Host, Series]] = defaultdict(dict)
    for s in h.series:
        if s.metric == LATENCY:
            newest[s.problem, s.backend][s.host] = s
    timed = [host for host in h.hosts if any(host in held and held[host].measured for held in newest.values())]
    columns = (*PROBLEM, *(Column(host.label, True) for host in timed))
    rows = []
    for (_, _), held in sorted(newest.items(), key=lambda e: (e[0][0].order, e[0][1])):
        first = next(iter(held.values()))
        if any(s.measured for s in held.values()):
            rows.append([*_problem_cells(first), *(_newest(held.get(host)) for host in timed)])
    note = "The newest commit of each machine that the cell was asked for at; a dash says why there is no time."
    return Table(
        "h-newest", "Newest times, machines side by side", columns, rows[:LISTED], note + _cut(len(rows), "history.csv")
    )


def _newest(s: Series | None) -> Td:
    if s is None:
        return missing("not asked for on this machine")
    p = s.points[-1]
    if p.value is None:
        return missing(f"{p.status} at {p.commit.short}")
    interval = ""
    if p.low is not None and p.high is not None:
        interval = f"99% interval {words.in_unit(p.low, s.unit)} to {words.in_unit(p.high, s.unit)}"
    return Td(words.in_unit(p.value, s.unit), p.value, interval or "no interval", kind="num", detail=p.commit.short)


def statuses(h: History) -> Table:
    columns = (Column("machine"), *PROBLEM, Column("now"), Column("before"), Column("since"), Column("why"))
    last = {(c.series.host, *c.series.key): c for c in h.changes}
    rows = []
    for s in h.series:
        newest = s.points[-1]
        change = last.get((s.host, *s.key))
        if s.metric == STATUS and (newest.status != "ok" or change is not None):
            rows.append([
                text(s.host.machine), *_problem_cells(s), Td(newest.status, newest.status, kind=f"s-{newest.status}"),
                missing("always so") if change is None else text(change.before),
                text((change.first if change else s.points[0].commit).short),
                long(newest.reason) if newest.reason else missing("no record beside asv's results says"),
            ])  # fmt: skip
    note = "Cells whose newest status is not ok, and those whose status changed with a commit."
    return Table(
        "h-status",
        "Where there is no number, or was none",
        columns,
        rows[:LISTED],
        note + _cut(len(rows), "history.csv"),
    )


def machines(h: History) -> Table:
    columns = (Column("machine"), *PROBLEM, Column("times as fast", True), Column("interval"), Column("commit"))
    rows = [
        [text(a.here.machine), *_problem_cells(a), num(a.ratio.ratio, words.times(a.ratio.ratio)),
         text(words.interval(a.ratio.low, a.ratio.high)), text(a.commit.short)]
        for a in h.against[:LISTED]
    ]  # fmt: skip
    note = unpaired(h) + _cut(len(h.against), "history.csv")
    return Table("h-machines", "Machine against machine", columns, rows, note)


def kernels(h: History) -> Table:
    """What the compiler made of each kernel at the newest commit, a column a number."""
    held: dict[tuple[Host, Problem, str], dict[str, Series]] = defaultdict(dict)
    for s in h.series:
        if s.problem.level == KERNELS:
            held[s.host, s.problem, s.backend][s.metric] = s
    metrics = list(dict.fromkeys(m for found in held.values() for m in found))
    numbers = [Column(m.replace("_", " "), True) for m in metrics]
    columns = (Column("machine"), Column("kernel"), Column("for"), *numbers, Column("commit"))
    rows = []
    for (host, problem, kernel), found in held.items():
        dtype = SHORT_DTYPE.get(str(dict(problem.params).get("dtype")), "")
        what = ", ".join(x for x in (sizes(problem), dtype) if x)
        cells = [_compiled(found.get(m)) for m in metrics]
        newest = max((s.points[-1].commit for s in found.values()), key=lambda c: c.position)
        rows.append([text(host.machine), text(kernel), text(what), *cells, text(newest.short)])
    note = "At the newest commit; compiled for an architecture that need not be here."
    return Table("h-kernels", "Kernels as compiled", columns, rows[:LISTED], note + _cut(len(rows), "history.csv"))


def _compiled(s: Series | None) -> Td:
    if s is None:
        return missing("not asked for")
    p = s.points[-1]
    if s.metric == STATUS:
        return text(p.status)
    return missing(p.status) if p.value is None else num(p.value, words.in_unit(p.value, s.unit))
