"""Forward kernels: LayerNorm of p, projection to heads, scores, online softmax and the product with V in one pass."""

# ruff: noqa: E741 — atoms are l and outputs O here; a branch at compile time is no expression
from __future__ import annotations

import triton
import triton.language as tl

from .common import FAR, LOG2_E, LOWEST, dot, pair_bias, put_rounded, row_lse, split_weight, within


@triton.jit(do_not_specialize=["N", "SLOTS", "mask_per_item"])
def forward_band(
    Q, K, V, P, W, GAMMA, BASE, START, STOP, MASK, O, LOW, LSE, N, SLOTS, mask_per_item, scale, eps,
    H: tl.constexpr, D: tl.constexpr, C: tl.constexpr, HP: tl.constexpr, DH: tl.constexpr, CP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, HAS_MASK: tl.constexpr, KEEP_LOW: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """BM queries x all their keys: ``O [B, N, H, D]`` and the base-2 log-sum-exp ``LSE [B, N, H]`` (+inf: dead row).

    KEEP_LOW: also ``LOW``, what rounding O lost, for the backward's ``<dO, O>``.

    The products with K and V have the heads as their batch axis, so that each warp owns a head, while in the products
    with p each warp owns a part of the pairs: p is read once for all heads, and only the bias moves between warps.
    """
    blocks = tl.cdiv(N, BM)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    l0 = tl.program_id(0) % blocks * BM
    row = tl.arange(0, BM)
    l = l0 + row
    h = tl.arange(0, HP)
    d = tl.arange(0, DH)
    c = tl.arange(0, CP)
    col = tl.arange(0, BN)
    present = l < N
    base = tl.load(BASE + l, mask=present, other=0)
    start = tl.load(START + l, mask=present, other=0)
    stop = tl.load(STOP + l, mask=present, other=0)
    dead = stop <= start
    first = tl.min(tl.where(dead, FAR, start), 0)
    last = tl.max(stop, 0)
    inner_first = tl.max(start, 0)
    inner_last = tl.min(stop, 0)  # 0 where a row is dead: then every tile is an edge tile

    w2 = split_weight(W, GAMMA, 1.0 / scale, H, C, HP, CP, P.dtype.element_ty)
    atoms = b * N * (H * D)
    q_off = l[None, :, None] * (H * D) + h[:, None, None] * D + d[None, None, :]
    hd = (h < H)[:, None, None] & (d < D)[None, None, :]
    q_mask = present[None, :, None] & hd
    q = tl.load(Q + atoms + q_off, mask=q_mask, other=0.0)
    K += atoms
    V += atoms
    # pair row of (l, n) = l SLOTS + n - base[l]; 64 bits for the program's origin, 32 within its tiles
    first_pair = l0.to(tl.int64) * SLOTS
    P += (b * N * SLOTS + first_pair) * C
    MASK += b * mask_per_item * N * SLOTS + first_pair
    origin = row * SLOTS - base
    width = stop - start

    m_i = tl.full([HP, BM], LOWEST, tl.float32)  # scores in units of 1 / scale2, their maximum too
    l_i = tl.zeros([HP, BM], tl.float32)
    acc = tl.zeros([HP, BM, DH], tl.float32)
    scale2 = scale * LOG2_E
    for n0 in range(first, last, BN):
        n = n0 + col
        tile = origin[:, None] + n[None, :]
        inside = within(n[None, :] - start[:, None], width[:, None])
        if HAS_MASK:
            inside = inside & (tl.load(MASK + tile, mask=inside, other=0) != 0)
        # multiplied by C after the reshape, so that loads stay 16 bytes wide
        p_ptr = P + (tl.reshape(tile, [PARTS, BM * BN // PARTS]) * C)[:, :, None] + c[None, None, :]
        keep = tl.reshape(inside, [PARTS, BM * BN // PARTS])[:, :, None]
        n_safe = tl.minimum(n, N - 1)  # atoms beyond the last row's end are masked with the bias
        k_ptr = K + n_safe[None, None, :] * (H * D) + h[:, None, None] * D + d[None, :, None]
        v_ptr = V + n_safe[None, :, None] * (H * D) + h[:, None, None] * D + d[None, None, :]
        if HP == H and DH == D:
            kt = tl.load(k_ptr)
            v = tl.load(v_ptr)
        else:
            kt = tl.load(k_ptr, mask=tl.permute(hd, (0, 2, 1)), other=0.0)
            v = tl.load(v_ptr, mask=hd, other=0.0)
        if CP == C:
            p = tl.load(p_ptr, mask=keep, other=0.0)
        else:
            p = tl.load(p_ptr, mask=keep & (c < C)[None, None, :], other=0.0)
        bias = tl.reshape(pair_bias(p, w2, eps, C, CP, HP), [BM, BN, HP])
        if HAS_MASK or (n0 < inner_first) | (n0 + BN > inner_last):
            bias = tl.where(inside[:, :, None], bias, LOWEST)
        s = dot(q, kt, tl.permute(bias, (2, 0, 1)))
        m_new = tl.maximum(m_i, tl.max(s, 2))
        # until a row's first live slot its dead slots have weight 1; there `shrink` is 0 and removes them
        a = tl.exp2(s * scale2 - (m_new * scale2)[:, :, None])
        shrink = tl.exp2((m_i - m_new) * scale2)
        l_i = l_i * shrink + tl.sum(a, 2)
        acc = dot(a.to(v.dtype), v, acc * shrink[:, :, None])
        m_i = m_new

    alive = m_i > LOWEST / 2
    inv = tl.where(alive, 1.0 / l_i, 0.0)
    put_rounded(O, LOW, atoms + q_off, acc * inv[:, :, None], q_mask, KEEP_LOW)
    lse = row_lse(alive, m_i * scale2, l_i)
    lse_off = (b * N + l)[None, :] * H + h[:, None]
    tl.store(LSE + lse_off, lse, mask=present[None, :] & (h < H)[:, None])
