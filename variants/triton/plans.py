"""What the kernels need of an index beside the index: integer plans, made once and read on any stream.

Rows of a band for the forward, ranges of queries per block of keys for the backward (:func:`queries_of`), and for any
other table the table inverted (:func:`holders_of`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pallatom.architecture._remember import remembered

from .._backend import UnsupportedError
from ..band.plan import BandPlan


def refuse_in_capture(device: torch.device, what: str) -> None:
    """Raise :class:`UnsupportedError` while a CUDA graph is captured: making ``what`` reads values, or would be part of
    the graph and hold nothing before the first replay."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        need = "one call with the same index, mask and sizes (and its backward) is required before a graph is captured"
        raise UnsupportedError([f"graph capture: {need}, {what} was not there yet"], who="TritonFusedBlock")


@dataclass(frozen=True)
class Shared:
    """Tensors that are made once and read on any stream: complete before they are handed out, and their memory is not
    used again before every stream that read them is past it."""

    tensors: tuple[Tensor, ...]
    streams: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, *tensors: Tensor) -> Shared:
        if not tensors[0].is_cuda:
            return cls(tensors)
        stream = torch.cuda.current_stream(tensors[0].device)
        stream.synchronize()
        return cls(tensors, {stream.cuda_stream})

    def here(self) -> tuple[Tensor, ...]:
        """The tensors, for the current stream."""
        if self.tensors[0].is_cuda:
            stream = torch.cuda.current_stream(self.tensors[0].device)
            if stream.cuda_stream not in self.streams:
                for tensor in self.tensors:
                    tensor.record_stream(stream)
                self.streams.add(stream.cuda_stream)
        return self.tensors


@dataclass(frozen=True)
class Rows:
    """A band plan's base, start and stop as int32, and per key-block size the query ranges asked for so far."""

    bounds: Shared
    queries: dict[int, Shared] = field(default_factory=dict)


@remembered
def rows_of(plan: BandPlan) -> Rows:
    refuse_in_capture(plan.base.device, "the plan of its rows")
    return Rows(Shared.of(plan.base.int(), plan.start.int(), plan.stop.int()))


def queries_of(plan: BandPlan, cols: int) -> Tensor:
    """Int32 ``[4, blocks]``, per block of ``cols`` keys: the first and last + 1 query that sees some of its keys, then
    the first and last + 1 of those that see all of them (an empty range where rows are dead or not in order)."""
    made = rows_of(plan).queries
    if cols not in made:
        refuse_in_capture(plan.base.device, "the plan of its keys")
        made[cols] = Shared.of(_queries(plan, cols))
    return made[cols].here()[0]


def _queries(plan: BandPlan, cols: int) -> Tensor:
    n = plan.start.numel()
    first_key = torch.arange(0, n, cols, device=plan.start.device)
    dead = plan.stop <= plan.start
    reach = plan.stop.cummax(0).values  # non-decreasing, also past dead rows
    begin = torch.where(dead, n, plan.start).flip(0).cummin(0).values.flip(0)
    first = torch.searchsorted(reach, first_key, right=True)
    last = torch.maximum(torch.searchsorted(begin, first_key + cols), first)
    if plan.monotone and not bool(dead.any()):
        inner_first = torch.searchsorted(reach, first_key + cols)
        inner_last = torch.searchsorted(begin, first_key, right=True)
    else:
        inner_first, inner_last = last, last
    inner_first = torch.clamp(inner_first, first, last)
    return torch.stack([first, last, inner_first, torch.clamp(inner_last, inner_first, last)]).int()


def in_order(plan: BandPlan) -> bool:
    """Whether the band is ordered well enough for the backward: visiting the query range of each block of 16 keys costs
    at most 4 times the live pairs. Always so where starts and stops never decrease."""
    if plan.monotone:
        return True
    cols = 16
    first, last, *_ = queries_of(plan, cols)
    visited = int((last - first).sum()) * cols
    return visited <= 4 * (int((plan.stop - plan.start).sum()) + cols * plan.start.numel())


@dataclass(frozen=True)
class Holders:
    """A neighbour table inverted: ``slots`` as ``l K + k``, sorted by the atom that they hold; atom m's are those from
    ``first[m]`` to ``first[m + 1]``. Slots that are dead in every batch item are left out."""

    shared: Shared

    @property
    def slots(self) -> Tensor:
        return self.shared.here()[0]

    @property
    def first(self) -> Tensor:
        return self.shared.here()[1]


@remembered
def holders_of(neighbor_idx: Tensor, valid_mask: Tensor) -> Holders:
    """The table inverted: 4 bytes per live slot (8 from 2**31 slots on), and about 40 while it is made."""
    n = neighbor_idx.shape[0]
    live = valid_mask if valid_mask.dim() == 2 else valid_mask.any(0)
    slots = live.flatten().nonzero()[:, 0]
    atoms, order = neighbor_idx.flatten()[slots].sort(stable=True)
    first = torch.searchsorted(atoms, torch.arange(n + 1, device=atoms.device))
    narrow = torch.int32 if live.numel() < 2**31 else torch.int64
    return Holders(Shared.of(slots[order].to(narrow), first))
