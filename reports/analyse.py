"""Comparisons, curves and limits from records: everything the page says, before it is said.

Only cells of one group are paired, block by block. A verdict is adjusted (Holm) over all pairs of its place.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from benchmarks.harness import statistics
from benchmarks.harness.record import Problem
from benchmarks.harness.statistics import Crossover, PowerLaw, Ratio, Verdict
from reports.load import Cell, Collection, Family, Place, Setting

BASELINE = "gather"
ALPHA = 0.05


@dataclass(frozen=True)
class Pair:
    """``speedup`` = time of ``slow`` over time of ``fast``, paired; ``verdict`` is about ``fast``."""

    place: Place
    problem: Problem
    group: str
    fast: str
    slow: str
    speedup: Ratio
    margin: float
    noise: float | None
    p_adjusted: float | None = None
    verdict: Verdict = "unresolved"

    def seen_from(self, backend: str) -> Ratio:
        """How many times as fast ``backend`` is as the other one."""
        return self.speedup if backend == self.fast else self.speedup.inverse()

    def verdict_for(self, backend: str) -> Verdict:
        if backend == self.fast or self.verdict in ("same", "unresolved"):
            return self.verdict
        return "slower" if self.verdict == "faster" else "faster"


@dataclass(frozen=True)
class Contest:
    """One problem at one place: who is fastest among the backends of its main group."""

    place: Place
    problem: Problem
    ranked: tuple[Cell, ...]  # by median, fastest first; one group
    apart: tuple[Cell, ...]  # measured, but in another group: no ratio to the winner
    failed: tuple[Cell, ...]
    pairs: dict[tuple[str, str], Pair]

    @property
    def winner(self) -> Cell:
        return self.ranked[0]

    def pair(self, a: str, b: str) -> Pair | None:
        return self.pairs.get((a, b)) or self.pairs.get((b, a))

    @property
    def tied(self) -> tuple[str, ...]:
        """The backends that the winner was not shown to beat."""
        best = self.winner.record.backend
        rest = (c.record.backend for c in self.ranked[1:])
        return tuple(b for b in rest if (p := self.pair(best, b)) is None or p.verdict_for(best) != "faster")


@dataclass(frozen=True)
class Curve:
    """Cells along one axis, everything else fixed. ``points[backend]`` is sorted by x; failed cells are in it too."""

    axis: str  # "N", "W" or "K"
    place: Place
    setting: Setting
    family: Family
    fixed: tuple[tuple[str, object], ...]
    points: dict[str, tuple[tuple[float, Cell], ...]]

    @property
    def fixed_label(self) -> str:
        words = {"n_atom": "N", "window": "W", "k_cap": "K ≤"}
        parts = []
        for name, value in self.fixed:
            if name == "workload" and value != "synthetic":
                parts.append(str(value))
            elif name in words and value is not None:
                text = f"{value:,}" if isinstance(value, int) else str(value)
                parts.append(f"{words[name]} {text}" if name == "k_cap" else f"{words[name]} = {text}")
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


def noise_floors(cells: Iterable[Cell]) -> dict[tuple[Place, str], float]:
    """The worst A/A noise floor of every group that has one."""
    found: dict[tuple[Place, str], float] = {}
    for c in cells:
        t = c.record.timing
        if t is None or not t.aa_samples_ms:
            continue
        floor = statistics.noise_floor(t.samples_ms, t.aa_samples_ms)
        if floor is not None:
            key = (c.place, c.record.group)
            found[key] = max(found.get(key, 0.0), floor)
    return found


def pairs(collection: Collection, *, n_resamples: int = 2000) -> list[Pair]:
    """Every pair of backends that was interleaved: the newest group that holds both, Holm-adjusted per place."""
    floors = noise_floors(collection.cells)
    typical: dict[Place, float] = {}
    for (place, _), floor in floors.items():
        typical[place] = max(typical.get(place, 0.0), floor)
    groups: dict[tuple[Place, str, str], list[Cell]] = defaultdict(list)
    for c in collection.cells:
        if c.ok:
            groups[(c.place, c.record.problem.key, c.record.group)].append(c)
    newest: dict[tuple[Place, str, frozenset[str]], tuple[Cell, Cell]] = {}
    for (place, problem, _), cells in groups.items():
        by_name = {c.record.backend: c for c in cells}
        for a, b in combinations(sorted(by_name), 2):
            key = (place, problem, frozenset((a, b)))
            held = newest.get(key)
            if held is None or by_name[a].record.provenance.utc >= held[0].record.provenance.utc:
                newest[key] = (by_name[a], by_name[b])
    raw = []
    for a, b in newest.values():
        group = a.record.group
        noise = floors.get((a.place, group), typical.get(a.place))
        raw.append(_pair(a, b, noise, n_resamples))
    return _adjust(raw)


def _pair(a: Cell, b: Cell, noise: float | None, n_resamples: int) -> Pair:
    ta, tb = a.record.timing, b.record.timing
    assert ta is not None
    assert tb is not None
    ratio = statistics.paired_ratio(tb.samples_ms, ta.samples_ms, n_resamples=n_resamples)
    fast, slow = (a, b) if ratio.ratio >= 1 else (b, a)
    return Pair(
        place=a.place, problem=a.record.problem, group=a.record.group, fast=fast.record.backend,
        slow=slow.record.backend, speedup=ratio if ratio.ratio >= 1 else ratio.inverse(),
        margin=statistics.MARGIN[a.record.problem.device], noise=noise,
    )  # fmt: skip


def _adjust(raw: Sequence[Pair]) -> list[Pair]:
    """Holm over the pairs of each place; a pair without a p-value keeps none and stays unresolved."""
    out: list[Pair] = []
    for place in dict.fromkeys(p.place for p in raw):
        mine = [p for p in raw if p.place == place]
        tested = [p for p in mine if p.speedup.p_value is not None]
        adjusted = dict(zip(map(id, tested), statistics.holm([p.speedup.p_value or 0.0 for p in tested]), strict=True))
        for p in mine:
            p_adjusted = adjusted.get(id(p))
            verdict = statistics.verdict(
                p.speedup.inverse(), margin=p.margin, noise=p.noise, p_adjusted=p_adjusted, alpha=ALPHA
            )
            out.append(replace(p, p_adjusted=p_adjusted, verdict=verdict))
    return out


def contests(collection: Collection, all_pairs: Iterable[Pair]) -> list[Contest]:
    """Per place and problem: the cells of the group with most current speeds, ranked; the others apart."""
    paired: dict[tuple[Place, str], dict[tuple[str, str], Pair]] = defaultdict(dict)
    for p in all_pairs:
        paired[(p.place, p.problem.key)][(p.fast, p.slow)] = p
    cells: dict[tuple[Place, str], list[Cell]] = defaultdict(list)
    for c in collection.current:
        cells[(c.place, c.record.problem.key)].append(c)
    out = []
    for (place, key), mine in cells.items():
        ok = [c for c in mine if c.ok]
        failed = tuple(c for c in mine if not c.ok)
        main = _main_group(ok)
        ranked = tuple(sorted((c for c in ok if c.record.group == main), key=median_ms))
        apart = tuple(c for c in ok if c.record.group != main)
        out.append(Contest(place, mine[0].record.problem, ranked, apart, failed, paired[(place, key)]))
    return sorted(out, key=lambda c: problem_order(c.problem))


def _main_group(ok: Sequence[Cell]) -> str | None:
    members: dict[str, list[Cell]] = defaultdict(list)
    for c in ok:
        members[c.record.group].append(c)
    return max(members, key=lambda g: (len(members[g]), max(c.record.provenance.utc for c in members[g])), default=None)


def median_ms(cell: Cell) -> float:
    assert cell.record.timing is not None
    return cell.record.timing.median_ms


def problem_order(p: Problem) -> tuple[object, ...]:
    from reports.load import setting

    return (*setting(p).order, p.window_style, p.atoms, p.window, p.k_cap or 10**12, p.n_atom, p.workload)


def curves(collection: Collection, axis: str) -> list[Curve]:
    """The curves along N, W or K that hold at least two different x."""
    fields = {"N": ("window", "k_cap"), "W": ("workload", "n_atom", "k_cap"), "K": ("workload", "n_atom", "window")}
    found: dict[tuple[object, ...], list[Cell]] = defaultdict(list)
    for c in collection.current:
        if c.record.problem.level == "index" and axis == "K":
            continue
        fixed = tuple((name, getattr(c.record.problem, name)) for name in fields[axis])
        found[(c.place, c.setting, c.family, fixed)].append(c)
    out = []
    for (place, setting, family, fixed), cells in found.items():
        if len({_x(c, axis) for c in cells}) < 2:
            continue
        points: dict[str, list[tuple[float, Cell]]] = defaultdict(list)
        for c in cells:
            points[c.record.backend].append((_x(c, axis), c))
        done = {b: tuple(sorted(points[b], key=lambda xc: xc[0])) for b in sorted(points)}
        out.append(Curve(axis, place, setting, family, fixed, done))  # type: ignore[arg-type]
    return sorted(out, key=lambda c: (*c.setting.order, c.family.kind != "synthetic", c.family.atoms, str(c.fixed)))


def _x(cell: Cell, axis: str) -> float:
    p = cell.record.problem
    return float({"N": p.n_atom, "W": p.window, "K": p.n_neighbor}[axis])


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
