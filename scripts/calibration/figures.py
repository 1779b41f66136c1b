"""Power against the size of the difference, a figure a protocol; and the cover of every kind of interval."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from reports.draw.figure import DASHES, Drawing, Frame, render
from reports.draw.theme import Theme

POWER = {
    "cpu": "two arms, stopped by the clock's rule; margin 3%",
    "cuda": "two arms, stopped by the clock's rule; margin 1%",
    "regress, 6 rounds": "six rounds of 8 blocks; margin 5%",
}
WHERE = {"cpu": "on a CPU", "cuda": "on a GPU", "regress, 6 rounds": "between commits"}
STYLES = {"calm": 3, "swaying": 2, "bursty": 1, "1% luck": 3, "2% luck": 2, "5% luck": 1}  # their slots in the theme
CLAIMED = 0.025
BAND = (0.93, 0.97)
LEFT = 0.88


def draw(folder: Path) -> None:
    """``power-*`` and ``cover``, light and dark, SVG and PNG, from the CSV files in ``folder``."""
    verdicts, cover = pd.read_csv(folder / "verdicts.csv"), pd.read_csv(folder / "cover.csv")
    for protocol, how in POWER.items():
        rows = verdicts[verdicts.protocol == protocol]
        name = f"power-{protocol.split(',')[0]}"
        title = f"Slowdowns found {WHERE[protocol]}"
        worst = max(shares(rows[rows.difference == rows.margin]).max(), 0)
        alt = f"Simulated runs called slower against the true slowdown, a line a machine; at the margin {worst:.1%}."
        render(Drawing(name, title, alt, partial(_power, title, f"Simulated: {how}", rows)), folder, STYLES)
    found = cover_of(verdicts, cover)
    title = "How often the 95% intervals hold the truth"
    alt = f"From {found.share.min():.1%} to {found.share.max():.1%} over all kinds of interval and machines."
    how = "Simulated, a mark a machine; shaded: 93 to 97%"
    render(Drawing("cover", title, alt, partial(_cover, title, how, found)), folder, STYLES)


def shares(rows: pd.DataFrame) -> pd.Series:
    return rows.slower / rows.trials


def cover_of(verdicts: pd.DataFrame, cover: pd.DataFrame) -> pd.DataFrame:
    """One row per kind of interval, n and machine: ``label``, ``machine``, ``trials``, ``share``."""
    stopped = verdicts.groupby(["protocol", "machine"], sort=False)[["trials", "covered"]].sum().reset_index()
    words = {"cpu": "paired, stopped at 3%", "cuda": "paired, stopped at 1%"}
    stopped["label"] = stopped.protocol.map(lambda p: words.get(p, p.removeprefix("regress, ")))
    cover = cover[cover.machine.isin(STYLES)]
    kinds = cover.assign(label=[
        kind if kind.endswith("stopped") else f"{'paired' if kind.startswith('paired') else 'single'}, {n} blocks"
        for kind, n in zip(cover.interval, cover.n)
    ])  # fmt: skip
    kinds = kinds.sort_values(["interval", "n"], kind="stable")
    both = pd.concat([kinds[["label", "machine", "trials", "covered"]], stopped], ignore_index=True)
    return both.assign(share=both.covered / both.trials)


def _power(title: str, subtitle: str, rows: pd.DataFrame, t: Theme) -> Figure:
    margin = float(rows.margin.iloc[0])
    handles = [_line(name, t) for name in rows.machine.unique()]
    if (rows.slower_by_margin_alone != rows.slower).any():
        handles.append(Line2D([], [], color=t.role("soft"), linestyle=DASHES, label="margin alone"))
    handles.append(Patch(facecolor=t.role("band"), label="does not matter"))
    frame = Frame(title, subtitle, handles, t, plot_in=2.6, left_in=0.7)
    ax = frame.axes(0, 2.6)
    ax.axvspan(0, 100 * margin, color=t.role("band"), lw=0)
    ax.axhline(CLAIMED, color=t.role("alarm"), lw=0.8)
    ax.annotate("2.5%", (20, CLAIMED), xytext=(0, 3), textcoords="offset points", ha="right", fontsize=8,
                color=t.role("alarm"))  # fmt: skip
    for name, one in rows.groupby("machine", sort=False):
        x, color = 100 * one.difference, t.colour(str(name))
        if (one.slower_by_margin_alone != one.slower).any():
            ax.plot(x, one.slower_by_margin_alone / one.trials, color=color, linestyle=DASHES, lw=1)
        ax.plot(x, shares(one), color=color, marker=t.marker(str(name)), markeredgecolor=t.role("ground"))
    ax.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    ax.set_xlim(0, 20.5)
    ax.set_ylim(-0.02, 1.04)
    ax.set_xticks([0, 0.5, 1, 2, 3, 5, 10, 20] if margin < 0.02 else [0, 1, 3, 5, 10, 15, 20])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}%"))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.0f}%"))
    ax.set_xlabel("true slowdown (square-root scale)")
    ax.set_ylabel("runs that say slower")
    return frame.figure


def _cover(title: str, subtitle: str, found: pd.DataFrame, t: Theme) -> Figure:
    labels = list(dict.fromkeys(found.label))
    handles = [_line(name, t, linestyle="none") for name in dict.fromkeys(found.machine)]
    plot_in = 0.19 * len(labels)
    frame = Frame(title, subtitle, handles, t, plot_in=plot_in, left_in=1.75)
    ax = frame.axes(0, plot_in)
    ax.axvspan(*BAND, color=t.role("band"), lw=0)
    ax.axvline(0.95, color=t.role("rule"), lw=0.8)
    for name, one in found.groupby("machine", sort=False):
        spread = 2 * np.sqrt(one.share * (1 - one.share) / one.trials)
        y = np.array([labels.index(label) for label in one.label])
        color, marker = t.colour(str(name)), t.marker(str(name))
        left = np.maximum(one.share - spread, LEFT)
        shown = (one.share > LEFT).to_numpy()
        ax.hlines(y[shown], left[shown], (one.share + spread)[shown], color=color, lw=1)
        ax.plot(one.share[shown], y[shown], marker, color=color, markeredgecolor=t.role("ground"))
        for row, share in zip(y[~shown], one.share[~shown]):
            ax.annotate(f"← {share:.0%}", (LEFT, row), xytext=(3, 0), textcoords="offset points", va="center",
                        fontsize=8, color=color)  # fmt: skip
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.set_xlim(LEFT, 1.0)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.0f}%"))
    ax.set_xlabel("intervals that hold the truth (bars: two standard errors)")
    return frame.figure


def _line(name: str, t: Theme, *, linestyle: str = "-") -> Line2D:
    return Line2D([], [], color=t.colour(name), marker=t.marker(name), linestyle=linestyle, label=name,
                  markeredgecolor=t.role("ground"))  # fmt: skip
