"""PyTorch's own scaled-dot-product attention, on query tiles with a tensor bias: the control for ``xformers_fmha``.

Idea: the same tiles, the same bias, one call of ``scaled_dot_product_attention``. On CUDA only its memory-efficient
kernel is allowed: xformers' CUTLASS operator is that very kernel, so what differs is what xformers puts around it. On
the CPU PyTorch chooses: its flash kernel forward, and plain products where the bias needs a gradient.

Cost model: that of the tiles (see :mod:`variants.band.packing`). On the CPU the backward keeps the scores of all tiles.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from pallatom.architecture.atom_transformers import AtomTransformerBlock
from pallatom.architecture.eager import eager

from ._backend import Backend, UnsupportedError
from ._require import require
from .band.packing import attend_packed, cost, grid_reasons, path


class SdpaTilesBlock(AtomTransformerBlock):
    """The attention seam by ``scaled_dot_product_attention`` on packed tiles."""

    @eager
    def _attend(self, Q: Tensor, K: Tensor, V: Tensor, p: Tensor, neighbor_idx: Tensor, valid_mask: Tensor) -> Tensor:
        require(BACKEND, self, Q, K, V, p)
        return attend_packed(self, (Q, K, V, p, neighbor_idx, valid_mask), fused)


def fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """One call for all tiles; on CUDA by the memory-efficient kernel or not at all."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    on_cuda = q.device.type == "cuda"
    if on_cuda and (reasons := grid_reasons(q.shape[0])):
        raise UnsupportedError(reasons, who="sdpa_tiles")
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION) if on_cuda else contextlib.nullcontext():
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=bias).transpose(1, 2)


BACKEND = Backend(
    block=SdpaTilesBlock,
    summary="tiles with a bias through PyTorch's memory-efficient SDPA: the control for xformers_fmha",
    devices=("cpu", "cuda"),
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    cost=cost,
    needs_band=True,
    samples=True,
    everyday=True,
    path=path,
)
