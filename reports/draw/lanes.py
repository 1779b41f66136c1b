"""History: one lane a backend (or a metric of a kernel), commits from left to right, each lane on a scale of its own.

The pale bar behind the points is the level that asv's step detection gives them; a dashed line is a step, named by the
commit that was the first to show it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from reports import words
from reports.draw import theme
from reports.draw.panel import DASHES, WIDTH_IN, Drawing, Heading, Legend
from reports.draw.theme import Theme
from reports.find.history import Point, Series, Step
from reports.read.asv_results import Commit

LEFT_IN, RIGHT_IN, LANE_IN, GAP_IN, FOOT_IN = 2.26, 0.24, 0.46, 0.14, 0.52
NAME_IN = 0.3
LEAST_SPAN = 1.3  # highest over lowest of a lane's axis: noise of a per cent must look like noise
HEADROOM = 0.42  # share of a lane above its values, where its steps are named
LABEL_IN, TICK_IN = 1.02, 0.66  # the widths of a step's label and of a commit's
NAMES = {"unsupported": "n/a"}  # all other words for no number are failures


@dataclass(frozen=True)
class Lane:
    """What a lane shows: its name, its colour's name (a backend, or none), the series and its steps."""

    label: str
    backend: str | None
    series: Series
    steps: Sequence[Step]

    def text(self, value: float) -> str:
        return words.in_unit(value, self.series.unit)


def drawing(
    lanes: Sequence[Lane], commits: Sequence[Commit], names: Sequence[str], *, name: str, title: str, subtitle: str
) -> Drawing:
    """``lanes`` over ``commits`` (all that this machine has results of), oldest first."""
    tips = {f"pt|{lane.label}": [_tip(lane, p) for p in lane.series.measured] for lane in lanes}
    told = [_alt(lane) for lane in lanes]
    alt = f"{len(commits)} commits, {commits[0].short} to {commits[-1].short}. " + ". ".join(told) + "."
    return Drawing(name, title, alt, partial(_draw, Heading(title, subtitle), lanes, commits, names), tips)


def _tip(lane: Lane, p: Point) -> str:
    shown = lane.text(p.value or 0)
    if p.low is not None and p.high is not None:
        shown += f" ({lane.text(p.low)} to {lane.text(p.high)})"
    return f"{lane.label}, {p.commit.short}: {shown}"


def _alt(lane: Lane) -> str:
    measured = lane.series.measured
    text = f"{lane.label}: {lane.text(measured[0].value or 0)} to {lane.text(measured[-1].value or 0)}"
    for s in lane.steps:
        text += f", {words.times(s.ratio)} at {s.first.short}"
    missing = [p for p in lane.series.points if p.value is None]
    return text + (f", no number at {len(missing)} commits" if missing else "")


def _draw(heading: Heading, lanes: Sequence[Lane], commits: Sequence[Commit], names: Sequence[str], t: Theme) -> Figure:
    handles = _handles(lanes, t)
    legend = Legend([str(h.get_label()) for h in handles])
    foot = FOOT_IN + (legend.inches if handles else 0)
    height = heading.inches + len(lanes) * (LANE_IN + GAP_IN) + foot + 0.04
    figure = plt.figure(figsize=(WIDTH_IN, height))
    width_in = WIDTH_IN - LEFT_IN - RIGHT_IN
    x_of = {c.hash: i for i, c in enumerate(commits)}
    pad = max(0.5, 0.03 * len(commits))
    ax = None
    for i, lane in enumerate(lanes):
        bottom = height - heading.inches - (i + 1) * (LANE_IN + GAP_IN) + GAP_IN / 2
        ax = figure.add_axes((LEFT_IN / WIDTH_IN, bottom / height, width_in / WIDTH_IN, LANE_IN / height))
        ax.set_xlim(-pad, len(commits) - 1 + pad)
        _lane(ax, lane, x_of, names, t)
        _name(figure, lane, (bottom + LANE_IN / 2) / height, names, t)
    if ax is not None:
        _commit_axis(ax, commits, width_in)
    heading.draw(figure, height, t)
    if handles:
        legend.draw(figure, handles)
    return figure


def _lane(ax: Axes, lane: Lane, x_of: dict[str, int], names: Sequence[str], t: Theme) -> None:
    colour, measured = _colour(lane, names, t), lane.series.measured
    low, high = _limits(ax, measured, lane.steps)
    ax.xaxis.set_major_locator(NullLocator())
    ax.yaxis.set_major_locator(FixedLocator([low, high]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: words.bare(lane.text(v))))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.tick_params(axis="y", labelsize=7.8, pad=2)
    ax.spines["bottom"].set_visible(False)
    ax.spines["left"].set_visible(False)
    for segment in lane.series.segments:
        ends = [x_of[lane.series.points[i].commit.hash] for i in (segment.left, segment.right - 1)]
        ax.plot([ends[0] - 0.3, ends[1] + 0.3], [segment.level] * 2, color=colour, linewidth=5, alpha=0.22,
                solid_capstyle="butt")  # fmt: skip
    floor, top = ax.get_ylim()[0], high * (high / low) ** 0.08 if low > 0 else high
    bounds = [(x_of[p.commit.hash], max(p.low, floor), min(p.high, top)) for p in measured
              if p.low is not None and p.high is not None]  # fmt: skip
    if bounds:
        ax.vlines(*zip(*bounds, strict=True), color=colour, linewidth=1.1, alpha=0.6)
    xs = [x_of[p.commit.hash] for p in measured]
    shape = theme.marker(lane.backend, names) if lane.backend else "o"
    size = 4.6 if len(x_of) <= 25 else 3.0
    ax.plot(xs, [p.value or 0 for p in measured], color=colour, linewidth=0.9, marker=shape, ms=size,
            mec=t.role("ground"), mew=0.4, gid=f"pt|{lane.label}", zorder=3, clip_on=False)  # fmt: skip
    _gaps(ax, lane, x_of, t)
    _step_marks(ax, lane, x_of, t)


def _limits(ax: Axes, measured: Sequence[Point], steps: Sequence[Step]) -> tuple[float, float]:
    """The two values that the axis names: those of the data, apart by LEAST_SPAN or more; room for labels above.

    An interval widens the axis by a factor of LEAST_SPAN at most: one wild interval must not flatten the lane.
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


def _gaps(ax: Axes, lane: Lane, x_of: dict[str, int], t: Theme) -> None:
    """Commits without a number stand at the lane's foot: a cross for a failure, a short stroke for what cannot be."""
    across = ax.get_xaxis_transform()
    for cross in (True, False):
        xs = [x_of[p.commit.hash] for p in lane.series.points if p.value is None and _failed(p) is cross]
        if xs:
            ax.plot(xs, [0.1] * len(xs), linestyle="none", marker="x" if cross else "_", ms=4.4, mew=1.2,
                    color=t.role("alarm" if cross else "soft"), transform=across, clip_on=False)  # fmt: skip


def _failed(p: Point) -> bool:
    return p.status not in ("unsupported", "n/a", "ok")


def _step_marks(ax: Axes, lane: Lane, x_of: dict[str, int], t: Theme) -> None:
    """Every step as a line; its name where it fits beside the one before."""
    left, right = ax.get_xlim()
    per_in = (right - left) / (WIDTH_IN - LEFT_IN - RIGHT_IN)
    taken = -math.inf
    for step in lane.steps:
        x = (x_of[step.last.hash] + x_of[step.first.hash]) / 2
        colour = t.role("alarm" if step.worse else "ink")
        ax.axvline(x, color=colour, linewidth=0.9, linestyle=DASHES if step.held else (0, (1, 2)), zorder=2)
        start = min(x + 0.03 * per_in, right - LABEL_IN * per_in)
        if start >= taken:
            ax.text(start, 1.0, f"{step.first.short} {words.times(step.ratio)}", fontsize=7.8, color=colour, va="top",
                    transform=ax.get_xaxis_transform(), zorder=4,
                    bbox={"facecolor": t.role("ground"), "edgecolor": "none", "pad": 0.6})  # fmt: skip
            taken = start + LABEL_IN * per_in


def _name(figure: Figure, lane: Lane, y: float, names: Sequence[str], t: Theme) -> None:
    """The lane's name behind its marker, and its newest value below."""
    colour = _colour(lane, names, t)
    shape = theme.marker(lane.backend, names) if lane.backend else "o"
    x, line = 0.16 / WIDTH_IN, 0.075 / figure.get_figheight()
    figure.add_artist(Line2D([x], [y + line], marker=shape, color=colour, ms=5, linestyle="none"))
    figure.text(NAME_IN / WIDTH_IN, y + line, lane.label, fontsize=9, va="center")
    newest = lane.series.points[-1]
    said = NAMES.get(newest.status, newest.status) if newest.value is None else lane.text(newest.value)
    figure.text(NAME_IN / WIDTH_IN, y - line, said, fontsize=8.2, va="center", color=t.role("soft"))


def _colour(lane: Lane, names: Sequence[str], t: Theme) -> str:
    return t.backend(lane.backend, names) if lane.backend else t.role("ink")


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


def _handles(lanes: Sequence[Lane], t: Theme) -> list[Artist]:
    steps = [s for lane in lanes for s in lane.steps]
    missing = [p for lane in lanes for p in lane.series.points if p.value is None]
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
