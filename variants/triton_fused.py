"""One fused Triton kernel a pass: LayerNorm of p, projection to heads, scores, softmax, product with V.

**Idea** (FlashAttention's online softmax, Dao et al. 2022, on a band with a computed bias). The pair tensor is by far
the largest operand (K·C numbers a row against 4·H·D: 14 times as many in the usual shape), so everything is arranged
around reading it once for all heads, and in the backward reading it once more and writing its gradient once.

*Forward*: a program owns some query rows and visits the keys of their band. Per tile of pairs, tensor cores centre
p (times I − 11ᵀ/C, exact in 16 bits) and project it, un-normalised, onto W·γ centred over c::

    bias[pair, h] = rstd[pair] · <p[pair], Wc[h]>,    Wc = γ W − mean_c(γ W)    (mean(p) meets a zero sum)

β·W is the same for all slots of a row and cancels in the softmax: it is never added, and β's gradient is exactly 0.
The bias is then the *accumulator* of Q·Kᵀ. Products with p give each warp a part of the pairs; products with K and V
are batched over heads and give each warp its heads; only the bias (C/H times smaller than p) changes warps.

*Backward*: a program owns some keys and visits the queries that see them, so dK and dV stay in registers and dp
is written as it is made; only dQ is shared, by fp32 atomics, or under ``torch.use_deterministic_algorithms`` by one
slot per (query, key block) summed in order. Saved for it: O, and the log-sum-exp of each row and head. Nothing of size
N·K exists beside p and dp. With x̂ the normalised row and G = dS·Wcᵀ: dp = rstd·(G − x̂·<x̂, G>/C), dWc = Σ x̂ᵀ dS.
Where that needs more than 255 registers a thread (H D C beyond 4,096, or C beyond 32; sooner where sizes are no powers
of two, because masks take registers) the backward is *split*: programs of some heads each write g = rstd·dS (fp16: dS;
H/C of p's size, while the backward runs), and a second pass over p and g makes dp and dW.

*Precision*: in a row that is constant up to rounding the mean outweighs all else, so Wc is made to sum to 0 exactly
(``split_weight``). A pair row whose squares overflow gives NaN, forward and backward. δ = <dO, O> cancels where a
softmax is saturated, so where a gradient is wanted in 16 bits O's rounding error is kept too (``low``, of O's size).

*Budget* per pair (bf16, H 4, D 32, C 16): 32 bytes of p a pass, and 4.3 warp instructions forward, 10 backward. An H200
(4.27 TB/s, 528 schedulers at 1.75 GHz) can issue 7 in the time that those bytes take. Measured there at 65k atoms: the
forward reaches 75 % of the limit that p's bytes set; the backward 35 %, bound by shared memory: a pair's values change
layout six times between its products, with two programs per multiprocessor.

*Index*: an ordered band runs as above, and its mask is read only if the band has holes; any other table takes the
gather kernels (``triton.gather``), which are bound by the cache that K and V rows come from. There dK and dV are
shared, by fp32 atomics; under ``torch.use_deterministic_algorithms`` the table is inverted (4 bytes a slot) and a
second kernel visits the slots of each key in order. In both modes two such runs agree to the bit in every gradient.
A band whose tiles do not fit a multiprocessor's shared memory (fp32 from H D = 512 on) takes the gather kernels too.

*Samples* that share p are launched one after another over the same kernels: p is read once for each of them, and never
copied; dp, and what else they share, is added up in fp32. A kernel that makes a tile's bias once for all is to come.

*Tiles*: shipped defaults by dtype, sizes and architecture (``triton.config``); tuned ones come from the file that
``PALLATOM_TRITON_TUNED`` names. ``python -m benchmarks tune`` adds to it; ``PALLATOM_TRITON_AUTOTUNE=1`` at first use.

On a CPU the kernels run in Triton's interpreter only: for tests.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pallatom.architecture import _samples
from pallatom.architecture._remember import remembered
from pallatom.architecture.atom_transformers import AtomTransformerBlock

from ._backend import Backend, Cost, Mode, Shape, UnsupportedError
from ._require import pair_weights, require
from .band.plan import BandPlan, NotABand, band_plan
from .triton import launch
from .triton.config import PAIRS_A_PROGRAM, Sizes, backward_config
from .triton.plans import holders_of, in_order
from .triton.tune import tuning_ms
from .triton.tuned import Direction

MAX_HEADS, MAX_HEAD_DIM, MAX_CHANNELS = 16, 64, 64
_WHO = "TritonFusedBlock"
_COST_ARCH = 90  # a shape names no architecture


class TritonFusedBlock(AtomTransformerBlock):
    """The layer with its attention, pair norm and pair projection in one kernel."""

    def _attend(self, Q: Tensor, K: Tensor, V: Tensor, p: Tensor, neighbor_idx: Tensor, valid_mask: Tensor) -> Tensor:
        require(BACKEND, self, Q, K, V, p)
        _require_sizes(Q, K, V, p)
        p = _samples.once(p)
        K, V = _samples.matched(K, Q, p), _samples.matched(V, Q, p)
        gamma, beta, weight, eps = pair_weights(self)
        keep_low = Q.dtype != torch.float32 and wants_gradient(Q, K, V, p, gamma, weight)
        given = (Q, K, V, p, gamma, beta, weight, neighbor_idx, valid_mask, eps, keep_low)
        return atom_attention(*given)[0]


def wants_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _require_sizes(q: Tensor, k: Tensor, v: Tensor, p: Tensor) -> None:
    """Raise :class:`UnsupportedError` with every limit on sizes and dtypes that these tensors exceed."""
    found = {
        "heads": (q.shape[2], MAX_HEADS),
        "head_dim": (q.shape[3], MAX_HEAD_DIM),
        "c_atompair": (p.shape[3], MAX_CHANNELS),
    }
    reasons = [
        f"{name}: at most {most} is required, {size} was found" for name, (size, most) in found.items() if size > most
    ]
    for what, count in (("N H D", q[0].numel() if len(q) else 0), ("B N", q.shape[0] * q.shape[1])):
        if count >= 2**31:
            reasons.append(f"atoms: {what} < 2**31 is required, {count} was found")
    if not q.dtype == k.dtype == v.dtype:
        reasons.append(f"dtype: one dtype for Q, K and V is required, {q.dtype}, {k.dtype} and {v.dtype} were found")
    if reasons:
        raise UnsupportedError(reasons, who=_WHO)


def path(
    block: AtomTransformerBlock, Q: Tensor, K: Tensor, V: Tensor, p: Tensor, neighbor_idx: Tensor, valid_mask: Tensor
) -> str:
    """ "band", "band with holes" or "gather"; "layer" where there are no pairs.

    ", split" is added if a kernel takes the heads in groups, ", backward gather" if only the backward's tile does not
    fit a multiprocessor. The backward's kernels count only where a gradient is wanted. ", sample by sample": where
    samples share p.
    """
    _require_sizes(Q, K, V, p)
    if p.numel() == 0:
        return "layer"
    gamma, _, weight, eps = pair_weights(block)
    problem = _problem(Q, K, V, p[:0], gamma, weight, valid_mask, eps)
    with launch.on(Q.device):
        plan = _band_or_none(neighbor_idx, valid_mask)
        trained = wants_gradient(Q, K, V, p, gamma, weight)
        directions: tuple[Direction, ...] = ("forward", "backward") if trained else ("forward",)
        plans = {d: launch.if_a_tile_fits(d, problem, plan) for d in directions}
        split = any(launch.splits(d, problem, plans[d]) for d in directions)
    taken = "gather" if plans["forward"] is None else plans["forward"].path
    behind = plans["forward"] is not None and plans.get("backward", plan) is None
    return taken + ", split" * split + ", backward gather" * behind + ", sample by sample" * (len(Q) > len(p))


@remembered
def _band_or_none(neighbor_idx: Tensor, valid_mask: Tensor) -> BandPlan | None:
    """The band plan; None where the gather kernels have to run: no band, or one too badly ordered (``in_order``)."""
    try:
        plan = band_plan(neighbor_idx, valid_mask)
    except NotABand:
        return None
    return plan if in_order(plan) else None


def _problem(
    q: Tensor, k: Tensor, v: Tensor, p: Tensor, gamma: Tensor, weight: Tensor, valid_mask: Tensor, eps: float
) -> launch.Problem:
    q, k, v, p, gamma, weight, mask = (t.contiguous() for t in (q, k, v, p, gamma, weight, valid_mask))
    return launch.Problem(q, k, v, p, gamma, weight, mask.view(torch.uint8), eps)


@torch.library.custom_op("pallatom_bench::atom_attention", mutates_args=())
def atom_attention(
    q: Tensor, k: Tensor, v: Tensor, p: Tensor, gamma: Tensor, beta: Tensor, weight: Tensor,
    neighbor_idx: Tensor, valid_mask: Tensor, eps: float, keep_low: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """``(O [B, N, H, D], low, base-2 log-sum-exp [B, N, H])``. beta is an argument only to get its gradient, exactly 0.

    ``low``: with ``keep_low`` (for gradients in 16 bits) what rounding O lost, of O's shape; else empty. The plan is
    made inside, from the index and its mask, so that a traced graph holds this one node.
    """
    pairs, samples = _taken_apart(p, q, k, v, valid_mask)
    with launch.on(q.device):
        plan = _band_or_none(neighbor_idx, valid_mask) if p.numel() else None
        problems = (_problem(q, k, v, pairs, gamma, weight, mask, eps) for q, k, v, mask in samples)
        made = [_forward(problem, plan, neighbor_idx, keep_low) for problem in problems]
    if len(made) == 1:
        return made[0]
    o, low, lse = (torch.stack(parts, 1) if parts[0].dim() > 1 else parts[0] for parts in zip(*made))
    return o.flatten(0, 1), low.flatten(0, 1) if keep_low else low, lse.flatten(0, 1)


def _taken_apart(p: Tensor, *tensors: Tensor) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """p, one entry of it where it is expanded over its batch, and ``tensors`` (Q first) of each sample of every entry:
    the tensors themselves where no two samples share one."""
    batch = len(tensors[0])
    pairs = p[:1] if batch == len(p) > 1 and p.stride(0) == 0 else p
    entries = len(pairs)
    if batch == entries:
        return pairs, [tensors]
    of = [x if x.dim() == 2 else _samples.of_samples(x, batch, entries) for x in tensors]
    return pairs, [tuple(x if isinstance(x, Tensor) else x(i) for x in of) for i in range(batch // entries)]


def _forward(
    problem: launch.Problem, plan: BandPlan | None, neighbor_idx: Tensor, keep_low: bool
) -> tuple[Tensor, Tensor, Tensor]:
    q = problem.q
    if problem.p.numel() == 0:
        o = torch.zeros_like(q)
        low = torch.zeros_like(o) if keep_low else o.new_empty(0)
        return o, low, q.new_full(q.shape[:3], float("inf"), dtype=torch.float32)
    found, plan = None, launch.if_a_tile_fits("forward", problem, plan)
    if plan is not None:
        band = lambda: launch.forward(problem, plan, keep_low=keep_low)  # noqa: E731
        found = launch.if_it_fits("forward", problem, plan, band)
    return found or launch.forward_gather(problem, neighbor_idx.contiguous(), keep_low=keep_low)


@atom_attention.register_fake
def _(q, k, v, p, gamma, beta, weight, neighbor_idx, valid_mask, eps, keep_low):
    o = torch.empty_like(q, memory_format=torch.contiguous_format)
    return o, torch.empty_like(o) if keep_low else o.new_empty(0), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("pallatom_bench::atom_attention_backward", mutates_args=())
def atom_attention_backward(
    grad_o: Tensor, o: Tensor, low: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, p: Tensor,
    gamma: Tensor, weight: Tensor, neighbor_idx: Tensor, valid_mask: Tensor, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, p, gamma and weight, added up over samples in float32."""
    lows = low if low.numel() else low.expand(len(q), 0)
    pairs, samples = _taken_apart(p, q, k, v, valid_mask, grad_o, o, lows, lse)

    def gradients(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *saved: Tensor) -> tuple[Tensor, ...]:
        problem = _problem(q, k, v, pairs, gamma, weight, mask, eps)
        with launch.on(q.device):
            return _backward(problem, neighbor_idx, valid_mask, *(x.contiguous() for x in saved))

    if len(samples) == 1:
        return gradients(*samples[0])  # type: ignore[return-value]
    own = [
        torch.empty_like(x, memory_format=torch.contiguous_format) if len(x) == len(q) else None for x in (q, k, v, p)
    ]
    sums: list[Tensor] = []
    for i, sample in enumerate(samples):
        made = gradients(*sample)
        for whole, x in zip(own, made):
            if whole is not None:
                whole.unflatten(0, (len(pairs), len(samples)))[:, i] = x
        shared = [x for whole, x in zip((*own, None, None), made) if whole is None]
        sums = [x.to(torch.float32) for x in shared] if not sums else [total.add_(x) for total, x in zip(sums, shared)]
    rest = iter(sums)
    given = (q, k, v, p, gamma, weight)
    return tuple(next(rest).to(x.dtype) if whole is None else whole for whole, x in zip((*own, None, None), given))  # type: ignore[return-value]


def _backward(
    problem: launch.Problem, neighbor_idx: Tensor, valid_mask: Tensor,
    grad_o: Tensor, o: Tensor, low: Tensor, lse: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    if problem.p.numel() == 0:
        given = (problem.q, problem.k, problem.v, problem.p, problem.gamma, problem.weight)
        return tuple(torch.zeros_like(x) for x in given)
    deterministic = torch.are_deterministic_algorithms_enabled()
    plan = launch.if_a_tile_fits("backward", problem, _band_or_none(neighbor_idx, valid_mask))
    if plan is not None:
        band = lambda: launch.backward(problem, plan, o, low, lse, grad_o, deterministic=deterministic)  # noqa: E731
        if (found := launch.if_it_fits("backward", problem, plan, band)) is not None:
            return found
    holders = holders_of(neighbor_idx, valid_mask) if deterministic else None
    return launch.backward_gather(problem, neighbor_idx.contiguous(), o, low, lse, grad_o, holders=holders)


@atom_attention_backward.register_fake
def _(grad_o, o, low, lse, q, k, v, p, gamma, weight, neighbor_idx, valid_mask, eps):
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v, p, gamma, weight))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.eps, _ = inputs
    ctx.save_for_backward(*output, *tensors)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_o: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad_o is None:
        return (None,) * 11
    o, low, lse, q, k, v, p, gamma, beta, weight, neighbor_idx, valid_mask = ctx.saved_tensors
    dq, dk, dv, dp, dgamma, dweight = atom_attention_backward(
        grad_o, o, low, lse, q, k, v, p, gamma, weight, neighbor_idx, valid_mask, ctx.eps
    )
    return dq, dk, dv, dp, dgamma, torch.zeros_like(beta), dweight, None, None, None, None


def _refuse_second(ctx: Any, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    raise UnsupportedError(["gradient: first derivatives only are there, a second one was asked for"], who=_WHO)


atom_attention.register_autograd(_differentiate, setup_context=_setup_context)
atom_attention_backward.register_autograd(_refuse_second)


def cost(shape: Shape, mode: Mode) -> Cost:
    """The operation's own cost and little else: p read once a pass, dp written once, scores recomputed in the backward.

    A live pair costs ``2 D`` FLOPs a head in each of the two products and ``2 C`` in the projection, and two gradients
    of the same cost each. Forward: Q, K, V in, O out; backward: Q, K, V, O, dO in, dQ, dK, dV out.

    Peak above the inputs: O and the log-sum-exp; with the backward also low, dp, dQ, dK, dV, dQ's fp32 accumulator,
    delta, and one partial weight gradient per 16 keys. A split backward holds g = rstd dS too, writes it and reads it,
    and reads p once more for each group of heads. Where samples share p, it is read for each, and a sum of dp in fp32
    is read and written for each.
    """
    flops = shape.live_pairs * shape.heads * (4 * shape.head_dim + 2 * shape.c_pair)
    p_live = shape.live_pairs * shape.c_pair * shape.pair_itemsize
    rows = shape.batch * shape.n_atom
    stats = 4 * rows * shape.heads
    if mode == "fwd":
        return Cost(flops, p_live + 4 * shape.atom_bytes + stats, shape.atom_bytes + stats)
    summed = 0 if shape.samples == 1 else 4 * shape.n_pairs * shape.c_pair
    written = shape.samples * (shape.p_bytes + 3 * summed)
    flops, bytes_ = 3 * flops, 2 * p_live + written + 12 * shape.atom_bytes
    scores = shape.live_pairs * shape.heads * 2 * (shape.head_dim + shape.c_pair)
    accumulator = 4 * rows * shape.heads * shape.head_dim
    split = backward_config(_sizes(shape), _COST_ARCH).split_heads
    parts = rows // 16 if split is None else shape.n_pairs // PAIRS_A_PROGRAM
    partial = 4 * (parts + 1) * max(16, shape.c_pair) * max(4, shape.heads)
    g = 0 if split is None else shape.n_pairs * shape.heads * shape.pair_itemsize
    again = 0 if split is None else -(-shape.heads // split) * p_live
    low = 0 if shape.itemsize == 4 else shape.atom_bytes
    peak = 4 * shape.atom_bytes + low + 2 * stats + accumulator + partial + shape.p_bytes + g + summed
    traffic = bytes_ + 2 * low + 4 * stats + 4 * accumulator + 2 * partial + 2 * g + again
    return Cost(flops + scores, traffic, peak)


def _sizes(shape: Shape) -> Sizes:
    dtype, pair_dtype = (torch.bfloat16 if n == 2 else torch.float32 for n in (shape.itemsize, shape.pair_itemsize))
    return Sizes(dtype, pair_dtype, shape.heads, shape.head_dim, shape.c_pair)


def _probe(device: str) -> list[str]:
    """A CPU runs the kernels in Triton's interpreter only, which must go with its numpy."""
    import numpy
    import triton

    if not device.startswith("cpu"):
        return []
    if not triton.knobs.runtime.interpret:  # pyright: ignore[reportAttributeAccessIssue]
        return ["triton: its interpreter is required on cpu (TRITON_INTERPRET=1 before the first import), it is off"]
    if _release(triton.__version__) < (3, 7) and _release(numpy.__version__) >= (2, 4):
        found = f"{triton.__version__} and {numpy.__version__} were found"
        return [f"triton: its interpreter is required in version 3.7 or later for numpy 2.4 and later, {found}"]
    return []


def _release(version: str) -> tuple[int, int]:
    major, minor, *_ = version.split(".")
    return int(major), int(minor)


BACKEND = Backend(
    block=TritonFusedBlock,
    summary="one Triton kernel a pass: norm, projection, softmax and both products; p is read once, dp written once",
    devices=("cuda", "cpu"),
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    cost=cost,
    requires=("triton",),
    reads_weights=True,
    samples=True,
    min_capability=(8, 0),
    probe=_probe,
    tuning_ms=tuning_ms,
    everyday=True,
    path=path,
)
