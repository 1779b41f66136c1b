"""Regions: problems side by side on which one backend is to be used, and what stands against it there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from benchmarks.harness.schema.axes import of_role
from reports.find.analyse import Contest
from reports.find.rivals import Rival, size_rank, strongest
from reports.read.load import Family, Setting, setting


@dataclass(frozen=True)
class Region:
    """Problems of one setting and family with the same fastest backend, and the one that stands for them."""

    setting: Setting
    family: Family
    contests: tuple[Contest, ...]

    @property
    def use(self) -> str:
        return self.contests[0].winner.record.backend

    @property
    def shown(self) -> Contest:
        """The largest N, at the usual window and without a cap where there is one, else with most pairs."""
        return max(self.contests, key=size_rank)

    @cached_property
    def rival(self) -> Rival | None:
        """The strongest rival over the problems of the region."""
        return strongest(self.contests, self.use)

    @property
    def resolved(self) -> int:
        return sum(1 for c in self.contests if len(c.ranked) > 1 and not c.tied)

    @property
    def alternatives(self) -> list[str]:
        """Backends that may be as fast as the winner at every problem of the region."""
        first = set(self.contests[0].close)
        return sorted(first.intersection(*(c.close for c in self.contests)))

    @property
    def sizes(self) -> str:
        problems = [c.problem for c in self.contests]
        names = sorted({p.workload for p in problems if p.workload != "synthetic"}, key=lambda w: _n_of(w, problems))
        parts = [_span(a.symbol, [a.value(p) for p in problems]) for a in of_role("size")]
        named = f" ({names[0]})" if len(names) == 1 else f" ({names[0]} … {names[-1]})" if names else ""
        return parts[0] + named + ", " + ", ".join(parts[1:])


def _n_of(workload: str, problems: Iterable) -> int:
    return next(p.n_atom for p in problems if p.workload == workload)


def _span(letter: str, values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{letter} {low:,}" if low == high else f"{letter} {low:,} … {high:,}"


def regions(contests: Iterable[Contest]) -> list[Region]:
    """Settings split where the fastest backend changes along N; undivided where it never does."""
    by_family: dict[tuple[Setting, Family], list[Contest]] = defaultdict(list)
    for c in contests:
        if c.ranked:
            by_family[(setting(c.problem), c.winner.family)].append(c)
    out = []
    for (where, family), mine in by_family.items():
        out.extend(Region(where, family, tuple(run)) for run in _split(mine))
    return sorted(out, key=lambda r: (r.setting.order, r.family.kind != "synthetic", r.family.atoms, _first_size(r)))


def _first_size(region: Region) -> tuple[int, int]:
    return -len(region.contests), min(c.problem.n_atom for c in region.contests)


def _split(contests: Sequence[Contest]) -> list[list[Contest]]:
    """Runs along N with one winner; lines (a window and a cap) that never change theirs go together."""
    lines: dict[tuple[int, int | None], list[Contest]] = defaultdict(list)
    for c in contests:
        lines[(c.problem.window, c.problem.k_cap)].append(c)
    steady: dict[str, list[Contest]] = defaultdict(list)
    out: list[list[Contest]] = []
    for line in lines.values():
        runs = _runs(sorted(line, key=lambda c: c.problem.n_atom), lambda c: c.winner.record.backend)
        if len(runs) == 1:
            steady[line[0].winner.record.backend].extend(line)
        else:
            out.extend(runs)
    return [*out, *steady.values()]


def _runs(items: Sequence[Contest], key: Callable[[Contest], str]) -> list[list[Contest]]:
    out: list[list[Contest]] = []
    for item in items:
        if out and key(out[-1][-1]) == key(item):
            out[-1].append(item)
        else:
            out.append([item])
    return out
