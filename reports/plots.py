"""The figures. Each is one panel that stands alone: its title says what is held fixed, its legend is inside.

Every draw function takes a theme and returns a matplotlib figure; :func:`render` turns it into light and dark SVG and
PNG, and the themable text that the page embeds.
"""

from __future__ import annotations

import io
import logging
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from reports import svg, theme, words
from reports.analyse import Curve, is_predicted
from reports.load import Cell
from reports.theme import DARK, LIGHT, Theme

WIDTH_IN = 5.8
FONTS = ("Inter", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans")
STATUS_CODES = {"oom": "oom", "unsupported": "n/a", "timeout": "time", "crashed": "crash", "wrong": "wrong"}


@dataclass(frozen=True)
class Drawing:
    """A figure before it is drawn: ``draw(theme)`` gives the panel, ``tips`` its hover texts by artist."""

    name: str
    title: str
    alt: str
    draw: Callable[[Theme], Figure]
    tips: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """A drawn figure: file stem, texts, and the SVG that a page embeds."""

    name: str
    title: str
    alt: str
    inline: str


def style(t: Theme) -> dict[str, object]:
    present = {f.name for f in font_manager.fontManager.ttflist}
    return {
        "font.family": next((f for f in FONTS if f in present), "sans-serif"), "font.size": 9.5,
        "svg.fonttype": "none", "svg.hashsalt": "pallatom-bench", "figure.facecolor": t.role("ground"),
        "axes.facecolor": t.role("ground"), "savefig.facecolor": t.role("ground"), "text.color": t.role("ink"),
        "axes.labelcolor": t.role("soft"), "axes.edgecolor": t.role("rule"), "xtick.color": t.role("rule"),
        "ytick.color": t.role("rule"), "xtick.labelcolor": t.role("soft"), "ytick.labelcolor": t.role("soft"),
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": t.role("grid"),
        "grid.linewidth": 0.8, "axes.axisbelow": True, "xtick.major.size": 3, "ytick.major.size": 0,
        "lines.linewidth": 1.6, "lines.markersize": 5, "legend.frameon": False, "legend.fontsize": 9,
        "axes.linewidth": 0.8,
    }  # fmt: skip


def render(drawing: Drawing, folder: Path) -> Picture:
    """Write ``NAME.svg NAME-dark.svg NAME.png NAME-dark.png`` into ``folder``."""
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    texts = {}
    for t, suffix in ((LIGHT, ""), (DARK, "-dark")):
        with matplotlib.rc_context(style(t)):  # type: ignore[arg-type]
            figure = drawing.draw(t)
            figure.savefig(folder / f"{drawing.name}{suffix}.png", dpi=160, metadata={"Software": None})
            if t is LIGHT:
                buffer = io.StringIO()
                figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
                texts["light"] = buffer.getvalue()
            plt.close(figure)
    light = svg.lighten(texts["light"], drawing.name, title=drawing.title, description=drawing.alt, tips=drawing.tips)
    (folder / f"{drawing.name}.svg").write_text(light, encoding="utf-8")
    (folder / f"{drawing.name}-dark.svg").write_text(svg.dark(light), encoding="utf-8")
    return Picture(drawing.name, drawing.title, drawing.alt, svg.inline(light))


@dataclass(frozen=True)
class Quantity:
    """What a curve shows on y: a value per cell, with an interval where there is one."""

    label: str
    value: Callable[[Cell], float | None]
    text: Callable[[float], str]
    bounds: Callable[[Cell], tuple[float, float] | None] = lambda cell: None


def _bounds_ms(cell: Cell) -> tuple[float, float] | None:
    t = cell.record.timing
    return (t.ci_low_ms, t.ci_high_ms) if t else None


TIME = Quantity(
    "time per call", lambda c: c.record.timing.median_ms if c.record.timing else None, words.time, _bounds_ms
)
MEMORY = Quantity(
    "peak above the inputs",
    lambda c: (c.record.memory.peak_bytes or None) if c.record.memory and c.ok else None,
    words.size,
)
MODEL = Quantity(
    "the model's prediction",
    lambda c: (c.record.memory.model_bytes or None) if c.record.memory and c.ok else None,
    words.size,
)
LIMIT = Quantity(
    "% of the machine's limit", lambda c: c.record.limit.percent if c.record.limit else None,
    lambda v: f"{words.number(v)}%",
)  # fmt: skip
AXIS_WORDS = {"N": "atoms N", "W": "window W (residues)", "K": "neighbour slots K"}


def curve_drawing(curve: Curve, quantity: Quantity, *, name: str, title: str, subtitle: str, names: Sequence[str],
                  with_memory_model: bool = False) -> Drawing:  # fmt: skip
    """``quantity`` against the curve's axis, both logarithmic; what failed stands in the strip above."""
    series: dict[str, list[tuple[float, float, Cell]]] = {}
    for backend, points in curve.points.items():
        kept = [(x, v, c) for x, c in points if (v := quantity.value(c)) is not None]
        if kept:
            series[backend] = kept
    tips = {
        f"pt|{b}": [f"{b}, {words.sizes(c.record.problem)}: {quantity.text(v)}" for _, v, c in pts]
        for b, pts in series.items()
    }
    failures = {b: f for b, pts in curve.points.items() if (f := [(x, c) for x, c in pts if not c.ok])}
    alt = _curve_alt(curve, quantity, series, failures)

    def draw(t: Theme) -> Figure:
        figure, strip, ax = _panel(len(failures), len(series) + 2 * with_memory_model, title, subtitle, t)
        for backend, points in series.items():
            _line(ax, backend, points, quantity, t, names)
            if any(x > points[-1][0] for x, _ in failures.get(backend, ())):
                ax.plot(*points[-1][:2], marker="o", markersize=11, markerfacecolor="none", zorder=2,
                        markeredgecolor=t.backend(backend, names), markeredgewidth=1.1)  # fmt: skip
        if with_memory_model:
            _memory_references(ax, curve, series, t, names)
        _log_axes(ax, curve.xs, quantity, AXIS_WORDS[curve.axis])
        if quantity is LIMIT:
            ax.axhline(100, color=t.role("alarm"), linewidth=1, linestyle=(0, (4, 3)))
        if strip is not None:
            _failure_strip(strip, ax, curve, failures, t, names)
        _legend(figure, ax, sorted(series, key=lambda b: -series[b][-1][1]), t, names, with_memory_model)
        return figure

    return Drawing(name, title, alt, draw, tips)


def _curve_alt(curve: Curve, quantity: Quantity, series: dict, failures: dict) -> str:
    axis = {"N": "N", "W": "W", "K": "K"}[curve.axis]
    parts = [
        f"{b}: {quantity.text(pts[0][1])} at {axis} = {pts[0][0]:,.0f}, {quantity.text(pts[-1][1])} at {pts[-1][0]:,.0f}"
        for b, pts in series.items()
    ]
    ends = [
        f"{b} has no value at {', '.join(f'{x:,.0f} ({c.record.status})' for x, c in f)}" for b, f in failures.items()
    ]
    return f"{quantity.label} against {AXIS_WORDS[curve.axis]}, log axes. " + ". ".join([*parts, *ends]) + "."


def _panel(n_failing: int, n_legend: int, title: str, subtitle: str, t: Theme) -> tuple[Figure, Axes | None, Axes]:
    """A figure with a title block, an optional strip for failures, the axes, and room for the legend; inches."""
    head = Heading(title, subtitle)
    strip_in, plot, foot = 0.2 * n_failing, 2.75, 0.55 + 0.21 * -(-n_legend // 3)
    gap = 0.08 if n_failing else 0.0
    height = head.inches + strip_in + gap + plot + foot
    figure = plt.figure(figsize=(WIDTH_IN, height))
    left, width = 0.80 / WIDTH_IN, (WIDTH_IN - 0.80 - 0.22) / WIDTH_IN
    ax = figure.add_axes((left, foot / height, width, plot / height))
    strip = None
    if n_failing:
        strip = figure.add_axes((left, (foot + plot + gap) / height, width, strip_in / height))
    head.draw(figure, height, t)
    return figure, strip, ax


class Heading:
    """Title and subtitle at the top left, wrapped so that a wide fallback font still fits."""

    def __init__(self, title: str, subtitle: str) -> None:
        self.title, self.subtitle = textwrap.wrap(title, 50), textwrap.wrap(subtitle, 76)

    @property
    def inches(self) -> float:
        return 0.24 + 0.2 * len(self.title) + 0.17 * len(self.subtitle)

    def draw(self, figure: Figure, height: float, t: Theme) -> None:
        x, y = 0.12 / WIDTH_IN, 0.10
        for line in self.title:
            figure.text(x, 1 - y / height, line, va="top", ha="left", fontsize=11.5, fontweight="bold")
            y += 0.2
        for line in self.subtitle:
            figure.text(x, 1 - (y + 0.03) / height, line, va="top", ha="left", fontsize=8.8, color=t.role("soft"))
            y += 0.17


def _line(ax: Axes, backend: str, points: Sequence[tuple[float, float, Cell]], quantity: Quantity, t: Theme,
          names: Sequence[str]) -> None:  # fmt: skip
    colour = t.backend(backend, names)
    x, y = [p[0] for p in points], [p[1] for p in points]
    bounds = [(xi, b) for xi, _, c in points if (b := quantity.bounds(c)) is not None]
    if bounds:
        ax.vlines([b[0] for b in bounds], [b[1][0] for b in bounds], [b[1][1] for b in bounds], color=colour, linewidth=4,
                  alpha=0.35)  # fmt: skip
    ax.plot(x, y, color=colour, marker=theme.marker(backend, names), markeredgecolor=t.role("ground"),
            markeredgewidth=0.6, gid=f"pt|{backend}", zorder=3)  # fmt: skip


def _memory_references(ax: Axes, curve: Curve, series: dict[str, list], t: Theme, names: Sequence[str]) -> None:
    """p itself, which every backend is handed, and each backend's own model as a dotted line."""
    p_bytes = {x: c.record.memory.p_bytes for pts in series.values() for x, _, c in pts if c.record.memory}
    xs = sorted(p_bytes)
    ax.plot(xs, [p_bytes[x] for x in xs], color=t.role("ink"), linewidth=1, linestyle=(0, (6, 3)), zorder=1)
    for backend, points in series.items():
        modelled = [(x, v) for x, _, c in points if (v := MODEL.value(c)) is not None]
        if modelled:
            ax.plot([m[0] for m in modelled], [m[1] for m in modelled], color=t.backend(backend, names), linewidth=1.1,
                    linestyle=(0, (1, 2)), zorder=2)  # fmt: skip


def _log_axes(ax: Axes, xs: Sequence[float], quantity: Quantity, x_label: str) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    low, high = min(xs), max(xs)
    pad = (high / low) ** 0.05 if high > low else 1.3
    ax.set_xlim(low / pad, high * pad)
    ax.xaxis.set_major_locator(FixedLocator(_spread(xs, low / pad, high * pad)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: words.short(v)))
    bottom, top = ax.get_ylim()
    if top / bottom < 6:  # too flat for decades: widen, so that the axis carries at least two labels
        middle = float(np.sqrt(top * bottom))
        ax.set_ylim(middle / 3.5, middle * 3.5)
    decades = np.log10(ax.get_ylim()[1] / ax.get_ylim()[0])
    if quantity in (MEMORY,):
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_locator(LogLocator(base=4 if decades < 2.5 else 16 if decades < 4 else 64))
    else:
        ax.yaxis.set_major_locator(
            LogLocator(base=10, subs=(1, 2, 5) if decades < 2 else (1, 3) if decades < 3 else (1,))
        )
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: words.bare(quantity.text(v))))
    ax.set_xlabel(x_label, fontsize=9)
    ax.grid(axis="x", visible=False)


def _spread(xs: Sequence[float], low: float, high: float, apart: float = 0.085) -> list[float]:
    """The measured x that can be labelled without touching; both ends first."""
    span = np.log(high / low)
    kept: list[float] = []
    for x in [min(xs), max(xs), *xs]:
        if all(abs(np.log(x / k)) / span >= apart for k in kept):
            kept.append(x)
    return sorted(kept)


def _failure_strip(
    strip: Axes, ax: Axes, curve: Curve, failures: dict[str, list], t: Theme, names: Sequence[str]
) -> None:
    """One row per backend that failed somewhere: what happened, at its x."""
    strip.set_xscale("log")
    strip.set_xlim(ax.get_xlim())
    strip.set_ylim(len(failures) - 0.5, -0.5)
    strip.grid(False)
    for spine in strip.spines.values():
        spine.set_visible(False)
    strip.set_xticks([])
    strip.xaxis.set_minor_locator(NullLocator())
    strip.set_yticks([])
    span = np.log(ax.get_xlim()[1] / ax.get_xlim()[0])
    for row, (backend, cells) in enumerate(failures.items()):
        colour = t.backend(backend, names)
        strip.axhspan(row - 0.42, row + 0.42, color=t.role("grid"), alpha=0.55, linewidth=0)
        strip.plot([-0.025], [row], marker=theme.marker(backend, names), color=colour, markersize=5, clip_on=False,
                   transform=strip.get_yaxis_transform())  # fmt: skip
        kinds = {c.record.status for _, c in cells}
        if len(cells) == len(curve.points[backend]) and len(kinds) == 1:
            strip.text(0.5, row, f"{backend}: {next(iter(kinds))} at every size", ha="center", va="center", fontsize=8,
                       color=colour, transform=strip.get_yaxis_transform())  # fmt: skip
            continue
        last = -np.inf
        for x, c in cells:
            code = STATUS_CODES[c.record.status] + ("*" if is_predicted(c) else "")
            crowded = (np.log(x) - last) / span < 0.075
            strip.text(x, row, "·" if crowded else code, ha="center", va="center", fontsize=8, color=colour)
            last = last if crowded else np.log(x)


def _legend(
    figure: Figure, ax: Axes, backends: Sequence[str], t: Theme, names: Sequence[str], with_model: bool
) -> None:
    handles = [
        Line2D([], [], color=t.backend(b, names), marker=theme.marker(b, names), markeredgecolor=t.role("ground"),
               markeredgewidth=0.6, label=b)
        for b in backends
    ]  # fmt: skip
    if with_model:
        handles.append(Line2D([], [], color=t.role("ink"), linewidth=1, linestyle=(0, (6, 3)), label="p itself"))
        handles.append(Line2D([], [], color=t.role("soft"), linewidth=1.1, linestyle=(0, (1, 2)), label="memory model"))
    if handles:
        figure.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.02, 0.0), ncols=3, handlelength=1.8,
                      columnspacing=1.4, labelspacing=0.35, borderaxespad=0.3)  # fmt: skip
