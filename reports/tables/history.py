"""The tables of history: steps, machines side by side, statuses, kernels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reports import words
from reports.find.history import KERNELS, LATENCY, History, Host, Problem, Series, StatusChange
from reports.read.asv_results import STATUS
from reports.read.load import SHORT_DTYPE
from reports.tables.table import Column, Table, Td, long, missing, name, num, tabulate, text

LISTED = 400
CARDS = 20  # so few rows are cards on a narrow screen
ONE_RUN = "one commit alone on a side: one noisy run looks like this"


def tables(h: History) -> list[Table]:
    """All of them; those of several machines and of kernels where there are any."""
    made = [_steps(h), _newest_times(h), _statuses(h)]
    made += [_machines(h)] if h.against else []
    return made + ([_kernels(h)] if any(s.problem.level == KERNELS for s in h.series) else [])


def _listed(
    anchor: str, title: str, columns: Sequence[Column], items: Sequence[Any], note: str, file: str = "history.csv"
) -> Table:
    """A table of the first LISTED items, which says where all of them are."""
    more = f" The first {LISTED} of {len(items):,}; {file} has all." if len(items) > LISTED else ""
    cards = anchor == "h-steps" and len(items) <= CARDS
    return tabulate(anchor, title, columns, items[:LISTED], note + more, cards=cards)


def _measured(of: Callable[[Any], Any] = lambda item: item) -> list[Column]:
    """What was measured with which backend."""
    return [
        Column("problem", lambda item: text(of(item).problem.setting)),
        Column("sizes", lambda item: text(of(item).problem.sizes)),
        Column("backend", lambda item: name(of(item).backend)),
    ]


def _steps(h: History) -> Table:
    def value(get: Callable[[Any], float]) -> Callable[[Any], Td]:
        return lambda s: num(get(s), lambda v: words.in_unit(v, s.series.unit))

    columns = [
        Column("machine", lambda s: text(s.series.host.machine)),
        *_measured(lambda s: s.series),
        Column("what", lambda s: text(s.series.metric.replace("_", " "))),
        Column("commit", lambda s: text(
            s.first.short, f"first commit with the new level; last with the old one: {s.last.short}")),
        Column("before", value(lambda s: s.before), True),
        Column("after", value(lambda s: s.after), True),
        Column("change", lambda s: num(s.ratio, words.times), True),
        Column("commits", lambda s: text(f"{s.n_before} + {s.n_after}", None if s.held else ONE_RUN), False,
               "with the old level + with the new one"),
    ]  # fmt: skip
    note = ("Levels of asv's step detection that differ by 5% or more, by more than their scatter and than asv's "
            "intervals at the step; a bump of a few commits may be passed over.")  # fmt: skip
    ordered = sorted(h.steps, key=lambda s: (not s.held, not s.worse, -abs(s.ratio - 1)))
    return _listed("h-steps", "Steps", columns, ordered, note, "steps.csv")


def _newest_times(h: History) -> Table:
    """The newest time of every cell, a column a machine."""
    by_cell: dict[tuple[Problem, str], dict[Host, Series]] = defaultdict(dict)
    for s in h.series:
        if s.metric == LATENCY:
            by_cell[s.problem, s.backend][s.host] = s
    timed = [host for host in h.hosts if any(host in held and held[host].measured for held in by_cell.values())]
    rows = [held for _, held in sorted(by_cell.items(), key=lambda e: (e[0][0].order, e[0][1]))
            if any(s.measured for s in held.values())]  # fmt: skip
    columns = [
        *_measured(lambda held: next(iter(held.values()))),
        *(Column(host.label, _of_host(host), True) for host in timed),
    ]
    note = "The newest commit of each machine that the cell was asked for at; a dash says why there is no time."
    return _listed("h-newest", "Newest times, machines side by side", columns, rows, note)


def _of_host(host: Host) -> Callable[[Mapping[Host, Series]], Td]:
    return lambda held: _newest(held.get(host))


def _newest(s: Series | None) -> Td:
    if s is None:
        return missing("not asked for on this machine")
    p = s.points[-1]
    interval = "no interval"
    if p.low is not None and p.high is not None:
        interval = f"99% interval {words.in_unit(p.low, s.unit)} to {words.in_unit(p.high, s.unit)}"
    why = f"{p.status} at {p.commit.short}"
    return num(p.value, lambda v: words.in_unit(v, s.unit), why, interval, detail=p.commit.short)


def _statuses(h: History) -> Table:
    last = {(c.series.host, *c.series.key): c for c in h.changes}
    rows: list[tuple[Series, StatusChange | None]] = [
        (s, last.get((s.host, *s.key))) for s in h.series if s.metric == STATUS
    ]
    rows = [(s, change) for s, change in rows if s.points[-1].status != "ok" or change is not None]
    columns = [
        Column("machine", lambda row: text(row[0].host.machine)),
        *_measured(lambda row: row[0]),
        Column("now", lambda row: _status(row[0].points[-1].status)),
        Column("before", lambda row: text(row[1].before) if row[1] else missing("always so")),
        Column("since", lambda row: text((row[1].first if row[1] else row[0].points[0].commit).short)),
        Column("why", lambda row: _reason(row[0].points[-1].reason)),
    ]
    note = "Cells whose newest status is not ok, and those whose status changed with a commit."
    return _listed("h-status", "Where there is no number, or was none", columns, rows, note)


def _status(word: str) -> Td:
    return Td(word, word, kind=f"s-{word}")


def _reason(reason: str | None) -> Td:
    return long(reason) if reason else missing("no record beside asv's results says")


def _machines(h: History) -> Table:
    columns = [
        Column("machine", lambda a: text(a.here.machine)),
        *_measured(),
        Column("times as fast", lambda a: num(a.ratio.ratio, words.times), True),
        Column("interval", lambda a: text(words.interval(a.ratio.low, a.ratio.high))),
        Column("commit", lambda a: text(a.commit.short)),
    ]
    return _listed("h-machines", "Machine against machine", columns, h.against, h.unpaired)


def _kernels(h: History) -> Table:
    """What the compiler made of each kernel at the newest commit, a column a number."""
    by_kernel: dict[tuple[Host, Problem, str], dict[str, Series]] = defaultdict(dict)
    for s in h.series:
        if s.problem.level == KERNELS:
            by_kernel[s.host, s.problem, s.backend][s.metric] = s

    def of(metric: str) -> Callable[[Mapping[str, Series]], Td]:
        return lambda held: _compiled(held.get(metric))

    def first(held: Mapping[str, Series]) -> Series:
        return next(iter(held.values()))

    def built_for(p: Problem) -> str:
        return ", ".join(x for x in (p.sizes, SHORT_DTYPE.get(str(dict(p.params).get("dtype")), "")) if x)

    def newest(held: Mapping[str, Series]) -> str:
        return max((s.points[-1].commit for s in held.values()), key=lambda c: c.position).short

    columns = [
        Column("machine", lambda held: text(first(held).host.machine)),
        Column("kernel", lambda held: text(first(held).backend)),
        Column("for", lambda held: text(built_for(first(held).problem))),
        *(
            Column(m.replace("_", " "), of(m), True)
            for m in dict.fromkeys(m for held in by_kernel.values() for m in held)
        ),
        Column("commit", lambda held: text(newest(held))),
    ]
    note = "At the newest commit; compiled for an architecture that need not be here."
    return _listed("h-kernels", "Kernels as compiled", columns, list(by_kernel.values()), note)


def _compiled(s: Series | None) -> Td:
    if s is None:
        return missing("not asked for")
    p = s.points[-1]
    return text(p.status) if s.metric == STATUS else num(p.value, lambda v: words.in_unit(v, s.unit), p.status)
