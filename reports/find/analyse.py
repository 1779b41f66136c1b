"""Comparisons from records: which pairs of backends were measured together, and who was the faster.

Only cells of one group are paired, block by block. A verdict is adjusted (Holm) over all pairs of its place, by
p-values of what it claims: a difference beyond the margin and beyond the noise floors of both.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import median

from benchmarks.harness.ruler import statistics
from benchmarks.harness.ruler.statistics import Ratio, Verdict
from benchmarks.harness.schema import comparison
from benchmarks.harness.schema.problem import Problem
from reports.read.load import Cell, Collection, Place, setting

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
class Repeat:
    """One pair in several runs of one place: the ratio of each, slower over faster."""

    place: Place
    problem: Problem
    fast: str
    slow: str
    ratios: tuple[float, ...]

    @property
    def spread(self) -> float:
        return max(self.ratios) / min(self.ratios) - 1


@dataclass(frozen=True)
class Contest:
    """One problem at one place: who is fastest among the backends of its main group."""

    place: Place
    problem: Problem
    ranked: tuple[Cell, ...]  # fastest first, by paired ratios; one group
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

    @property
    def close(self) -> tuple[str, ...]:
        """Those of the tied whose interval reaches down to a difference that does not matter or may be noise; a few
        blocks can leave a twentyfold lead unproven, and it would be odd advice to take either."""
        best = self.winner.record.backend
        return tuple(b for b in self.tied if (p := self.pair(best, b)) is None or _may_tie(p, best))


def _may_tie(pair: Pair, best: str) -> bool:
    low = pair.seen_from(best).low
    return low is None or low <= 1 + max(pair.margin, pair.noise or 0.0)


def noise_floors(cells: Iterable[Cell]) -> dict[tuple[Place, str], dict[str, float]]:
    """The A/A noise floors of every group that has one, by backend."""
    groups: dict[tuple[Place, str], list[Cell]] = defaultdict(list)
    for c in cells:
        groups[(c.place, c.record.group)].append(c)
    floors_of = {key: comparison.noise_floors(c.record for c in members) for key, members in groups.items()}
    return {key: floors for key, floors in floors_of.items() if floors}


def pairs(collection: Collection) -> list[Pair]:
    """Every pair of backends that was interleaved: the newest group that holds both, Holm-adjusted per place.

    A group without any noise floor borrows the greatest of its place.
    """
    floors = noise_floors(collection.cells)
    greatest: dict[Place, float] = {}
    for (place, _), members in floors.items():
        greatest[place] = max(greatest.get(place, 0.0), *members.values())
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
        own = floors.get((a.place, a.record.group), {})
        raw.append(_pair(a, b, comparison.compared(b.record, a.record, own, borrowed=greatest.get(a.place))))
    return _adjust(raw)


def _pair(a: Cell, b: Cell, compared: comparison.Comparison) -> Pair:
    ratio = compared.ratio
    fast, slow = (a, b) if ratio.ratio >= 1 else (b, a)
    return Pair(
        place=a.place, problem=a.record.problem, group=a.record.group, fast=fast.record.backend,
        slow=slow.record.backend, speedup=ratio if ratio.ratio >= 1 else ratio.inverse(),
        margin=compared.margin, noise=compared.noise,
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


def repeats(collection: Collection, all_pairs: Iterable[Pair]) -> list[Repeat]:
    """The pairs that several runs hold, superseded ones included: one median ratio a run."""
    samples: dict[tuple[Place, str, str], dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(dict))
    for c in collection.cells:
        if c.record.timing is not None:
            runs = samples[(c.place, c.record.problem.key, c.record.run)]
            runs[c.record.group][c.record.backend] = c.record.timing.samples_ms
    by_problem: dict[tuple[Place, str], list[dict[str, dict[str, list[float]]]]] = defaultdict(list)
    for (place, problem, _), groups in samples.items():
        by_problem[(place, problem)].append(groups)
    out = []
    for p in all_pairs:
        ratios = [
            r
            for groups in by_problem[(p.place, p.problem.key)]
            if (r := _run_ratio(groups, p.fast, p.slow)) is not None
        ]
        if len(ratios) > 1:
            out.append(Repeat(p.place, p.problem, p.fast, p.slow, tuple(ratios)))
    return out


def _run_ratio(groups: dict[str, dict[str, list[float]]], fast: str, slow: str) -> float | None:
    """Median paired ratio in the last group of one run that holds both."""
    both = [g for g in groups.values() if fast in g and slow in g]
    if not both:
        return None
    logs = [math.log(s / f) for s, f in zip(both[-1][slow], both[-1][fast], strict=False)]
    return math.exp(median(logs))


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
        ranked = _rank([c for c in ok if c.record.group == main], paired[(place, key)])
        apart = tuple(c for c in ok if c.record.group != main)
        out.append(Contest(place, mine[0].record.problem, ranked, apart, failed, paired[(place, key)]))
    return sorted(out, key=lambda c: problem_order(c.problem))


def _rank(cells: Sequence[Cell], pairs: dict[tuple[str, str], Pair]) -> tuple[Cell, ...]:
    """Fastest first, by the paired ratio to the backend of the lowest median: a drift between blocks moves medians."""
    reference = min(cells, key=median_ms, default=None)
    if reference is None:
        return ()
    name = reference.record.backend

    def relative_time(cell: Cell) -> float:
        pair = pairs.get((name, cell.record.backend)) or pairs.get((cell.record.backend, name))
        return pair.seen_from(name).ratio if pair else median_ms(cell) / median_ms(reference)

    return tuple(sorted(cells, key=relative_time))


def _main_group(ok: Sequence[Cell]) -> str | None:
    members: dict[str, list[Cell]] = defaultdict(list)
    for c in ok:
        members[c.record.group].append(c)
    return max(members, key=lambda g: (len(members[g]), max(c.record.provenance.utc for c in members[g])), default=None)


def median_ms(cell: Cell) -> float:
    assert cell.record.timing is not None
    return cell.record.timing.median_ms


def problem_order(p: Problem) -> tuple[object, ...]:
    return (*setting(p).order, p.window_style, p.atoms, p.window, p.k_cap or 10**12, p.n_atom, p.workload)
