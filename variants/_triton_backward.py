"""Backward kernels of the band mode: a preparing pass, the key-major main pass, and the end of dQ."""

from __future__ import annotations

import triton
import triton.language as tl

from ._triton_common import FAR, LOG2_E, NEG_INF, dot, normalise, small_dot, split_weight, spread, spread_weight


@triton.jit(do_not_specialize=["N", "SLOTS"])
def backward_prepare(
    O, DO, DELTA, DQ, DP, BASE, START, STOP, N, SLOTS,
    H: tl.constexpr, D: tl.constexpr, C: tl.constexpr, HP: tl.constexpr, DH: tl.constexpr,
    ZERO_DQ: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """One row: ``delta[h] = <dO, O>``; dQ's accumulator and the slots of dp outside the row's band set to 0."""
    l = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64) * N + l
    h = tl.arange(0, HP)
    d = tl.arange(0, DH)
    off = row * (H * D) + h[:, None] * D + d[None, :]
    mask = (h < H)[:, None] & (d < D)[None, :]
    o = tl.load(O + off, mask=mask, other=0.0).to(tl.float32)
    do = tl.load(DO + off, mask=mask, other=0.0).to(tl.float32)
    tl.store(DELTA + row * H + h, tl.sum(o * do, 1), mask=h < H)
    if ZERO_DQ:
        tl.store(DQ + off, tl.zeros([HP, DH], tl.float32), mask=mask)
    base = tl.load(BASE + l)
    front = (tl.load(START + l) - base) * C
    back = (tl.load(STOP + l) - base) * C
    dead = back <= front
    front = tl.where(dead, 0, front)
    back = tl.where(dead, 0, back)
    zero = tl.zeros([BT], DP.dtype.element_ty)
    t = tl.arange(0, BT)
    pairs = DP + row * SLOTS * C
    for k0 in range(0, front, BT):
        tl.store(pairs + k0 + t, zero, mask=k0 + t < front)
    for k0 in range(back, SLOTS * C, BT):
        tl.store(pairs + k0 + t, zero, mask=k0 + t < SLOTS * C)


@triton.jit
def _backward_tile(
    m0, dk, dv, dw, k, v, Q, DO, P, DP, MASK, LSE, DELTA, DQ, BASE, START, STOP, n, pid, last_row, SLOTS,
    w2, wt, scale2, eps, N,
    EDGE: tl.constexpr, HAS_MASK: tl.constexpr, ATOMIC: tl.constexpr, H: tl.constexpr, D: tl.constexpr,
    C: tl.constexpr, HP: tl.constexpr, DH: tl.constexpr, CP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    KEY_PARTS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """BM queries from atom ``m0`` on x the program's BN keys: dp and dQ's share written, ``(dk, dv, dw)`` updated."""
    BK: tl.constexpr = BN // KEY_PARTS
    G: tl.constexpr = KEY_PARTS * HP
    PAIRS: tl.constexpr = BM * BN
    ptype = P.dtype.element_ty
    row = tl.arange(0, BM)
    l = m0 + row
    h = tl.arange(0, G) % HP
    d = tl.arange(0, DH)
    c = tl.arange(0, CP)
    present = l < last_row
    base = tl.load(BASE + l, mask=present, other=0)
    pair_tile = (row * SLOTS - base)[:, None] + n[None, :]
    origin = SLOTS.to(tl.int64) * m0
    P += origin * C
    DP += origin * C
    offset = (tl.reshape(pair_tile, [PARTS, PAIRS // PARTS]) * C)[:, :, None] + c[None, None, :]
    head_mask = (h < H)[:, None, None] & (d < D)[None, None, :]
    stat_off = l[None, :] * H + h[:, None]
    q_off = l[None, :, None] * (H * D) + h[:, None, None] * D + d[None, None, :]
    if EDGE:
        start = tl.load(START + l, mask=present, other=FAR)
        stop = tl.load(STOP + l, mask=present, other=0)
        inside = (n[None, :] >= start[:, None]) & (n[None, :] < stop[:, None])
        live = inside
        keep = tl.reshape(inside, [PARTS, PAIRS // PARTS])[:, :, None] & (c < C)[None, None, :]
        p = tl.load(P + offset, mask=keep, other=0.0)
        stat_mask = present[None, :] & (h < H)[:, None]
        q_mask = present[None, :, None] & head_mask
    else:
        if C == CP:
            p = tl.load(P + offset)
        else:
            p = tl.load(P + offset, mask=(c < C)[None, None, :], other=0.0)
        stat_mask = (h < H)[:, None]
        q_mask = head_mask
    if EDGE or HP != H or DH != D:
        q = tl.load(Q + q_off, mask=q_mask, other=0.0)
        do = tl.load(DO + q_off, mask=q_mask, other=0.0)
        lse = tl.load(LSE + stat_off, mask=stat_mask, other=float("inf"))
        delta = tl.load(DELTA + stat_off, mask=stat_mask, other=0.0)
    else:
        q = tl.load(Q + q_off)
        do = tl.load(DO + q_off)
        lse = tl.load(LSE + stat_off)
        delta = tl.load(DELTA + stat_off)
    if HAS_MASK:
        MASK += origin
        if EDGE:
            live = inside & (tl.load(MASK + pair_tile, mask=inside, other=0) != 0)
        else:
            live = tl.load(MASK + pair_tile) != 0

    # scores again, transposed: [key part and head, keys, queries], so that A and dS are dV's and dK's left operands
    x, rstd = normalise(p, eps, C, CP)
    y = tl.sum(tl.reshape(small_dot(p, w2), [PARTS, PAIRS // PARTS, HP, 2]), 3)
    bias = tl.reshape(y * rstd[:, :, None], [BM, BN, HP])
    if EDGE or HAS_MASK:
        bias = tl.where(live[:, :, None], bias, NEG_INF)
    bias = tl.reshape(tl.permute(tl.reshape(bias, [BM, KEY_PARTS, BK, HP]), (1, 3, 2, 0)), [G, BK, BM])
    s = dot(k, tl.permute(q, (0, 2, 1)), bias)
    a = tl.exp2(s * scale2 - lse[:, None, :])
    dv = dot(a.to(do.dtype), do, dv)
    ds = a * dot(v, tl.permute(do, (0, 2, 1)), tl.broadcast_to(-delta[:, None, :], [G, BK, BM]))
    ds_q = ds.to(q.dtype)
    dk = dot(ds_q, q, dk)
    dq = tl.sum(tl.reshape(dot(tl.permute(ds_q, (0, 2, 1)), k), [KEY_PARTS, HP, BM, DH]), 0)
    hq = tl.arange(0, HP)
    dq_off = l[None, :, None] * (H * D) + hq[:, None, None] * D + d[None, None, :]
    dq_mask = (hq < H)[:, None, None] & (d < D)[None, None, :]
    if EDGE:
        dq_mask = dq_mask & present[None, :, None]
    if ATOMIC and not EDGE and HP == H and DH == D:
        tl.atomic_add(DQ + dq_off, dq, sem="relaxed")
    elif ATOMIC:
        tl.atomic_add(DQ + dq_off, dq, mask=dq_mask, sem="relaxed")
    else:  # the row's slot of this key block: every slot of a row is written exactly once
        first = tl.load(START + l, mask=present, other=0)
        end = tl.load(STOP + l, mask=present, other=0)
        meets = (first < (pid + 1) * BN) & (end > pid * BN)
        slot = (pid - first // BN).to(tl.int64)
        tl.store(DQ + slot[None, :, None] * N * (H * D) + dq_off, dq, mask=dq_mask & meets[None, :, None])

    # LayerNorm backward of a normalised row x under a weight centred over c, with G = dS Wc^T:
    # dp = rstd (G - x <x, G> / C); dWc = x^T dS
    ds_p = tl.permute(tl.reshape(ds.to(ptype), [KEY_PARTS, HP, BK, BM]), (3, 0, 2, 1))
    ds_p = tl.reshape(ds_p, [PARTS, PAIRS // PARTS, HP])
    x = x * rstd[:, :, None]
    g = small_dot(spread(ds_p, wt.shape[0] // HP), wt)
    dp = rstd[:, :, None] * (g - x * (tl.sum(x * g, 2) * (1.0 / C))[:, :, None])
    dp = dp.to(ptype)
    if EDGE:
        tl.store(DP + offset, dp, mask=keep)
    elif C == CP:
        tl.store(DP + offset, dp)
    else:
        tl.store(DP + offset, dp, mask=(c < C)[None, None, :])
    dw = dot(tl.permute(x.to(ptype), (0, 2, 1)), spread(ds_p, 2), dw)
    return dk, dv, dw


@triton.jit(do_not_specialize=["N", "SLOTS", "mask_per_item", "dq_parts"])
def backward_band(
    Q, K, V, P, W, GAMMA, BASE, START, STOP, MASK, DO, LSE, DELTA, QUERIES, DQ, DK, DV, DP, DW,
    N, SLOTS, mask_per_item, dq_parts, scale, eps,
    H: tl.constexpr, D: tl.constexpr, C: tl.constexpr, HP: tl.constexpr, DH: tl.constexpr, CP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, HAS_MASK: tl.constexpr, PEEL: tl.constexpr, ATOMIC: tl.constexpr,
    KEY_PARTS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """BN keys x all queries that see them: dK and dV stay in registers, dp is written once, dQ is added or slotted.

    The products' batch axis is (key part, head), one warp each. ``QUERIES [4, blocks]`` holds per key block the first
    and last + 1 query that sees any of its keys, and those that see all of them. ``DW [B, blocks, CP, HP]``: partial
    sums of dWc, centred and split into dgamma and dW by the caller.
    """
    pid = tl.program_id(0)
    blocks = tl.num_programs(0)
    b = tl.program_id(1).to(tl.int64)
    BK: tl.constexpr = BN // KEY_PARTS
    G: tl.constexpr = KEY_PARTS * HP
    part = tl.arange(0, G)
    h = part % HP
    d = tl.arange(0, DH)
    n = pid * BN + tl.arange(0, BN)
    ptype = P.dtype.element_ty
    w2 = split_weight(W, GAMMA, 1.0 / scale, H, C, HP, CP, ptype)
    wt = spread_weight(W, GAMMA, H, C, HP, CP, ptype)

    atoms = b * N * (H * D)
    Q += atoms
    DO += atoms
    key = pid * BN + (part // HP)[:, None] * BK + tl.arange(0, BK)[None, :]
    k_off = atoms + key.to(tl.int64)[:, :, None] * (H * D) + h[:, None, None] * D + d[None, None, :]
    k_mask = (key < N)[:, :, None] & (h < H)[:, None, None] & (d < D)[None, None, :]
    k = tl.load(K + k_off, mask=k_mask, other=0.0)
    v = tl.load(V + k_off, mask=k_mask, other=0.0)
    P += b * N * SLOTS * C
    DP += b * N * SLOTS * C
    MASK += b * mask_per_item * N * SLOTS
    LSE += b * N * H
    DELTA += b * N * H
    DQ += b * dq_parts * N * (H * D)
    dk = tl.zeros([G, BK, DH], tl.float32)
    dv = tl.zeros([G, BK, DH], tl.float32)
    dw = tl.zeros([PARTS, CP, 2 * HP], tl.float32)
    scale2 = scale * LOG2_E
    first = tl.load(QUERIES + pid)
    last = tl.load(QUERIES + blocks + pid)
    edge_end = last
    inner_end = last
    if PEEL:
        inner_first = tl.load(QUERIES + 2 * blocks + pid)
        inner_last = tl.load(QUERIES + 3 * blocks + pid)
        edge_end = tl.minimum(first + tl.cdiv(tl.maximum(inner_first - first, 0), BM) * BM, last)
        inner_end = edge_end + tl.maximum(inner_last - edge_end, 0) // BM * BM
    for m0 in range(first, edge_end, BM):
        dk, dv, dw = _backward_tile(
            m0, dk, dv, dw, k, v, Q, DO, P, DP, MASK, LSE, DELTA, DQ, BASE, START, STOP, n, pid, last, SLOTS,
            w2, wt, scale2, eps, N,
            True, HAS_MASK, ATOMIC, H, D, C, HP, DH, CP, BM, BN, KEY_PARTS, PARTS,
        )  # fmt: skip
    if PEEL:
        for m0 in range(edge_end, inner_end, BM):
            dk, dv, dw = _backward_tile(
                m0, dk, dv, dw, k, v, Q, DO, P, DP, MASK, LSE, DELTA, DQ, BASE, START, STOP, n, pid, last, SLOTS,
                w2, wt, scale2, eps, N,
                False, HAS_MASK, ATOMIC, H, D, C, HP, DH, CP, BM, BN, KEY_PARTS, PARTS,
            )  # fmt: skip
        for m0 in range(inner_end, last, BM):
            dk, dv, dw = _backward_tile(
                m0, dk, dv, dw, k, v, Q, DO, P, DP, MASK, LSE, DELTA, DQ, BASE, START, STOP, n, pid, last, SLOTS,
                w2, wt, scale2, eps, N,
                True, HAS_MASK, ATOMIC, H, D, C, HP, DH, CP, BM, BN, KEY_PARTS, PARTS,
            )  # fmt: skip

    tl.store(DK + k_off, (dk * scale).to(DK.dtype.element_ty), mask=k_mask)
    tl.store(DV + k_off, dv.to(DV.dtype.element_ty), mask=k_mask)
    total = tl.sum(tl.reshape(tl.sum(dw, 0), [CP, HP, 2]), 2) * 0.5  # dS stands there twice
    c = tl.arange(0, CP)
    DW += (b * blocks + pid) * (CP * HP)
    tl.store(DW + c[:, None] * HP + tl.arange(0, HP)[None, :], total)


@triton.jit(do_not_specialize=["N", "parts"])
def backward_finish(
    PART, DQ, START, STOP, N, parts, scale,
    H: tl.constexpr, D: tl.constexpr, ROW: tl.constexpr, BN: tl.constexpr, ATOMIC: tl.constexpr,
):  # fmt: skip
    """One row of ``dQ = scale * (sum of its parts)`` in Q's dtype; the parts in a fixed order where they are slots."""
    l = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    t = tl.arange(0, ROW)
    mask = t < H * D
    part = PART + (b * parts * N + l) * (H * D) + t
    if ATOMIC:
        total = tl.load(part, mask=mask, other=0.0)
    else:
        start = tl.load(START + l)
        stop = tl.load(STOP + l)
        slots = tl.where(stop > start, (stop - 1) // BN - start // BN + 1, 0)
        total = tl.zeros([ROW], tl.float32)
        for i in range(0, slots):
            total += tl.load(part + (N.to(tl.int64) * i) * (H * D), mask=mask, other=0.0)
    out = DQ + (b * N + l) * (H * D) + t
    tl.store(out, (total * scale).to(DQ.dtype.element_ty), mask=mask)
