"""FlexAttention: a block mask from the band, the pair bias added by ``score_mod``.

Idea: the bias is projected first, to [B, H, N, K] in memory; one generated kernel then runs over the 128 × 128 score
blocks that the band touches and reads ``bias[b, h, q, kv − base[q]]`` for every score. Blocks that lie wholly inside
the band of every row skip the mask. Dong et al., FlexAttention (MLSys 2025, arXiv:2412.05496).

The block mask comes from the band's starts and stops, never from evaluating an N × N mask, and is kept per index.
Two programs are compiled per kind of call (bias; attention). On the CPU there is no backward. On CUDA the gradient of
the bias is added atomically by the kernel into a float32 buffer; every slot is touched by one score, so the sum does
not depend on the order.

On the CPU, rows are padded to a multiple of 16: on AVX2 processors FlexAttention's own kernel (torch 2.13.0) gives
garbage at N % 16 = 8 with small heads, whoever calls it (``scripts/flex_cpu_rows.py`` shows it in ten lines; a test on
such processors notices when a torch release mends it).

Cost model: p is read once, the bias written and read once. Scores are computed for whole blocks: up to 255 more per row
than the band is wide. K and V come from cache. Backward: p is read again for LayerNorm's gradient and for that of each
head's weights, dp is written.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pallatom.architecture import _samples
from pallatom.architecture._remember import remembered
from pallatom.architecture.atom_transformers import AtomTransformerBlock
from pallatom.architecture.eager import eager

from ._backend import Backend, Cost, Mode, Shape, UnsupportedError
from ._require import require
from .band.plan import BandPlan, band_plan
from .libraries.torch_compile import compiled, compiler_reasons, nan_where_squares_overflow

_TILE = 128  # atoms per side of a score block: what FlexAttention's own kernel configurations divide
_CPU_ROWS = 16  # the CPU kernel gets a multiple of this many rows
_INT32_MAX = 2**31 - 1


class Blocks(NamedTuple):
    """A band as FlexAttention takes it: BlockMask's eight tensors, and int32 ``[N']`` base, start, stop.

    N' is N, on the CPU rounded up to a multiple of 16 with rows that see nothing.
    """

    kv_num_blocks: Tensor
    kv_indices: Tensor
    full_kv_num_blocks: Tensor
    full_kv_indices: Tensor
    q_num_blocks: Tensor
    q_indices: Tensor
    full_q_num_blocks: Tensor
    full_q_indices: Tensor
    base: Tensor
    start: Tensor
    stop: Tensor


_N_MASK_TENSORS = 8


@remembered
def blocks(plan: BandPlan) -> Blocks:
    """Score blocks that the band touches: in part (the mask decides) or in full.

    Rows i·128 … i·128+127 touch key blocks from that of their first start to that of their last stop; a key block is
    full if every one of those rows sees all of it. With holes nothing is known to be full.
    """
    from torch.nn.attention.flex_attention import BlockMask

    n = plan.start.numel()
    count = -(-n // _TILE)
    alive = plan.stop > plan.start
    first = _per_tile(torch.where(alive, plan.start, n), count, n, "amin")
    last = _per_tile(plan.stop, count, 0, "amax")
    inner_first = _per_tile(torch.where(alive, plan.start, n), count, 0, "amax")
    inner_last = _per_tile(plan.stop, count, 0, "amin")  # 0: a tile that reaches past the last row has no full block
    lo = torch.minimum(first, last) // _TILE
    hi = (last + _TILE - 1) // _TILE
    full_lo = torch.clamp((inner_first + _TILE - 1) // _TILE, lo, hi)
    full_hi = torch.clamp(inner_last // _TILE, full_lo, hi)
    if plan.has_holes:
        full_hi = full_lo
    slot = torch.arange(count, device=lo.device)
    before, full = full_lo - lo, full_hi - full_lo
    partial_idx = torch.where(slot < before[:, None], lo[:, None] + slot, (lo + full)[:, None] + slot)
    rows = n + _missing(n, plan.device)
    made = BlockMask.from_kv_blocks(
        _listed(hi - lo - full),
        _listed(partial_idx.clamp(max=count - 1)),
        _listed(full),
        _listed((full_lo[:, None] + slot).clamp(max=count - 1)),
        BLOCK_SIZE=_TILE,
        seq_lengths=(rows, rows),
    )
    kept = [getattr(made, name) for name in Blocks._fields[:_N_MASK_TENSORS]]
    ends = (torch.nn.functional.pad(x.int(), (0, rows - n)) for x in (plan.base, plan.start, plan.stop))
    return Blocks._make([*kept, *ends])


def _missing(n: int, device: torch.device) -> int:
    """How many rows the kernel must be given beyond ``n``."""
    return -n % _CPU_ROWS if device.type == "cpu" else 0


def _per_tile(rows: Tensor, count: int, fill: int, how: str) -> Tensor:
    padded = torch.nn.functional.pad(rows, (0, count * _TILE - rows.numel()), value=fill).view(count, _TILE)
    return getattr(padded, how)(1)


def _listed(x: Tensor) -> Tensor:
    """As BlockMask wants it: int32, a leading batch and head of one."""
    return x.to(torch.int32)[None, None].contiguous()


def _bias(block: AtomTransformerBlock, p: Tensor, valid_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """pair_bias(norm_pair(p)) as [B, H, N, K]; padding slots count as p = 0, whatever they hold.

    One sum per head instead of a matrix product: compiled, it reads p once and stores no normalised p.
    """
    normed = block.norm_pair(torch.where(valid_mask[..., None], nan_where_squares_overflow(p), 0))
    return torch.stack([(normed * row).sum(-1) for row in block.pair_bias.weight.unbind(0)], 1).to(dtype)


def _attention(Q: Tensor, K: Tensor, V: Tensor, bias: Tensor, blocks: Blocks, holes: Tensor | None) -> Tensor:
    """softmax(Q Kᵀ / sqrt(D) + bias) V over the band, by FlexAttention; ``holes`` [1 or B, N, K] masks slots too.

    Q, K, V ``[B, N, H, D]`` are padded to the N' rows of ``blocks``; the rows beyond N read those of row N − 1, and are
    cut off.
    """
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    base, start, stop = blocks.base, blocks.start, blocks.stop
    (n, width), rows = bias.shape[2:], base.shape[0]

    def row(q: Tensor) -> Tensor:
        return q if rows == n else q.clamp(max=n - 1)

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return score + bias[b, h, row(q), (kv - base[q]).clamp(0, width - 1)]

    def in_band(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return (kv >= start[q]) & (kv < stop[q])

    def in_band_with_holes(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        assert holes is not None
        live = holes[b if holes.shape[0] > 1 else 0, row(q), (kv - base[q]).clamp(0, width - 1)]
        return in_band(b, h, q, kv) & live

    mask = BlockMask(
        (rows, rows),
        *blocks[:_N_MASK_TENSORS],
        BLOCK_SIZE=(_TILE, _TILE),
        mask_mod=in_band if holes is None else in_band_with_holes,
    )
    if rows > n:
        Q, K, V = (torch.nn.functional.pad(t, (0, 0, 0, 0, 0, rows - n)) for t in (Q, K, V))
    heads_first = (t.transpose(1, 2) for t in (Q, K, V))
    out = flex_attention(*heads_first, score_mod=score_mod, block_mask=mask, kernel_options={"BACKEND": "TRITON"})
    out = torch.where(bias.isnan().any(-1, keepdim=True), torch.nan, out[:, :, :n])  # the CPU's kernel passes over NaN
    return out.transpose(1, 2)


class FlexBlock(AtomTransformerBlock):
    """The attention seam by FlexAttention."""

    @eager
    def _attend(self, Q: Tensor, K: Tensor, V: Tensor, p: Tensor, neighbor_idx: Tensor, valid_mask: Tensor) -> Tensor:
        require(BACKEND, self, Q, K, V, p)
        _require_size(self, Q, p)
        if p.shape[2] == 0:
            return super()._attend(Q, K, V, p, neighbor_idx, valid_mask)  # the layer's own empty sum
        plan = band_plan(neighbor_idx, valid_mask)
        score_blocks = blocks(plan)
        if not torch.is_grad_enabled():
            Q, K, V = Q.detach(), K.detach(), V.detach()
        p = _samples.once(p)
        seen = _samples.live_in_any(valid_mask, len(p))
        bias = compiled(_bias, p, seen, *self.parameters(), static=(self.n_heads, Q.dtype))(self, p, seen, Q.dtype)

        def attend(Q: Tensor, K: Tensor, V: Tensor, bias: Tensor, live: Tensor) -> Tensor:
            holes = live if plan.has_holes else None
            return compiled(_attention, Q, K, V, bias, *score_blocks, holes)(Q, K, V, bias, score_blocks, holes)

        live = valid_mask if valid_mask.dim() == 3 else valid_mask[None]
        return _samples.one_by_one(attend, Q, K, V, bias, live)


def path(
    block: AtomTransformerBlock, Q: Tensor, K: Tensor, V: Tensor, p: Tensor, neighbor_idx: Tensor, valid_mask: Tensor
) -> str:
    """The layer's own empty sum where there are no slots, else the band."""
    return band_plan(neighbor_idx, valid_mask).path if p.shape[2] else "layer"


def _require_size(block: FlexBlock, Q: Tensor, p: Tensor) -> None:
    """FlexAttention's own limits on sizes."""
    reasons = []
    if Q.device.type == "cuda" and Q.shape[3] < 16:
        reasons.append(f"head_dim: at least 16 is required on CUDA, {Q.shape[3]} was found")
    bias_elements = p.shape[0] * Q.shape[2] * p.shape[1] * p.shape[2]
    if bias_elements > _INT32_MAX:
        reasons.append(f"B·H·N·K: at most {_INT32_MAX} is required (32-bit offsets), {bias_elements} was found")
    if reasons:
        raise UnsupportedError(reasons, who=type(block).__name__)


def probe(device: str) -> list[str]:
    """What torch.compile lacks here, and, on the CPU, the vector instructions that FlexAttention insists on."""
    reasons = compiler_reasons(device)
    if device == "cpu" and not torch.cpu._is_avx2_supported():
        reasons.append("cpu: AVX2 is required by FlexAttention, this processor has none")
    return reasons


def cost(shape: Shape, mode: Mode) -> Cost:
    """See the module's docstring. Peak: the bias, mean and deviation of each pair; backward: dbias twice, dp."""
    blocks_wide = -(-(shape.n_neighbor + 2 * _TILE - 1) // _TILE) if shape.n_neighbor else 0
    scored = shape.batch * shape.heads * shape.n_atom * min(blocks_wide * _TILE, -(-shape.n_atom // _TILE) * _TILE)
    flops = scored * 4 * shape.head_dim + shape.n_pairs * shape.heads * 2 * shape.c_pair
    bias = shape.n_pairs * shape.heads * shape.itemsize
    traffic = shape.p_bytes + (1 + shape.samples) * bias + 4 * shape.atom_bytes
    if mode == "fwd":
        return Cost(flops, traffic, bias + 8 * shape.n_pairs + 2 * shape.atom_bytes)
    grad_bias = shape.n_pairs * shape.heads * 4  # float32, whatever the activations are
    back = (3 + shape.heads) * shape.p_bytes + shape.samples * (2 * bias + 4 * grad_bias) + 9 * shape.atom_bytes
    peak = 2 * shape.p_bytes + 2 * bias + 2 * grad_bias + 8 * shape.atom_bytes
    return Cost(flops * 7 // 2, traffic + back, peak)


BACKEND = Backend(
    block=FlexBlock,
    summary="FlexAttention: block mask from the band, pair bias by score_mod",
    devices=("cpu", "cuda"),
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    cost=cost,
    backward=("cuda",),
    min_capability=(7, 5),
    needs_band=True,
    samples=True,
    reads_weights=True,
    probe=probe,
    compiles=True,
    path=path,
)
