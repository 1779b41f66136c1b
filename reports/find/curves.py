"""Curves along N, W, K and B: fitted exponents, crossovers, and how far each backend goes before memory ends."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from benchmarks.harness.ruler import statistics
from benchmarks.harness.ruler.statistics import Crossover, PowerLaw
from benchmarks.harness.schema.axes import SYNTHETIC, axis, curve_axes, of_role
from reports.find.analyse import Pair, median_ms
from reports.read.load import Cell, Collection, Family, Place, Setting


@dataclass(frozen=True)
class Curve:
    """Cells along one axis, everything else fixed. ``points[backend]`` is sorted by x; failed cells are in it too."""

    axis: str  # its letter
    place: Place
    setting: Setting
    family: Family
    fixed: tuple[tuple[str, object], ...]
    points: dict[str, tuple[tuple[float, Cell], ...]]

    @property
    def fixed_label(self) -> str:
        parts = []
        for name, value in self.fixed:
            if name == "workload":
                parts += [] if value == SYNTHETIC else [str(value)]
            elif value is not None:
                parts.append(f"{axis(name).symbol} {'≤' if axis(name).size else '='} {value:,}")
        return ", ".join(parts)

    @property
    def xs(self) -> list[float]:
        return sorted({x for points in self.points.values() for x, _ in points})


@dataclass(frozen=True)
class Fit:
    curve: Curve
    backend: str
    all_sizes: PowerLaw
    tail: PowerLaw | None  # the larger half of the sizes, where fixed costs count less
    tail_from: float | None


@dataclass(frozen=True)
class Crossing:
    curve: Curve
    a: str
    b: str
    at: Crossover
    resolved: bool  # both neighbours have a verdict, and they differ


@dataclass(frozen=True)
class Capacity:
    """How far one backend goes along N. ``extrapolated_n`` is set only where nothing failed for want of memory."""

    curve: Curve
    backend: str
    largest: Cell | None
    first_oom: Cell | None
    stopped: Cell | None  # the first cell that failed for another reason
    extrapolated_n: float | None

    @property
    def predicted(self) -> bool:
        return self.first_oom is not None and is_predicted(self.first_oom)


def is_predicted(cell: Cell) -> bool:
    return cell.record.status == "oom" and "predicted" in (cell.record.reason or "")


def curves(collection: Collection, letter: str) -> list[Curve]:
    """The curves along an axis, by its letter, that hold at least two different x; those of two only where the setting
    has no longer one along the same axis (a few windows measured at two sizes are points of the W axis, no curves in
    N)."""
    along = next(a for a in curve_axes() if a.symbol == letter)
    fields = ["workload"] if along.name != "n_atom" else []  # a protein is one point of a curve in N
    fields += [a.name for a in of_role("size") if a != along]
    by_place: dict[tuple[object, ...], list[Cell]] = defaultdict(list)
    for c in collection.current:
        if c.record.problem.level in along.levels:
            fixed = tuple((name, getattr(c.record.problem, name)) for name in fields)
            by_place[(c.place, c.setting.without(along.name), c.family, fixed)].append(c)
    out = []
    for (place, setting, family, fixed), cells in by_place.items():
        if len({along.value(c.record.problem) for c in cells}) < 2:
            continue
        points: dict[str, list[tuple[float, Cell]]] = defaultdict(list)
        for c in cells:
            points[c.record.backend].append((float(along.value(c.record.problem)), c))
        done = {b: tuple(sorted(points[b], key=lambda xc: xc[0])) for b in sorted(points)}
        out.append(Curve(letter, place, setting, family, fixed, done))  # type: ignore[arg-type]
    longest: dict[tuple[Place, Setting, Family], int] = {}
    for c in out:
        where = (c.place, c.setting, c.family)
        longest[where] = max(longest.get(where, 0), len(c.xs))
    out = [c for c in out if len(c.xs) > 2 or longest[(c.place, c.setting, c.family)] == 2]
    return sorted(out, key=lambda c: (*c.setting.order, c.family.kind != "synthetic", c.family.atoms, str(c.fixed)))


def fits(curve: Curve) -> list[Fit]:
    """Exponents of the median in x, over all sizes and over the larger half of them."""
    out = []
    for backend, points in curve.points.items():
        x, t = _speeds(points)
        if len(set(x)) < 2:
            continue
        half = sorted(set(x))[len(set(x)) // 2 :]
        tail = [(xi, ti) for xi, ti in zip(x, t, strict=True) if xi in half]
        has_tail = len(half) >= 3
        out.append(
            Fit(
                curve, backend, statistics.power_law(x, t),
                statistics.power_law([i for i, _ in tail], [j for _, j in tail]) if has_tail else None,
                half[0] if has_tail else None,
            )
        )  # fmt: skip
    return out


def _speeds(points: Iterable[tuple[float, Cell]]) -> tuple[list[float], list[float]]:
    kept = [(x, median_ms(c)) for x, c in points if c.ok]
    return [x for x, _ in kept], [t for _, t in kept]


def crossings(curve: Curve, all_pairs: Iterable[Pair]) -> list[Crossing]:
    """Where the faster of two backends changes along the curve, from cells that were paired."""
    known = {(p.problem.key, frozenset((p.fast, p.slow))): p for p in all_pairs if p.place == curve.place}
    out = []
    for a, b in combinations(curve.points, 2):
        xs, ta, tb, verdicts = [], [], [], {}
        cells_b = {c.record.problem.key: c for _, c in curve.points[b] if c.ok}
        for x, c in curve.points[a]:
            pair = known.get((c.record.problem.key, frozenset((a, b))))
            if pair is None or not c.ok or c.record.problem.key not in cells_b:
                continue
            xs.append(x)
            ta.append(1.0)  # paired: only the ratio of the two counts
            tb.append(pair.seen_from(a).ratio)
            verdicts[x] = pair.verdict_for(a)
        for at in statistics.crossover(xs, ta, tb):
            both = {verdicts[at.below], verdicts[at.above]}
            out.append(Crossing(curve, a, b, at, resolved=both == {"faster", "slower"}))
    return out


def capacities(curve: Curve) -> list[Capacity]:
    out = []
    for backend, points in curve.points.items():
        ok = [c for _, c in points if c.ok]
        failed = [c for _, c in points if not c.ok]
        oom = next((c for c in failed if c.record.status == "oom"), None)
        other = next((c for c in failed if c.record.status != "oom"), None)
        extrapolated = None if oom else _extrapolate(ok)
        out.append(Capacity(curve, backend, ok[-1] if ok else None, oom, other, extrapolated))
    return out


def _extrapolate(ok: Sequence[Cell]) -> float | None:
    """The N at which inputs and the backend's own memory model would fill the device: a power law through at least
    three sizes, solved for the device's memory."""
    known = [(c.record.problem.n_atom, c.record.memory) for c in ok if c.record.memory is not None]
    sized = [(n, m.input_bytes + m.model_bytes) for n, m in known if m.model_bytes]
    capacity = device_memory(ok[-1]) if ok else None
    if len({n for n, _ in sized}) < 3 or not capacity:
        return None
    law = statistics.power_law([n for n, _ in sized], [b for _, b in sized])
    reach = (capacity / law.coefficient) ** (1 / law.exponent) if law.exponent > 0 else math.inf
    return reach if math.isfinite(reach) and reach > sized[-1][0] else None


def device_memory(cell: Cell) -> int | None:
    """Bytes of the device that a cell ran on: the GPU's own, or the host's."""
    origin = cell.record.provenance
    if cell.record.problem.device == "cpu":
        return origin.memory_bytes
    value = origin.environment.get("gpu_memory_bytes")
    return value if isinstance(value, int) else None
