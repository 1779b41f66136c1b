"""Random bands of any geometry and plain ones, and a band backend's answers beside the float64 reference's."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from torch import Tensor

import variants
from pallatom.architecture.atom_transformers import AtomTransformerBlock, build_sparse_pairs
from variants._op import attention_reference

NAMES = ("O", "dQ", "dK", "dV", "dp", "dnorm_pair.weight", "dnorm_pair.bias", "dpair_bias.weight")


def answers(
    name: str, inputs: list[Tensor], weights: list[Tensor], idx: Tensor, mask: Tensor, eps: float = 1e-5
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(The backend's, the float64 reference's) output and gradients of the same random sum of the output."""
    heads, channels = weights[2].shape
    block = AtomTransformerBlock(heads * inputs[0].shape[-1], channels, heads).to(inputs[0].dtype)
    block.norm_pair.eps = eps
    block = variants.convert(block, name)
    with torch.no_grad():
        for parameter, value in zip(weights_of(block), weights, strict=True):
            parameter.copy_(value)
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = block._attend(*leaves, idx, mask)
    grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out.dtype)
    got = torch.autograd.grad(out, [*leaves, *weights_of(block)], grad_out)
    wide = [x.double().requires_grad_() for x in [*inputs, *weights]]
    ref_out = attention_reference(*wide, idx, mask, eps=eps)
    ref = torch.autograd.grad(ref_out, wide, grad_out.double(), materialize_grads=True)
    return dict(zip(NAMES, (out.detach(), *got))), dict(zip(NAMES, (ref_out.detach(), *ref)))


def weights_of(block: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [block.get_parameter(name.removeprefix("d")) for name in NAMES[5:]]


@st.composite
def problems(draw, max_heads: int = 3, max_dim: int = 5, max_channels: int = 6):
    """Any band: runs of rows with any start and length, slots shifted at will, dead slots anywhere."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n, slots = draw(st.integers(1, 40)), draw(st.integers(1, 17))
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).repeat(1 + n // sum(sizes))[:n]
    base = torch.randint(-slots, n, (len(sizes),), generator=g)
    if draw(st.booleans()):
        base = base.sort().values
    idx = base[group][:, None] + torch.arange(slots)
    batch = draw(st.integers(1, 2))
    mask = (idx >= 0) & (idx < n)
    if draw(st.booleans()):
        mask = mask & (torch.rand(batch, n, slots, generator=g) > draw(st.sampled_from([0.1, 0.6])))
    heads, dim, channels = (draw(st.integers(1, most)) for most in (max_heads, max_dim, max_channels))

    def values(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    inputs = [values(batch, n, heads, dim) for _ in range(3)] + [values(batch, n, slots, channels)]
    return inputs, [values(channels), values(channels), values(heads, channels)], idx, mask, draw(st.integers(1, 12))


def window(residues: int = 12, width: int = 6) -> tuple[Tensor, Tensor]:
    return build_sparse_pairs(torch.arange(residues * 5) // 5, width)


def plain(dtype: torch.dtype, idx: Tensor, *, scale: float = 1.0, offset: float = 0.0):
    g = torch.Generator().manual_seed(0)

    def values(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    pairs = values(1, *idx.shape, 16) * scale + offset
    inputs = [values(1, len(idx), 2, 8).to(dtype) for _ in range(3)] + [pairs.to(dtype)]
    weights = [(1 + 0.3 * values(16)).to(dtype), values(16).to(dtype), values(2, 16).to(dtype)]
    return inputs, weights
