"""Device functions that the forward and backward kernels share: LayerNorm and projection of pairs, and their backward.

Pair tiles are 2-D, ``[pairs, C]`` (a pipelined 3-D tile becomes scalar shared-memory loads). A tile of 16 to 32
queries x 16 to 32 keys is reshaped to that before its LayerNorm and back after its projection.
"""

# ruff: noqa: E741 — outputs are O here
from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))  # pyright: ignore[reportAttributeAccessIssue]
# The score of a slot that is not live: finite, so that differences are, and a power of two, so that its product with
# any scale is exact. A GPU computes `s * scale - max * scale` with one fused multiply-add: were that product rounded, a
# row without a live slot would have exp2 of the rounding error, 1e22 or -1e22, in place of exp2(0).
# It lies below every score that fp32 holds with room for a sum, so that no live slot is taken for a dead one.
LOWEST = tl.constexpr(-(2.0**126))
LOG2_E = tl.constexpr(1.4426950408889634)
FAR = tl.constexpr(2147483647)


@triton.jit
def dot(a, b, acc=None):
    """``a @ b + acc`` in fp32: tensor cores; three tf32 products for fp32 operands."""
    if INTERPRETED:  # the interpreter keeps bf16 as raw bits and would multiply those; the products are exact in fp32
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="tf32x3" if a.dtype == tl.float32 else None)


@triton.jit
def within(offset, width):
    """``0 <= offset < width`` in one comparison."""
    return offset.to(tl.uint32, bitcast=True) < width.to(tl.uint32, bitcast=True)


@triton.jit
def centring(C: tl.constexpr, CP: tl.constexpr, dtype: tl.constexpr):
    """``I - 11ᵀ/C`` on the first C channels: exact in fp16 and bf16, because C is a power of two.

    Made by arithmetic alone, as ``split_weight`` is: if a product's operand depends on a comparison or a join, the
    compiler chooses a fragment layout that takes three moves per tensor-core instruction.
    """
    i = tl.arange(0, CP)
    eye = 1 - tl.minimum(tl.abs(i[:, None] - i[None, :]), 1)
    real = tl.minimum(tl.maximum(C - i, 0), 1)
    return ((eye.to(tl.float32) - 1.0 / C) * (real[:, None] * real[None, :]).to(tl.float32)).to(dtype)


@triton.jit
def split_weight(W, GAMMA, factor, H, C: tl.constexpr, HP: tl.constexpr, CP: tl.constexpr, dtype: tl.constexpr):
    """``factor Wc`` as ``[CP, 2 HP]``: columns 2 h and 2 h + 1 are head h's high and low part in ``dtype``.

    p is projected with its mean still in it, so each head's weights must sum to exactly 0 over c: in a row that is
    constant up to rounding, what the sum leaves of the mean is multiplied by up to ``eps**-0.5``. In 16 bits head h's
    weights are therefore whole multiples of one power of two, u[h]: high parts of at most 8 bits, low parts of at most
    8 (fp16: 11) more; the few units by which their sum misses 0 are subtracted, spread over the channels. In a row
    whose elements all have the mean's exponent, the products with p's 8 or 11 bits are then whole multiples of one
    unit that fit into 24 bits, so their fp32 sum is exact too.
    """
    c = tl.arange(0, CP)
    column = tl.arange(0, 2 * HP)
    real_c = tl.minimum(tl.maximum(C - c, 0), 1).to(tl.float32)
    real_h = tl.minimum(tl.maximum(H - column // 2, 0), 1).to(tl.float32)
    at_c = tl.minimum(c, C - 1)
    g = tl.load(GAMMA + at_c).to(tl.float32) * real_c
    w = tl.load(W + tl.minimum(column // 2, H - 1)[None, :] * C + at_c[:, None]).to(tl.float32)
    w = w * g[:, None] * real_h[None, :]
    w = (w - tl.sum(w, 0)[None, :] / C) * real_c[:, None] * factor
    part = (column % 2).to(tl.float32)[None, :]
    if dtype == tl.float32:
        return w * (1.0 - part)
    FINE: tl.constexpr = 2048.0 if dtype == tl.float16 else 256.0  # pyright: ignore[reportAssignmentType]
    unit = _unit(tl.max(tl.abs(w), 0), dtype)[None, :]
    high = tl.floor(w / unit + 0.5)
    low = tl.floor((w / unit - high) * FINE + 0.5)
    excess = (tl.sum(high, 0) * FINE + tl.sum(low, 0))[None, :]
    share = tl.minimum(c + 1, C).to(tl.float32)[:, None]
    low -= tl.floor(excess * share / C) - tl.floor(excess * tl.maximum(share - real_c[:, None], 0.0) / C)
    return (high * unit * (1.0 - part) + low * (unit / FINE) * part).to(dtype)


@triton.jit
def _unit(most, dtype: tl.constexpr):
    """The power of two u with ``128 u <= most < 256 u``.

    In fp16 at least 2**-13, so that fp16 can hold u / 2048; NaN where ``most`` exceeds fp16's range.
    """
    exponent = (most.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True) * 0.0078125
    if dtype == tl.float16:
        return tl.where(most < 65280.0, tl.maximum(exponent, 2.0**-13), float("nan"))
    return tl.maximum(exponent, 2.0**-100) + (most - most)


@triton.jit
def spread_weight(W, GAMMA, H, C: tl.constexpr, HP: tl.constexpr, CP: tl.constexpr, dtype: tl.constexpr):
    """Wc transposed, ``[TIMES HP, CP]``: the heads' high parts, then their low parts, then zeros.

    dS, repeated TIMES times (``repeat``), times this matrix is dS Wc^T with Wc to twice the bits of ``dtype``. A
    tensor-core product is at least 16 deep, so the repetition costs nothing.
    """
    TIMES: tl.constexpr = max(2, 16 // HP)  # pyright: ignore[reportAssignmentType]
    c = tl.arange(0, CP)
    row = tl.arange(0, HP * TIMES)
    real_c = tl.minimum(tl.maximum(C - c, 0), 1).to(tl.float32)
    real_h = tl.minimum(tl.maximum(H - row % HP, 0), 1).to(tl.float32)
    at_c = tl.minimum(c, C - 1)
    g = tl.load(GAMMA + at_c).to(tl.float32) * real_c
    w = tl.load(W + tl.minimum(row % HP, H - 1)[:, None] * C + at_c[None, :]).to(tl.float32)
    w = w * g[None, :] * real_h[:, None]
    w = (w - tl.sum(w, 1)[:, None] / C) * real_c[None, :]
    high = w.to(dtype).to(tl.float32)
    part = row // HP
    is_high = (1 - tl.minimum(part, 1)).to(tl.float32)[:, None]
    is_low = (1 - tl.minimum(tl.abs(part - 1), 1)).to(tl.float32)[:, None]
    return (high * is_high + (w - high) * is_low).to(dtype)


@triton.jit
def repeat(x, TIMES: tl.constexpr):
    """``x [parts, rows, heads]`` repeated along its last axis, ``[parts, rows, TIMES heads]``."""
    parts: tl.constexpr = x.shape[0]
    rows: tl.constexpr = x.shape[1]
    heads: tl.constexpr = x.shape[2]
    return tl.reshape(tl.broadcast_to(x[:, :, None, :], [parts, rows, TIMES, heads]), [parts, rows, TIMES * heads])


@triton.jit
def small_dot(x, w):
    """``x [parts, rows, depth] @ w [depth, cols]``, one part per warp.

    The batch axis keeps Hopper from taking its asynchronous warp-group instruction, whose waits cost more than these
    small products.
    """
    return dot(x, tl.broadcast_to(w[None, :, :], [x.shape[0], w.shape[0], w.shape[1]]))


@triton.jit
def pair_gradient(x, rstd, g, wt, C: tl.constexpr):
    """dp ``[parts, rows, CP]`` of centred rows x, from ``g = rstd dS [parts, rows, heads]`` and ``spread_weight``.

    LayerNorm backward under a weight centred over c, with ``G = g Wc^T``: ``dp = G - rstd^2 x <x, G> / C``.
    """
    dp = small_dot(repeat(g, wt.shape[0] // g.shape[2]), wt)
    return dp - x * (tl.sum(x * dp, 2) * rstd * rstd * (1.0 / C))[:, :, None]


@triton.jit
def normal_pair_gradient(x, rstd, ds, wt, C: tl.constexpr):
    """dp as of ``pair_gradient``, from normalised rows x and dS."""
    g = small_dot(repeat(ds, wt.shape[0] // ds.shape[2]), wt)
    return rstd[:, :, None] * (g - x * (tl.sum(x * g, 2) * (1.0 / C))[:, :, None])


@triton.jit
def pair_gradients(x, rstd, g, wt, dw, C: tl.constexpr):
    """``(dp, dw)`` of centred rows x and ``g [parts, rows, heads]`` in p's dtype.

    g is rstd dS; in fp16 it is dS, because rstd dS underflows where p is large.
    """
    if g.dtype == tl.float16:
        x = x * rstd[:, :, None]
        return normal_pair_gradient(x, rstd, g, wt, C), weight_product(x.to(g.dtype), g, dw)
    return pair_gradient(x, rstd, g, wt, C), weight_product(x.to(g.dtype), g, dw)


@triton.jit
def weight_product(x, ds, dw):
    """``dw [parts, CP, 2 heads] + x^T ds`` for ``x [parts, rows, CP]`` and ``ds [parts, rows, heads]``.

    ds is repeated because a tensor-core product is at least 8 wide.
    """
    return dot(tl.permute(x, (0, 2, 1)), repeat(ds, 2), dw)


@triton.jit
def total_weight(dw, CP: tl.constexpr, HP: tl.constexpr):
    """The sum of ``weight_product``'s result over its parts, ``[CP, HP]``."""
    return tl.sum(tl.reshape(tl.sum(dw, 0), [CP, 2, HP]), 1) * 0.5


@triton.jit
def centre(p, C: tl.constexpr, CP: tl.constexpr, WIDEST: tl.constexpr = 32):  # pyright: ignore[reportArgumentType]
    """Pair rows minus their mean over the channels, ``[parts, rows, CP]`` fp32.

    By a tensor-core product where 1/C is exact and CP <= ``WIDEST``; its matrix takes each lane CP^2 / 64 registers.
    """
    if p.dtype == tl.float32 or (C & (C - 1)) != 0 or CP > WIDEST:
        return centre_in_lanes(p, C, CP)
    return small_dot(p, centring(C, CP, p.dtype))


@triton.jit
def centre_in_lanes(p, C: tl.constexpr, CP: tl.constexpr):
    x = p.to(tl.float32)
    x = x - tl.sum(x, 2)[:, :, None] * (1.0 / C)
    if CP != C:
        x = tl.where(tl.arange(0, CP)[None, None, :] < C, x, 0.0)
    return x


@triton.jit
def normalise(p, eps, C: tl.constexpr, CP: tl.constexpr, WIDEST: tl.constexpr = 32):  # pyright: ignore[reportArgumentType]
    """``(p - mean, rstd [parts, rows])`` of pair rows, in two passes: one would lose digits where the mean is large.

    A row whose squares overflow gets rstd = 0. Only backward kernels call this, and there the forward's log-sum-exp
    has already made such a row NaN.
    """
    x = centre(p, C, CP, WIDEST)
    return x, tl.rsqrt(tl.sum(x * x, 2) * (1.0 / C) + eps)


@triton.jit
def project(p, x, w2, HP: tl.constexpr):
    """``<p, Wc> = <x, Wc>`` ``[parts, rows, HP]`` of pair rows p, centred as x: equal because Wc sums to 0 over c.

    Products with a 16-bit p are exact, so p itself is projected. In fp32 x is: there a large mean would cost p's
    products the digits in which the channels differ.
    """
    y = small_dot(x if p.dtype == tl.float32 else p, w2)
    return tl.sum(tl.reshape(y, [p.shape[0], p.shape[1], HP, 2]), 3)


@triton.jit
def plain_bias(p, w2, eps, C: tl.constexpr, CP: tl.constexpr, HP: tl.constexpr):
    """``bias [parts, rows, HP]`` of pair rows, its statistics in fp32; NaN where their squares overflow."""
    x = centre(p, C, CP)
    variance = tl.sum(x * x, 2) * (1.0 / C) + eps
    if p.dtype != tl.float16:  # whose squares do not overflow fp32
        variance = variance * 0.0 + variance
    return project(p, x, w2, HP) * tl.rsqrt(variance)[:, :, None]


@triton.jit
def pair_bias(p, w2, eps, C: tl.constexpr, CP: tl.constexpr, HP: tl.constexpr):
    """``bias [parts, rows, HP]`` of pair rows ``p [parts, rows, CP]``; ``w2``: ``split_weight``.

    NaN where their squares overflow; in bf16 it arises as infinity times the zeros in every second column of ``ones``.

    ``LayerNorm(p) @ W = rstd (p - mean) @ (gamma W) + beta W = rstd (p @ Wc) + const``: with the weight centred once,
    the product needs no centred p, and the constant cancels in the softmax.

    In bf16 the squares, rounded to bf16, are summed on the tensor cores too: the sum arrives in the lanes that hold the
    projection, which saves the shuffles of a reduction, a tenth of the loop. O's error rises from 1.9e-3 to 2.3e-3.
    """
    if p.dtype == tl.bfloat16 and CP <= 32:
        y = tl.reshape(small_dot(p, w2), [p.shape[0], p.shape[1], HP, 2])
        x = centre(p, C, CP)
        INV: tl.constexpr = 1.0 / C if (C & (C - 1)) == 0 else 1.0  # pyright: ignore[reportAssignmentType]
        first = (1 - tl.arange(0, 2 * HP) % 2).to(tl.float32)
        ones = tl.broadcast_to((first * INV)[None, :], [CP, 2 * HP]).to(tl.bfloat16)
        squares = small_dot((x * x + eps * (C / CP)).to(tl.bfloat16), ones)
        variance = tl.sum(tl.reshape(squares, [p.shape[0], p.shape[1], HP, 2]), 3)
        return tl.sum(y, 3) * tl.rsqrt(variance * (1.0 / (INV * C)))
    return plain_bias(p, w2, eps, C, CP, HP)


@triton.jit
def put_rounded(O, LOW, at, o, mask, KEEP_LOW: tl.constexpr):
    """Store o rounded to O's dtype; with KEEP_LOW also what rounding lost, in LOW and the same dtype."""
    rounded = o.to(O.dtype.element_ty)
    tl.store(O + at, rounded, mask=mask)
    if KEEP_LOW:
        tl.store(LOW + at, (o - rounded.to(tl.float32)).to(O.dtype.element_ty), mask=mask)


@triton.jit
def get_rounded(O, LOW, at, mask, KEEP_LOW: tl.constexpr):
    """O in fp32; with KEEP_LOW it has twice the bits of its dtype.

    ``delta = <dO, O>`` is subtracted from ``dP = <dO, V>``: where one slot has nearly all of a row's weight they agree
    in most digits, and O's rounding would be the larger part of the difference.
    """
    o = tl.load(O + at, mask=mask, other=0.0).to(tl.float32)
    if KEEP_LOW:
        o += tl.load(LOW + at, mask=mask, other=0.0).to(tl.float32)
    return o


@triton.jit
def row_lse(alive, most, total):
    """Base-2 log-sum-exp of rows whose scores reach ``most``.

    +inf where no slot is live, so that the backward's weights are 0; NaN where a score is NaN, so that gradients are.
    """
    return tl.where(alive | (total != total), most + tl.log2(total), float("inf"))
