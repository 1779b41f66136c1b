"""The answer in plain words: which backend to use where, by how much, how sure, and what will fit.

Sentences carry the marks of :mod:`reports.markup` only, so that the page and its Markdown twin share them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from reports import words
from reports.find.analyse import Contest
from reports.markup import bold, code
from reports.read.load import Place, Setting
from reports.read.measured import has_two_times, time_words, wall_ms

from ..find.regions import Region, regions


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
