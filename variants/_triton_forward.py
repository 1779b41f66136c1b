"""Forward kernels: LayerNorm of p, projection to heads, scores, online softmax and the product with V in one pass."""

from __future__ import annotations

import triton
import triton.language as tl

from ._triton_common import FAR, LOG2_E, NEG_INF, dot, pair_bias, split_weight


@triton.jit
def _forward_tile(
    n0, m_i, l_i, acc, q, K, V, P, MASK, col, row_off, start, stop, last, h, d, w2, score_scale, eps,
    EDGE: tl.constexpr, HAS_MASK: tl.constexpr, H: tl.constexpr, D: tl.constexpr, C: tl.constexpr,
    HP: tl.constexpr, DH: tl.constexpr, CP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One tile of BM queries x BN keys from atom ``n0`` on: updates ``(m_i, l_i, acc)`` of the online softmax.

    ``row_off + (n - n0)`` is the pair row of key n relative to P, which the caller moves along. EDGE tiles reach beyond
    some row's band; interior tiles are seen whole by every row and carry no masks.
    """
    n = n0 + col
    c = tl.arange(0, CP)
    inside = (n[None, :] >= start[:, None]) & (n[None, :] < stop[:, None])
    pair = tl.reshape(row_off[:, None] + col[None, :], [PARTS, BM * BN // PARTS])
    p_ptr = P + (pair * C)[:, :, None] + c[None, None, :]  # times C after the reshape: the 16-byte vectors survive
    k_ptr = K + n[None, None, :] * (H * D) + h[:, None, None] * D + d[None, :, None]
    v_ptr = V + n[None, :, None] * (H * D) + h[:, None, None] * D + d[None, None, :]
    if EDGE:
        keep = tl.reshape(inside, [PARTS, BM * BN // PARTS])[:, :, None]
        p = tl.load(p_ptr, mask=keep if CP == C else keep & (c[None, None, :] < C), other=0.0)
        kt = tl.load(k_ptr, mask=(n < last)[None, None, :] & (h < H)[:, None, None] & (d < D)[None, :, None], other=0.0)
        v = tl.load(v_ptr, mask=(n < last)[None, :, None] & (h < H)[:, None, None] & (d < D)[None, None, :], other=0.0)
    else:
        if CP == C:
            p = tl.load(p_ptr)
        else:
            p = tl.load(p_ptr, mask=(c < C)[None, None, :], other=0.0)
        if HP == H and DH == D:
            kt = tl.load(k_ptr)
            v = tl.load(v_ptr)
        else:
            kt = tl.load(k_ptr, mask=(h < H)[:, None, None] & (d < D)[None, :, None], other=0.0)
            v = tl.load(v_ptr, mask=(h < H)[:, None, None] & (d < D)[None, None, :], other=0.0)
    bias = pair_bias(p, w2, eps, C, CP, HP)
    bias = tl.reshape(bias, [BM, BN, HP])
    live = inside
    if HAS_MASK:
        if EDGE:
            live = live & (tl.load(MASK + row_off[:, None] + col[None, :], mask=inside, other=0) != 0)
        else:
            live = tl.load(MASK + row_off[:, None] + col[None, :]) != 0
    if EDGE or HAS_MASK:
        bias = tl.where(live[:, :, None], bias, NEG_INF)
    s = dot(q, kt, tl.permute(bias, (2, 0, 1)))  # in units of 1 / score_scale: the bias is the accumulator
    m_new = tl.maximum(m_i, tl.max(s, 2))
    m_safe = m_new
    if EDGE or HAS_MASK:
        m_safe = tl.where(m_new == NEG_INF, 0.0, m_new)  # a row that has seen no live slot yet
    a = tl.exp2(s * score_scale - (m_safe * score_scale)[:, :, None])
    shrink = tl.exp2((m_i - m_safe) * score_scale)
    l_i = l_i * shrink + tl.sum(a, 2)
    acc = dot(a.to(v.dtype), v, acc * shrink[:, :, None])
    return m_new, l_i, acc


@triton.jit(do_not_specialize=["N", "SLOTS", "mask_per_item"])
def forward_band(
    Q, K, V, P, W, GAMMA, BASE, START, STOP, MASK, O, LSE, N, SLOTS, mask_per_item, scale, eps,
    H: tl.constexpr, D: tl.constexpr, C: tl.constexpr, HP: tl.constexpr, DH: tl.constexpr, CP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, HAS_MASK: tl.constexpr, PEEL: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """BM queries x all their keys: ``O [B, N, H, D]`` and the base-2 log-sum-exp ``LSE [B, N, H]`` (+inf: dead row).

    The 3-D products have the heads as their batch axis, so that each warp owns a head and p is read once for all.
    """
    b = tl.program_id(1).to(tl.int64)
    l0 = tl.program_id(0) * BM
    row = tl.arange(0, BM)
    l = l0 + row
    h = tl.arange(0, HP)
    d = tl.arange(0, DH)
    col = tl.arange(0, BN)
    present = l < N
    base = tl.load(BASE + l, mask=present, other=0)
    start = tl.load(START + l, mask=present, other=0)
    stop = tl.load(STOP + l, mask=present, other=0)
    dead = stop <= start
    start = tl.where(dead, FAR, start)
    first = tl.min(start, 0)
    last = tl.max(stop, 0)
    inner_first = tl.max(tl.where(dead, first, start), 0)
    inner_last = tl.min(stop, 0)  # a dead row has stop = 0: no tile of its program is an interior one

    w2 = split_weight(W, GAMMA, 1.0 / scale, H, C, HP, CP, P.dtype.element_ty)
    atoms = b * N * (H * D)
    q_off = l[None, :, None] * (H * D) + h[:, None, None] * D + d[None, None, :]
    q_mask = present[None, :, None] & (h < H)[:, None, None] & (d < D)[None, None, :]
    q = tl.load(Q + atoms + q_off, mask=q_mask, other=0.0)
    K += atoms
    V += atoms
    # pair row of (l, n) = l SLOTS + n - base[l]; 64 bits for the program's origin, 32 within its tiles
    first_pair = l0.to(tl.int64) * SLOTS
    P += (b * N * SLOTS + first_pair) * C
    MASK += b * mask_per_item * N * SLOTS + first_pair
    row_off = row * SLOTS - base

    m_i = tl.full([HP, BM], NEG_INF, tl.float32)
    l_i = tl.zeros([HP, BM], tl.float32)
    acc = tl.zeros([HP, BM, DH], tl.float32)
    scale2 = scale * LOG2_E
    if PEEL:
        edge_end = tl.minimum(first + tl.cdiv(inner_first - first, BN) * BN, last)
        inner_end = edge_end + tl.maximum(inner_last - edge_end, 0) // BN * BN
    else:
        edge_end = last
        inner_end = last
    for n0 in range(first, edge_end, BN):
        m_i, l_i, acc = _forward_tile(
            n0, m_i, l_i, acc, q, K, V, P, MASK, col, row_off + n0, start, stop, last, h, d, w2, scale2, eps,
            True, HAS_MASK, H, D, C, HP, DH, CP, BM, BN, PARTS,
        )  # fmt: skip
    if PEEL:
        for n0 in range(edge_end, inner_end, BN):
            m_i, l_i, acc = _forward_tile(
                n0, m_i, l_i, acc, q, K, V, P, MASK, col, row_off + n0, start, stop, last, h, d, w2, scale2, eps,
                False, HAS_MASK, H, D, C, HP, DH, CP, BM, BN, PARTS,
            )  # fmt: skip
        for n0 in range(inner_end, last, BN):
            m_i, l_i, acc = _forward_tile(
                n0, m_i, l_i, acc, q, K, V, P, MASK, col, row_off + n0, start, stop, last, h, d, w2, scale2, eps,
                True, HAS_MASK, H, D, C, HP, DH, CP, BM, BN, PARTS,
            )  # fmt: skip

    inv = tl.where(l_i > 0, 1.0 / l_i, 0.0)
    tl.store(O + atoms + q_off, (acc * inv[:, :, None]).to(O.dtype.element_ty), mask=q_mask)
    lse = tl.where(l_i > 0, m_i * scale2 + tl.log2(l_i), float("inf"))  # +inf makes every weight of the row 0 in the backward
    lse_off = (b * N + l)[None, :] * H + h[:, None]
    tl.store(LSE + lse_off, lse, mask=present[None, :] & (h < H)[:, None])
