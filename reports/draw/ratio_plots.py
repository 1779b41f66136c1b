"""Ratio plots: a row a comparison, its interval drawn, against the bands where a difference does not matter.

Beside them the plot of the gate's errors, which says whether to believe the ratios.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from benchmarks.harness.ruler import statistics
from benchmarks.harness.ruler.statistics import Ratio
from reports import words
from reports.draw.figure import DASHES, Drawing, Frame, backend_handle, cut
from reports.draw.theme import Theme
from reports.find.analyse import BASELINE, Contest
from reports.read.load import Cell
from reports.read.measured import worst_error

LEFT_IN = 1.62


@dataclass(frozen=True)
class Bands:
    """Relative differences within ``margin`` do not matter; within ``noise`` the same code would have shown them."""

    margin: float = 0.0
    noise: float | None = None

    def draw(self, ax: Axes, t: Theme) -> None:
        """The wider band behind the narrower one."""
        for share, role in sorted([(self.margin, "band"), (self.noise or 0.0, "noise")], reverse=True):
            if share:
                ax.axvspan(1 / (1 + share), 1 + share, color=t.role(role), linewidth=0, zorder=0)
        ax.axvline(1, color=t.role("rule"), linewidth=1, zorder=0.2)

    def handles(self, t: Theme) -> list[Artist]:
        named = (("band", "negligible", self.margin), ("noise", "noise", self.noise))
        return [Patch(facecolor=t.role(r), label=f"{word} ±{words.percent(s)}") for r, word, s in named if s]


@dataclass(frozen=True)
class Dot:
    """One ratio in one row; ``verdict`` other than *faster* makes it hollow."""

    row: int
    backend: str
    ratio: Ratio
    verdict: str = "faster"


@dataclass(frozen=True)
class RatioPlot:
    """Ratios in rows that have a label each; dots of several backends in one row stand below one another."""

    labels: Sequence[str]
    dots: Sequence[Dot]
    axis: str
    bands: Bands = field(default_factory=Bands)
    row_in: float = 0.36
    left_in: float = LEFT_IN
    spread: float = 0.0  # share of a row over which its dots stand
    noted: bool = False  # the ratio and a verdict other than *faster* in figures beside each dot

    @property
    def backends(self) -> list[str]:
        return sorted({d.backend for d in self.dots})

    def drawing(self, name: str, title: str, subtitle: str, alt: str) -> Drawing:
        """``alt`` begins what is said for those who do not see the figure; the ratios follow, but of noise."""
        rows = [label.replace("\n", ", ") for label in self.labels]
        than = self.axis.removeprefix("times ")
        tips = {
            _gid(b, hollow): [f"{b}, {rows[d.row]}: {words.ratio(d.ratio)} {than}" for d in self._of(b, hollow)]
            for b in self.backends for hollow in (False, True) if self.labels[0]
        }  # fmt: skip
        told = [f"{rows[d.row]}: {d.backend} {words.ratio(d.ratio)} as fast, {d.verdict}" for d in self.dots]
        if not self.noted:
            told = [
                f"{b}: " + ", ".join(f"{words.times(d.ratio.ratio)} at {rows[d.row]}" for d in self._of(b, False))
                for b in self.backends if self.labels[0]
            ]  # fmt: skip
        return Drawing(name, title, ". ".join([alt, *told]), partial(self._draw, title, subtitle), tips)

    def _of(self, backend: str, hollow: bool) -> list[Dot]:
        return [d for d in self.dots if d.backend == backend and (d.verdict != "faster") is hollow]

    def _draw(self, title: str, subtitle: str, t: Theme) -> Figure:
        handles = [*(backend_handle(b, t, line=False) for b in self.backends), *self.bands.handles(t)]
        frame, ax = _rows(title, subtitle, handles, t, self.labels, self.row_in, self.left_in)
        self.bands.draw(ax, t)
        for k, backend in enumerate(self.backends):
            offset = self.spread * (k / (len(self.backends) - 1) - 0.5) if len(self.backends) > 1 else 0.0
            for hollow in (False, True):
                if dots := self._of(backend, hollow):
                    _draw_dots(ax, dots, offset, t, hollow=hollow)
        for d in self.dots if self.noted else ():
            note = words.times(d.ratio.ratio) + ("" if d.verdict == "faster" else f", {d.verdict}")
            ax.annotate(note, (d.ratio.high or d.ratio.ratio, d.row), xytext=(7, 0), textcoords="offset points",
                        va="center", fontsize=8.3, color=t.role("soft"))  # fmt: skip
        _ratio_axis(ax, self.axis, room=0.24 if self.noted else 0.0)
        return frame.figure


def _gid(backend: str, hollow: bool) -> str:
    return f"pt|{backend}|hollow" if hollow else f"pt|{backend}"


def _rows(
    title: str, subtitle: str, handles: Sequence[Artist], t: Theme, labels: Sequence[str], row_in: float, left_in: float
) -> tuple[Frame, Axes]:
    """The frame of a plot with one row an entry; rows without labels have no rules between them either."""
    n = len(labels)
    plot_in = row_in * n + 0.1
    frame = Frame(title, subtitle, handles, t, plot_in=plot_in, left_in=left_in, foot_in=0.55)
    ax = frame.axes(0, plot_in)
    ax.set_ylim(n - 0.5, -0.5)
    ax.set_yticks(range(n) if labels[0] else [], [cut(label) for label in labels if label], fontsize=8.6)
    ax.grid(axis="y", visible=False)
    ax.spines["left"].set_visible(False)
    for i in range(1, n if labels[0] else 0):
        ax.axhline(i - 0.5, color=t.role("grid"), linewidth=0.8, zorder=0.1)
    return frame, ax


def _draw_dots(ax: Axes, dots: Sequence[Dot], offset: float, t: Theme, *, hollow: bool) -> None:
    backend = dots[0].backend
    colour, ground = t.colour(backend), t.role("ground")
    drawn = [(d.row + offset, d.ratio.low, d.ratio.high) for d in dots
             if d.ratio.low is not None and d.ratio.high is not None]  # fmt: skip
    if drawn:
        ax.hlines(*zip(*drawn, strict=True), color=colour, linewidth=1.8)
    ax.plot(
        [d.ratio.ratio for d in dots], [d.row + offset for d in dots], linestyle="none", color=colour, zorder=3,
        marker=t.marker(backend), ms=t.marker_points(backend), mfc=ground if hollow else colour,
        mec=colour if hollow else ground, mew=1.1 if hollow else 0.6, gid=_gid(backend, hollow),
    )  # fmt: skip


def _ratio_axis(ax: Axes, label: str, *, room: float) -> None:
    """A log axis that always holds 1; ``room`` is the share left free at the right for numbers."""
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    low, high = min(low, 1 / 1.02), max(high, 1.02)
    ax.set_xlim(low / (high / low) ** 0.02, high * (high / low) ** (0.02 + room))
    low, high = ax.get_xlim()
    if high / low < 2.2:
        ax.xaxis.set_major_locator(MaxNLocator(5))
    else:
        subs = (1, 1.5, 2, 3, 5, 7) if high / low < 8 else (1, 2, 5) if high / low < 150 else (1, 3)
        ax.xaxis.set_major_locator(LogLocator(base=10, subs=subs))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: words.bare(words.number(v)) + "×"))
    ax.set_xlabel(label, fontsize=9)


def against_baseline(rows: Sequence[Contest], labels: Sequence[str], bands: Bands) -> RatioPlot | None:
    """How many times as fast as the baseline every backend is: one row a problem, one marker a backend."""
    held = [(c, label) for c, label in zip(rows, labels, strict=True) if any(BASELINE in pair for pair in c.pairs)]
    dots = [
        Dot(i, name, pair.seen_from(name))
        for i, (contest, _) in enumerate(held) for name in (c.record.backend for c in contest.ranked)
        if (pair := contest.pair(name, BASELINE)) is not None
    ]  # fmt: skip
    axis = f"times as fast as {BASELINE}"
    return RatioPlot([label for _, label in held], dots, axis, bands, spread=0.52) if dots else None


def against_next(rows: Sequence[Contest], labels: Sequence[str], bands: Bands) -> RatioPlot | None:
    """The fastest backend of each problem against the next best; hollow where it is not shown to be faster."""
    dots, named = [], []
    for contest, label in zip(rows, labels, strict=True):
        best, other = (c.record.backend for c in contest.ranked[:2])
        if (pair := contest.pair(best, other)) is not None:
            dots.append(Dot(len(named), best, pair.seen_from(best), pair.verdict_for(best)))
            named.append(f"{label}\nnext: {other}")
    axis = "times as fast as the next best that ran there"
    return RatioPlot(named, dots, axis, bands, row_in=0.4, noted=True) if dots else None


def repeated(cells: Sequence[Cell], bands: Bands) -> tuple[RatioPlot, str] | None:
    """The same code against itself, once per group: how far from 1 a ratio strays when nothing differs; and its alt."""
    repeats = sorted(
        ((statistics.paired_ratio(t.samples_ms, t.aa_samples_ms), c.record.backend)
         for c in cells if c.ok and (t := c.record.timing) is not None and t.aa_samples_ms),
        key=lambda entry: entry[0].ratio,
    )  # fmt: skip
    if not repeats:
        return None
    outside = sum(1 for r, _ in repeats if r.low is not None and r.high is not None and not r.low <= 1 <= r.high)
    first, last = (words.number(repeats[i][0].ratio, 4) for i in (0, -1))
    alt = f"{len(repeats)} A/A pairs, ratios from {first} to {last}; {outside} of {len(repeats)} intervals leave 1 out."
    dots = [Dot(i, backend, ratio) for i, (ratio, backend) in enumerate(repeats)]
    axis, row_in = "time of one run over time of the other", max(0.09, 0.9 / len(repeats))
    return RatioPlot([""] * len(repeats), dots, axis, bands, row_in=row_in, left_in=0.3), alt


def gate_drawing(cells: Sequence[Cell], name: str, title: str, subtitle: str) -> Drawing | None:
    """Every cell's worst error, outputs (filled) and gradients (hollow), as a share of its own tolerance."""
    shares: dict[str, list[tuple[float, bool]]] = {}
    for c in cells:
        gate = c.record.gate
        if gate is None:
            continue
        for gradients, tolerance in ((False, gate.tolerance), (True, gate.gradient_tolerance)):
            error = worst_error(c.record, gradients=gradients)
            if error is not None and tolerance:
                shares.setdefault(c.record.backend, []).append((max(error / tolerance, 1e-9), gradients))
    if not shares:
        return None
    told = [f"{b}: {words.number(max(s for s, _ in shares[b]))} at worst" for b in sorted(shares)]
    alt = "Worst relative error of every cell as a share of its tolerance, log axis; 1 is the tolerance. "
    return Drawing(name, title, alt + ". ".join(told), partial(_draw_gate, title, subtitle, shares))


def _draw_gate(title: str, subtitle: str, shares: dict[str, list[tuple[float, bool]]], t: Theme) -> Figure:
    soft, backends = t.role("soft"), sorted(shares)
    handles = [
        Line2D([], [], color=soft, marker="o", linestyle="none", label="output"),
        Line2D([], [], color=soft, marker="^", linestyle="none", mfc="none", label="gradients"),
        Line2D([], [], color=t.role("alarm"), linestyle=DASHES, linewidth=1.2, label="tolerance"),
    ]
    frame, ax = _rows(title, subtitle, handles, t, backends, 0.27, LEFT_IN)
    ax.axvline(1, color=t.role("alarm"), linewidth=1.2, linestyle=DASHES)
    for i, b in enumerate(backends):
        for gradients, shape in ((False, "o"), (True, "^")):
            xs, colour = [s for s, g in shares[b] if g == gradients], t.colour(b)
            ax.plot(xs, [i + (0.17 if gradients else -0.17)] * len(xs), linestyle="none", marker=shape,
                    color=colour, mfc="none" if gradients else colour, ms=4.5, mew=0.9, alpha=0.7)  # fmt: skip
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ax.set_xlim(min(low, 1e-3), max(high, 3))
    ax.xaxis.set_major_locator(LogLocator(base=10, numticks=8))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}" if v >= 1e-3 else f"1e{round(math.log10(v))}"))
    ax.set_xlabel("error / tolerance", fontsize=9)
    return frame.figure
