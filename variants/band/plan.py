"""The band plan: neighbour lists that are contiguous runs of atoms, found, checked and remembered.

When residues are numbered in order, the neighbours of atom l are one run of atoms. The plan holds that run for every
row, so that a backend can slice keys instead of gathering them. A plan is made once per (neighbor_idx, valid_mask)
pair and reused by every block and step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pallatom.architecture._remember import remembered
from pallatom.architecture._validate import refuse_out_of_range

from .._backend import UnsupportedError

_CHECK_ELEMENTS = 1 << 20  # slots checked at a time, which bounds the memory that checking takes


class NotABand(UnsupportedError):
    """Some row's live neighbours are not at ``base + slot``; ``row`` is the first such row."""

    def __init__(self, row: int, reason: str) -> None:
        self.row = row
        super().__init__([reason], who="a band backend")


@dataclass(frozen=True, eq=False)
class BandPlan:
    """Row l's slot k holds atom ``base[l] + k``; its live atoms lie in ``[start[l], stop[l])``.

    ``base``, ``start``, ``stop`` are int64 ``[N]`` on the index's device; a dead row has start = stop = 0.
    ``has_holes``: some slot between the first and the last live slot of its row is dead in some batch item, so the mask
    is needed beside the hull. ``monotone``: neither starts nor stops of live rows ever decrease. ``n_live`` counts live
    slots of the whole batch (one item's, for a mask ``[N, K]``).
    """

    base: Tensor
    start: Tensor
    stop: Tensor
    n_neighbor: int
    has_holes: bool
    monotone: bool
    n_live: int

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def path(self) -> str:
        """What a band backend answers to :func:`variants.path`: whether it reads the mask too."""
        return "band with holes" if self.has_holes else "band"


def band_path(block: torch.nn.Module, Q: Tensor, K: Tensor, V: Tensor, p: Tensor, idx: Tensor, mask: Tensor) -> str:
    """``Backend.path`` of a backend whose only choice is whether to read the mask."""
    return band_plan(idx, mask).path


def band_plan(neighbor_idx: Tensor, valid_mask: Tensor) -> BandPlan:
    """The plan of ``neighbor_idx [N, K]`` under ``valid_mask [N, K]`` or ``[B, N, K]``.

    Raises :class:`NotABand` with the first offending row, ``ValueError`` for a live slot that names no atom. The same
    index with an unchanged mask gives the plan made before; it goes when either tensor goes. When a change is seen:
    :mod:`pallatom.architecture._remember`.
    """
    return _band_plan(neighbor_idx, valid_mask)


@remembered
def _band_plan(idx: Tensor, mask: Tensor) -> BandPlan:
    n, k = idx.shape
    if mask.shape[-2:] != idx.shape or mask.dim() not in (2, 3):
        raise ValueError(
            f"valid_mask: expected [N, K] or [B, N, K] with N, K = {n}, {k} as in neighbor_idx; got {tuple(mask.shape)}"
        )
    base, first, stop = (torch.zeros(n, dtype=torch.int64, device=idx.device) for _ in range(3))
    bad = torch.zeros(n, dtype=torch.bool, device=idx.device)
    holes = torch.zeros((), dtype=torch.bool, device=idx.device)
    live_count = torch.zeros((), dtype=torch.int64, device=idx.device)
    step = max(1, _CHECK_ELEMENTS // max(k, 1))
    for lo in range(0, n if k else 0, step):
        rows = slice(lo, min(lo + step, n))
        base[rows], first[rows], stop[rows], bad[rows], count, hole = _scan(idx[rows], mask[..., rows, :])
        holes |= hole
        live_count += count
    if bool(bad.any()):
        refuse_out_of_range(idx, mask)
        raise _not_a_band(idx, mask, int(bad.nonzero()[0]), n)
    alive = stop > first
    start, stop = torch.where(alive, base + first, 0), torch.where(alive, base + stop, 0)
    if bool((alive & ((start < 0) | (stop > n))).any()):
        refuse_out_of_range(idx, mask)
    s, e = start[alive], stop[alive]
    monotone = bool(((s[1:] >= s[:-1]) & (e[1:] >= e[:-1])).all())
    return BandPlan(base, start, stop, k, bool(holes), monotone, int(live_count))


def _scan(idx: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(base, first live slot, last live slot + 1, offends, live count, any hole) of some rows."""
    union = mask.any(0) if mask.dim() == 3 else mask
    slots = torch.arange(idx.shape[1], device=idx.device)
    alive = union.any(1)
    first = union.to(torch.uint8).argmax(1)
    stop = torch.where(alive, idx.shape[1] - union.flip(1).to(torch.uint8).argmax(1), first)
    base = torch.where(alive, idx.gather(1, first[:, None])[:, 0] - first, 0)
    bad = (union & (idx - slots != base[:, None])).any(1)
    width = torch.where(alive, stop - first, 0)
    holes = (mask.sum(-1) != width).any()
    return base, first, torch.where(alive, stop, first), bad, mask.sum(), holes


def _not_a_band(idx: Tensor, mask: Tensor, row: int, n: int) -> NotABand:
    """The error for ``row``, whose live slots are no contiguous run: names the first two slots that disagree."""
    live = mask[..., row, :].reshape(-1, idx.shape[1]).any(0)
    slots = live.nonzero()[:, 0]
    atoms = idx[row][slots]
    at = int((atoms - slots != atoms[0] - slots[0]).nonzero()[0])
    return NotABand(
        row,
        f"index: a band (slot k of row l holds atom base[l] + k) is required; row {row} of {n} has atom "
        f"{int(atoms[0])} in slot {int(slots[0])} but atom {int(atoms[at])} in slot {int(slots[at])}",
    )
