"""xformers' memory-efficient attention, on query tiles with a tensor bias.

Idea: 64 queries and the span of keys that they see make one small dense attention; all tiles go into one call of
``memory_efficient_attention`` with ``attn_bias [B·T, H, 64, L]``. Rabe & Staats, Self-attention Does Not Need O(n²)
Memory (arXiv:2112.05682); Lefaudeux et al., xFormers (2022). The operator is the CUTLASS one, forward and backward:
the only one on NVIDIA that returns a gradient of the bias. In this release it is PyTorch's own CUTLASS kernel behind
xformers' checks; ``sdpa_tiles`` runs the same tiles through PyTorch's entry to it.

Cost model: that of the tiles (see :mod:`variants.band.packing`): p through LayerNorm and projection, the bias packed,
K and V copied once for each tile that sees them. The kernel itself keeps no scores in memory; its backward writes a
gradient of the packed bias.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pallatom.architecture.atom_transformers import AtomTransformerBlock
from pallatom.architecture.eager import eager

from ._backend import Backend, UnsupportedError
from ._require import require
from .band.packing import attend_packed, cost, grid_reasons, path
from .libraries.xformers import extension_reasons, library_reasons


class XformersFmhaBlock(AtomTransformerBlock):
    """The attention seam by ``xformers.ops.memory_efficient_attention`` on packed tiles."""

    @eager
    def _attend(self, Q: Tensor, K: Tensor, V: Tensor, p: Tensor, neighbor_idx: Tensor, valid_mask: Tensor) -> Tensor:
        require(BACKEND, self, Q, K, V, p)
        return attend_packed(self, (Q, K, V, p, neighbor_idx, valid_mask), fused)


def fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """One call for all tiles. Raises ``UnsupportedError`` with what the operators find wrong with these inputs."""
    from xformers.ops import fmha

    if bias.requires_grad and not (q.requires_grad or k.requires_grad or v.requires_grad):
        # else the library keeps nothing for the backward, and drops the bias's gradient
        q = q.detach().requires_grad_()
    asked = fmha.Inputs(query=q, key=k, value=v, attn_bias=bias)
    ops = [fmha.cutlass.FwOp, *([fmha.cutlass.BwOp] if q.requires_grad or k.requires_grad or v.requires_grad else [])]
    reasons = [f"{op.NAME}: {why}" for op in ops for why in op.not_supported_reasons(asked)]
    if reasons := reasons + grid_reasons(q.shape[0]):
        raise UnsupportedError(reasons, who="xformers_fmha")
    return fmha.memory_efficient_attention(q, k, v, attn_bias=bias, op=(fmha.cutlass.FwOp, fmha.cutlass.BwOp))


def probe(device: str) -> list[str]:
    """Why the CUTLASS operators cannot run here."""
    if reasons := library_reasons():
        return list(reasons)
    from xformers.ops.fmha import cutlass

    reasons = extension_reasons()
    newest, found = cutlass.FwOp.CUDA_MAXIMUM_COMPUTE_CAPABILITY, torch.cuda.get_device_capability(device)
    if newest and found > newest:
        reasons.append("compute capability: at most {}.{} is required, {}.{} was found".format(*newest, *found))
    missing = [op.NAME for op in (cutlass.FwOp, cutlass.BwOp) if not op.is_available()]
    return reasons + [f"operator: {name} is required, this torch has no compatible one" for name in missing]


BACKEND = Backend(
    block=XformersFmhaBlock,
    summary="xformers memory-efficient attention (CUTLASS) on tiles with a bias",
    devices=("cuda",),
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    cost=cost,
    backward=("cuda",),
    min_capability=(7, 0),
    needs_band=True,
    samples=True,
    path=path,
    probe=probe,
)
