"""The neighbour index: which atoms each atom sees, from the residues that they belong to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from pallatom.architecture import _validate
from pallatom.architecture._remember import remembered
from pallatom.architecture.eager import eager

WINDOW_SIZE = 32
"""Default window, in residues: atoms whose residues are fewer than ``WINDOW_SIZE // 2`` apart see each other."""

_INDEX_CHUNK = 2**18
"""Slots of the index that are built at once: 2 MiB, small beside the index, large beside the cost of a call."""


@eager
def build_sparse_pairs(
    tok_idx: Int[Tensor, "*b n"], window_size: int = WINDOW_SIZE
) -> tuple[Int[Tensor, "n k"], Bool[Tensor, "n k"]]:
    """List for each atom l the atoms m with ``|tok_idx[l] - tok_idx[m]| < window_size // 2``.

    All atoms of a residue share one list, and in residue order each list is one contiguous run: find the runs by binary
    search over the residues, then write them out, chunk by chunk. O(N K) time and memory.

    Parameters
    ----------
    tok_idx : the residue of each atom, in any order, [N] or [B, N] with equal rows.
    window_size : W, in residues; 1 leaves no neighbours (K = 0).

    Returns
    -------
    neighbor_idx : int64 [N, K], K the longest list; ascending, live slots first, 0 in padding slots.
    valid_mask : bool [N, K].

    Raises
    ------
    TypeError, ValueError
        for float or negative residues, rows that differ, a window below 1.
    """
    window_size = _validate.check_count("window_size", window_size)
    # Under inference mode the tensors made here would count no versions, and what backends remember of an index rests
    # on identity and version.
    with torch.inference_mode(False), torch.no_grad():
        tok = _validate.check_tok_idx(tok_idx)
        order = None if bool((tok[1:] >= tok[:-1]).all()) else tok.argsort(stable=True)
        residue, of_atom, size = (tok if order is None else tok[order]).unique_consecutive(
            return_inverse=True, return_counts=True
        )
        reach = window_size // 2
        end = F.pad(size.cumsum(0), (1, 0))  # atoms before each residue
        start = end[torch.searchsorted(residue, residue - reach, right=True)]
        count = (end[torch.searchsorted(residue, residue + reach)] - start).clamp_(min=0)
        return _write_runs(of_atom, start, count, order)


def _write_runs(
    of_atom: Tensor, start: Tensor, count: Tensor, order: Tensor | None
) -> tuple[Int[Tensor, "n k"], Bool[Tensor, "n k"]]:
    """The i-th atom in residue order sees places start[r] … start[r] + count[r] − 1 of that order, r = of_atom[i]."""
    n_atom, n_slot = len(of_atom), int(count.max()) if len(count) else 0
    neighbor_idx = torch.empty(n_atom, n_slot, dtype=torch.int64, device=of_atom.device)
    valid_mask = torch.empty(n_atom, n_slot, dtype=torch.bool, device=of_atom.device)
    slot = torch.arange(n_slot, device=of_atom.device)
    step = max(1, _INDEX_CHUNK // max(1, n_slot))
    for low in range(0, n_atom, step):
        chunk = of_atom[low : low + step]
        first, last = int(chunk[0]), int(chunk[-1])
        rows = start[first : last + 1, None] + slot
        live = slot < count[first : last + 1, None]
        if order is not None:
            rows = order[rows.clamp_(max=n_atom - 1)].masked_fill_(~live, n_atom).sort(1).values
        rows.masked_fill_(~live, 0)
        atoms = slice(low, low + step) if order is None else order[low : low + step]
        neighbor_idx[atoms] = rows[chunk - first]
        valid_mask[atoms] = live[chunk - first]
    return neighbor_idx, valid_mask


@eager
@remembered
def atom_pairs(
    tok_idx: Tensor, n_res: int, window_size: int, ref_space_uid: Tensor | None = None
) -> tuple[Int[Tensor, " n"], Int[Tensor, "n k"], Bool[Tensor, "*b n k"]]:
    """The residue of each atom [N], and its window; with `ref_space_uid`, only atoms of the same reference space.

    Remembered, because a sampler calls encoder and decoder hundreds of times with one `tok_idx`, and because backends
    remember their plans by the index that this returns.
    """
    with torch.inference_mode(False), torch.no_grad():
        tok = _validate.check_tok_idx(tok_idx, n_res)
        neighbor_idx, valid = build_sparse_pairs(tok, window_size)
        if ref_space_uid is not None:
            uid = ref_space_uid
            if uid.ndim == 2 and bool((uid == uid[:1]).all()):
                uid = uid[0]  # one mask for the whole batch
            valid = valid & (uid[..., None] == uid[..., neighbor_idx])
        return tok.clone(), neighbor_idx, valid  # `tok` may be `tok_idx` itself, which nothing remembered may hold
