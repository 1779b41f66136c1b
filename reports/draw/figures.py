"""Which figures a report holds, in which order, with what said above them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.harness.ruler.statistics import MARGIN
from benchmarks.harness.schema.axes import Axis, curve_axes, usual
from benchmarks.harness.schema.problem import Problem
from reports.draw import forests, plots
from reports.draw.forests import Bands
from reports.draw.panel import Drawing
from reports.find.analyse import BASELINE, Contest, Pair, Repeat
from reports.find.curves import Curve
from reports.read.load import Cell, Family, Place, Setting, setting
from reports.read.measured import has_two_times

ROWS_A_FIGURE = 18
# what the names of the files begin with
KINDS = ("time", "memory", "limit", "base", "winner", "gate", "noise", "history", "machines")


@dataclass(frozen=True)
class Sheet:
    """Drawings of one kind at one place."""

    title: str
    note: str
    drawings: list[Drawing]


@dataclass(frozen=True)
class Material:
    """What the figures of one place are drawn from."""

    place: Place
    cells: Sequence[Cell]
    contests: Sequence[Contest]
    pairs: Sequence[Pair]
    curves: dict[str, list[Curve]]
    labels: dict[Setting, str]
    names: Sequence[str]
    repeats: Sequence[Repeat]

    @property
    def two_times(self) -> bool:
        return any(has_two_times(c.record) for c in self.cells)

    @property
    def bands(self) -> Bands:
        noise = max((p.noise for p in self.pairs if p.noise is not None), default=None)
        return Bands(MARGIN[self.place.device], noise)


def sheets(m: Material) -> list[Sheet]:
    """All sheets of a place, empty ones left out."""
    n, *others = curve_axes()
    strip = "The strip above a panel says where a backend has no time, and why (* = predicted, not tried)."
    device = ": the device's time, dashed the wall time of an eager call where it was recorded" if m.two_times else ""
    notes = {
        "time": f"Median per call{device}; shaded bars are 95% intervals. {strip} A ring marks where a line ends.",
        "memory": "Most bytes above the inputs in one call. Dashed: the pair tensor p that every backend is handed. "
        "Dotted: each backend's own memory model.",
        "limit": "Floor time of the operation (inputs, outputs and weights once, FLOPs, exponentials, at the largest "
        "ceilings on record of this machine) over measured time; 100% cannot be beaten.",
        "base": f"Paired ratios with 95% intervals, one row a problem; right of 1 is faster than {BASELINE}.",
        "winner": "Each row against the nearest of those that ran there, which need not be the strongest rival: a row "
        "names its own, and rows with different ones do not compare. Hollow: not shown to be faster.",
        "gate": "Every cell's worst relative error against float64, as a share of its tolerance.",
    }
    found = [
        Sheet("Time against N", notes["time"], list(_curves(m, n, "time"))),
        Sheet("Memory against N", notes["memory"], list(_curves(m, n, "memory"))),
        Sheet("Distance from the machine's limit", notes["limit"], list(_curves(m, n, "limit"))),
        *(
            Sheet(f"Time against the {a.words}", f"Everything but {a.symbol} held fixed.", list(_curves(m, a, "time")))
            for a in others
        ),
        Sheet(f"How much faster than {BASELINE}", notes["base"], list(_forests(m, "base"))),
        Sheet("The fastest against the next best", notes["winner"], list(_forests(m, "winner"))),
        Sheet("Are the results right", notes["gate"], list(_gates(m))),
        Sheet("How noisy was it", "The same backend twice in one group: 1 is the truth.", list(_noise(m))),
    ]
    return [s for s in found if s.drawings]


def _stem(*parts: object) -> str:
    return re.sub(r"[^a-z0-9]+", "-", "-".join(str(p) for p in parts if p not in (None, "")).lower()).strip("-")


def _curves(m: Material, along: Axis, kind: str) -> Iterator[Drawing]:
    quantity, word = {
        "time": (plots.TIME, "Time"), "memory": (plots.MEMORY, "Memory"), "limit": (plots.LIMIT, "Share of the limit"),
    }[kind]  # fmt: skip
    for curve in m.curves[along.symbol]:
        if not any(quantity.value(c) is not None for pts in curve.points.values() for _, c in pts):
            continue
        against = along.symbol if along.name == "n_atom" else along.title
        subtitle = "; ".join(p for p in (curve.family.label, curve.fixed_label, m.place.label) if p)
        fixed = (v for _, v in curve.fixed)
        family = curve.family
        stem = _stem(
            kind, curve.axis, _where(m, curve.setting), family.kind, family.atoms, family.style, *fixed, _tag(m.place)
        )
        title = f"{word} against {against}: {_short(m, curve.setting)}"
        yield plots.CurvePlot(curve, quantity, m.names).drawing(name=stem, title=title, subtitle=subtitle)


def _where(m: Material, s: Setting) -> str:
    return _stem(m.labels[s].replace(" + ", " "))


def _short(m: Material, s: Setting) -> str:
    return m.labels[s].replace("forward + backward", "fwd + bwd").replace("forward", "fwd")


def _tag(place: Place) -> str:
    return _stem(place.machine[:40], place.device, place.commit[:7], place.tag)


def _forests(m: Material, kind: str) -> Iterator[Drawing]:
    by_family: dict[tuple[Setting, Family], list[Contest]] = defaultdict(list)
    for c in m.contests:
        if len(c.ranked) > 1:
            by_family[(setting(c.problem), c.winner.family)].append(c)
    for (where, family), rows in by_family.items():
        rows.sort(key=_row_order)
        labels = _row_labels([c.problem for c in rows])
        for part, start in enumerate(range(0, len(rows), ROWS_A_FIGURE)):
            chosen, shown = rows[start : start + ROWS_A_FIGURE], labels[start : start + ROWS_A_FIGURE]
            draw = forests.baseline_drawing if kind == "base" else forests.winner_drawing
            title = f"Speed against {BASELINE}" if kind == "base" else "Fastest against next best"
            stem = _stem(kind, _where(m, where), family.kind, family.atoms, family.style, part or "", _tag(m.place))
            drawing = draw(
                chosen, shown, m.bands, m.names, name=stem, title=f"{title}: {_short(m, where)}",
                subtitle=f"{family.label}; {m.place.label}",
            )  # fmt: skip
            if drawing is not None:
                yield drawing


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
        parts = [p.workload] if p.workload != "synthetic" else []
        parts.append(f"N {p.n_atom:,}" if len(parts) == 0 else f"{p.n_atom:,}")
        if wide and not p.k_cap:
            parts.append(f"W {p.window}")
        if capped and p.k_cap:
            parts.append(f"K {p.n_neighbor}")
        labels.append(" · ".join(parts))
    return labels


def _gates(m: Material) -> Iterator[Drawing]:
    stem = _stem("gate", _tag(m.place))
    drawing = forests.gate_drawing(m.cells, m.names, name=stem, title="Gate errors", subtitle=m.place.label)
    if drawing is not None:
        yield drawing


def _noise(m: Material) -> Iterator[Drawing]:
    title, subtitle = "A/A: the same code against itself", f"One row a group, sorted; {m.place.label}"
    stem = _stem("noise", _tag(m.place))
    drawing = forests.noise_drawing(m.cells, m.bands, m.names, name=stem, title=title, subtitle=subtitle)
    if drawing is not None:
        yield drawing
