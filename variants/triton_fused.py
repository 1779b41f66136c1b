"""One fused kernel: LayerNorm of p, projection to heads, scores, softmax and the product with V; p is read once."""

from __future__ import annotations

import torch
from torch import Tensor

from pallatom.architecture.atom_transformers import AtomTransformerBlock

from ._backend import Backend, Cost, Mode, Shape, UnsupportedError, operation_floor
from ._band import band_plan
from ._registry import require
from ._triton_launch import Problem, backward, forward


@torch.library.custom_op("pallatom_bench::atom_attention", mutates_args=())
def atom_attention(
    q: Tensor, k: Tensor, v: Tensor, p: Tensor, gamma: Tensor, beta: Tensor, weight: Tensor,
    neighbor_idx: Tensor, valid_mask: Tensor, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``(O [B, N, H, D], base-2 log-sum-exp [B, N, H])``. beta is here for its gradient only, which is exactly 0."""
    return forward(_problem(q, k, v, p, gamma, weight, valid_mask, eps), band_plan(neighbor_idx, valid_mask))


@atom_attention.register_fake
def _(q, k, v, p, gamma, beta, weight, neighbor_idx, valid_mask, eps):
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("pallatom_bench::atom_attention_backward", mutates_args=())
def atom_attention_backward(
    grad_o: Tensor, o: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, p: Tensor, gamma: Tensor, weight: Tensor,
    neighbor_idx: Tensor, valid_mask: Tensor, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, p, gamma and weight."""
    return backward(
        _problem(q, k, v, p, gamma, weight, valid_mask, eps), band_plan(neighbor_idx, valid_mask), o, lse,
        grad_o.contiguous(), deterministic=torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip


@atom_attention_backward.register_fake
def _(grad_o, o, lse, q, k, v, p, gamma, weight, neighbor_idx, valid_mask, eps):
    return tuple(torch.empty_like(t) for t in (q, k, v, p, gamma, weight))


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.eps = inputs
    q, k, v, p, gamma, beta, weight, neighbor_idx, valid_mask = tensors
    ctx.save_for_backward(*output, q, k, v, p, gamma, beta, weight, neighbor_idx, valid_mask)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_o, _grad_lse):
    o, lse, q, k, v, p, gamma, beta, weight, neighbor_idx, valid_mask = ctx.saved_tensors
    dq, dk, dv, dp, dgamma, dweight = atom_attention_backward(
        grad_o, o, lse, q, k, v, p, gamma, weight, neighbor_idx, valid_mask, ctx.eps
    )
    return dq, dk, dv, dp, dgamma, torch.zeros_like(beta), dweight, None, None, None


atom_attention.register_autograd(_backward, setup_context=_setup)


def _no_double_backward(ctx, *grads):
    raise UnsupportedError(["backward: only first derivatives are implemented, a second one was asked for"], who="TritonFusedBlock")


atom_attention_backward.register_autograd(_no_double_backward)


def _problem(q, k, v, p, gamma, weight, valid_mask, eps) -> Problem:
    q, k, v, p, gamma, weight, mask = (t.contiguous() for t in (q, k, v, p, gamma, weight, valid_mask))
    return Problem(q, k, v, p, gamma, weight, mask.view(torch.uint8), eps)


class TritonFusedBlock(AtomTransformerBlock):
    """The block with its attention in one Triton kernel."""

    def _attend(self, Q: Tensor, K: Tensor, V: Tensor, p: Tensor, neighbor_idx: Tensor, valid_mask: Tensor) -> Tensor:
        require(BACKEND, self, Q, K, V, p)
        norm = self.norm_pair
        return atom_attention(
            Q, K, V, p, norm.weight, norm.bias, self.pair_bias.weight, neighbor_idx, valid_mask, norm.eps
        )[0]


def cost(shape: Shape, mode: Mode) -> Cost:
    flops, bytes_ = operation_floor(shape, mode)
    return Cost(flops, bytes_, 0)


BACKEND = Backend(
    block=TritonFusedBlock,
    summary="one fused Triton kernel, forward and backward; p is read once, dp written once",
    devices=("cuda", "cpu"),
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    cost=cost,
    requires=("triton",),
    min_capability=(8, 0),
)
