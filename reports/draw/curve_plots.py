"""Curves: time, memory and share of the limit along one axis, logarithmic, every backend a line.

What failed stands in the strip above the panel, at its x, and a ring marks where its line ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from benchmarks.harness.schema.axes import curve_axes
from reports import words
from reports.draw.figure import DASHES, DOTS, Drawing, Frame, backend_handle
from reports.draw.theme import Theme
from reports.find.curves import Curve, is_predicted
from reports.read.load import Cell
from reports.read.measured import has_two_times, time_words, wall_ms

STATUS_CODES = {"oom": "oom", "unsupported": "n/a", "timeout": "time", "crashed": "crash", "wrong": "wrong",
                "impossible": "no!"}  # fmt: skip
LEFT_IN, PLOT_IN, STRIP_IN, GAP_IN = 0.80, 2.75, 0.2, 0.08


@dataclass(frozen=True)
class Quantity:
    """What a curve shows on y: a value per cell, with an interval where there is one."""

    label: str
    value: Callable[[Cell], float | None]
    text: Callable[[float], str]
    bounds: Callable[[Cell], tuple[float, float] | None] | None = None
    told: Callable[[Cell], str] | None = None  # the hover text, where it says more than the value


def _median_ms(cell: Cell) -> float | None:
    return cell.record.timing.median_ms if cell.record.timing else None


def _bounds_ms(cell: Cell) -> tuple[float, float] | None:
    t = cell.record.timing
    return (t.ci_low_ms, t.ci_high_ms) if t else None


def _peak_bytes(cell: Cell) -> float | None:
    memory = cell.record.memory
    return memory.peak_bytes or None if memory and cell.ok else None  # no bytes at all have no place on a log axis


def _model_bytes(cell: Cell) -> float | None:
    memory = cell.record.memory
    return memory.model_bytes or None if memory and cell.ok else None


def _percent(cell: Cell) -> float | None:
    return cell.record.limit.percent or None if cell.record.limit else None


def axis_words(letter: str) -> str:
    """``window W (residues)``"""
    return next(f"{a.title} ({a.unit})" if a.unit else a.title for a in curve_axes() if a.symbol == letter)


TIME = Quantity("time per call", _median_ms, words.time, _bounds_ms, lambda cell: time_words(cell.record))
MEMORY = Quantity("peak above the inputs", _peak_bytes, words.size)
LIMIT = Quantity("% of the machine's limit", _percent, words.of_hundred)


@dataclass(frozen=True)
class CurvePlot:
    """``quantity`` against the axis of ``curve``; with p itself and the memory models where it is memory."""

    curve: Curve
    quantity: Quantity

    @property
    def series(self) -> dict[str, list[tuple[float, float, Cell]]]:
        value = self.quantity.value
        kept = {b: [(x, y, c) for x, c in pts if (y := value(c)) is not None] for b, pts in self.curve.points.items()}
        return {b: points for b, points in kept.items() if points}

    @property
    def failures(self) -> dict[str, list[tuple[float, Cell]]]:
        every = self.curve.points.items()
        return {b: failed for b, points in every if (failed := [(x, c) for x, c in points if not c.ok])}

    def drawing(self, *, name: str, title: str, subtitle: str) -> Drawing:
        tips = {
            f"pt|{b}": [f"{b}, {self._at(x, c)}: {self._told(y, c)}" for x, y, c in points]
            for b, points in self.series.items()
        }
        return Drawing(name, title, self._alt(), partial(self._draw, title, subtitle), tips)

    def _told(self, y: float, cell: Cell) -> str:
        return self.quantity.told(cell) if self.quantity.told else self.quantity.text(y)

    @property
    def walls(self) -> dict[str, list[tuple[float, float]]]:
        """Wall times, where the figure is of times and the device's time is another."""
        if self.quantity != TIME:
            return {}
        walls = {
            b: [(x, w) for x, _, c in points if has_two_times(c.record) and (w := wall_ms(c.record))]
            for b, points in self.series.items()
        }
        return {b: points for b, points in walls.items() if points}

    def _at(self, x: float, cell: Cell) -> str:
        name = cell.record.problem.workload
        return f"{self.curve.axis} {x:,.0f}" if name == "synthetic" else f"{name}, {self.curve.axis} {x:,.0f}"

    def _alt(self) -> str:
        text, axis = self.quantity.text, self.curve.axis
        parts = [f"{self.quantity.label} against {axis_words(axis)}, log axes"]
        for b, points in self.series.items():
            (x0, y0, _), (x1, y1, _) = points[0], points[-1]
            parts.append(f"{b}: {text(y0)} at {axis} = {x0:,.0f}, {text(y1)} at {x1:,.0f}")
        for b, points in self.walls.items():
            (x0, y0), (x1, y1) = points[0], points[-1]
            parts.append(f"{b} by wall time: {text(y0)} at {axis} = {x0:,.0f}, {text(y1)} at {x1:,.0f}")
        for b, failed in self.failures.items():
            parts.append(f"{b} has no value at " + ", ".join(f"{x:,.0f} ({c.status})" for x, c in failed))
        return ". ".join(parts) + "."

    def _draw(self, title: str, subtitle: str, t: Theme) -> Figure:
        series, failures = self.series, self.failures
        strip_in = STRIP_IN * len(failures)
        plot_in = PLOT_IN + (strip_in + GAP_IN if failures else 0)
        frame = Frame(title, subtitle, self._handles(series, t), t, plot_in=plot_in, left_in=LEFT_IN)
        ax = frame.axes(0, PLOT_IN)
        if self.quantity == MEMORY:
            self._memory_references(ax, series, t)
        for backend, points in self.walls.items():
            ax.plot(*zip(*points, strict=True), color=t.colour(backend), linewidth=1, linestyle=DASHES)
        for backend, points in series.items():
            self._line(ax, backend, points, t, ended=any(x > points[-1][0] for x, _ in failures.get(backend, ())))
        if self.quantity == LIMIT:
            ax.axhline(100, color=t.role("alarm"), linewidth=1, linestyle=DASHES)
        self._log_axes(ax)
        if failures:
            self._failure_strip(frame.axes(PLOT_IN + GAP_IN, strip_in), ax, failures, t)
        return frame.figure

    def _handles(self, series: dict[str, list[tuple[float, float, Cell]]], t: Theme) -> list[Line2D]:
        """Legend entries in the order of the lines at their right ends."""
        ordered = sorted(series, key=lambda b: -series[b][-1][1])
        handles = [backend_handle(b, t, line=True) for b in ordered]
        if self.walls:
            soft = t.role("soft")
            handles.append(Line2D([], [], color=soft, linewidth=1, linestyle=DASHES, label="wall time"))
        if self.quantity == MEMORY:
            handles.append(Line2D([], [], color=t.role("ink"), linewidth=1, linestyle=DASHES, label="p itself"))
            handles.append(Line2D([], [], color=t.role("soft"), linewidth=1.1, linestyle=DOTS, label="memory model"))
        return handles

    def _line(
        self, ax: Axes, backend: str, points: Sequence[tuple[float, float, Cell]], t: Theme, *, ended: bool
    ) -> None:
        colour, shape = t.colour(backend), t.marker(backend)
        read = self.quantity.bounds
        bounds = [(x, *b) for x, _, c in points if read is not None and (b := read(c)) is not None]
        if bounds:
            ax.vlines(*zip(*bounds, strict=True), color=colour, linewidth=4, alpha=0.35)
        x, y = [p[0] for p in points], [p[1] for p in points]
        ax.plot(x, y, color=colour, marker=shape, ms=t.marker_points(backend), mec=t.role("ground"), mew=0.6,
                gid=f"pt|{backend}", zorder=3)  # fmt: skip
        if ended:
            ax.plot(x[-1], y[-1], marker="o", markersize=11, mfc="none", mec=colour, mew=1.1, zorder=2)

    def _memory_references(self, ax: Axes, series: dict[str, list[tuple[float, float, Cell]]], t: Theme) -> None:
        """p itself, which every backend is handed, and each backend's own model as a dotted line."""
        p_bytes = {x: m.p_bytes for points in series.values() for x, _, c in points if (m := c.record.memory)}
        drawn = sorted((x, b) for x, b in p_bytes.items() if b)
        ax.plot([x for x, _ in drawn], [b for _, b in drawn], color=t.role("ink"), linewidth=1, linestyle=DASHES)
        for backend, points in series.items():
            model = [(x, b) for x, _, c in points if (b := _model_bytes(c)) is not None]
            if model:
                ax.plot(*zip(*model, strict=True), color=t.colour(backend), linewidth=1.1, linestyle=DOTS)

    def _log_axes(self, ax: Axes) -> None:
        xs = self.curve.xs
        pad = (xs[-1] / xs[0]) ** 0.05
        ax.set_xscale("log")
        ax.set_yscale("log", base=2 if self.quantity == MEMORY else 10)
        ax.set_xlim(xs[0] / pad, xs[-1] * pad)
        ax.xaxis.set_major_locator(FixedLocator(_spread(xs)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: words.short(v)))
        bottom, top = ax.get_ylim()
        if top / bottom < 6:  # too flat for two labels: widen
            middle = math.sqrt(top * bottom)
            bottom, top = middle / 3.5, middle * 3.5
            ax.set_ylim(bottom, top)
        ax.yaxis.set_major_locator(_y_ticks(math.log10(top / bottom), binary=self.quantity == MEMORY))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: words.bare(self.quantity.text(v))))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_minor_locator(NullLocator())
        ax.set_xlabel(axis_words(self.curve.axis), fontsize=9)
        ax.grid(axis="x", visible=False)

    def _failure_strip(self, strip: Axes, ax: Axes, failures: dict[str, list[tuple[float, Cell]]], t: Theme) -> None:
        """One row per backend that failed somewhere: what happened, at its x."""
        strip.set(xscale="log", xlim=ax.get_xlim(), ylim=(len(failures) - 0.5, -0.5), xticks=[], yticks=[])
        strip.xaxis.set_minor_locator(NullLocator())
        strip.grid(False)
        strip.spines[:].set_visible(False)
        across = strip.get_yaxis_transform()
        for row, (backend, cells) in enumerate(failures.items()):
            colour = t.colour(backend)
            strip.axhspan(row - 0.42, row + 0.42, color=t.role("grid"), alpha=0.55, linewidth=0)
            strip.plot([-0.025], [row], marker=t.marker(backend), color=colour, clip_on=False, transform=across)
            statuses = {c.status for _, c in cells}
            if len(cells) == len(self.curve.points[backend]) and len(statuses) == 1:
                said = f"{backend}: {statuses.pop()} at every size"
                strip.text(0.5, row, said, ha="center", va="center", fontsize=8, color=colour, transform=across)
                continue
            for x, said in _codes(cells, ax.get_xlim()):
                strip.text(x, row, said, ha="center", va="center", fontsize=8, color=colour)


def _codes(cells: Sequence[tuple[float, Cell]], limits: tuple[float, float]) -> list[tuple[float, str]]:
    """A word per failed cell; a dot where the word would touch the one before."""
    out, last, span = [], -math.inf, math.log(limits[1] / limits[0])
    for x, c in cells:
        crowded = (math.log(x) - last) / span < 0.09
        out.append((x, "·" if crowded else STATUS_CODES[c.status] + ("*" if is_predicted(c) else "")))
        last = last if crowded else math.log(x)
    return out


def _spread(xs: Sequence[float], apart: float = 0.085) -> list[float]:
    """The measured x that can be labelled without touching; both ends first."""
    span = math.log(xs[-1] / xs[0])
    kept: list[float] = []
    for x in [xs[0], xs[-1], *xs]:
        if all(abs(math.log(x / k)) / span >= apart for k in kept):
            kept.append(x)
    return sorted(kept)


def _y_ticks(decades: float, *, binary: bool) -> LogLocator:
    if binary:
        return LogLocator(base=4 if decades < 2.5 else 16 if decades < 4 else 64)
    return LogLocator(base=10, subs=(1, 2, 5) if decades < 2 else (1, 3) if decades < 3 else (1,))
