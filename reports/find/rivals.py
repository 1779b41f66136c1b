"""The strongest rival of a backend, like with like: compared only where both ran, and named with where that was.

A rival that was not run at the largest size would otherwise leave its place there to a weaker one, and the winner's
lead would grow by the other's absence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from benchmarks.harness.ruler import statistics
from benchmarks.harness.ruler.statistics import Ratio
from benchmarks.harness.schema.axes import usual
from reports.find.analyse import Contest, Pair


@dataclass(frozen=True)
class Rival:
    """The backend that comes nearest to ``winner``, and the pair at the largest problem that both ran."""

    winner: str
    name: str
    contest: Contest
    pair: Pair
    shared: int  # problems at which both were measured together

    @property
    def ratio(self) -> Ratio:
        """How many times as fast the winner is."""
        return self.pair.seen_from(self.winner)

    @property
    def verdict(self) -> str:
        return self.pair.verdict_for(self.winner)

    @property
    def wall(self) -> Ratio | None:
        """The same by wall time, where the records hold it: paired by block too."""
        cells = {c.record.backend: c.record.timing for c in self.contest.ranked}
        mine, other = cells.get(self.winner), cells.get(self.name)
        if mine is None or other is None or not mine.wall_samples_ms or not other.wall_samples_ms:
            return None
        return statistics.paired_ratio(other.wall_samples_ms, mine.wall_samples_ms)


def size_rank(contest: Contest) -> tuple[int, bool, int]:
    """Orders problems by size: the largest N, then the usual window without a cap, then most pairs."""
    p = contest.problem
    return p.n_atom, p.window == usual("window") and p.k_cap is None, p.live_pairs


def largest_shared(contests: Sequence[Contest], winner: str, other: str) -> tuple[Contest, Pair] | None:
    """The largest problem at which the two were paired."""
    shared = [(c, p) for c in contests if (p := c.pair(winner, other)) is not None]
    return max(shared, key=lambda shared: size_rank(shared[0]), default=None)


def strongest(contests: Sequence[Contest], winner: str) -> Rival | None:
    """The rival that comes nearest to ``winner``.

    Of two rivals the nearer one is the one with the smaller mean log-ratio over the problems that both share with the
    winner (each over its own, where they share none); the strongest is nearer than most others.
    """
    leads: dict[str, dict[str, float]] = {}
    for c in contests:
        for pair in c.pairs.values():
            if winner in (pair.fast, pair.slow):
                other = pair.slow if winner == pair.fast else pair.fast
                leads.setdefault(other, {})[c.problem.key] = math.log(pair.seen_from(winner).ratio)
    if not leads:
        return None
    beaten = dict.fromkeys(leads, 0)
    for a, b in combinations(sorted(leads), 2):
        beaten[_farther(a, b, leads)] += 1
    name = min(leads, key=lambda b: (beaten[b], fmean(leads[b].values()), b))
    largest = largest_shared(contests, winner, name)
    assert largest is not None
    return Rival(winner, name, *largest, shared=len(leads[name]))


def missing_rival(contests: Sequence[Contest], rival: Rival, overall: Rival | None) -> str | None:
    """Where the strongest rival of the whole place is not among those that were compared here, and why not."""
    if overall is None or overall.name == rival.name:
        return None
    if any(c.pair(rival.winner, overall.name) for c in contests):
        return None
    apart = any(overall.name == cell.record.backend for c in contests for cell in c.apart)
    return f"{overall.name} was measured apart" if apart else f"{overall.name} did not run here"


def _farther(a: str, b: str, leads: dict[str, dict[str, float]]) -> str:
    shared = leads[a].keys() & leads[b].keys()
    mean = {x: fmean(leads[x][k] for k in (shared or leads[x])) for x in (a, b)}
    return a if mean[a] > mean[b] else b
