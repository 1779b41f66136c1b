"""All N × N scores with a mask: the quadratic way, by PyTorch's own fused attention.

Idea: the pair bias is projected to [B, H, N, K] and scattered into an N × N matrix that is very negative elsewhere;
then ``scaled_dot_product_attention`` takes it as an additive mask. Simple, and fast as long as N is not much larger
than K. A pair that is listed twice cannot be put into one matrix entry, so neighbours must be unique.

The library takes a bias of Q's dtype: beside 16-bit Q a float32 bias is rounded to 16 bits.

Cost: 4·N² FLOPs per channel whatever K is; the bias matrix is H·N² elements, and its gradient as many again.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pallatom.architecture import _samples
from pallatom.architecture._remember import remembered
from pallatom.architecture._validate import refuse_out_of_range
from pallatom.architecture.atom_transformers import AtomTransformerBlock
from pallatom.architecture.eager import eager

from ._backend import Backend, Cost, Mode, Shape, UnsupportedError
from ._require import require

_ALIGN = 8  # the fused CUDA kernels want rows of the bias to start at a multiple of 8 elements


class DenseBlock(AtomTransformerBlock):
    """The layer on N × N scores; needs unique neighbours."""

    def _attend(self, Q: Tensor, K: Tensor, V: Tensor, p: Tensor, neighbor_idx: Tensor, valid_mask: Tensor) -> Tensor:
        require(BACKEND, self, Q, K, V, p)
        if (row := _repeated_row(neighbor_idx, valid_mask)) is not None:  # pyright: ignore[reportCallIssue]
            raise UnsupportedError(
                [f"index: neighbours listed once each are required, row {row} lists one twice"], who=type(self).__name__
            )
        p = _samples.once(p)
        live = valid_mask if valid_mask.dim() == 3 else valid_mask[None]
        bias = self.pair_bias(self.norm_pair(p.masked_fill(~_samples.live_in_any(live, len(p))[..., None], 0)))
        return _samples.one_by_one(partial(_attention, neighbor_idx), Q, K, V, bias, live)


def _attention(neighbor_idx: Tensor, Q: Tensor, K: Tensor, V: Tensor, bias: Tensor, live: Tensor) -> Tensor:
    """One batch, from its bias [B, N, K, H]; live [1 or B, N, K]."""
    mask = _matrix(bias.to(Q.dtype).permute(0, 3, 1, 2), neighbor_idx, live)
    out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (Q, K, V)), attn_mask=mask).transpose(1, 2)
    return out.masked_fill(~live.any(-1)[..., None, None], 0)


def _matrix(bias: Tensor, neighbor_idx: Tensor, live: Tensor) -> Tensor:
    """Scatter bias [B, H, N, K] to [B, H, N, N]; entries that no live slot names get the least finite number.

    A row without live slots is left at 0, so that its softmax is no NaN. Dead slots all write to a column beyond the
    last atom, which the returned view leaves out.
    """
    batch, heads, n, _ = bias.shape
    width = (n // _ALIGN + 1) * _ALIGN
    columns = torch.where(live, neighbor_idx, n)[:, None].expand(batch, heads, -1, -1)
    outside = bias.new_full((len(live), n), torch.finfo(bias.dtype).min).masked_fill_(~live.any(-1), 0)
    return outside[:, None, :, None].expand(batch, heads, n, width).scatter(3, columns, bias)[..., :n]


@eager
@remembered
def _repeated_row(neighbor_idx: Tensor, valid_mask: Tensor) -> int | None:
    """The first row in which two live slots hold the same atom, if any; ``ValueError`` where one holds none."""
    refuse_out_of_range(neighbor_idx, valid_mask)
    live = valid_mask if valid_mask.dim() == 3 else valid_mask[None]
    slots = torch.arange(neighbor_idx.shape[1], device=neighbor_idx.device)
    for item in live:
        atoms = torch.where(item, neighbor_idx, -1 - slots).sort(1).values
        repeated = (atoms[:, 1:] == atoms[:, :-1]).any(1)
        if bool(repeated.any()):
            return int(repeated.nonzero()[0])
    return None


def cost(shape: Shape, mode: Mode) -> Cost:
    """Quadratic in N; the matrix is written twice (filled, scattered) and read once, its gradient likewise."""
    pairs = shape.entries * shape.heads * shape.n_atom**2
    products = 4 * shape.samples * pairs * shape.head_dim
    project = 2 * shape.n_pairs * shape.heads * shape.c_pair
    matrix = pairs * shape.itemsize
    bias = shape.n_pairs * shape.heads * shape.itemsize
    index = 8 * shape.n_pairs
    traffic = 3 * shape.p_bytes + shape.samples * (3 * matrix + 3 * bias + index) + 4 * shape.atom_bytes
    if mode == "fwd":
        return Cost(products + project, traffic, matrix + shape.p_bytes + 2 * bias + index + shape.atom_bytes)
    matrices = 3 if shape.itemsize >= 4 else 5  # half precision is widened where no fused kernel has a bias gradient
    peak = matrices * matrix + 2 * shape.p_bytes + 2 * bias + index + 8 * shape.atom_bytes
    return Cost(3 * (products + project), 3 * traffic + 6 * shape.samples * matrix, peak)


BACKEND = Backend(
    block=DenseBlock,
    summary="N x N scores with a mask, fused attention",
    devices=("cpu", "cuda"),
    dtypes=(torch.float32, torch.float64, torch.bfloat16, torch.float16),
    cost=cost,
    needs_unique=True,
    samples=True,
)
