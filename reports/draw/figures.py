"""Which figures a report of records holds, in which order, with what said above them."""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.harness.ruler.statistics import MARGIN
from benchmarks.harness.schema.axes import Axis, curve_axes, usual
from benchmarks.harness.schema.problem import Problem
from reports.draw import curve_plots, ratio_plots
from reports.draw.curve_plots import LIMIT, MEMORY, TIME, Quantity
from reports.draw.figure import Drawing, Gallery
from reports.draw.ratio_plots import Bands
from reports.find.analyse import BASELINE, Contest, Pair, Repeat
from reports.find.curves import Curve
from reports.read.load import Cell, Family, Place, Setting, setting
from reports.read.measured import has_two_times

ROWS_A_FIGURE = 18
# what the names of the files begin with
KINDS = ("time", "memory", "limit", "base", "winner", "gate", "noise", "history", "machines")


@dataclass(frozen=True)
class PlaceResults:
    """What was measured and found out at one place."""

    place: Place
    cells: Sequence[Cell]
    contests: Sequence[Contest]
    pairs: Sequence[Pair]
    curves: dict[str, list[Curve]]
    labels: dict[Setting, str]
    repeats: Sequence[Repeat]

    @property
    def bands(self) -> Bands:
        noise = max((p.noise for p in self.pairs if p.noise is not None), default=None)
        return Bands(MARGIN[self.place.device], noise)


def galleries(m: PlaceResults) -> list[Gallery]:
    """All figures of a place by kind, empty kinds left out."""
    n, *others = curve_axes()
    strip = "The strip above a panel says where a backend has no time, and why (* = predicted, not tried)."
    two_times = any(has_two_times(c.record) for c in m.cells)
    device = ": the device's time, dashed the wall time of an eager call where it was recorded" if two_times else ""
    kinds = (
        ("Time against N",
         f"Median per call{device}; shaded bars are 95% intervals. {strip} A ring marks where a line ends.",
         _curves(m, n, "time", TIME)),
        ("Memory against N",
         "Most bytes above the inputs in one call. Dashed: the pair tensor p that every backend is handed. Dotted: "
         "each backend's own memory model.",
         _curves(m, n, "memory", MEMORY)),
        ("Distance from the machine's limit",
         "Floor time of the operation (inputs, outputs and weights once, FLOPs, exponentials, at the largest "
         "ceilings on record of this machine) over measured time; 100% cannot be beaten.",
         _curves(m, n, "limit", LIMIT)),
        *((f"Time against the {a.words}", f"Everything but {a.symbol} held fixed.", _curves(m, a, "time", TIME))
          for a in others),
        (f"How much faster than {BASELINE}",
         f"Paired ratios with 95% intervals, one row a problem; right of 1 is faster than {BASELINE}.",
         _ratios(m, "base", f"Speed against {BASELINE}")),
        ("The fastest against the next best",
         "Each row against the nearest of those that ran there, which need not be the strongest rival: a row names its "
         "own, and rows with different ones do not compare. Hollow: not shown to be faster.",
         _ratios(m, "winner", "Fastest against next best")),
        ("Are the results right", "Every cell's worst relative error against float64, as a share of its tolerance.",
         _gates(m)),
        ("How noisy was it", "The same backend twice in one group: 1 is the truth.", _noise(m)),
    )  # fmt: skip
    made = [Gallery(title, note, list(drawings)) for title, note, drawings in kinds]
    return [g for g in made if g.drawings]


def slug(*parts: object) -> str:
    """A part of a file's name: ASCII letters and digits. What has letters of another script gets a number for them, so
    that two such names stay apart."""
    texts = [str(p) for p in parts if p not in (None, "")]
    lost = [t for t in texts if any(c.isalnum() and not c.isascii() for c in t)]
    texts += [f"{zlib.crc32(t.encode(errors='replace')):08x}" for t in lost]
    return re.sub(r"[^a-z0-9]+", "-", "-".join(texts).lower()).strip("-")


def _curves(m: PlaceResults, along: Axis, kind: str, quantity: Quantity) -> Iterator[Drawing]:
    for curve in m.curves[along.symbol]:
        if not any(quantity.value(c) is not None for pts in curve.points.values() for _, c in pts):
            continue
        against = along.symbol if along.name == "n_atom" else along.title
        subtitle = "; ".join(p for p in (curve.family.label, curve.fixed_label, m.place.label) if p)
        name = slug(
            kind, curve.axis, _where(m, curve.setting, curve.family), *(v for _, v in curve.fixed), _tag(m.place)
        )
        title = f"{kind.capitalize()} against {against}: {_short(m, curve.setting)}"
        if quantity is LIMIT:
            title = title.replace("Limit", "Share of the limit", 1)
        yield curve_plots.CurvePlot(curve, quantity).drawing(name=name, title=title, subtitle=subtitle)


def _where(m: PlaceResults, s: Setting, family: Family) -> str:
    return slug(m.labels[s].replace(" + ", " "), family.kind, family.atoms, family.style)


def _short(m: PlaceResults, s: Setting) -> str:
    return m.labels[s].replace("forward + backward", "fwd + bwd").replace("forward", "fwd")


def _tag(place: Place) -> str:
    return slug(place.machine[:40], place.device, place.commit[:7], place.tag)


def _ratios(m: PlaceResults, kind: str, title: str) -> Iterator[Drawing]:
    plot, alt = {
        "base": (ratio_plots.against_baseline, f"Speed relative to {BASELINE}, log axis"),
        "winner": (ratio_plots.against_next, "The fastest against the next best, log axis"),
    }[kind]
    by_family: dict[tuple[Setting, Family], list[Contest]] = defaultdict(list)
    for c in m.contests:
        if len(c.ranked) > 1:
            by_family[(setting(c.problem), c.winner.family)].append(c)
    for (where, family), rows in by_family.items():
        rows.sort(key=_row_order)
        labels = _row_labels([c.problem for c in rows])
        for part, start in enumerate(range(0, len(rows), ROWS_A_FIGURE)):
            chosen = slice(start, start + ROWS_A_FIGURE)
            if (made := plot(rows[chosen], labels[chosen], m.bands)) is not None:
                name = slug(kind, _where(m, where, family), part or "", _tag(m.place))
                heading = f"{title}: {_short(m, where)}"
                yield made.drawing(name, heading, f"{family.label}; {m.place.label}", alt)


def _row_order(c: Contest) -> tuple[bool, bool, int, int, int]:
    """The N axis first, then windows, then caps."""
    p = c.problem
    return p.k_cap is not None, p.window != usual("window"), p.n_atom, p.window, p.n_neighbor


def _row_labels(problems: Sequence[Problem]) -> list[str]:
    """Each row by what differs between rows."""
    wide = len({p.window for p in problems}) > 1
    capped = any(p.k_cap for p in problems)
    labels = []
    for p in problems:
        parts = [f"N {p.n_atom:,}"] if p.workload == "synthetic" else [p.workload, f"{p.n_atom:,}"]
        parts += [f"W {p.window}"] if wide and not p.k_cap else []
        parts += [f"K {p.n_neighbor}"] if capped and p.k_cap else []
        labels.append(" · ".join(parts))
    return labels


def _gates(m: PlaceResults) -> Iterator[Drawing]:
    drawing = ratio_plots.gate_drawing(m.cells, slug("gate", _tag(m.place)), "Gate errors", m.place.label)
    if drawing is not None:
        yield drawing


def _noise(m: PlaceResults) -> Iterator[Drawing]:
    if (made := ratio_plots.repeated(m.cells, m.bands)) is not None:
        plot, alt = made
        title, subtitle = "A/A: the same code against itself", f"One row a group, sorted; {m.place.label}"
        yield plot.drawing(slug("noise", _tag(m.place)), title, subtitle, alt)
