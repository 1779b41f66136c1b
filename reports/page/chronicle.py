"""What the report says of history: sentences, figures and tables, machines side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.harness.ruler.statistics import Ratio
from benchmarks.harness.schema.axes import AXES
from benchmarks.harness.schema.cells import UNCAPPED
from reports import words
from reports.draw import forests, lanes
from reports.draw.lanes import Lane
from reports.draw.panel import Drawing
from reports.find.history import KERNELS, LATENCY, MEMORY, Against, History, Host, Problem, Series, Step
from reports.marks import bold, code
from reports.read.asv_results import FAILED, NUMBER, STATUS, Commit
from reports.read.load import SHORT_DTYPE, Rejected
from reports.tables import chronicle_tables
from reports.tables.chronicle_tables import setting, sizes, unpaired
from reports.tables.table import Table

DRAWN_A_LEVEL = 3  # problems a level and metric; the others are in history.csv
TOLD = 5  # steps named in the first sentences
METRIC_WORDS = {LATENCY: "Time", MEMORY: "Memory"}
MORE = {LATENCY: ("slower", "faster"), MEMORY: ("heavier", "lighter")}


@dataclass(frozen=True)
class Page:
    """One sheet of drawings before it is drawn."""

    title: str
    note: str
    drawings: list[Drawing]


@dataclass(frozen=True)
class Chronicle:
    """Everything that is said about history."""

    headline: list[str]
    notices: list[str]
    pages: list[Page]
    tables: list[Table]
    facts: list[tuple[Host, list[tuple[str, str]]]]
    summary: str
    names: list[str]


def chronicle(h: History, names: Sequence[str]) -> Chronicle:
    """``names``: every backend of the page, for stable colours."""
    made = [chronicle_tables.steps(h), chronicle_tables.side_by_side(h), chronicle_tables.statuses(h)]
    made += [chronicle_tables.machines(h)] if h.against else []
    made += [chronicle_tables.kernels(h)] if any(s.problem.level == KERNELS for s in h.series) else []
    return Chronicle(
        _headline(h), _notices(h), [p for p in _pages(h, names) if p.drawings], made,
        [(host, _facts(h, host)) for host in h.hosts], _summary(h), h.backends,
    )  # fmt: skip


def _where(p: Problem) -> str:
    return ", ".join(x for x in (setting(p), sizes(p)) if x)


def _plural(n: int, word: str) -> str:
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def _summary(h: History) -> str:
    numbers = list(h.results.frame["found"]).count(NUMBER)
    levels = len({s.problem.level for s in h.series})
    return (f"{numbers:,} numbers of asv: {_plural(len({x.machine for x in h.hosts}), 'machine')}, "
            f"{_plural(len(h.results.commits), 'commit')}, {_plural(levels, 'level')}")  # fmt: skip


def _headline(h: History) -> list[str]:
    commits = list(h.results.commits)
    known = "in git's order" if h.results.ordered_by == "git" else "by date, since no repository here knows them all"
    span = " to ".join(code(c.short) for c in dict.fromkeys((commits[0], commits[-1])))
    out = [f"{_plural(len(commits), 'commit')} ({span}, {known}) on {', '.join(host.label for host in h.hosts)}."]
    grouped = _grouped([s for s in h.steps if s.held])
    if not grouped and len(commits) > 1:
        out.append(f"{bold('No step')} of 5% or more that holds at two commits or more on either side.")
    out += [_told(steps) for steps in grouped[:TOLD]]
    if len(grouped) > TOLD:
        out.append(f"{len(grouped) - TOLD} more are in the table of steps.")
    single = [s for s in h.steps if not s.held]
    if single:
        out.append(f"{_plural(len(single), 'step')} with one commit alone on a side: one noisy run looks like that.")
    return out


def _grouped(steps: Sequence[Step]) -> list[list[Step]]:
    """Steps of one backend and metric at one commit of one machine: one change, however many problems show it."""
    groups: dict[tuple[object, ...], list[Step]] = defaultdict(list)
    for s in steps:
        groups[s.first.position, s.series.host, s.series.backend, s.series.metric, s.worse].append(s)
    return sorted(groups.values(), key=lambda g: (not g[0].worse, -max(abs(s.ratio - 1) for s in g)))


def _told(steps: Sequence[Step]) -> str:
    one = max(steps, key=lambda s: abs(s.ratio - 1))
    others = f" and {len(steps) - 1} more cells" if len(steps) > 2 else " and one more cell" if len(steps) > 1 else ""
    between = "" if one.first.position == one.last.position + 1 else f" (or after {code(one.last.short)})"
    return (f"{code(one.series.backend)} became {bold(_verdict(one))} with {code(one.first.short)}{between} on "
            f"{one.series.host.machine}: {_where(one.series.problem)}{others}.")  # fmt: skip


def _verdict(s: Step) -> str:
    more, less = MORE.get(s.series.metric, (f"more {s.series.metric}", f"less {s.series.metric}"))
    return f"{words.times(s.ratio)} {more}" if s.worse else f"{words.times(1 / s.ratio)} {less}"


def _notices(h: History) -> list[str]:
    out = [_left_out(r) for r in h.results.rejected[:8]]
    if len(h.results.rejected) > 8:
        out.append(f"Left out: {len(h.results.rejected) - 8} more files or benchmarks that cannot be read.")
    frame = h.results.frame
    failed = [(c, m) for c, m, f in zip(frame["commit"], frame["machine"], frame["found"], strict=True) if f == FAILED]
    if failed:
        where = sorted({f"{c[:7]} on {m}" for c, m in failed})
        out.append(f"asv recorded {_plural(len(failed), 'failed look-up')} (null, not n/a) at {', '.join(where[:4])}"
                   f"{' and more' if len(where) > 4 else ''}: no number there, and none is drawn.")  # fmt: skip
    throttled = [s for s in h.series if s.metric == "throttle" and any((p.value or 0) > 0 for p in s.points)]
    if throttled:
        machines = ", ".join(sorted({s.host.machine for s in throttled}))
        out.append(f"A GPU held its clock back during {_plural(len(throttled), 'cell')} on {machines}: "
                   "a step there may be the clock's.")  # fmt: skip
    return out


def _left_out(r: Rejected) -> str:
    return f"Left out: {r.source}{f', line {r.line}' if r.line else ''}: {r.why}."


def _facts(h: History, host: Host) -> list[tuple[str, str]]:
    spelled = {"gpu": "GPU", "cpu": "CPU", "os": "system", "num_cpu": "cores", "ram": "memory"}
    held = h.results.machines.get(host.machine, {})
    commits = {p.commit.hash: p.commit for s in h.series if s.host == host for p in s.points}
    newest = max(commits.values(), key=lambda c: c.position)
    return [
        *((spelled.get(k, k.replace("_", " ")), _fact(k, v)) for k, v in held.items() if k != "version"),
        ("environment", host.env), ("commits", f"{len(commits):,}"),
        ("newest commit", f"{newest.short}, {newest.date:%Y-%m-%d}"),
    ]  # fmt: skip


def _fact(key: str, value: str) -> str:
    return words.size(float(value)) if key == "ram" and value.isdigit() and int(value) >= 2**20 else value


def _pages(h: History, names: Sequence[str]) -> Iterator[Page]:
    note = ("A lane is a backend, on a scale of its own; the pale bar is the level of asv's step detection, a dashed "
            "line a step and the first commit that shows it; bars are asv's 99% intervals.")  # fmt: skip
    for metric, word in METRIC_WORDS.items():
        left_out = 0
        drawings: list[Drawing] = []
        for problems in _problems(h, metric).values():
            left_out += max(0, len(problems) - DRAWN_A_LEVEL)
            for problem in problems[:DRAWN_A_LEVEL]:
                drawings += _per_host(h, problem, metric, f"{word} over commits", names)
        more = f" {_plural(left_out, 'more problem')} without a larger step: history.csv." if left_out else ""
        yield Page(f"{word} over commits", note + more, drawings)
    yield Page("Other steps", note, list(_others(h, names)))
    kernels = "A lane is a number that the compiler gives; no GPU is needed for it."
    yield Page("Kernels over commits", kernels, list(_kernels(h)))
    if h.against:
        yield Page("Machine against machine", unpaired(h), list(_machine_figures(h, names)))


def _problems(h: History, metric: str) -> dict[str, list[Problem]]:
    """The problems of each level that have a history: those with the largest steps first, then the largest."""
    largest: dict[Problem, float] = {}
    for s in h.series:
        if s.metric == metric and len(s.measured) > 1 and s.problem.level != KERNELS:
            largest.setdefault(s.problem, 1.0)
    for step in h.steps:
        p = step.series.problem
        if step.series.metric == metric and p in largest:
            largest[p] = max(largest[p], step.ratio, 1 / step.ratio)
    out: dict[str, list[Problem]] = defaultdict(list)
    for p in sorted(largest, key=lambda p: (-round(largest[p], 1), -p.size, p.order)):
        out[p.level].append(p)
    return {level: out[level] for level in sorted(out, key=lambda level: out[level][0].order[:2])}


def _per_host(h: History, problem: Problem, metric: str, title: str, names: Sequence[str]) -> Iterator[Drawing]:
    """One drawing a machine: they come to lie side by side."""
    for i, host in enumerate(h.hosts):
        held = [s for s in h.series if s.problem == problem and s.metric == metric and s.host == host and s.measured]
        if held:
            made = [Lane(s.backend, s.backend, s, _of(h, s)) for s in sorted(held, key=lambda s: s.backend)]
            subtitle = f"{sizes(problem)}; {host.label}"
            yield lanes.drawing(made, _commits(held), names, name=_stem("history", metric, problem, i),
                                title=f"{title}: {setting(problem)}", subtitle=subtitle)  # fmt: skip


def _stem(kind: str, metric: str, problem: Problem, i: int) -> str:
    words_of = [kind, metric, problem.level, *(f"{k}-{v}" for k, v in problem.params), f"m{i + 1}"]
    return "".join(c if c.isalnum() else "-" for c in "-".join(words_of).lower())


def _of(h: History, series: Series) -> list[Step]:
    return [s for s in h.steps if s.series is series]


def _commits(series: Sequence[Series]) -> list[Commit]:
    found = {p.commit.position: p.commit for s in series for p in s.points}
    return [found[i] for i in sorted(found)]


def _others(h: History, names: Sequence[str]) -> Iterator[Drawing]:
    """Metrics that have a figure only where they have a step."""
    wanted = {(s.series.problem, s.series.metric): None for s in h.steps
              if s.series.metric not in METRIC_WORDS and s.series.problem.level != KERNELS}  # fmt: skip
    for problem, metric in list(wanted)[: 2 * DRAWN_A_LEVEL]:
        yield from _per_host(h, problem, metric, metric.replace("_", " ").capitalize(), names)


def _kernels(h: History) -> Iterator[Drawing]:
    held: dict[tuple[Host, Problem, str], list[Series]] = defaultdict(list)
    for s in h.series:
        if s.problem.level == KERNELS and len(s.measured) > 1 and s.metric != STATUS:
            held[s.host, s.problem, s.backend].append(s)
    for (host, problem, kernel), series in list(held.items())[: 2 * DRAWN_A_LEVEL]:
        made = [Lane(s.metric.replace("_", " "), None, s, _of(h, s)) for s in series]
        i = h.hosts.index(host)
        yield lanes.drawing(made, _commits(series), (), name=_stem("history", kernel, problem, i),
                            title=f"Kernel {kernel}: {sizes(problem)}",
                            subtitle=", ".join([str(dict(problem.params).get("dtype", "")), host.label]))  # fmt: skip


def _machine_figures(h: History, names: Sequence[str]) -> Iterator[Drawing]:
    by_level: dict[tuple[Host, str], list[Against]] = defaultdict(list)
    for a in h.against:
        by_level[a.here, a.problem.level].append(a)
    for i, ((here, level), found) in enumerate(by_level.items()):
        rows = list(dict.fromkeys(a.problem for a in found))[: 3 * DRAWN_A_LEVEL]
        points: dict[str, list[tuple[int, Ratio]]] = defaultdict(list)
        for a in found:
            if a.problem in rows:
                points[a.backend].append((rows.index(a.problem), a.ratio))
        labels = [_row_label(p) for p in rows]
        yield forests.machines_drawing(
            dict(sorted(points.items())), labels, found[0].there.label, names, name=f"machines-{level}-{i + 1}",
            title=f"{here.machine} against {found[0].there.machine}: {level}",
            subtitle=f"{here.label} at {found[0].commit.short}",
        )  # fmt: skip


def _row_label(p: Problem) -> str:
    held = dict(p.params)
    size = f"N {held.pop('n_atom'):,}" if isinstance(held.get("n_atom"), int) else sizes(p)
    detail = [str(held.get("mode", "")), SHORT_DTYPE.get(str(held.get("dtype")), str(held.get("dtype", "")))]
    rest = {a.symbol: held.get(a.parameter, UNCAPPED) for a in AXES if a.role != "kind"}
    detail += [f"{letter} {value}" for letter, value in rest.items() if value != UNCAPPED]
    return f"{size}\n{' '.join(x for x in detail if x)}"
