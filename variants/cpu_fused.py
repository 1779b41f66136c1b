"""One fused pass on the CPU: LayerNorm, projection, scores, softmax and both products, tile by tile in C++.

Idea: in a band the neighbours of 24 query rows lie in one slice of atoms. For such a tile the pair bias goes straight
from p to where its scores will be, sixteen slots at a time (transposed in registers, so that LayerNorm's sums over the
channels are plain additions); products, softmax and the sum over values follow while the tile is in cache. Each thread
takes a stretch of rows. FlashAttention's recomputation (Dao et al., arXiv:2205.14135) gives the backward pass: weights
are recomputed from the saved log-sum-exp; p is read once, dp written once, dK and dV summed per thread, then over
threads, so that there are no atomics and the same call gives the same bits. Samples that share p take a tile in turn:
its bias is made once for all of them, and in the backward their dS are summed before they meet p.

The kernels (``cpu/*.h``) are written in the compilers' portable vector extensions and compiled for the processor at
first use, some seconds once per machine. Arithmetic is float32. p that is not contiguous is copied first.

Cost: the operation's FLOPs times S / K for the products over a span of S = K + 24 + a vector; bytes as any
implementation. Peak above the inputs: outputs, packed copies of K and V, and per thread a tile of scores.
"""

from __future__ import annotations

from ctypes import byref
from typing import Any

import torch
from torch import Tensor

from pallatom.architecture import _samples
from pallatom.architecture.atom_transformers import AtomAttentionDecoder, AtomFeatureEncoder, AtomTransformerBlock
from pallatom.architecture.eager import eager

from ._backend import Backend, Cost, Mode, Shape
from ._require import pair_weights, require, require_pairs
from .band.plan import BandPlan, band_path, band_plan
from .cpu.library import Call, library, library_reasons
from .cpu.make_pairs import decoder_pairs, encoder_pairs
from .cpu.once import once_differentiable

_TILE = 24  # query rows of a tile, as in cpu/tiles.h
_LANES = 16


class CpuFusedBlock(AtomTransformerBlock):
    """The layer on fused C++ kernels; needs a band (see :func:`variants.band_plan`)."""

    @eager
    def _attend(self, Q: Tensor, K: Tensor, V: Tensor, p: Tensor, neighbor_idx: Tensor, valid_mask: Tensor) -> Tensor:
        require(BACKEND, self, Q, K, V, p)
        plan = band_plan(neighbor_idx, valid_mask)
        gamma, beta, weight, eps = pair_weights(self)
        p = _samples.once(p)
        K, V = _samples.matched(K, Q, p), _samples.matched(V, Q, p)
        with torch.autocast("cpu", enabled=False):
            return _FusedAttention.apply(Q, K, V, p, gamma, beta, weight, eps, plan, valid_mask)

    def _shared(self, p: Tensor) -> Tensor:
        wanted = p.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        return _SharedPairs.apply(p) if wanted else p  # pyright: ignore[reportReturnType]


class CpuFusedEncoder(AtomFeatureEncoder):
    """The layer's encoder, its pairs made in one pass (see ``cpu/make_pairs.py``); any index will do."""

    @eager
    def _pairs(self, ref_pos, own, other, z, tok, neighbor_idx, valid_mask):
        require_pairs(BACKEND, self, ref_pos, own, other, z)
        linears = [self.proj_d_vec.weight, self.proj_inv_sq.weight, self.proj_v.weight]
        with torch.autocast("cpu", enabled=False):
            return encoder_pairs(ref_pos, own, other, z, linears, self.mlp_p, tok, neighbor_idx, valid_mask)


class CpuFusedDecoder(AtomAttentionDecoder):
    """The layer's decoder, likewise."""

    @eager
    def _pairs(self, p_skip, z, tok, neighbor_idx, valid_mask):
        require_pairs(BACKEND, self, p_skip, z)
        with torch.autocast("cpu", enabled=False):
            return decoder_pairs(p_skip, z, self.mlp_p, tok, neighbor_idx, valid_mask)


class _SharedPairs(torch.autograd.Function):
    """p, for several blocks. Their backward kernels add their dp up in one tensor, which goes on from here.

    Without it each block makes a dp and torch adds them, in passes over p of their own. One sum per backward pass: who
    asks for no gradient of p (``torch.autograd.grad`` of q, say) leaves none behind.
    """

    @staticmethod
    def forward(ctx: Any, p: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.sums = {}
        return p.view_as(p)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None) -> Tensor | None:
        total = ctx.sums.pop(torch._C._current_graph_task_id(), None)
        return grad if total is None else total if grad is None else total.add_(grad)


def _sum_for(p: Tensor, node: Any) -> tuple[Tensor, bool]:
    """Where a backward of ``_FusedAttention`` writes dp, and whether it adds to what other blocks have put there."""
    if node is None:
        return torch.empty(p.shape, dtype=p.dtype), False
    task = torch._C._current_graph_task_id()
    if task in node.sums:
        return node.sums[task], True
    node.sums[task] = torch.empty(p.shape, dtype=p.dtype)
    torch.autograd.Variable._execution_engine.queue_callback(lambda: node.sums.pop(task, None))
    return node.sums[task], False


class _FusedAttention(torch.autograd.Function):
    """O = softmax(Q·Kᵀ/√D + bias(p)) · V over the band."""

    @staticmethod
    def forward(ctx: Any, Q, K, V, p, gamma, beta, weight, eps, plan, mask) -> Tensor:
        batch, n_atom, heads, _ = Q.shape
        out = torch.empty(Q.shape, dtype=torch.float32)
        lse = torch.empty(batch, heads, n_atom) if any(ctx.needs_input_grad) else None
        _run("forward", Q, K, V, p, _folded(gamma, weight), plan, mask, eps, out=out, lse=lse)
        ctx.save_for_backward(Q, K, V, p, gamma, beta, weight, mask, out, lse)
        ctx.eps, ctx.plan = eps, plan
        # In a stack the blocks' sum of dp is kept by the node that p comes from.
        ctx.shared = p.grad_fn if type(p.grad_fn) is _SharedPairs._backward_cls else None
        return out.to(Q.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        Q, K, V, p, gamma, beta, weight, mask, out, lse = ctx.saved_tensors
        dQ, dK, dV = (torch.empty(x.shape, dtype=torch.float32) for x in (Q, K, V))
        dp, adds = _sum_for(p, ctx.shared) if ctx.needs_input_grad[3] else (None, False)
        moment = torch.empty(weight.shape, dtype=torch.float32)
        given = {"out": out, "lse": lse, "grad": grad_out.float().contiguous()}
        made = {"dq": dQ, "dk": dK, "dv": dV, "moment": moment, "dp": dp}
        _run("backward", Q, K, V, p, _folded(gamma, weight), ctx.plan, mask, ctx.eps, adds, **given, **made)
        moment -= moment.mean(1, keepdim=True)  # Σ_c x̂ = 0, so this mean is rounding error of the pairs' means
        # only the product γ·W acts on the pairs, so both gradients come from one moment; β's part of dW is Σ dS = 0
        dgamma, dweight = (weight * moment).sum(0), gamma * moment
        atoms = dQ.to(Q.dtype), dK.to(K.dtype), dV.to(V.dtype)
        weights = dgamma.to(gamma.dtype), torch.zeros_like(beta), dweight.to(weight.dtype)
        return *atoms, dp if ctx.shared is None else None, *weights, None, None, None


def _folded(gamma: Tensor, weight: Tensor) -> Tensor:
    """W·γ [H, C] centred over C: LayerNorm's mean and β drop out of the softmax."""
    folded = gamma.float() * weight.float()
    return folded - folded.mean(1, keepdim=True)


def _run(
    what: str,
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    p: Tensor,
    weight: Tensor,
    plan: BandPlan,
    mask: Tensor,
    eps: float,
    adds_dp: bool = False,
    **others: Tensor | None,
) -> None:
    """Call the kernel ``forward`` or ``backward``; ``others`` by their names in ``Call``, contiguous."""
    (batch, n_atom, heads, dim), (entries, _, slots, channels) = Q.shape, p.shape
    samples = batch // entries if entries else 1
    keys = samples if len(K) > entries else 1
    pairs = p[:1] if entries > 1 and p.stride(0) == 0 else p
    items = mask if mask.dim() == 3 else mask[None]
    seen = _samples.live_in_any(items, entries) if plan.has_holes else items[:1]
    own = _samples.repeated(items, batch) if plan.has_holes and len(items) > len(seen) else None
    tensors = {
        **{name: x.float().contiguous() for name, x in (("q", Q), ("k", K), ("v", V))},
        **{"p": pairs.contiguous(), "weight": weight.contiguous()},
        **{"base": plan.base, "start": plan.start, "stop": plan.stop},
        **{"mask": seen.contiguous() if plan.has_holes else None},
        **{"own_mask": None if own is None else own.contiguous()},
        **others,
    }
    call = Call(entries, samples, keys, len(pairs), len(seen), n_atom, slots, heads, dim, channels, _threads(n_atom))
    for name, tensor in tensors.items():
        setattr(call, name, None if tensor is None else tensor.data_ptr())
    call.eps, call.pair_is_bfloat16, call.adds_dp = eps, p.dtype == torch.bfloat16, adds_dp
    kernels = library()
    work = torch.empty(kernels.work_floats(byref(call), what == "backward"))
    call.work = work.data_ptr()
    getattr(kernels, f"run_{what}")(byref(call))


def probe(device: str) -> list[str]:
    """Why the kernels can be neither loaded nor compiled."""
    return library_reasons()


def cost(shape: Shape, mode: Mode) -> Cost:
    """See the module's docstring."""
    span = shape.n_neighbor + _TILE + _LANES
    products = 4 * shape.batch * shape.n_atom * span * shape.heads * shape.head_dim
    project = 2 * shape.n_pairs * (shape.heads + 2) * shape.c_pair
    item = 4 * shape.n_atom * shape.heads * shape.head_dim  # one batch item of Q, in float32
    m = shape.samples  # at most so many K and V an entry
    widened = 4 * item * shape.batch if shape.itemsize != 4 else 0  # Q, K, V, and O or its gradient
    tile = 4 * shape.heads * _TILE * ((1 + (m > 1)) * (span + 2 * _TILE) + shape.head_dim)
    threads = _threads(shape.n_atom)
    if mode == "fwd":
        peak = 2 * m * item + threads * tile + item * shape.batch + widened
        return Cost(products + project, shape.p_bytes + 10 * shape.atom_bytes, peak)
    sums = 2 * m * (item + 4 * threads * span * shape.heads * shape.head_dim)
    peak = 3 * m * item + sums + threads * tile + 4 * item * shape.batch + widened + shape.p_bytes
    return Cost(7 * products // 2 + 4 * project, 3 * shape.p_bytes + 30 * shape.atom_bytes, peak)


def _threads(n_atom: int) -> int:
    """As many as torch may use, and no more than there are tiles."""
    return max(1, min(torch.get_num_threads(), -(-n_atom // _TILE)))


BACKEND = Backend(
    block=CpuFusedBlock,
    encoder=CpuFusedEncoder,
    decoder=CpuFusedDecoder,
    summary="one fused C++ pass per tile of 24 atoms: LayerNorm, projection, softmax, both products; own backward",
    devices=("cpu",),
    dtypes=(torch.float32, torch.bfloat16),
    cost=cost,
    backward=("cpu",),
    needs_band=True,
    samples=True,
    reads_weights=True,
    everyday=True,
    path=band_path,
    probe=probe,
)
