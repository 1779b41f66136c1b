"""Query tiles against their contiguous key span: no gather, no N·K intermediate.

Idea: in a band, the neighbours of T query rows lie in one slice of S ≈ K + T atoms, so a tile's scores are one small
GEMM per head. Its pair bias is LayerNorm and projection folded into GEMMs over the tile of p (``band.pair_bias``),
copied from slot to span coordinates (``band.tiles``). The backward pass recomputes each tile: nothing of size N·K but
dp is ever stored, and no atomics are needed. Samples that share p take a tile in turn: its bias is made once, and their
dS are summed before they meet p.

Cost: the operation's FLOPs times S / K for the two products; p is read once forward and once backward; all else stays
in cache. Peak above the inputs: outputs, per-head copies of Q, K, V, and one tile of scratch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pallatom.architecture import _samples
from pallatom.architecture._remember import remembered
from pallatom.architecture.atom_transformers import AtomTransformerBlock
from pallatom.architecture.eager import eager

from ._backend import Backend, Cost, Mode, Shape
from ._require import pair_weights, require
from .band.batches import Batch, batches
from .band.pair_bias import PairBias, Pairs
from .band.plan import BandPlan, band_path, band_plan
from .band.tiles import Tile, tiles

_FILL = -1e30  # the score of a dead slot: exp gives exactly 0 beside any live one, and no NaN in a dead row
_TILE_PAIRS = 32_768  # so many stay in cache, and torch starts no second thread for one number per pair
_TILE_ROWS = (32, 112)  # fewer rows: overhead per tile; more: scores outside the band
_CUDA_TILE_ROWS = 64
_CUDA_BATCH_PAIRS = 1 << 20  # a batch takes some twenty launches, whatever its size; little beside a large p


class BandedBlock(AtomTransformerBlock):
    """The layer on query tiles; needs a band (see :func:`variants.band_plan`)."""

    @eager
    def _attend(self, Q: Tensor, K: Tensor, V: Tensor, p: Tensor, neighbor_idx: Tensor, valid_mask: Tensor) -> Tensor:
        require(BACKEND, self, Q, K, V, p)
        plan = band_plan(neighbor_idx, valid_mask)
        gamma, beta, weight, eps = pair_weights(self)
        p = _samples.once(p)
        K, V = _samples.matched(K, Q, p), _samples.matched(V, Q, p)
        with torch.autocast(Q.device.type, enabled=False):
            return _BandedAttention.apply(Q, K, V, p, gamma, beta, weight, eps, plan, valid_mask)


class _BandedAttention(torch.autograd.Function):
    """O = softmax(Q·Kᵀ/√D + bias(p)) · V over the band; gradients by recomputing each tile."""

    @staticmethod
    def forward(ctx: Any, Q, K, V, p, gamma, beta, weight, eps, plan, mask) -> Tensor:
        work = _Work(Q, p, gamma, weight, eps, plan, mask)
        # δ = <dO, O> cancels where a softmax is saturated: the backward wants O as it was summed
        out = torch.zeros_like(Q, dtype=work.dtype if any(ctx.needs_input_grad) else Q.dtype)
        for entry in range(len(p)):
            samples = work.samples(entry, Q, K, V)
            for tile in work.tiles:
                pairs = work.bias(entry, tile)
                for item, _, q, k, v in samples:
                    probs = work.probabilities(item, tile, pairs, q, k)
                    tile.put_queries(out[item].transpose(0, 1), torch.bmm(probs, tile.window(v)))
        ctx.save_for_backward(Q, K, V, p, gamma, beta, weight, mask, out)
        ctx.eps, ctx.plan = eps, plan
        return out.to(Q.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        Q, K, V, p, gamma, beta, weight, mask, out = ctx.saved_tensors
        with torch.autocast(Q.device.type, enabled=False):
            work = _Work(Q, p, gamma, weight, ctx.eps, ctx.plan, mask)
            dp = work.empty_pair_gradient() if ctx.needs_input_grad[3] else None
            dQ, dK, dV = (torch.empty_like(x) for x in (Q, K, V))
            for entry in range(len(p)):
                _entry_backward(work, entry, (Q, K, V, out, grad_out), (dQ, dK, dV), dp)
            dgamma, dweight = work.pair_bias.weight_gradients()
        weights = dgamma.to(gamma.dtype), torch.zeros_like(beta), dweight.to(weight.dtype)
        return dQ, dK, dV, dp, *weights, None, None, None


def _entry_backward(
    work: _Work, entry: int, inputs: tuple[Tensor, ...], gradients: tuple[Tensor, Tensor, Tensor], dp: Tensor | None
) -> None:
    """Writes dQ, dK, dV of the samples of an entry, and dp[entry]; adds to the weights' moment.

    dV = Aᵀ·dO,  dS = A ⊙ (dO·Vᵀ − δ) with δ = <dO, O>,  dQ = dS·K/√D,  dK = dSᵀ·Q/√D;  dp from Σ dS over samples.
    """
    Q, K, V, out, grad_out = inputs
    samples = work.samples(entry, Q, K, V)
    douts = [work.by_head(grad_out, sample.item) for sample in samples]
    minus_deltas = [
        (dout * work.by_head(out, sample.item)).sum(-1, keepdim=True).neg_() for sample, dout in zip(samples, douts)
    ]
    dqs = [torch.zeros_like(sample.q) for sample in samples]
    dkvs = {sample.key: (torch.zeros_like(sample.k), torch.zeros_like(sample.v)) for sample in samples}
    for tile in work.tiles:
        pairs = work.bias(entry, tile)
        total = work.total(tile)
        for i, (item, key, q, k, v) in enumerate(samples):
            dout, (dk, dv) = tile.queries(douts[i]), dkvs[key]
            probs = work.probabilities(item, tile, pairs, q, k)
            tile.add_to_window(dv, probs, dout)
            dscores = work.scores(tile)
            torch.baddbmm(tile.queries(minus_deltas[i]), dout, tile.window(v).transpose(1, 2), out=dscores)
            dscores.mul_(probs)
            tile.put_queries(dqs[i], torch.bmm(dscores, tile.window(k)))
            tile.add_to_window(dk, dscores, tile.queries(q))
            if len(samples) > 1:
                total = total.add_(dscores) if i else total.copy_(dscores)
        work.pair_bias.backward(entry, tile, pairs, total, dp)
    for sample, dq in zip(samples, dqs):
        gradients[0][sample.item] = dq.mul_(work.scale).transpose(0, 1)
    for key, dkv in dkvs.items():
        gradients[1][key], gradients[2][key] = (x.transpose(0, 1) for x in dkv)


class _Sample(NamedTuple):
    """An item of Q and the item of K and V that it uses; q, k, v ``[H, N, D]``, q times 1/√D."""

    item: int
    key: int
    q: Tensor
    k: Tensor
    v: Tensor


class _Work:
    """One call's tiles, pair bias, and scratch for the largest tile's scores."""

    def __init__(self, Q: Tensor, p: Tensor, gamma: Tensor, weight: Tensor, eps: float, plan: BandPlan, mask: Tensor):
        self.p, self.plan = p, plan
        self.heads, self.scale = weight.shape[0], Q.shape[-1] ** -0.5
        self.dtype = torch.promote_types(torch.promote_types(Q.dtype, p.dtype), torch.float32)
        self.tiles = _tiling(plan)
        max_pairs = max((t.n_rows * plan.n_neighbor for t in self.tiles), default=0)
        max_scores = max((t.n_rows * t.span for t in self.tiles), default=0)
        items = mask if mask.dim() == 3 else mask[None]
        seen = _samples.live_in_any(items, len(p))
        self.own = _samples.repeated(items, len(Q)) if plan.has_holes and len(items) > len(seen) else None
        self.dead = ~items.any(-1) if plan.has_holes or any(t.has_dead for t in self.tiles) else None
        self.pair_bias = PairBias(p, gamma, weight, eps, seen, max_pairs, self.dtype)
        self.batch, self.count = len(Q), len(Q) // max(len(p), 1)
        # scores, probabilities, and where samples share both: the bias of their scores, and their dS added up
        made = self.pair_bias.moment.new_empty(4 if self.count > 1 else 2, self.heads * max_scores)
        self._scores, self._probs = made[0], made[1]
        self._bias, self._total = (made[2], made[3]) if self.count > 1 else (made[0], made[0])

    def by_head(self, x: Tensor, item: int) -> Tensor:
        """An item of x [B, N, H, D] as contiguous [H, N, D]."""
        return x[item].transpose(0, 1).to(self.dtype).contiguous()

    def samples(self, entry: int, Q: Tensor, K: Tensor, V: Tensor) -> list[_Sample]:
        """The samples of an entry; those that share K and V hold the same."""
        made: list[_Sample] = []
        for item in range(entry * self.count, (entry + 1) * self.count):
            key = item * len(K) // self.batch
            same = made and made[-1].key == key
            k, v = made[-1][3:] if same else (self.by_head(x, key) for x in (K, V))
            made.append(_Sample(item, key, self.by_head(Q, item) * self.scale, k, v))
        return made

    def scores(self, tile: Tile | Batch) -> Tensor:
        return self._of_tile(self._scores, tile)

    def total(self, tile: Tile | Batch) -> Tensor:
        """Where the dS of all samples are added up: the scores, where there is one sample."""
        return self._of_tile(self._total, tile)

    def _of_tile(self, scratch: Tensor, tile: Tile | Batch) -> Tensor:
        return scratch[: self.heads * tile.n_rows * tile.span].view(tile.score_shape(self.heads))

    def bias(self, entry: int, tile: Tile | Batch) -> Pairs:
        """A tile's pairs, valid until the next tile; its bias goes to where its samples' scores begin."""
        pairs = self.pair_bias.load(entry, tile)
        if self.plan.has_holes:
            pairs.bias.masked_fill_(~self.pair_bias.live(entry, tile), _FILL)
        if self.own is None:
            tile.to_span(pairs.bias, self._of_tile(self._bias, tile), _FILL)
        return pairs

    def probabilities(self, item: int, tile: Tile | Batch, pairs: Pairs, q: Tensor, k: Tensor) -> Tensor:
        """A [H, T, S] of one tile for one item of Q, 0 outside the band and in dead rows."""
        bias, scores = self._of_tile(self._bias, tile), self.scores(tile)
        if self.own is not None:
            live = self.own[item, tile.rows].reshape(-1)
            tile.to_span(pairs.bias.masked_fill(~live, _FILL), bias, _FILL)
        torch.baddbmm(bias, tile.queries(q), tile.window(k).transpose(1, 2), out=scores)
        probs = torch.softmax(scores, -1, out=self._probs[: scores.numel()].view(scores.shape))
        if self.dead is not None and (tile.has_dead or self.plan.has_holes):
            by_row = probs.view(self.heads, tile.n_rows, tile.span)
            by_row.masked_fill_(self.dead[item * len(self.dead) // self.batch, tile.rows, None], 0)
        return probs

    def empty_pair_gradient(self) -> Tensor:
        """dp, uninitialised where a tile will write it and 0 elsewhere."""
        dp = torch.empty(self.p.shape, dtype=self.p.dtype, device=self.p.device)
        done = 0
        for tile in self.tiles:
            dp[:, done : tile.rows.start] = 0
            done = tile.rows.stop
        dp[:, done:] = 0
        return dp


@remembered
def _tiling(plan: BandPlan) -> tuple[Tile, ...] | tuple[Batch, ...]:
    if plan.base.is_cuda:
        return batches(plan, _CUDA_TILE_ROWS, _CUDA_BATCH_PAIRS)
    return tiles(plan, _tile_rows(plan.n_neighbor))


def _tile_rows(n_neighbor: int) -> int:
    return min(max(_TILE_PAIRS // max(n_neighbor, 1), _TILE_ROWS[0]), _TILE_ROWS[1])


def cost(shape: Shape, mode: Mode) -> Cost:
    """The operation's, with the products over a span of S = K + T keys instead of K; p passes once each way."""
    cuda = shape.device == "cuda"
    tile = min(_CUDA_TILE_ROWS if cuda else _tile_rows(shape.n_neighbor), shape.n_atom)
    span = shape.n_neighbor + tile
    rows = min(max(tile, _CUDA_BATCH_PAIRS // span), shape.n_atom) if cuda else tile
    acc = max(shape.itemsize, shape.pair_itemsize, 4)
    products = 4 * shape.batch * shape.n_atom * span * shape.heads * shape.head_dim
    project = 2 * shape.n_pairs * (shape.heads + 2) * shape.c_pair
    # of a tile of p: its squares, and itself where it must be widened; on CUDA it is always centred as well
    copies = (1 if shape.pair_itemsize == acc else 2) + 2 * cuda
    scores = (4 if shape.samples > 1 else 2) * shape.heads * span
    scratch = rows * (shape.n_neighbor * (copies * shape.c_pair + shape.heads + 3) + scores) * acc
    by_head = shape.n_atom * shape.heads * shape.head_dim * acc  # of one item; all samples of an entry at once
    if mode == "fwd":
        peak = scratch + (1 + 3 * shape.samples) * by_head + shape.atom_bytes
        return Cost(products + project, shape.p_bytes + 10 * shape.atom_bytes, peak)
    kept = shape.batch * by_head if shape.itemsize < acc else 0
    peak = scratch + (2 + 7 * shape.samples) * by_head + 5 * shape.atom_bytes + shape.p_bytes + kept
    return Cost(7 * products // 2 + 4 * project, 3 * shape.p_bytes + 30 * shape.atom_bytes, peak)


BACKEND = Backend(
    block=BandedBlock,
    summary="query tiles against their contiguous key span; p read once, nothing of size N x K stored",
    devices=("cpu", "cuda"),
    dtypes=(torch.float32, torch.float64, torch.bfloat16, torch.float16),
    cost=cost,
    needs_band=True,
    samples=True,
    reads_weights=True,
    everyday=True,
    path=band_path,
)
