"""Query tiles over a band: which rows go together, which keys they span, and where their slots land in that span.

A tile is a range of query rows and the span ``[lo, hi)`` of atoms that its live neighbours lie in. Slot k of row l
lands in column ``base[l] + k − lo`` of the tile's score matrix. Rows with the same base and hull form a group (a
residue); equal groups at equal steps form a run, so that one strided copy moves all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .plan import BandPlan


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
    """Rows ``[first, stop)`` against atoms ``[lo, hi)``; ``covered`` counts the slots inside the rows' hulls.

    Slot coordinates are ``[H, T·K]``, span coordinates ``[H, T, S]``, atoms ``[H, N, D]``.
    """

    first: int
    stop: int
    lo: int
    hi: int
    n_neighbor: int
    runs: tuple[Run, ...]
    covered: int
    has_dead: bool

    @property
    def rows(self) -> slice:
        return slice(self.first, self.stop)

    @property
    def n_rows(self) -> int:
        return self.stop - self.first

    @property
    def span(self) -> int:
        return self.hi - self.lo

    def score_shape(self, heads: int) -> tuple[int, int, int]:
        return heads, self.n_rows, self.span

    def queries(self, atoms: Tensor) -> Tensor:
        return atoms[:, self.first : self.stop]

    def window(self, atoms: Tensor) -> Tensor:
        return atoms[:, self.lo : self.hi]

    def put_queries(self, atoms: Tensor, values: Tensor) -> None:
        """Write ``values [H, T, D]`` to the tile's rows."""
        atoms[:, self.first : self.stop] = values

    def add_to_window(self, atoms: Tensor, a: Tensor, b: Tensor) -> None:
        """Add ``aᵀ b`` to the tile's span: a ``[H, T, S]``, b ``[H, T, D]``."""
        atoms[:, self.lo : self.hi].baddbmm_(a.transpose(1, 2), b)

    def to_span(self, slots: Tensor, span: Tensor, fill: float) -> None:
        """Copy every slot inside its row's hull to its atom's column; ``fill`` elsewhere."""
        if self.covered != self.n_rows * self.span:
            span.fill_(fill)
        for run in self.runs:
            self._columns(span, run).copy_(self._slots(slots, run))

    def to_slots(self, span: Tensor, slots: Tensor) -> None:
        """The inverse of :meth:`to_span`; 0 in slots outside the hull."""
        if self.covered != self.n_rows * self.n_neighbor:
            slots.zero_()
        for run in self.runs:
            self._slots(slots, run).copy_(self._columns(span, run))

    def _slots(self, x: Tensor, run: Run) -> Tensor:
        """The run's live part of ``x [H, T·K]`` as a view ``[H, count, size, width]``."""
        width = self.n_neighbor
        size = (x.shape[0], run.count, run.size, run.width)
        stride = (x.stride(0), run.size * width, width, 1)
        return x.as_strided(size, stride, x.storage_offset() + run.row * width + run.slot)

    def _columns(self, x: Tensor, run: Run) -> Tensor:
        """The same part of ``x [H, T, S]`` as a view ``[H, count, size, width]``."""
        size = (x.shape[0], run.count, run.size, run.width)
        stride = (x.stride(0), run.size * self.span + run.step, self.span, 1)
        return x.as_strided(size, stride, x.storage_offset() + run.row * self.span + run.column)


def tiles(plan: BandPlan, rows: int) -> tuple[Tile, ...]:
    """Tiles of at most ``rows`` rows, cut between groups where possible, and early where the span would jump; dead ones
    are left out.

    Greedy: a group joins the tile unless that makes too many rows or a span well beyond one row's neighbours.
    """
    made: list[Tile] = []
    batch: list[_Group] = []
    lo = hi = 0
    for group in _groups(plan, rows):
        wide_lo, wide_hi = (min(lo, group.start), max(hi, group.end)) if lo < hi else (group.start, group.end)
        if group.start == group.end:
            wide_lo, wide_hi = lo, hi
        if batch and (group.stop - batch[0].first > rows or wide_hi - wide_lo > plan.n_neighbor + 2 * rows):
            made.append(_tile(batch, lo, hi, plan.n_neighbor))
            batch, wide_lo, wide_hi = [], group.start, group.end
        batch.append(group)
        lo, hi = wide_lo, wide_hi
    if batch:
        made.append(_tile(batch, lo, hi, plan.n_neighbor))
    return tuple(tile for tile in made if tile.span)


def _groups(plan: BandPlan, rows: int) -> Iterator[_Group]:
    """Maximal stretches of rows with equal base and hull, split where longer than a tile."""
    key = torch.stack([plan.base, plan.start, plan.stop]).cpu()
    edges = ((key[:, 1:] != key[:, :-1]).any(0).nonzero()[:, 0] + 1).tolist()
    for first, stop in itertools.pairwise([0, *edges, key.shape[1]] if key.shape[1] else []):
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
    return Tile(first, stop, lo, hi, n_neighbor, tuple(runs), covered, has_dead)


def _join(run: Run, one: Run) -> Run | None:
    """``run`` with the single group ``one`` appended, if that continues it; else None."""
    step = one.column - (run.column + (run.count - 1) * run.step)
    same = (run.size, run.slot, run.width) == (one.size, one.slot, one.width)
    if not same or one.row != run.row + run.count * run.size or (run.count > 1 and step != run.step):
        return None
    return run._replace(count=run.count + 1, step=step)
