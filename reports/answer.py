"""The answer in plain words: which backend to use where, by how much, how sure, and what will fit.

Sentences carry the marks of :mod:`reports.marks` only, so that the page and its Markdown twin share them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from reports import words
from reports.analyse import BASELINE, Contest, Pair
from reports.load import Family, Place, Setting, setting
from reports.marks import bold, code
from reports.measured import has_two_times, time_words, wall_ms
from reports.rivals import Rival, largest_shared, standing, strongest


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
        return max(self.contests, key=standing)

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
        parts = [_span("N", [p.n_atom for p in problems]), _span("W", [p.window for p in problems])]
        parts.append(_span("K", [p.n_neighbor for p in problems]))
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


def against_baseline(region: Region) -> tuple[Contest, Pair] | None:
    """The largest problem of the region at which the winner and the baseline were paired."""
    return largest_shared(region.contests, region.use, BASELINE)


def headline(place: Place, contests: Sequence[Contest], labels: dict[Setting, str]) -> list[str]:
    """A few sentences for one place: what to use, how much it gives, where something else wins, how sure this is."""
    mine = [c for c in contests if c.place == place and c.ranked]
    if not mine:
        return [f"{bold('No backend gave a speed here')}: every one of {_failures(contests, place)} cells failed."]
    contested = [c for c in mine if len(c.ranked) > 1]
    if not contested:
        only = sorted({c.winner.record.backend for c in mine})
        names = ", ".join(map(code, only))
        return [f"{bold('Nothing to compare')}: no two backends were measured together here, only {names}."]
    wins = Counter(c.winner.record.backend for c in contested)
    best, won = wins.most_common(1)[0]
    shown_by = sum(1 for c in contested if c.winner.record.backend == best and not c.tied)
    all_regions = regions(contested)
    main = max((r for r in all_regions if r.use == best), key=lambda r: r.shown.problem.live_pairs)
    by = " by device time" if has_two_times(main.shown.winner.record) else ""
    had = "was the fastest" if shown_by == won else "came out ahead"
    out = [_choice(best, main) + f" It {had} in {won} of {len(contested)} problems{by}{_lead(won, shown_by)}."]
    out.append(" ".join([_gain(main, labels), *_by_wall(contested)]))
    others = [r for r in all_regions if r.use != best]
    if others:
        listed = [f"{code(r.use)}{_or(r)} for {labels[r.setting]}, {r.sizes}" for r in others[:4]]
        more = f"; {len(others) - 4} more in the table" if len(others) > 4 else ""
        out.append(bold("Elsewhere:") + " " + "; ".join(listed) + more + ".")
    return out


def _failures(contests: Sequence[Contest], place: Place) -> int:
    return sum(len(c.failed) for c in contests if c.place == place)


def _choice(best: str, region: Region) -> str:
    if not region.alternatives:
        return bold(f"Use {code(best)}.")
    return bold(f"Use {code(best)}") + f", or {' or '.join(map(code, region.alternatives))}, not told apart from it."


def _lead(won: int, shown: int) -> str:
    """In how many of the problems that it won the winner's lead over every other backend stands."""
    what = "every other backend that ran there by more than the noise and more than what matters"
    if shown == won:
        return f", each time ahead of {what}" if won > 1 else f", ahead of {what}"
    return f"; in {shown} of them it was ahead of {what}" if shown else "; in none of them its lead is beyond the noise"


def _or(region: Region) -> str:
    return "".join(f" or {code(b)}" for b in region.alternatives)


def _gain(region: Region, labels: dict[Setting, str]) -> str:
    """The time at the region's largest problem, then the strongest rival where both ran."""
    shown, cell = region.shown, region.shown.winner
    said = f"At {labels[region.setting]}, {words.sizes(shown.problem)}, it takes {time_words(cell.record)}"
    limit = cell.record.limit
    if limit is not None and limit.percent is not None:
        said += f", {words.number(limit.percent, 2)}% of the machine's limit for the operation"
    return " ".join([said + ".", *_against(region)])


def _against(region: Region) -> list[str]:
    """How much longer the strongest rival takes, where both ran."""
    rival = region.rival
    if rival is None:
        return []
    by = " on the device" if has_two_times(region.shown.winner.record) else ""
    said = f"Its strongest rival, {code(rival.name)}, takes {words.ratio(rival.ratio)} as long{by}"
    if rival.wall is not None:
        said += f" and {words.ratio(rival.wall)} as long by wall time"
    if rival.contest is not region.shown:
        said += f" at {words.sizes(rival.contest.problem)}, the largest that both ran"
    return [f"{said}{'' if rival.verdict == 'faster' else f' ({rival.verdict})'}."]


def _by_wall(contested: Sequence[Contest]) -> list[str]:
    """Where an eager caller waits less with another backend than with the one that is first by device time."""
    held = [c for c in contested if has_two_times(c.winner.record)]
    quickest = {c.problem.key: min(walls, key=walls.__getitem__) for c in held if len(walls := _walls(c)) > 1}
    if not quickest:
        return []
    others = Counter(b for c in held if (b := quickest.get(c.problem.key)) not in (None, c.winner.record.backend))
    if not others:
        return [f"By wall time the same backend is ahead in all {len(quickest)} problems where it was recorded."]
    listed = ", ".join(f"{code(b)} in {n}" for b, n in others.most_common(3))
    return [f"By wall time another backend is ahead in {others.total()} of {len(quickest)} problems: {listed}."]


def _walls(contest: Contest) -> dict[str, float]:
    return {c.record.backend: w for c in contest.ranked if (w := wall_ms(c.record)) is not None}
