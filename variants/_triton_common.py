"""Device functions that the forward and backward kernels share: the pair bias on tensor cores, split products.

Pair tiles are 2-D, ``[pairs, C]`` (a pipelined 3-D tile becomes scalar shared-memory loads). A tile of 16 to 32
queries x 16 to 32 keys is reshaped to that before its LayerNorm and back after its projection.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
NEG_INF = tl.constexpr(float("-inf"))
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
def split(x, dtype: tl.constexpr):
    """fp32 ``x [..., ]`` as ``[..., 2]`` of ``dtype``, whose two parts sum to x to twice the bits of ``dtype``."""
    high = x.to(dtype)
    return tl.join(high, (x - high.to(tl.float32)).to(dtype))


@triton.jit
def centred_weight(W, GAMMA, H: tl.constexpr, C: tl.constexpr, HP: tl.constexpr, CP: tl.constexpr):
    """``Wc[c, h] = gamma[c] W[h, c]``, centred over c, ``[CP, HP]`` fp32, zero in the padding."""
    c = tl.arange(0, CP)
    h = tl.arange(0, HP)
    g = tl.load(GAMMA + c, mask=c < C, other=0.0).to(tl.float32)
    w = tl.load(W + h[None, :] * C + c[:, None], mask=(c[:, None] < C) & (h[None, :] < H), other=0.0).to(tl.float32)
    w = w * g[:, None]
    return tl.where(c[:, None] < C, w - tl.sum(w, 0)[None, :] / C, 0.0)


@triton.jit
def centring(C: tl.constexpr, CP: tl.constexpr, dtype: tl.constexpr):
    """``I - 11ᵀ/C`` on the first C channels: exact in fp16 and bf16, because C is a power of two."""
    i = tl.arange(0, CP)
    eye = tl.where(i[:, None] == i[None, :], 1.0, 0.0) - 1.0 / C
    return tl.where((i[:, None] < C) & (i[None, :] < C), eye, 0.0).to(dtype)


@triton.jit
def centre(p, C: tl.constexpr, CP: tl.constexpr):
    """Pair rows minus their mean over the channels, ``[pairs, CP]`` fp32."""
    if p.dtype == tl.float32:
        x = p - tl.sum(p, 1)[:, None] * (1.0 / C)
        if CP != C:
            x = tl.where(tl.arange(0, CP)[None, :] < C, x, 0.0)
        return x
    return dot(p, centring(C, CP, p.dtype))


@triton.jit
def pair_bias(p, w2, eps, C: tl.constexpr, CP: tl.constexpr, HP: tl.constexpr, PAIRS: tl.constexpr):
    """``(bias [pairs, HP], rstd [pairs])`` of pair rows ``p [pairs, CP]``; ``w2 [CP, 2 HP]`` is Wc split in two.

    ``LayerNorm(p) @ W = rstd (p - mean) @ (gamma W) + beta W = rstd (p @ Wc) + const``: centring the weight once spares
    centring p for the product, and the constant leaves the softmax as it was. The variance is taken from the centred
    rows (the one-pass form loses digits where the mean is large).
    """
    x = centre(p, C, CP)
    rstd = tl.rsqrt(tl.sum(x * x, 1) * (1.0 / C) + eps)
    y = tl.sum(tl.reshape(dot(p, w2), [PAIRS, HP, 2]), 2)
    return y * rstd[:, None], rstd
