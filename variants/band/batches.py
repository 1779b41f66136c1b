"""Many query tiles at once: the geometry of :mod:`~.tiles` for devices where a launch costs more than a copy.

A batch is ``count`` tiles of T rows each. Every tile has the same span S, from its own first atom on, so that one
batched GEMM does all of them: scores are ``[H·count, T, S]``. Slots move to columns by an index, not by strided copies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .plan import BandPlan


@dataclass(frozen=True)
class Batch:
    """Rows ``[first, first + count · size)``; ``lo [count]`` is the first atom of each tile's span, on the device.

    Shapes as in ``Tile``, with the heads' axis standing for (head, tile).
    """

    first: int
    count: int
    size: int
    span: int
    n_neighbor: int
    lo: Tensor
    base: Tensor  # of the batch's rows, as are start and stop
    start: Tensor
    stop: Tensor
    n_atom: int
    has_dead: bool

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.n_rows)

    @property
    def n_rows(self) -> int:
        return self.count * self.size

    def score_shape(self, heads: int) -> tuple[int, int, int]:
        return heads * self.count, self.size, self.span

    def queries(self, atoms: Tensor) -> Tensor:
        return atoms[:, self.rows].reshape(-1, self.size, atoms.shape[2])

    def window(self, atoms: Tensor) -> Tensor:
        return atoms.index_select(1, self._atoms()).view(-1, self.span, atoms.shape[2])

    def put_queries(self, atoms: Tensor, values: Tensor) -> None:
        atoms[:, self.rows] = values.view(atoms.shape[0], self.n_rows, -1)

    def add_to_window(self, atoms: Tensor, a: Tensor, b: Tensor) -> None:
        product = torch.bmm(a.transpose(1, 2), b)
        atoms.index_add_(1, self._atoms(), product.view(atoms.shape[0], -1, atoms.shape[2]))

    def to_span(self, slots: Tensor, span: Tensor, fill: float) -> None:
        atom = self._column_atoms().repeat_interleave(self.size, 0)  # [rows, S]
        outside = (atom < self.start[:, None]) | (atom >= self.stop[:, None])
        slot = (atom - self.base[:, None]).masked_fill_(outside, 0)
        slot += torch.arange(self.n_rows, device=atom.device)[:, None] * self.n_neighbor
        moved = span.view(slots.shape[0], -1)
        torch.index_select(slots, 1, slot.view(-1), out=moved)
        moved.masked_fill_(outside.view(-1), fill)

    def to_slots(self, span: Tensor, slots: Tensor) -> None:
        atom = self.base[:, None] + torch.arange(self.n_neighbor, device=self.base.device)  # [rows, K]
        outside = (atom < self.start[:, None]) | (atom >= self.stop[:, None])
        column = (atom - self.lo.repeat_interleave(self.size)[:, None]).masked_fill_(outside, 0)
        column += torch.arange(self.n_rows, device=atom.device)[:, None] * self.span
        torch.index_select(span.view(slots.shape[0], -1), 1, column.view(-1), out=slots)
        slots.masked_fill_(outside.view(-1), 0)

    def _column_atoms(self) -> Tensor:
        return self.lo[:, None] + torch.arange(self.span, device=self.lo.device)

    def _atoms(self) -> Tensor:
        """The atom of every column; columns beyond the last atom, which no row sees, read the last."""
        return self._column_atoms().view(-1).clamp(max=self.n_atom - 1)


def batches(plan: BandPlan, size: int, max_pairs: int) -> tuple[Batch, ...]:
    """All rows in batches of tiles of ``size`` rows; the rows that fill no whole tile make a last, smaller one.

    A batch holds as many tiles as have at most ``max_pairs`` scores and slots, and at least one.
    """
    n = plan.base.numel()
    alive = plan.stop > plan.start
    whole = n // size
    made = []
    for first, count, rows in ((0, whole, size), (whole * size, 1, n - whole * size)):
        if not count * rows:
            continue
        part = slice(first, first + count * rows)
        lo = torch.where(alive, plan.start, n)[part].view(count, rows).amin(1)
        hi = plan.stop[part].view(count, rows).amax(1)
        lo = torch.minimum(lo, hi)
        span = int((hi - lo).max())
        per_batch = max(1, max_pairs // (rows * max(span, plan.n_neighbor, 1)))
        dead = (~alive[part]).view(count, rows).any(1).tolist()
        for at in range(0, count if span else 0, per_batch):
            until = min(at + per_batch, count)
            inside = slice(first + at * rows, first + until * rows)
            base, start, stop = (x[inside].clone() for x in (plan.base, plan.start, plan.stop))
            made.append(
                Batch(
                    first=inside.start,
                    count=until - at,
                    size=rows,
                    span=span,
                    n_neighbor=plan.n_neighbor,
                    lo=lo[at:until].clone(),
                    base=base,
                    start=start,
                    stop=stop,
                    n_atom=n,
                    has_dead=any(dead[at:until]),
                )
            )
    return tuple(made)
