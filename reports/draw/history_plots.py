"""History as small multiples: one panel a backend (or a metric of a kernel), commits from left to right, each panel on
a scale of its own.

The pale bar behind the points is the level that asv's step detection gives them; a dashed line is a step, named by the
commit that was the first to show it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from reports import words
from reports.draw.figure import DASHES, WIDTH_IN, Drawing, Frame
from reports.draw.theme import Theme
from reports.find.history import Point, Series, Step
from reports.read.asv_results import Commit

LEFT_IN, PANEL_IN, GAP_IN = 2.26, 0.46, 0.14
NAME_IN = 0.3
LEAST_SPAN = 1.3  # highest over lowest of a panel's axis: noise of a per cent must look like noise
HEADROOM = 0.42  # share of a panel above its values, where its steps are named
LABEL_IN, TICK_IN = 1.02, 0.66  # the widths of a step's label and of a commit's
NAMES = {"unsupported": "n/a"}  # all other words for no number are failures


@dataclass(frozen=True)
class Panel:
    """What a panel shows: its name, its colour's name (a backend, or none), the series and its steps."""

    label: str
    backend: str | None
    series: Series
    steps: Sequence[Step]

    def text(self, value: float) -> str:
        return words.in_unit(value, self.series.unit)


def drawing(panels: Sequence[Panel], name: str, title: str, subtitle: str) -> Drawing:
    """``panels`` over all commits that any of them has results of, oldest first."""
    by_position = {p.commit.position: p.commit for panel in panels for p in panel.series.points}
    commits = [by_position[i] for i in sorted(by_position)]
    tips = {f"pt|{panel.label}": [_tip(panel, p) for p in panel.series.measured] for panel in panels}
    told = [f"{len(commits)} commits, {commits[0].short} to {commits[-1].short}", *map(_alt, panels)]
    return Drawing(name, title, ". ".join(told) + ".", partial(_draw, title, subtitle, panels, commits), tips)


def _tip(panel: Panel, p: Point) -> str:
    shown = panel.text(p.value or 0)
    if p.low is not None and p.high is not None:
        shown += f" ({panel.text(p.low)} to {panel.text(p.high)})"
    return f"{panel.label}, {p.commit.short}: {shown}"


def _alt(panel: Panel) -> str:
    measured = panel.series.measured
    text = f"{panel.label}: {panel.text(measured[0].value or 0)} to {panel.text(measured[-1].value or 0)}"
    for s in panel.steps:
        text += f", {words.times(s.ratio)} at {s.first.short}"
    missing = [p for p in panel.series.points if p.value is None]
    return text + (f", no number at {len(missing)} commits" if missing else "")


def _draw(title: str, subtitle: str, panels: Sequence[Panel], commits: Sequence[Commit], t: Theme) -> Figure:
    plot_in = len(panels) * (PANEL_IN + GAP_IN)
    frame = Frame(title, subtitle, _handles(panels, t), t, plot_in=plot_in, left_in=LEFT_IN)
    x_of = {c.hash: i for i, c in enumerate(commits)}
    pad = max(0.5, 0.03 * len(commits))
    ax = None
    for i, panel in enumerate(panels):
        bottom = plot_in - (i + 1) * (PANEL_IN + GAP_IN) + GAP_IN / 2
        ax = frame.axes(bottom, PANEL_IN)
        ax.set_xlim(-pad, len(commits) - 1 + pad)
        _draw_panel(ax, panel, x_of, t)
        _name(frame, panel, bottom + PANEL_IN / 2, t)
    if ax is not None:
        _commit_axis(ax, commits, frame.width_in)
    return frame.figure


def _draw_panel(ax: Axes, panel: Panel, x_of: dict[str, int], t: Theme) -> None:
    (shape, colour), measured = _looks(panel, t), panel.series.measured
    low, high = _limits(ax, measured, panel.steps)
    ax.xaxis.set_major_locator(NullLocator())
    ax.yaxis.set_major_locator(FixedLocator([low, high]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: words.bare(panel.text(v))))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.tick_params(axis="y", labelsize=7.8, pad=2)
    ax.spines["bottom"].set_visible(False)
    ax.spines["left"].set_visible(False)
    for segment in panel.series.segments:
        ends = [x_of[panel.series.points[i].commit.hash] for i in (segment.left, segment.right - 1)]
        ax.plot([ends[0] - 0.3, ends[1] + 0.3], [segment.level] * 2, color=colour, linewidth=5, alpha=0.22,
                solid_capstyle="butt")  # fmt: skip
    floor, top = ax.get_ylim()[0], high * (high / low) ** 0.08 if low > 0 else high
    bounds = [(x_of[p.commit.hash], max(p.low, floor), min(p.high, top)) for p in measured
              if p.low is not None and p.high is not None]  # fmt: skip
    if bounds:
        ax.vlines(*zip(*bounds, strict=True), color=colour, linewidth=1.1, alpha=0.6)
    xs = [x_of[p.commit.hash] for p in measured]
    size = 4.6 if len(x_of) <= 25 else 3.0
    ax.plot(xs, [p.value or 0 for p in measured], color=colour, linewidth=0.9, marker=shape, ms=size,
            mec=t.role("ground"), mew=0.4, gid=f"pt|{panel.label}", zorder=3, clip_on=False)  # fmt: skip
    _gaps(ax, panel, x_of, t)
    _step_marks(ax, panel, x_of, t)


def _limits(ax: Axes, measured: Sequence[Point], steps: Sequence[Step]) -> tuple[float, float]:
    """The two values that the axis names: those of the data, apart by LEAST_SPAN or more; room for labels above.

    An interval widens the axis by a factor of LEAST_SPAN at most: one wild interval must not flatten the panel.
    """
    values = [p.value for p in measured if p.value is not None]
    low, high = min(values), max(values)
    if low > 0:
        ax.set_yscale("log")
        low = max(low / LEAST_SPAN, min([low, *(p.low for p in measured if p.low is not None)]))
        high = min(high * LEAST_SPAN, max([high, *(p.high for p in measured if p.high is not None)]))
        short = math.sqrt(max(1.0, LEAST_SPAN / (high / low)))
        low, high = low / short, high * short
        reach = (high / low) ** 0.08
        ax.set_ylim(low / reach, high * reach * ((high / low) ** HEADROOM if steps else 1))
    else:
        high = high if high > low else low + 1
        ax.set_ylim(low - 0.08 * (high - low), high + (0.08 + (HEADROOM if steps else 0)) * (high - low))
    return low, high


def _gaps(ax: Axes, panel: Panel, x_of: dict[str, int], t: Theme) -> None:
    """Commits without a number stand at the panel's foot: a cross for a failure, a short stroke for what cannot be."""
    across = ax.get_xaxis_transform()
    for cross in (True, False):
        xs = [x_of[p.commit.hash] for p in panel.series.points if p.value is None and _failed(p) is cross]
        if xs:
            ax.plot(xs, [0.1] * len(xs), linestyle="none", marker="x" if cross else "_", ms=4.4, mew=1.2,
                    color=t.role("alarm" if cross else "soft"), transform=across, clip_on=False)  # fmt: skip


def _failed(p: Point) -> bool:
    return p.status not in ("unsupported", "n/a", "ok")


def _step_marks(ax: Axes, panel: Panel, x_of: dict[str, int], t: Theme) -> None:
    """Every step as a line; its name where it fits beside the one before."""
    left, right = ax.get_xlim()
    per_in = (right - left) / WIDTH_IN / ax.get_position().width
    taken = -math.inf
    for step in panel.steps:
        x = (x_of[step.last.hash] + x_of[step.first.hash]) / 2
        colour = t.role("alarm" if step.worse else "ink")
        ax.axvline(x, color=colour, linewidth=0.9, linestyle=DASHES if step.held else (0, (1, 2)), zorder=2)
        start = min(x + 0.03 * per_in, right - LABEL_IN * per_in)
        if start >= taken:
            ax.text(start, 1.0, f"{step.first.short} {words.times(step.ratio)}", fontsize=7.8, color=colour, va="top",
                    transform=ax.get_xaxis_transform(), zorder=4,
                    bbox={"facecolor": t.role("ground"), "edgecolor": "none", "pad": 0.6})  # fmt: skip
            taken = start + LABEL_IN * per_in


def _name(frame: Frame, panel: Panel, middle_in: float, t: Theme) -> None:
    """The panel's name behind its marker, and its newest value below."""
    x, y, line = 0.16 / WIDTH_IN, (frame.foot_in + middle_in) / frame.height_in, 0.075 / frame.height_in
    marker, colour = _looks(panel, t)
    frame.figure.add_artist(Line2D([x], [y + line], marker=marker, color=colour, ms=5, linestyle="none"))
    frame.figure.text(NAME_IN / WIDTH_IN, y + line, panel.label, fontsize=9, va="center")
    newest = panel.series.points[-1]
    said = NAMES.get(newest.status, newest.status) if newest.value is None else panel.text(newest.value)
    frame.figure.text(NAME_IN / WIDTH_IN, y - line, said, fontsize=8.2, va="center", color=t.role("soft"))


def _looks(panel: Panel, t: Theme) -> tuple[str, str]:
    """Marker and colour."""
    return (t.marker(panel.backend), t.colour(panel.backend)) if panel.backend else ("o", t.role("ink"))


def _commit_axis(ax: Axes, commits: Sequence[Commit], width_in: float) -> None:
    """Commits by their short hash, both ends first, and the others where they fit."""
    last, per_label = len(commits) - 1, TICK_IN * (len(commits) + 1) / width_in
    kept: list[int] = []
    for i in [0, last, *range(last)]:
        if all(abs(i - k) >= per_label for k in kept):
            kept.append(i)
    ax.spines["bottom"].set_visible(True)
    ax.xaxis.set_major_locator(FixedLocator(sorted(kept)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: commits[round(v)].short))
    ax.tick_params(axis="x", labelsize=8)
    ax.grid(axis="x", visible=False)
    days = [f"{c.date:%Y-%m-%d}" for c in (commits[0], commits[-1])]
    ax.set_xlabel(f"commits, {' to '.join(dict.fromkeys(days))}", fontsize=8.6)


def _handles(panels: Sequence[Panel], t: Theme) -> list[Artist]:
    steps = [s for panel in panels for s in panel.steps]
    missing = [p for panel in panels for p in panel.series.points if p.value is None]
    out: list[Artist] = []
    for worse, role, label in ((True, "alarm", "step, worse"), (False, "ink", "step, better")):
        if any(s.worse is worse for s in steps):
            out.append(Line2D([], [], color=t.role(role), linewidth=0.9, linestyle=DASHES, label=label))
    if any(not s.held for s in steps):
        out.append(Line2D([], [], color=t.role("soft"), linewidth=0.9, linestyle=(0, (1, 2)), label="one commit only"))
    if any(_failed(p) for p in missing):
        out.append(Line2D([], [], color=t.role("alarm"), marker="x", mew=1.2, linestyle="none", label="failed"))
    if any(not _failed(p) for p in missing):
        out.append(Line2D([], [], color=t.role("soft"), marker="_", mew=1.2, linestyle="none", label="n/a there"))
    return out
