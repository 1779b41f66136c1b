"""Query tiles over a band: which rows go together, which keys they span, and where their slots land in that span.

A tile is a range of query rows and the span ``[lo, hi)`` of atoms that its live neighbours lie in. Slot k of row l
lands in column ``base[l] + k − lo`` of the tile's score matrix. Rows with the same base and hull form a group (a
residue); equal groups at equal steps form a run, so that one strided copy moves all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ._band import BandPlan


class Run(NamedTuple):
    """``count`` groups of ``size`` rows from row ``row`` of the tile: live slots ``[slot, slot + width)`` of group i
    land in columns ``column + i * step`` and on."""

    row: int
    count: int
    size: int
    slot: int
    width: int
    column: int
    step: int


class _Group(NamedTuple):
    """Rows ``[first, stop)`` that share base and hull; start = end for dead rows."""

    first: int
    stop: int
    base: int
    start: int
    end: int


@dataclass(frozen=True)
class Tile:
    """Rows ``[first, stop)`` against atoms ``[lo, hi)``; ``covered`` counts the slots inside the rows' hulls."""

    first: int
    stop: int
    lo: int
    hi: int
    runs: tuple[Run, ...]
    covered: int
    has_dead: bool

    @property
    def rows(self) -> slice:
        return slice(self.first, self.stop)

    @property
    def keys(self) -> slice:
        return slice(self.lo, self.hi)

    @property
    def n_rows(self) -> int:
        return self.stop - self.first

    @property
    def span(self) -> int:
        return self.hi - self.lo

    def slots(self, x: Tensor, n_neighbor: int, run: Run) -> Tensor:
        """The run's live part of ``x [..., rows * K]`` (slot coordinates) as a view ``[..., count, size, width]``."""
        size = (*x.shape[:-1], run.count, run.size, run.width)
        stride = (*x.stride()[:-1], run.size * n_neighbor, n_neighbor, 1)
        return x.as_strided(size, stride, x.storage_offset() + run.row * n_neighbor + run.slot)

    def columns(self, x: Tensor, run: Run) -> Tensor:
        """The same part of ``x [..., rows, span]`` (span coordinates) as a view ``[..., count, size, width]``."""
        size = (*x.shape[:-2], run.count, run.size, run.width)
        stride = (*x.stride()[:-2], run.size * self.span + run.step, self.span, 1)
        return x.as_strided(size, stride, x.storage_offset() + run.row * self.span + run.column)


@dataclass(frozen=True)
class Schedule:
    """The tiles of a plan, dead rows left out where a whole tile is dead, and the largest sizes among them."""

    tiles: tuple[Tile, ...]
    max_rows: int
    max_span: int
    max_area: int  # rows * span


def schedule(plan: BandPlan, rows: int) -> Schedule:
    """Tiles of at most ``rows`` rows, cut between groups where possible, and early where the span would jump.

    Greedy: a group joins the tile unless that makes too many rows or a span well beyond one row's neighbours.
    """
    tiles: list[Tile] = []
    batch: list[_Group] = []
    lo = hi = 0
    for group in _groups(plan, rows):
        wide_lo, wide_hi = (min(lo, group.start), max(hi, group.end)) if lo < hi else (group.start, group.end)
        if group.start == group.end:
            wide_lo, wide_hi = lo, hi
        if batch and (group.stop - batch[0].first > rows or wide_hi - wide_lo > plan.n_neighbor + 2 * rows):
            tiles.append(_tile(batch, lo, hi, plan.n_neighbor))
            batch, wide_lo, wide_hi = [], group.start, group.end
        batch.append(group)
        lo, hi = wide_lo, wide_hi
    if batch:
        tiles.append(_tile(batch, lo, hi, plan.n_neighbor))
    live = tuple(t for t in tiles if t.span)
    return Schedule(
        live,
        max((t.n_rows for t in live), default=0),
        max((t.span for t in live), default=0),
        max((t.n_rows * t.span for t in live), default=0),
    )


def _groups(plan: BandPlan, rows: int) -> Iterator[_Group]:
    """Maximal stretches of rows with equal base and hull, split where longer than a tile."""
    key = torch.stack([plan.base, plan.start, plan.stop]).cpu()
    edges = ((key[:, 1:] != key[:, :-1]).any(0).nonzero()[:, 0] + 1).tolist()
    n = key.shape[1]
    for first, stop in zip([0, *edges], [*edges, n], strict=True):
        base, start, end = key[:, first].tolist()
        for row in range(first, stop, rows):
            yield _Group(row, min(row + rows, stop), base, start, end)


def _tile(groups: list[_Group], lo: int, hi: int, n_neighbor: int) -> Tile:
    first, stop = groups[0].first, groups[-1].stop
    runs: list[Run] = []
    for g in groups:
        if g.start == g.end:
            continue
        one = Run(g.first - first, 1, g.stop - g.first, g.start - g.base, g.end - g.start, g.start - lo, 0)
        joined = _join(runs[-1], one) if runs else None
        if joined:
            runs[-1] = joined
        else:
            runs.append(one)
    covered = sum(r.count * r.size * r.width for r in runs)
    has_dead = sum(r.count * r.size for r in runs) < stop - first
    return Tile(first, stop, lo, hi, tuple(runs), covered, has_dead)


def _join(run: Run, one: Run) -> Run | None:
    """``run`` with the single group ``one`` appended, if that continues it; else None."""
    step = one.column - (run.column + (run.count - 1) * run.step)
    same = (run.size, run.slot, run.width) == (one.size, one.slot, one.width)
    if not same or one.row != run.row + run.count * run.size or (run.count > 1 and step != run.step):
        return None
    return run._replace(count=run.count + 1, step=step)
