"""Which figures the history holds: small multiples over commits, and one machine against another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from benchmarks.harness.schema.axes import AXES
from benchmarks.harness.schema.cells import UNCAPPED
from reports.draw import history_plots
from reports.draw.figure import Drawing, Gallery
from reports.draw.figures import slug
from reports.draw.history_plots import Panel
from reports.draw.ratio_plots import Dot, RatioPlot
from reports.find.history import KERNELS, METRIC_WORDS, Against, History, Host, Problem, Series
from reports.read.asv_results import STATUS
from reports.read.load import SHORT_DTYPE

DRAWN_A_LEVEL = 3  # problems a level and metric; the others are in history.csv


def galleries(h: History) -> list[Gallery]:
    note = ("A panel is a backend, on a scale of its own; the pale bar is the level of asv's step detection, a dashed "
            "line a step and the first commit that shows it; bars are asv's 99% intervals.")  # fmt: skip
    made = [_over_commits(h, metric, word, note) for metric, word in METRIC_WORDS.items()]
    made.append(Gallery("Other steps", note, list(_others(h))))
    kernels = "A panel is a number that the compiler gives; no GPU is needed for it."
    made.append(Gallery("Kernels over commits", kernels, list(_kernels(h))))
    if h.against:
        made.append(Gallery("Machine against machine", h.unpaired, list(_machines(h))))
    return [g for g in made if g.drawings]


def _over_commits(h: History, metric: str, word: str, note: str) -> Gallery:
    by_level = _problems(h, metric).values()
    shown = [p for problems in by_level for p in problems[:DRAWN_A_LEVEL]]
    if left_out := sum(map(len, by_level)) - len(shown):
        note += f" {left_out:,} more problem{'s' * (left_out > 1)} without a larger step: history.csv."
    title = f"{word} over commits"
    return Gallery(title, note, [d for p in shown for d in _per_host(h, p, metric, title)])


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


def _per_host(h: History, problem: Problem, metric: str, title: str) -> Iterator[Drawing]:
    """One drawing a machine: they come to lie side by side."""
    for host in h.hosts:
        held = [s for s in h.series if s.problem == problem and s.metric == metric and s.host == host and s.measured]
        if held:
            panels = [_panel(h, s, s.backend, s.backend) for s in sorted(held, key=lambda s: s.backend)]
            yield history_plots.drawing(panels, _name(h, metric, held[0]), f"{title}: {problem.setting}",
                                        f"{problem.sizes}; {host.label}")  # fmt: skip


def _panel(h: History, s: Series, label: str, backend: str | None) -> Panel:
    return Panel(label, backend, s, [step for step in h.steps if step.series is s])


def _name(h: History, what: str, s: Series) -> str:
    params = [f"{k}-{v}" for k, v in s.problem.params]
    return slug("history", what, s.problem.level, *params, f"m{h.hosts.index(s.host) + 1}")


def _others(h: History) -> Iterator[Drawing]:
    """Metrics that have a figure only where they have a step."""
    wanted = {(s.series.problem, s.series.metric): None for s in h.steps
              if s.series.metric not in METRIC_WORDS and s.series.problem.level != KERNELS}  # fmt: skip
    for problem, metric in list(wanted)[: 2 * DRAWN_A_LEVEL]:
        yield from _per_host(h, problem, metric, metric.replace("_", " ").capitalize())


def _kernels(h: History) -> Iterator[Drawing]:
    held: dict[tuple[Host, Problem, str], list[Series]] = defaultdict(list)
    for s in h.series:
        if s.problem.level == KERNELS and len(s.measured) > 1 and s.metric != STATUS:
            held[s.host, s.problem, s.backend].append(s)
    for (host, problem, kernel), series in list(held.items())[: 2 * DRAWN_A_LEVEL]:
        panels = [_panel(h, s, s.metric.replace("_", " "), None) for s in series]
        dtype = str(dict(problem.params).get("dtype", ""))
        yield history_plots.drawing(panels, _name(h, kernel, series[0]), f"Kernel {kernel}: {problem.sizes}",
                                    f"{dtype}, {host.label}")  # fmt: skip


def _machines(h: History) -> Iterator[Drawing]:
    """One machine against another, unpaired: one row a problem, one marker a backend."""
    by_level: dict[tuple[Host, str], list[Against]] = defaultdict(list)
    for a in h.against:
        by_level[a.here, a.problem.level].append(a)
    for i, ((here, level), ratios) in enumerate(by_level.items()):
        rows, there = list(dict.fromkeys(a.problem for a in ratios))[: 3 * DRAWN_A_LEVEL], ratios[0].there
        dots = [Dot(rows.index(a.problem), a.backend, a.ratio) for a in ratios if a.problem in rows]
        row_in = max(0.42, 0.11 * len({d.backend for d in dots}) + 0.08)
        plot = RatioPlot(
            list(map(_row_label, rows)), dots, f"times as fast as {there.label}", row_in=row_in, spread=0.8
        )
        yield plot.drawing(f"machines-{level}-{i + 1}", f"{here.machine} against {there.machine}: {level}",
                           f"{here.label} at {ratios[0].commit.short}",
                           f"Speed relative to {there.label}, log axis")  # fmt: skip


def _row_label(p: Problem) -> str:
    held = dict(p.params)
    size = f"N {held.pop('n_atom'):,}" if isinstance(held.get("n_atom"), int) else p.sizes
    detail = [str(held.get("mode", "")), SHORT_DTYPE.get(str(held.get("dtype")), str(held.get("dtype", "")))]
    rest = {a.symbol: held.get(a.parameter, UNCAPPED) for a in AXES if a.role != "kind"}
    detail += [f"{letter} {value}" for letter, value in rest.items() if value != UNCAPPED]
    return f"{size}\n{' '.join(x for x in detail if x)}"
