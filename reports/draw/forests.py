"""Ratio plots: a row a comparison, its interval drawn, against the bands where a difference does not matter.

Beside them the two plots that say whether to believe the ratios: the gate's errors and the A/A pairs.
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
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from benchmarks.harness.ruler import statistics
from benchmarks.harness.ruler.statistics import Ratio
from reports import words
from reports.draw import theme
from reports.draw.panel import DASHES, WIDTH_IN, Drawing, Heading, Legend, backend_handle, cut
from reports.draw.theme import Theme
from reports.find.analyse import BASELINE, Contest, Pair
from reports.read.load import Cell
from reports.read.measured import worst_error

LEFT_IN, RIGHT_IN, FOOT_IN = 1.62, 0.25, 0.55


@dataclass(frozen=True)
class Bands:
    """Relative differences within ``margin`` do not matter; within ``noise`` the same code would have shown them."""

    margin: float
    noise: float | None

    def draw(self, ax: Axes, t: Theme) -> None:
        """The wider band behind the narrower one."""
        for share, role in sorted([(self.margin, "band"), (self.noise or 0.0, "noise")], reverse=True):
            if share:
                ax.axvspan(1 / (1 + share), 1 + share, color=t.role(role), linewidth=0, zorder=0)
        ax.axvline(1, color=t.role("rule"), linewidth=1, zorder=0.2)

    def handles(self, t: Theme) -> list[Artist]:
        out: list[Artist] = [Patch(facecolor=t.role("band"), label=f"negligible ±{words.percent(self.margin)}")]
        if self.noise:
            out.append(Patch(facecolor=t.role("noise"), label=f"noise ±{words.percent(self.noise)}"))
        return out


@dataclass(frozen=True)
class Rows:
    """The frame of a plot with one row an entry."""

    heading: Heading
    labels: Sequence[str]
    row_in: float = 0.27
    left_in: float = LEFT_IN

    def frame(self, handles: Sequence[Artist], t: Theme) -> tuple[Figure, Axes]:
        legend, n = Legend([str(h.get_label()) for h in handles]), len(self.labels)
        foot, plot = FOOT_IN + legend.inches, self.row_in * n + 0.1
        height = self.heading.inches + foot + plot
        figure = plt.figure(figsize=(WIDTH_IN, height))
        width = (WIDTH_IN - self.left_in - RIGHT_IN) / WIDTH_IN
        ax = figure.add_axes((self.left_in / WIDTH_IN, foot / height, width, plot / height))
        ax.set_ylim(n - 0.5, -0.5)
        ax.set_yticks(range(n), [cut(label) for label in self.labels], fontsize=8.6)
        ax.grid(axis="y", visible=False)
        ax.spines["left"].set_visible(False)
        self.heading.draw(figure, height, t)
        legend.draw(figure, handles)
        return figure, ax

    def rules(self, ax: Axes, t: Theme) -> None:
        for i in range(1, len(self.labels)):
            ax.axhline(i - 0.5, color=t.role("grid"), linewidth=0.8, zorder=0.1)


def _draw_baseline(
    heading: Heading,
    found: dict[str, list[tuple[int, Ratio]]],
    labels: Sequence[str],
    bands: Bands,
    names: Sequence[str],
    t: Theme,
) -> Figure:
    handles = [*(backend_handle(b, t, names, line=False) for b in found), *bands.handles(t)]
    frame = Rows(heading, labels, row_in=0.36)
    figure, ax = frame.frame(handles, t)
    frame.rules(ax, t)
    bands.draw(ax, t)
    for k, (backend, points) in enumerate(found.items()):
        offset = 0.52 * (k / (len(found) - 1) - 0.5) if len(found) > 1 else 0.0
        dots(ax, backend, [(i + offset, r) for i, r in points], t, names)
    ratio_axis(ax, f"times as fast as {BASELINE}")
    return figure


def baseline_drawing(
    rows: Sequence[Contest], labels: Sequence[str], bands: Bands, names: Sequence[str],
    *, name: str, title: str, subtitle: str,
) -> Drawing | None:  # fmt: skip
    """How many times as fast as the baseline every backend is: one row a problem, one marker a backend."""
    found: dict[str, list[tuple[int, Ratio]]] = {}
    held = [(c, label) for c, label in zip(rows, labels, strict=True) if any(BASELINE in pair for pair in c.pairs)]
    labels = [label for _, label in held]
    for i, (contest, _) in enumerate(held):
        for cell in contest.ranked:
            pair = contest.pair(cell.record.backend, BASELINE)
            if pair is not None:
                found.setdefault(cell.record.backend, []).append((i, pair.seen_from(cell.record.backend)))
    if not found:
        return None
    tips = {
        f"pt|{b}": [f"{b}, {labels[i]}: {words.ratio(r)} as fast as {BASELINE}" for i, r in points]
        for b, points in found.items()
    }
    told = [f"{b}: " + ", ".join(f"{words.times(r.ratio)} at {labels[i]}" for i, r in pts) for b, pts in found.items()]

    return Drawing(
        name,
        title,
        f"Speed relative to {BASELINE}, log axis. " + ". ".join(told),
        partial(_draw_baseline, Heading(title, subtitle), found, labels, bands, names),
        tips,
    )


def _draw_machines(
    heading: Heading, found: dict[str, list[tuple[int, Ratio]]], labels: Sequence[str], base: str,
    names: Sequence[str], t: Theme,
) -> Figure:  # fmt: skip
    frame = Rows(heading, labels, row_in=max(0.42, 0.11 * len(found) + 0.08))
    figure, ax = frame.frame([backend_handle(b, t, names, line=False) for b in found], t)
    frame.rules(ax, t)
    ax.axvline(1, color=t.role("rule"), linewidth=1, zorder=0.2)
    for k, (backend, points) in enumerate(found.items()):
        offset = 0.8 * (k / (len(found) - 1) - 0.5) if len(found) > 1 else 0.0
        dots(ax, backend, [(i + offset, r) for i, r in points], t, names)
    ratio_axis(ax, f"times as fast as {base}")
    return figure


def machines_drawing(
    found: dict[str, list[tuple[int, Ratio]]], labels: Sequence[str], base: str, names: Sequence[str],
    *, name: str, title: str, subtitle: str,
) -> Drawing:  # fmt: skip
    """One machine against another, unpaired: one row a problem, one marker a backend."""
    flat = [label.replace("\n", ", ") for label in labels]
    tips = {f"pt|{b}": [f"{b}, {flat[i]}: {words.ratio(r)} as fast" for i, r in points] for b, points in found.items()}
    told = [f"{b}: " + ", ".join(f"{words.times(r.ratio)} at {flat[i]}" for i, r in pts) for b, pts in found.items()]
    draw = partial(_draw_machines, Heading(title, subtitle), found, labels, base, names)
    return Drawing(name, title, f"Speed relative to {base}, log axis. " + ". ".join(told), draw, tips)


def _draw_winner(
    heading: Heading, found: list[tuple[str, str, str, Pair]], bands: Bands, names: Sequence[str], t: Theme
) -> Figure:
    present = list(dict.fromkeys(best for _, best, _, _ in found))
    handles = [*(backend_handle(b, t, names, line=False) for b in present), *bands.handles(t)]
    frame = Rows(heading, [f"{label}\nnext: {b}" for label, _, b, _ in found], row_in=0.4)
    figure, ax = frame.frame(handles, t)
    frame.rules(ax, t)
    bands.draw(ax, t)
    for i, (_, best, _, pair) in enumerate(found):
        ratio, said = pair.seen_from(best), pair.verdict_for(best)
        dots(ax, best, [(i, ratio)], t, names, hollow=said != "faster")
        note = words.times(ratio.ratio) + ("" if said == "faster" else f", {said}")
        ax.annotate(note, (ratio.high or ratio.ratio, i), xytext=(7, 0), textcoords="offset points", va="center",
                    fontsize=8.3, color=t.role("soft"))  # fmt: skip
    ratio_axis(ax, "times as fast as the next best that ran there", room=0.24)
    return figure


def winner_drawing(
    rows: Sequence[Contest], labels: Sequence[str], bands: Bands, names: Sequence[str],
    *, name: str, title: str, subtitle: str,
) -> Drawing | None:  # fmt: skip
    """The fastest backend of each problem against the next best; hollow where it is not shown to be faster."""
    found: list[tuple[str, str, str, Pair]] = []  # row label, fastest, next, pair
    for contest, label in zip(rows, labels, strict=True):
        if len(contest.ranked) > 1:
            best, other = (c.record.backend for c in contest.ranked[:2])
            pair = contest.pair(best, other)
            if pair is not None:
                found.append((label, best, other, pair))
    if not found:
        return None
    told = [
        f"{label}: {a} {words.ratio(p.seen_from(a))} as fast as {b}, {p.verdict_for(a)}" for label, a, b, p in found
    ]

    return Drawing(
        name,
        title,
        "The fastest against the next best, log axis. " + ". ".join(told),
        partial(_draw_winner, Heading(title, subtitle), found, bands, names),
    )


def dots(
    ax: Axes, backend: str, points: Sequence[tuple[float, Ratio]], t: Theme, names: Sequence[str], hollow: bool = False
) -> None:
    colour, ground = t.backend(backend, names), t.role("ground")
    drawn = [(y, r.low, r.high) for y, r in points if r.low is not None and r.high is not None]
    if drawn:
        ys, low, high = zip(*drawn, strict=True)
        ax.hlines(ys, low, high, color=colour, linewidth=1.8)
    ax.plot(
        [r.ratio for _, r in points], [y for y, _ in points], linestyle="none", color=colour, zorder=3,
        marker=theme.marker(backend, names), ms=theme.marker_size(backend, names),
        mfc=ground if hollow else colour, mec=colour if hollow else ground,
        mew=1.1 if hollow else 0.6, gid=f"pt|{backend}",
    )  # fmt: skip


def ratio_axis(ax: Axes, label: str, *, room: float = 0.0) -> None:
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


def _draw_gate(heading: Heading, shares: dict[str, list[tuple[float, bool]]], names: Sequence[str], t: Theme) -> Figure:
    soft, backends = t.role("soft"), sorted(shares)
    handles = [
        Line2D([], [], color=soft, marker="o", linestyle="none", label="output, attention"),
        Line2D([], [], color=soft, marker="^", mfc="none", linestyle="none", label="gradients"),
        Line2D([], [], color=t.role("alarm"), linestyle=DASHES, linewidth=1.2, label="tolerance"),
    ]
    frame = Rows(heading, backends)
    figure, ax = frame.frame(handles, t)
    frame.rules(ax, t)
    ax.axvline(1, color=t.role("alarm"), linewidth=1.2, linestyle=DASHES)
    for i, b in enumerate(backends):
        for gradients, shape in ((False, "o"), (True, "^")):
            xs, colour = [s for s, g in shares[b] if g == gradients], t.backend(b, names)
            ax.plot(xs, [i + (0.17 if gradients else -0.17)] * len(xs), linestyle="none", marker=shape,
                    color=colour, mfc="none" if gradients else colour, ms=4.5, mew=0.9, alpha=0.7)  # fmt: skip
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ax.set_xlim(min(low, 1e-3), max(high, 3))
    ax.xaxis.set_major_locator(LogLocator(base=10, numticks=8))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}" if v >= 1e-3 else f"1e{round(math.log10(v))}"))
    ax.set_xlabel("error / tolerance", fontsize=9)
    return figure


def gate_drawing(
    cells: Sequence[Cell], names: Sequence[str], *, name: str, title: str, subtitle: str
) -> Drawing | None:
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
    backends = sorted(shares)
    told = [f"{b}: {words.number(max(s for s, _ in shares[b]))} at worst" for b in backends]
    alt = "Worst relative error of every cell as a share of its tolerance, log axis; 1 is the tolerance. "

    return Drawing(name, title, alt + ". ".join(told), partial(_draw_gate, Heading(title, subtitle), shares, names))


def _draw_noise(
    heading: Heading, found: list[tuple[Ratio, str]], bands: Bands, names: Sequence[str], t: Theme
) -> Figure:
    present = sorted({b for _, b in found})
    handles = [*(backend_handle(b, t, names, line=False) for b in present), *bands.handles(t)]
    row_in = max(0.09, 0.9 / len(found))
    figure, ax = Rows(heading, [""] * len(found), row_in=row_in, left_in=0.3).frame(handles, t)
    ax.set_yticks([])
    bands.draw(ax, t)
    for backend in present:
        dots(ax, backend, [(i, r) for i, (r, b) in enumerate(found) if b == backend], t, names)
    ratio_axis(ax, "time of one run over time of the other")
    return figure


def noise_drawing(
    cells: Sequence[Cell], bands: Bands, names: Sequence[str], *, name: str, title: str, subtitle: str
) -> Drawing | None:
    """The same code against itself, once per group: how far from 1 a ratio strays when nothing differs."""
    found: list[tuple[Ratio, str]] = []
    for c in cells:
        timing = c.record.timing
        if c.ok and timing is not None and timing.aa_samples_ms:
            found.append((statistics.paired_ratio(timing.samples_ms, timing.aa_samples_ms), c.record.backend))
    if not found:
        return None
    found.sort(key=lambda entry: entry[0].ratio)
    outside = sum(1 for r, _ in found if r.low is not None and r.high is not None and not r.low <= 1 <= r.high)
    first, last = (words.number(found[i][0].ratio, 4) for i in (0, -1))
    alt = f"{len(found)} A/A pairs, ratios from {first} to {last}; {outside} of {len(found)} intervals leave 1 out."

    return Drawing(name, title, alt, partial(_draw_noise, Heading(title, subtitle), found, bands, names))
