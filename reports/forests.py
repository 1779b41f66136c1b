"""Ratio plots: a row a comparison, its interval drawn, against the band where a difference does not matter.

Beside them the two plots that say whether to believe the ratios: the gate's errors and the A/A pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from benchmarks.harness import statistics
from benchmarks.harness.statistics import Ratio
from reports import theme, words
from reports.analyse import BASELINE, Contest
from reports.load import Cell, worst_error
from reports.plots import WIDTH_IN, Drawing, Heading
from reports.theme import Theme

LEFT_IN, RIGHT_IN, ROW_IN = 1.55, 0.25, 0.27


@dataclass(frozen=True)
class Bands:
    """Relative differences within ``margin`` do not matter; within ``noise`` the same code would have shown them."""

    margin: float
    noise: float | None


def baseline_drawing(rows: Sequence[Contest], labels: Sequence[str], bands: Bands, *, name: str, title: str,
                     subtitle: str, names: Sequence[str]) -> Drawing | None:  # fmt: skip
    """How many times as fast as the baseline every backend is: one row a problem, one marker a backend."""
    found: dict[str, list[tuple[int, Ratio]]] = {}
    for i, contest in enumerate(rows):
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
    alt = f"Speed relative to {BASELINE}, log axis. " + ". ".join(
        f"{b}: " + ", ".join(f"{words.times(r.ratio)} at {labels[i]}" for i, r in points) for b, points in found.items()
    )

    def draw(t: Theme) -> Figure:
        figure, ax = _rows(len(rows), labels, title, subtitle, t, legend_rows=1 + -(-len(found) // 3), row_in=0.36)
        _bands(ax, bands, t)
        offsets = np.linspace(-0.26, 0.26, len(found)) if len(found) > 1 else [0.0]
        for offset, (backend, points) in zip(offsets, found.items(), strict=True):
            _dots(ax, backend, [(i + offset, r) for i, r in points], t, names)
        _ratio_axis(ax, f"times as fast as {BASELINE}")
        _legend(figure, list(found), bands, t, names)
        return figure

    return Drawing(name, title, alt, draw, tips)


def winner_drawing(rows: Sequence[Contest], labels: Sequence[str], bands: Bands, *, name: str, title: str,
                   subtitle: str, names: Sequence[str]) -> Drawing | None:  # fmt: skip
    """The fastest backend of each problem against the next best, with the verdict."""
    kept = [(c, label) for c, label in zip(rows, labels, strict=True) if len(c.ranked) > 1]
    best = [(c, label, c.pair(c.ranked[0].record.backend, c.ranked[1].record.backend)) for c, label in kept]
    found = [(c, label, p) for c, label, p in best if p is not None]
    if not found:
        return None
    texts = [f"{c.winner.record.backend}, next {c.ranked[1].record.backend}" for c, _, _ in found]
    ratios = [p.seen_from(c.winner.record.backend) for c, _, p in found]
    verdicts = [p.verdict_for(c.winner.record.backend) for c, _, p in found]
    alt = "The fastest against the next best, log axis. " + ". ".join(
        f"{label}: {text}, {words.ratio(r)}, {v}"
        for (_, label, _), text, r, v in zip(found, texts, ratios, verdicts, strict=True)
    )

    def draw(t: Theme) -> Figure:
        wide = [label for _, label, _ in found]
        figure, ax = _rows(len(found), wide, title, subtitle, t, legend_rows=1, row_in=0.42)
        _bands(ax, bands, t)
        for i, (contest, ratio, verdict) in enumerate(zip((f[0] for f in found), ratios, verdicts, strict=True)):
            _dots(ax, contest.winner.record.backend, [(i + 0.16, ratio)], t, names, hollow=verdict != "faster")
            note = "" if verdict == "faster" else f" · {verdict}"
            ax.text(0.012, i - 0.25, f"{texts[i]}  {words.times(ratio.ratio)}{note}", va="center", fontsize=8.3,
                    color=t.role("soft"), transform=ax.get_yaxis_transform(), zorder=5)  # fmt: skip
        _ratio_axis(ax, "times as fast as the next best")
        _legend(figure, [], bands, t, names)
        return figure

    return Drawing(name, title, alt, draw)


def _rows(n: int, labels: Sequence[str], title: str, subtitle: str, t: Theme, *, legend_rows: int,
          row_in: float = ROW_IN, left_in: float = LEFT_IN) -> tuple[Figure, Axes]:  # fmt: skip
    head, foot, plot = Heading(title, subtitle), 0.58 + 0.21 * legend_rows, row_in * n + 0.1
    height = head.inches + foot + plot
    figure = plt.figure(figsize=(WIDTH_IN, height))
    box = (left_in / WIDTH_IN, foot / height, (WIDTH_IN - left_in - RIGHT_IN) / WIDTH_IN, plot / height)
    ax = figure.add_axes(box)
    ax.set_ylim(n - 0.5, -0.5)
    ax.set_yticks(range(n), list(labels), fontsize=8.8)
    ax.grid(axis="y", visible=False)
    ax.spines["left"].set_visible(False)
    for i in range(1, n):
        ax.axhline(i - 0.5, color=t.role("grid"), linewidth=0.8, zorder=0)
    head.draw(figure, height, t)
    return figure, ax


def _bands(ax: Axes, bands: Bands, t: Theme) -> None:
    if bands.noise:
        ax.axvspan(1 / (1 + bands.noise), 1 + bands.noise, color=t.role("noise"), linewidth=0, zorder=0)
    ax.axvspan(1 / (1 + bands.margin), 1 + bands.margin, color=t.role("band"), linewidth=0, zorder=0.1)
    ax.axvline(1, color=t.role("rule"), linewidth=1, zorder=0.2)


def _dots(ax: Axes, backend: str, points: Sequence[tuple[float, Ratio]], t: Theme, names: Sequence[str],
          hollow: bool = False) -> None:  # fmt: skip
    colour = t.backend(backend, names)
    drawn = [(y, r.low, r.high) for y, r in points if r.low is not None and r.high is not None]
    if drawn:
        ax.hlines([d[0] for d in drawn], [d[1] for d in drawn], [d[2] for d in drawn], color=colour, linewidth=1.8)
    face = t.role("ground") if hollow else colour
    ax.plot([r.ratio for _, r in points], [y for y, _ in points], linestyle="none", color=colour,
            marker=theme.marker(backend, names), markerfacecolor=face, gid=f"pt|{backend}",
            markeredgecolor=colour if hollow else t.role("ground"), markeredgewidth=0.6, zorder=3)  # fmt: skip


def _ratio_axis(ax: Axes, label: str) -> None:
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    low, high = min(low, 1 / 1.02), max(high, 1.02)
    pad = (high / low) ** 0.04
    ax.set_xlim(low / pad, high * pad)
    decades = np.log10(high / low)
    if decades < 0.3:
        ax.xaxis.set_major_locator(plt.MaxNLocator(6))
    else:
        ax.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if decades < 2.2 else (1, 3)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: words.bare(words.number(v)) + "×"))
    ax.set_xlabel(label, fontsize=9)


def _legend(figure: Figure, backends: Sequence[str], bands: Bands, t: Theme, names: Sequence[str]) -> None:
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=t.backend(b, names), marker=theme.marker(b, names), linestyle="none",
               markeredgecolor=t.role("ground"), markeredgewidth=0.6, label=b)
        for b in backends
    ]  # fmt: skip
    handles.append(Patch(facecolor=t.role("band"), label=f"too small to matter (±{words.percent(bands.margin)})"))
    if bands.noise:
        handles.append(Patch(facecolor=t.role("noise"), label=f"noise (±{words.percent(bands.noise)})"))
    figure.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.02, 0.0), ncols=3 if backends else 2,
                  handlelength=1.4, columnspacing=1.4, labelspacing=0.35, borderaxespad=0.3)  # fmt: skip


def gate_drawing(
    cells: Sequence[Cell], *, name: str, title: str, subtitle: str, names: Sequence[str]
) -> Drawing | None:
    """Every cell's worst error, outputs (filled) and gradients (hollow), as a share of its own tolerance."""
    shares: dict[str, list[tuple[float, bool, Cell]]] = {}
    for c in cells:
        gate = c.record.gate
        if gate is None:
            continue
        for gradients, tolerance in ((False, gate.tolerance), (True, gate.gradient_tolerance)):
            error = worst_error(c.record, gradients=gradients)
            if error is not None and tolerance:
                shares.setdefault(c.record.backend, []).append((max(error, 1e-18) / tolerance, gradients, c))
    if not shares:
        return None
    backends = sorted(shares)
    alt = "Worst relative error of every cell as a share of its tolerance, log axis; 1 is the tolerance. " + ". ".join(
        f"{b}: {words.number(max(s for s, _, _ in shares[b]))} at worst over {len({id(c) for _, _, c in shares[b]})} cells"
        for b in backends
    )

    def draw(t: Theme) -> Figure:
        figure, ax = _rows(len(backends), backends, title, subtitle, t, legend_rows=1)
        ax.axvline(1, color=t.role("alarm"), linewidth=1.2, linestyle=(0, (4, 3)))
        for i, b in enumerate(backends):
            for gradients in (False, True):
                xs = [s for s, g, _ in shares[b] if g == gradients]
                colour = t.backend(b, names)
                ax.plot(xs, [i + (0.15 if gradients else -0.15)] * len(xs), linestyle="none", color=colour, markersize=4.5,
                        marker="^" if gradients else "o", markerfacecolor="none" if gradients else colour,
                        markeredgewidth=0.9, alpha=0.75)  # fmt: skip
        ax.set_xscale("log")
        low, high = ax.get_xlim()
        ax.set_xlim(min(low, 1e-3), max(high, 3))
        ax.xaxis.set_major_locator(LogLocator(base=10, numticks=8))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}" if v >= 1e-3 else f"1e{round(np.log10(v))}"))
        ax.set_xlabel("error / tolerance", fontsize=9)
        handles = [
            Line2D([], [], color=t.role("soft"), marker="o", linestyle="none", label="output, attention"),
            Line2D(
                [], [], color=t.role("soft"), marker="^", markerfacecolor="none", linestyle="none", label="gradients"
            ),
            Line2D([], [], color=t.role("alarm"), linestyle=(0, (4, 3)), linewidth=1.2, label="tolerance"),
        ]
        figure.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.02, 0.0), ncols=3, borderaxespad=0.3)
        return figure

    return Drawing(name, title, alt, draw)


def noise_drawing(cells: Sequence[Cell], bands: Bands, *, name: str, title: str, subtitle: str,
                  names: Sequence[str]) -> Drawing | None:  # fmt: skip
    """The same code against itself, once per group: how far from 1 a ratio strays when nothing differs."""
    found: list[tuple[Ratio, Cell]] = []
    for c in cells:
        timing = c.record.timing
        if timing is not None and timing.aa_samples_ms:
            found.append((statistics.paired_ratio(timing.samples_ms, timing.aa_samples_ms), c))
    if not found:
        return None
    found.sort(key=lambda rc: rc[0].ratio)
    outside = sum(1 for r, _ in found if r.low is not None and r.high is not None and not r.low <= 1 <= r.high)
    alt = (
        f"{len(found)} A/A pairs: the same backend twice in one group. Ratios from {words.number(found[0][0].ratio, 4)} to "
        f"{words.number(found[-1][0].ratio, 4)}; {outside} of {len(found)} intervals leave 1 out."
    )

    def draw(t: Theme) -> Figure:
        figure, ax = _rows(len(found), [""] * len(found), title, subtitle, t, legend_rows=1, row_in=0.09, left_in=0.3)
        for line in list(ax.lines):
            line.remove()
        _bands(ax, bands, t)
        for i, (r, c) in enumerate(found):
            _dots(ax, c.record.backend, [(i, r)], t, names)
        _ratio_axis(ax, "time of one run over time of the other")
        ax.set_yticks([])
        _legend(figure, sorted({c.record.backend for _, c in found}), bands, t, names)
        return figure

    return Drawing(name, title, alt, draw)
