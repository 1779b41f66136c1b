"""Packs a band into equal tiles, so that one call of a dense attention kernel with a bias computes all of them.

Tile t holds queries ``64 t … 64 t + 63`` and the ``L`` atoms from the first that any of them sees; L is the widest
tile's span, a multiple of 8 (kernels want 16-byte rows). K and V are copied tile by tile, the bias is laid out as
``[B·T, H, 64, L]`` with a large negative number in cells that no live pair owns. The kernels take a bias of Q's dtype:
beside 16-bit Q a float32 bias is rounded to 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pallatom.architecture import _samples
from pallatom.architecture._remember import remembered
from pallatom.architecture.atom_transformers import AtomTransformerBlock

from .._backend import Cost, Mode, Shape, UnsupportedError
from .plan import BandPlan, band_plan

# An H200 with torch 2.11 gave wrong outputs for p of 6.9e9 elements and right ones for 1.8e9. torch's LayerNorm on CUDA
# is reported to overflow at 2**32 elements (RosettaCommons/foundry, pull request 254), which fits.
MOST_NORMED = 2**32
_MAX_TILES = 65_535  # of a CUDA grid's third axis
ROWS = 64  # queries of a tile: scores outside the band grow with it, copies of K and V shrink
_ALIGNED = 8


class Packing(NamedTuple):
    """``keys [T, L]``: the atoms of each tile, those past the end clipped; ``cell [N·K]``: where slot (l, k) lands in
    the flat list of all T · 64 · L cells, dead slots in one behind the last; ``alive [N]``: rows that see anything."""

    keys: Tensor
    cell: Tensor
    alive: Tensor


@remembered
def packing(plan: BandPlan) -> Packing:
    """The tiles of a band. No tile at all if no row is alive."""
    n = plan.start.numel()
    alive = plan.stop > plan.start
    count = -(-n // ROWS) if bool(alive.any()) else 0
    fill = (0, count * ROWS - n if count else -n)
    first = torch.nn.functional.pad(torch.where(alive, plan.start, n), fill, value=n).view(count, ROWS)
    last = torch.nn.functional.pad(plan.stop, fill).view(count, ROWS)
    if count == 0:
        return Packing(first.new_zeros(0, 0), first.new_zeros(n * plan.n_neighbor), alive)
    lo, hi = first.amin(1), last.amax(1)
    width = -(-int((hi - lo).max()) // _ALIGNED) * _ALIGNED
    keys = (lo[:, None] + torch.arange(width, device=lo.device)).clamp(max=n - 1)
    row = torch.arange(n, device=lo.device)[:, None]
    atom = plan.base[:, None] + torch.arange(plan.n_neighbor, device=lo.device)
    inside = (atom >= plan.start[:, None]) & (atom < plan.stop[:, None])
    cell = torch.where(inside, row * width + atom - lo[row // ROWS], count * ROWS * width)
    return Packing(keys, cell.flatten(), alive)


def packed_bias(bias: Tensor, tiles: Packing) -> Tensor:
    """``bias [B, N, K, H]`` on its tiles: ``[B·T, H, 64, L]``, strides multiples of 8, half the lowest finite number
    in cells that no pair owns."""
    batch, heads, (count, width) = bias.shape[0], bias.shape[3], tiles.keys.shape
    cells = count * ROWS * width
    flat = bias.new_full((batch, heads, cells + _ALIGNED), torch.finfo(bias.dtype).min / 2)
    flat = flat.index_copy_(2, tiles.cell, bias.flatten(1, 2).transpose(1, 2))[..., :cells]
    return flat.unflatten(2, (count, ROWS, width)).transpose(1, 2).flatten(0, 1)


def size_reasons(p: Tensor) -> list[str]:
    """Why this p is too large for the layer's own LayerNorm on its device."""
    if not p.is_cuda or p.numel() <= MOST_NORMED:
        return []
    return [f"p: at most {MOST_NORMED} elements are required on CUDA (LayerNorm overflows), {p.numel()} were found"]


def grid_reasons(count: int) -> list[str]:
    """Why one launch of CUTLASS's kernel cannot take ``count`` tiles."""
    if count <= _MAX_TILES:
        return []
    return [f"tiles: at most {_MAX_TILES} of {ROWS} atoms over the batch are required, {count} were found"]


def attend_packed(
    block: AtomTransformerBlock,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
    dense: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """The attention seam through ``dense(q [B·T, 64, H, D], k [B·T, L, H, D], v, bias [B·T, H, 64, L]) → like q``.

    ``dense`` scales by 1/sqrt(D). Where no row sees anything, this is the layer's own empty sum.
    """
    Q, K, V, p, neighbor_idx, valid_mask = inputs
    if reasons := size_reasons(p):
        raise UnsupportedError(reasons, who=type(block).__name__)
    plan = band_plan(neighbor_idx, valid_mask)
    tiles = packing(plan)
    count = tiles.keys.shape[0]
    if count == 0:
        empty = p[:, :, :0], neighbor_idx[:, :0], valid_mask[..., :0]
        return AtomTransformerBlock._attend(block, Q, K, V, *empty)
    p = _samples.once(p)
    seen = _samples.live_in_any(valid_mask, len(p))
    bias = block.pair_bias(block.norm_pair(torch.where(seen[..., None], p, 0)))

    def attend(Q: Tensor, K: Tensor, V: Tensor, bias: Tensor, live: Tensor) -> Tensor:
        bias, n = bias.to(Q.dtype), Q.shape[1]
        if plan.has_holes:
            bias = torch.where(live[..., None], bias, torch.finfo(bias.dtype).min / 2)
        queries = torch.nn.functional.pad(Q, (0, 0, 0, 0, 0, count * ROWS - n)).reshape(-1, ROWS, *Q.shape[2:])
        keys = tiles.keys.flatten()
        k, v = (x.index_select(1, keys).reshape(-1, tiles.keys.shape[1], *x.shape[2:]) for x in (K, V))
        with torch.autocast(Q.device.type, enabled=False):
            out = dense(queries, k, v, packed_bias(bias, tiles))
        alive = live.any(-1) if plan.has_holes else tiles.alive
        return torch.where(alive[..., None, None], out.reshape(Q.shape[0], -1, *Q.shape[2:])[:, :n], 0)

    live = valid_mask if valid_mask.dim() == 3 else valid_mask[None]
    return _samples.one_by_one(attend, Q, K, V, bias, live)


def path(
    block: AtomTransformerBlock, Q: Tensor, K: Tensor, V: Tensor, p: Tensor, neighbor_idx: Tensor, valid_mask: Tensor
) -> str:
    """``Backend.path`` of :func:`attend_packed`: "layer" (an empty sum) where no row sees anything, else the tiles."""
    plan = band_plan(neighbor_idx, valid_mask)
    return plan.path if packing(plan).keys.shape[0] else "layer"


def cost(shape: Shape, mode: Mode) -> Cost:
    """p read and its norm written and read; bias written, packed and read; K and V copied for each tile.

    Backward reads and writes the gradients of the same, and adds the copies of dK and dV up.
    """
    count = -(-shape.n_atom // ROWS)
    width = min(-(-(shape.n_neighbor + ROWS) // _ALIGNED), -(-shape.n_atom // _ALIGNED)) * _ALIGNED
    m, cells = shape.samples, shape.entries * shape.heads * count * ROWS * width
    bias = shape.n_pairs * shape.heads * shape.itemsize
    packed = cells * shape.itemsize
    copies = 2 * shape.entries * count * width * shape.heads * shape.head_dim * shape.itemsize
    flops = 4 * m * cells * shape.head_dim + 2 * shape.n_pairs * shape.heads * shape.c_pair
    traffic = 3 * shape.p_bytes + m * (3 * bias + 2 * packed + 2 * copies) + 4 * shape.atom_bytes
    if mode == "fwd":
        return Cost(flops, traffic, shape.p_bytes + 2 * bias + packed + copies + 2 * shape.atom_bytes)
    peak = 2 * shape.p_bytes + 3 * bias + 2 * packed + 2 * copies + 8 * shape.atom_bytes
    return Cost(flops * 7 // 2, 3 * traffic + 2 * shape.p_bytes, peak)
