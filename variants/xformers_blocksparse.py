"""xformers' ``BlockSparseTensor``: scores in square blocks, softmax and products by the library's pure-PyTorch ops.

Idea: N × N scores are cut into 32 × 32 blocks and only those that hold a live pair are computed:
``masked_matmul``, ``torch.softmax`` and ``@`` of ``xformers.sparse`` (Lefaudeux et al., xFormers, 2022). Any index
without duplicates will do. Blocks exist once per (index, mask) and are remembered.

Two things the library does not do. Its softmax subtracts one maximum of the *whole* tensor and clamps the sum at
1e-24, so a row that lies far below the greatest score comes out wrong: each row's own maximum is subtracted first,
detached, which changes no mathematics. And it adds no bias: the bias goes into the blocks' values, dead cells get −inf,
or 0 in rows without a live pair, whose softmax would be NaN and is dropped. Beside its row's maximum a score of −1e9
weighs nothing; it takes the place of −inf, since a row of −inf alone has a NaN gradient in the library's softmax.
16-bit inputs are computed in float32.

Cost model: scores, bias blocks and weights of every cell of every block pass through memory about ten times; blocks of
Q, K and V are copied once per block. The library calls ``nonzero`` on the layout [H, N/32, N/32] in each of its three
ops, so time and memory have a term quadratic in N (one byte per head and 1,024 pairs), and CUDA waits for it.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pallatom.architecture import _samples
from pallatom.architecture._remember import remembered
from pallatom.architecture._validate import refuse_out_of_range
from pallatom.architecture.atom_transformers import AtomTransformerBlock
from pallatom.architecture.eager import eager

from ._backend import Backend, Cost, Mode, Shape, UnsupportedError
from ._require import require
from .libraries.xformers import library_reasons

_SIDE = 32  # atoms per side of a block; the library takes 16 or more
_LOWEST = -1e9  # below its row's greatest score: exp gives exactly 0
_MAX_LAYOUT = 2**28  # the layout is dense, N/32 squared, and the library's nonzero on CUDA counts in 32 bits over heads


class Layout(NamedTuple):
    """Where pairs live: ``blocks [nb, nb]`` bool; block-row of each block ``row [nnz]``, in the order of ``nonzero``;
    cell of each slot ``cell [N·K]`` in the flat list of all blocks' cells, dead slots in one cell behind the last."""

    blocks: Tensor
    row: Tensor
    cell: Tensor


@remembered
def layout(neighbor_idx: Tensor, valid_mask: Tensor) -> Layout:
    """The blocks that hold live pairs. Raises ``UnsupportedError`` where a row has a neighbour twice, ``ValueError``
    where a live slot holds no atom."""
    n = neighbor_idx.shape[0]
    side = -(-n // _SIDE)
    if side * side > _MAX_LAYOUT:
        reason = f"atoms: a layout of at most {_MAX_LAYOUT} entries is required, {n} atoms make {side * side}"
        raise UnsupportedError([reason], who=__name__)
    refuse_out_of_range(neighbor_idx, valid_mask)
    live = valid_mask.any(0) if valid_mask.dim() == 3 else valid_mask
    atom = torch.where(live, neighbor_idx, 0)
    query = torch.arange(n, device=atom.device)[:, None]
    key = (query // _SIDE) * side + atom // _SIDE
    present = torch.zeros(side * side, dtype=torch.bool, device=atom.device)
    present[key[live]] = True
    kept = present.nonzero()[:, 0]
    within = (query % _SIDE) * _SIDE + atom % _SIDE
    cell = torch.where(live, torch.searchsorted(kept, key) * _SIDE**2 + within, kept.numel() * _SIDE**2)
    taken = torch.zeros(kept.numel() * _SIDE**2 + 1, dtype=torch.bool, device=atom.device)
    taken[cell.flatten()] = True
    if int(taken[:-1].sum()) < int(live.sum()):
        raise UnsupportedError(["index: no neighbour twice in a row is required, some row has one"], who=__name__)
    return Layout(present.view(side, side), kept // side, cell.flatten())


def bias_cells(bias: Tensor, live: Tensor, alive: Tensor, where: Layout) -> Tensor:
    """``bias [B, N, K, H]`` at its cells: ``[B, H, nnz · side²]``; in cells that no live pair owns −∞, or 0 in rows
    without one. ``live [1 or B, N, K]`` are its slots, ``alive`` its rows that have one. No finite number would do: a
    live pair's bias may be any, and lie far below it."""
    batch, heads, cells = bias.shape[0], bias.shape[3], where.row.numel() * _SIDE**2
    dead = torch.zeros_like(alive, dtype=bias.dtype).masked_fill(alive, -math.inf)  # [1 or B, N]
    bias = torch.where(live[..., None], bias, dead[..., None, None])
    by_row = torch.nn.functional.pad(dead, (0, -dead.shape[-1] % _SIDE)).view(-1, where.blocks.shape[0], _SIDE)
    values = bias.new_empty(batch, heads, cells + 1)
    values[..., :cells].unflatten(2, (-1, _SIDE, _SIDE)).copy_(by_row[:, None, where.row, :, None])
    return values.index_copy_(2, where.cell, bias.flatten(1, 2).transpose(1, 2))[..., :cells]


def row_shifted(values: Tensor, where: Layout) -> Tensor:
    """``values [B, H, nnz, side, side]`` minus each row's maximum over all its blocks, detached; −1e9 for −inf."""
    greatest = values.detach().amax(-1)
    rows = greatest.new_full((*values.shape[:2], where.blocks.shape[0], _SIDE), -math.inf)
    rows.scatter_reduce_(2, where.row[:, None].expand_as(greatest), greatest, "amax")
    shifted = values - rows.index_select(2, where.row)[..., None]
    return shifted.masked_fill(shifted == -math.inf, _LOWEST)


class XformersBlocksparseBlock(AtomTransformerBlock):
    """The attention seam by ``xformers.sparse.BlockSparseTensor``."""

    @eager
    def _attend(self, Q: Tensor, K: Tensor, V: Tensor, p: Tensor, neighbor_idx: Tensor, valid_mask: Tensor) -> Tensor:
        require(BACKEND, self, Q, K, V, p)
        where = layout(neighbor_idx, valid_mask)
        if where.row.numel() == 0:  # no live pair: the layer's own empty sum
            return super()._attend(Q, K, V, p[:, :, :0], neighbor_idx[:, :0], valid_mask[..., :0])
        p = _samples.once(p)
        bias = self.pair_bias(self.norm_pair(torch.where(_samples.live_in_any(valid_mask, len(p))[..., None], p, 0)))
        live = valid_mask if valid_mask.dim() == 3 else valid_mask[None]
        return _samples.one_by_one(partial(_attend_one, where), Q, K, V, bias, live)


def _attend_one(where: Layout, Q: Tensor, K: Tensor, V: Tensor, bias: Tensor, live: Tensor) -> Tensor:
    """One batch, from its bias [B, N, K, H]; live [1 or B, N, K]."""
    wide, alive = torch.promote_types(Q.dtype, torch.float32), live.any(-1)
    with torch.autocast(Q.device.type, enabled=False):
        cells = bias_cells(bias.to(wide), live, alive, where)
        q, k, v = (_by_head(t.to(wide)) for t in (Q, K, V))
        out = _attention(q, k, v, cells, where)
    out = out[:, :, : Q.shape[1]].transpose(1, 2)
    return torch.where(alive[..., None, None], out, 0).to(Q.dtype)


def path(
    block: AtomTransformerBlock, Q: Tensor, K: Tensor, V: Tensor, p: Tensor, neighbor_idx: Tensor, valid_mask: Tensor
) -> str:
    """The layer's own empty sum where no pair is alive, else the blocks."""
    return "blocks" if layout(neighbor_idx, valid_mask).row.numel() else "layer"


def _by_head(x: Tensor) -> Tensor:
    """[B, N, H, D] → [B, H, N', D], zeros up to a whole number of blocks."""
    fill = -x.shape[1] % _SIDE
    return torch.nn.functional.pad(x.transpose(1, 2), (0, 0, 0, fill)).contiguous()


def _attention(Q: Tensor, K: Tensor, V: Tensor, bias: Tensor, where: Layout) -> Tensor:
    """softmax(Q Kᵀ / sqrt(D) + bias) V over the blocks; Q, K, V ``[B, H, N', D]``."""
    from xformers.ops import masked_matmul
    from xformers.sparse import BlockSparseTensor

    batch, heads = Q.shape[:2]
    blocks = where.blocks.expand(heads, -1, -1)
    shape = (batch, heads * where.row.numel(), _SIDE, _SIDE)
    mask = BlockSparseTensor(Q.new_empty(1).expand(shape), blocks)  # only its shape and layout are read
    scores = masked_matmul(Q * (Q.shape[-1] ** -0.5), K.transpose(-2, -1), mask).values()
    scores = (scores.reshape(bias.shape) + bias).view(batch, heads, -1, _SIDE, _SIDE)
    return torch.softmax(BlockSparseTensor(row_shifted(scores, where).view(shape), blocks), dim=-1) @ V


def cost(shape: Shape, mode: Mode) -> Cost:
    """See the module's docstring; blocks are counted as for a band of K atoms."""
    across = -(-shape.n_atom // _SIDE)
    per_row = min(across, -(-(shape.n_neighbor + 2 * _SIDE - 1) // _SIDE)) if shape.n_neighbor else 0
    m, cells = shape.samples, shape.entries * shape.heads * across * per_row * _SIDE**2
    wide = max(shape.itemsize, 4)
    scores = cells * wide
    copies = cells // _SIDE * shape.head_dim * wide  # one operand's blocks, copied once per block
    index = shape.heads * across * across + 8 * shape.n_atom * shape.n_neighbor
    bias = shape.n_pairs * shape.heads * wide
    flops = 4 * m * cells * shape.head_dim + 2 * shape.n_pairs * shape.heads * shape.c_pair
    traffic = 3 * shape.p_bytes + m * (4 * bias + 10 * scores + 6 * copies + 3 * index)
    if mode == "fwd":
        atoms = shape.atom_bytes + 5 * shape.atom_bytes // m  # O, and copies of one sample's Q, K and V
        return Cost(flops, traffic, 4 * scores + 2 * copies + bias + atoms)
    return Cost(3 * flops, 3 * traffic, shape.p_bytes + 6 * scores + 4 * copies + 2 * bias + 12 * shape.atom_bytes)


BACKEND = Backend(
    block=XformersBlocksparseBlock,
    summary="xformers BlockSparseTensor with a row-shifted softmax",
    devices=("cpu", "cuda"),
    dtypes=(torch.float32, torch.float64, torch.bfloat16, torch.float16),
    cost=cost,
    needs_unique=True,
    samples=True,
    probe=lambda device: list(library_reasons()),
    path=path,
)
