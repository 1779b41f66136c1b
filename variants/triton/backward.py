"""Backward kernels of the band mode: delta and zeros first, then the key-major main pass, then dQ's sum and scale."""

# ruff: noqa: E741 — atoms are l and outputs O here
from __future__ import annotations

import triton
import triton.language as tl

from .common import (
    LOG2_E,
    LOWEST,
    dot,
    get_rounded,
    normalise,
    pair_gradients,
    project,
    split_weight,
    spread_weight,
    total_weight,
    within,
)


@triton.jit(do_not_specialize=["N", "SLOTS"])
def backward_prepare(
    O, LOW, DO, DELTA, DQ, DP, BASE, START, STOP, N, SLOTS,
    H: tl.constexpr, D: tl.constexpr, C: tl.constexpr, HP: tl.constexpr, DH: tl.constexpr,
    ZERO_DQ: tl.constexpr, KEEP_LOW: tl.constexpr, BM: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """BM rows: writes ``delta[h] = <dO, O>``, and 0 to dQ's accumulator and to the slots of dp outside the band."""
    blocks = tl.cdiv(N, BM)
    l = tl.program_id(0) % blocks * BM + tl.arange(0, BM)
    row = (tl.program_id(0) // blocks).to(tl.int64) * N + l
    h = tl.arange(0, HP)
    d = tl.arange(0, DH)
    present = l < N
    off = row[:, None, None] * (H * D) + h[None, :, None] * D + d[None, None, :]
    mask = present[:, None, None] & (h < H)[None, :, None] & (d < D)[None, None, :]
    o = get_rounded(O, LOW, off, mask, KEEP_LOW)
    do = tl.load(DO + off, mask=mask, other=0.0).to(tl.float32)
    tl.store(DELTA + row[:, None] * H + h[None, :], tl.sum(o * do, 2), mask=present[:, None] & (h < H)[None, :])
    if ZERO_DQ:
        tl.store(DQ + off, tl.zeros([BM, HP, DH], tl.float32), mask=mask)
    base = tl.load(BASE + l, mask=present, other=0)
    start = tl.load(START + l, mask=present, other=0)
    stop = tl.load(STOP + l, mask=present, other=0)
    dead = present & (stop <= start)
    # elements of a row before its band and from its end on; all of a dead row, none of a row beyond the last
    front = tl.where(dead, SLOTS * C, tl.where(present, start - base, 0) * C)
    back = tl.where(present & (stop > start), (stop - base) * C, SLOTS * C)
    t = tl.arange(0, BT)
    zero = tl.zeros([BM, BT], DP.dtype.element_ty)
    pairs = DP + (row * SLOTS * C)[:, None]
    for k0 in range(0, tl.max(front, 0), BT):
        at = (k0 + t)[None, :]
        tl.store(pairs + at, zero, mask=at < front[:, None])
    for k0 in range(tl.min(back, 0) // BT * BT, SLOTS * C, BT):
        at = (k0 + t)[None, :]
        tl.store(pairs + at, zero, mask=(at >= back[:, None]) & (at < SLOTS * C))


@triton.jit
def _queries(Q, DO, LSE, DELTA, q_off, stat_off, present, hd, real_h, WHOLE: tl.constexpr):
    """Q and dO ``[HP, BM, DH]`` and the rows' statistics ``[HP, BM]`` of a tile."""
    if WHOLE:
        return tl.load(Q + q_off), tl.load(DO + q_off), tl.load(LSE + stat_off), tl.load(DELTA + stat_off)
    there = present[None, :, None] & hd
    stat = present[None, :] & real_h[:, None]
    return (
        tl.load(Q + q_off, mask=there, other=0.0),
        tl.load(DO + q_off, mask=there, other=0.0),
        tl.load(LSE + stat_off, mask=stat, other=float("inf")),
        tl.load(DELTA + stat_off, mask=stat, other=0.0),
    )


@triton.jit
def _backward_tile(
    m0, dk, dv, dw, k, v, Q, DO, P, DP, MASK, LSE, DELTA, DQ, BASE, START, STOP, pid, h0, last, N, SLOTS,
    w2, wt, scale2, eps,
    EDGE: tl.constexpr, HAS_MASK: tl.constexpr, ATOMIC: tl.constexpr, SPLIT: tl.constexpr, CROWDED: tl.constexpr,
    H: tl.constexpr, D: tl.constexpr, C: tl.constexpr, HP: tl.constexpr, DH: tl.constexpr, CP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """BM queries from atom ``m0`` on x the program's BN keys: writes dp and dQ's share, updates ``(dk, dv, dw)``.

    SPLIT: for the program's heads only; instead of dp and dw it writes ``pair_gradients``'s g ``[B, N, SLOTS, H]``.

    All rows of an interior tile (not EDGE) see all its keys, so it needs neither the rows' ends nor masks. Where the
    band has holes (HAS_MASK), every tile is an edge tile.
    """
    PAIRS: tl.constexpr = BM * BN
    ptype = P.dtype.element_ty
    h = h0 + tl.arange(0, HP)
    d = tl.arange(0, DH)
    c = tl.arange(0, CP)
    row = tl.arange(0, BM)
    n = pid * BN + tl.arange(0, BN)
    l = m0 + row
    present = l < last
    base = tl.load(BASE + l, mask=present, other=0)
    tile = (row * SLOTS - base)[:, None] + n[None, :]
    origin = SLOTS.to(tl.int64) * m0
    offset = (tl.reshape(tile, [PARTS, PAIRS // PARTS]) * C)[:, :, None] + c[None, None, :]
    q_off = l[None, :, None] * (H * D) + h[:, None, None] * D + d[None, None, :]
    stat_off = l[None, :] * H + h[:, None]
    hd = (h < H)[:, None, None] & (d < D)[None, None, :]
    whole: tl.constexpr = H % HP == 0 and DH == D and not EDGE  # pyright: ignore[reportAssignmentType]
    if EDGE:
        start = tl.load(START + l, mask=present, other=0)
        stop = tl.load(STOP + l, mask=present, other=0)
        inside = within(n[None, :] - start[:, None], (stop - start)[:, None])
        live = inside
        if HAS_MASK:  # p must not be read in a dead slot: it may hold anything
            live = inside & (tl.load(MASK + origin + tile, mask=inside, other=0) != 0)
        keep = tl.reshape(live, [PARTS, PAIRS // PARTS])[:, :, None] & (c < C)[None, None, :]
        p = tl.load(P + origin * C + offset, mask=keep, other=0.0)
    elif CP == C:
        p = tl.load(P + origin * C + offset)
    else:
        p = tl.load(P + origin * C + offset, mask=(c < C)[None, None, :], other=0.0)
    if not CROWDED:
        q, do, lse, delta = _queries(Q, DO, LSE, DELTA, q_off, stat_off, present, hd, h < H, whole)  # pyright: ignore[reportGeneralTypeIssues]

    # scores are transposed, [head, keys, queries], so that A and dS are the left operands of dV and dK as they are
    x, rstd = normalise(p, eps, C, CP)  # pyright: ignore[reportGeneralTypeIssues]
    y = project(p, x, w2, HP)
    rstd3 = tl.broadcast_to(rstd[:, :, None], [PARTS, PAIRS // PARTS, HP])
    rstd3 = tl.permute(tl.reshape(rstd3, [BM, BN, HP]), (2, 1, 0))
    bias = tl.permute(tl.reshape(y, [BM, BN, HP]), (2, 1, 0)) * rstd3
    if CROWDED:
        q, do, lse, delta = _queries(Q, DO, LSE, DELTA, q_off, stat_off, present, hd, h < H, whole)
    if EDGE:
        bias = tl.where(tl.permute(live[:, :, None], (2, 1, 0)), bias, LOWEST)
    s = dot(k, tl.permute(q, (0, 2, 1)), bias)
    a = tl.exp2(s * scale2 - lse[:, None, :])
    dv = dot(a.to(do.dtype), do, dv)
    ds = a * (dot(v, tl.permute(do, (0, 2, 1))) - delta[:, None, :])
    ds_q = ds.to(q.dtype)
    dk = dot(ds_q, q, dk)
    dq = dot(tl.permute(ds_q, (0, 2, 1)), k)
    if not ATOMIC:  # each (row, key block) has a slot of its own in DQ, written exactly once
        slot_start = tl.load(START + l, mask=present, other=0)
        slot_stop = tl.load(STOP + l, mask=present, other=0)
        meets = present & (slot_start < (pid + 1) * BN) & (slot_stop > pid * BN)
        slot = (pid - slot_start // BN).to(tl.int64) * N * (H * D)
        tl.store(DQ + slot[None, :, None] + q_off, dq, mask=meets[None, :, None] & hd)
    elif whole:
        tl.atomic_add(DQ + q_off, dq, sem="relaxed")
    else:
        tl.atomic_add(DQ + q_off, dq, mask=present[None, :, None] & hd, sem="relaxed")

    g = ds if ptype == tl.float16 else ds * rstd3
    g = tl.reshape(tl.permute(g.to(ptype), (2, 1, 0)), [PARTS, PAIRS // PARTS, HP])
    if SPLIT:
        at = tl.reshape(tile, [PARTS, PAIRS // PARTS])[:, :, None] * H + h[None, None, :]
        if EDGE:
            own = tl.reshape(inside, [PARTS, PAIRS // PARTS])[:, :, None] & (h < H)[None, None, :]
            tl.store(DP + origin * H + at, g, mask=own)
        elif H % HP == 0:
            tl.store(DP + origin * H + at, g)
        else:
            tl.store(DP + origin * H + at, g, mask=(h < H)[None, None, :])
    else:
        dp, dw = pair_gradients(x, rstd, g, wt, dw, C)  # pyright: ignore[reportGeneralTypeIssues]
        if EDGE:
            written = tl.reshape(inside, [PARTS, PAIRS // PARTS])[:, :, None] & (c < C)[None, None, :]
            tl.store(DP + origin * C + offset, dp.to(ptype), mask=written)
        elif CP == C:
            tl.store(DP + origin * C + offset, dp.to(ptype))
        else:
            tl.store(DP + origin * C + offset, dp.to(ptype), mask=(c < C)[None, None, :])
    return dk, dv, dw


@triton.jit(do_not_specialize=["N", "SLOTS", "mask_per_item", "dq_parts"])
def backward_band(
    Q, K, V, P, W, GAMMA, BASE, START, STOP, MASK, DO, LSE, DELTA, QUERIES, DQ, DK, DV, DP, DW,
    N, SLOTS, mask_per_item, dq_parts, scale, eps,
    H: tl.constexpr, D: tl.constexpr, C: tl.constexpr, HP: tl.constexpr, DH: tl.constexpr, CP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, HAS_MASK: tl.constexpr, ATOMIC: tl.constexpr, SPLIT: tl.constexpr,
    PARTS: tl.constexpr, EDGE_STAGES: tl.constexpr,
):  # fmt: skip
    """BN keys x all queries that see them: dK and dV stay in registers, dp is written once.

    dQ's shares are added by atomics, or (not ATOMIC) written to a slot per key block, which ``backward_finish`` sums.
    ``QUERIES [4, blocks]`` holds per key block the first and last + 1 query that sees any of its keys, then the first
    and last + 1 that see all of them. ``DW [B, blocks, CP, HP]``: partial sums of dWc, which ``weight_gradients`` turns
    into dgamma and dW.

    SPLIT: a program has HP of the H heads (the grid's second axis) and writes g to ``DP``, which ``backward_pairs``
    turns into dp.
    """
    # masks of padded axes take registers: load Q and dO late, and have one loop instead of three
    CROWDED: tl.constexpr = SPLIT and (H % HP != 0 or DH != D or CP != C)  # pyright: ignore[reportAssignmentType]
    blocks = tl.cdiv(N, BN)
    pid = tl.program_id(0) % blocks
    b = (tl.program_id(0) // blocks).to(tl.int64)
    h0 = tl.program_id(1) * HP if SPLIT else 0
    h = h0 + tl.arange(0, HP)
    d = tl.arange(0, DH)
    c = tl.arange(0, CP)
    n = pid * BN + tl.arange(0, BN)
    ptype = P.dtype.element_ty
    W += h0 * C
    w2 = split_weight(W, GAMMA, 1.0 / scale, H - h0, C, HP, CP, ptype)
    wt = spread_weight(W, GAMMA, H - h0, C, HP, CP, ptype)
    hd = (h < H)[:, None, None] & (d < D)[None, None, :]

    atoms = b * N * (H * D)
    Q += atoms
    DO += atoms
    k_off = atoms + n[None, :, None] * (H * D) + h[:, None, None] * D + d[None, None, :]
    k_mask = (n < N)[None, :, None] & hd
    k = tl.load(K + k_off, mask=k_mask, other=0.0)
    v = tl.load(V + k_off, mask=k_mask, other=0.0)
    P += b * N * SLOTS * C
    DP += b * N * SLOTS * (H if SPLIT else C)
    MASK += b * mask_per_item * N * SLOTS
    LSE += b * N * H
    DELTA += b * N * H
    DQ += b * dq_parts * N * (H * D)
    dk = tl.zeros([HP, BN, DH], tl.float32)
    dv = tl.zeros([HP, BN, DH], tl.float32)
    dw = tl.zeros([PARTS, CP, 2 * HP], tl.float32)
    scale2 = scale * LOG2_E
    first = tl.load(QUERIES + pid)
    last = tl.load(QUERIES + blocks + pid)
    PEELED: tl.constexpr = not HAS_MASK and not CROWDED  # pyright: ignore[reportAssignmentType]
    edge_end = last
    if PEELED:  # edge tiles, interior tiles, edge tiles again
        inner_first = tl.load(QUERIES + 2 * blocks + pid)
        inner_last = tl.load(QUERIES + 3 * blocks + pid)
        edge_end = tl.minimum(first + tl.cdiv(inner_first - first, BM) * BM, last)
        inner_end = edge_end + tl.maximum(inner_last - edge_end, 0) // BM * BM
    for m0 in tl.range(first, edge_end, BM, num_stages=EDGE_STAGES):
        dk, dv, dw = _backward_tile(
            m0, dk, dv, dw, k, v, Q, DO, P, DP, MASK, LSE, DELTA, DQ, BASE, START, STOP, pid, h0, last, N, SLOTS,
            w2, wt, scale2, eps, True, HAS_MASK, ATOMIC, SPLIT, CROWDED,
            H, D, C, HP, DH, CP, BM, BN, PARTS,
        )  # fmt: skip
    if PEELED:
        for m0 in range(edge_end, inner_end, BM):
            dk, dv, dw = _backward_tile(
                m0, dk, dv, dw, k, v, Q, DO, P, DP, MASK, LSE, DELTA, DQ, BASE, START, STOP, pid, h0, last, N, SLOTS,
                w2, wt, scale2, eps, False, HAS_MASK, ATOMIC, SPLIT, CROWDED,
                H, D, C, HP, DH, CP, BM, BN, PARTS,
            )  # fmt: skip
        for m0 in tl.range(inner_end, last, BM, num_stages=EDGE_STAGES):
            dk, dv, dw = _backward_tile(
                m0, dk, dv, dw, k, v, Q, DO, P, DP, MASK, LSE, DELTA, DQ, BASE, START, STOP, pid, h0, last, N, SLOTS,
                w2, wt, scale2, eps, True, HAS_MASK, ATOMIC, SPLIT, CROWDED,
                H, D, C, HP, DH, CP, BM, BN, PARTS,
            )  # fmt: skip

    tl.store(DK + k_off, (dk * scale).to(DK.dtype.element_ty), mask=k_mask)
    tl.store(DV + k_off, dv.to(DV.dtype.element_ty), mask=k_mask)
    if not SPLIT:
        DW += (b * blocks + pid) * (CP * HP)
        tl.store(DW + c[:, None] * HP + h[None, :], total_weight(dw, CP, HP))


@triton.jit(do_not_specialize=["pairs"])
def backward_pairs(
    P, G, W, GAMMA, DP, DW, pairs, eps,
    H: tl.constexpr, C: tl.constexpr, HP: tl.constexpr, CP: tl.constexpr,
    BP: tl.constexpr, TILES: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """TILES x BP consecutive pairs: writes dp and a partial sum of dWc (``DW [programs, CP, HP]``).

    ``G [pairs, H]`` is g of ``pair_gradients``. Where it is 0 in all heads, the pair is dead or outside its row's band
    (or has no gradient): dp is 0, and p, which may hold anything there, is not used.
    """
    h = tl.arange(0, HP)
    c = tl.arange(0, CP)
    ptype = P.dtype.element_ty
    wt = spread_weight(W, GAMMA, H, C, HP, CP, ptype)
    first = tl.program_id(0).to(tl.int64) * (TILES * BP)
    P += first * C
    DP += first * C
    G += first * H
    left = tl.minimum(pairs - first, TILES * BP).to(tl.int32)
    pair = tl.reshape(tl.arange(0, BP), [PARTS, BP // PARTS])[:, :, None]
    dw = tl.zeros([PARTS, CP, 2 * HP], tl.float32)
    for at in range(0, left, BP):
        there = at + pair < left
        of_p = there & (c < C)[None, None, :]
        p = tl.load(P + (at + pair) * C + c[None, None, :], mask=of_p, other=0.0)
        g = tl.load(G + (at + pair) * H + h[None, None, :], mask=there & (h < H)[None, None, :], other=0.0)
        p = tl.where((tl.max((g != 0).to(tl.int32), 2) != 0)[:, :, None], p, 0.0)
        x, rstd = normalise(p, eps, C, CP, 64)  # pyright: ignore[reportGeneralTypeIssues]
        dp, dw = pair_gradients(x, rstd, g, wt, dw, C)  # pyright: ignore[reportGeneralTypeIssues]
        tl.store(DP + (at + pair) * C + c[None, None, :], dp.to(ptype), mask=of_p)
    DW += tl.program_id(0) * (CP * HP)
    tl.store(DW + c[:, None] * HP + h[None, :], total_weight(dw, CP, HP))


@triton.jit(do_not_specialize=["N", "parts"])
def backward_finish(
    PART, DQ, START, STOP, N, parts, scale,
    H: tl.constexpr, D: tl.constexpr, ROW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, ATOMIC: tl.constexpr,
):  # fmt: skip
    """BM rows of ``dQ = scale * (sum of its parts)`` in Q's dtype; slots are summed in their order."""
    blocks = tl.cdiv(N, BM)
    l = tl.program_id(0) % blocks * BM + tl.arange(0, BM)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    t = tl.arange(0, ROW)
    present = l < N
    mask = present[:, None] & (t < H * D)[None, :]
    at = l[:, None] * (H * D) + t[None, :]
    part = PART + b * parts * N * (H * D) + at
    if ATOMIC:
        total = tl.load(part, mask=mask, other=0.0)
    else:
        start = tl.load(START + l, mask=present, other=0)
        stop = tl.load(STOP + l, mask=present, other=0)
        slots = tl.where(stop > start, (stop - 1) // BN - start // BN + 1, 0)
        total = tl.zeros([BM, ROW], tl.float32)
        for i in range(0, tl.max(slots, 0)):
            total += tl.load(part + (N.to(tl.int64) * i) * (H * D), mask=mask & (i < slots)[:, None], other=0.0)
    tl.store(DQ + b * N * (H * D) + at, (total * scale).to(DQ.dtype.element_ty), mask=mask)


@triton.jit
def weight_gradients(
    DWC, W, GAMMA, DW, DGAMMA,
    H: tl.constexpr, C: tl.constexpr, HP: tl.constexpr, CP: tl.constexpr,
):  # fmt: skip
    """dgamma ``[C]`` and dW ``[H, C]`` from dWc ``[CP, HP]``: centred (centring is its own adjoint), then through
    ``Wc = gamma W``."""
    c = tl.arange(0, CP)
    h = tl.arange(0, HP)
    mask = (c < C)[:, None] & (h < H)[None, :]
    dwc = tl.load(DWC + c[:, None] * HP + h[None, :], mask=mask, other=0.0)
    dwc = tl.where(mask, dwc - tl.sum(dwc, 0)[None, :] / C, 0.0)
    w = tl.load(W + h[None, :] * C + c[:, None], mask=mask, other=0.0).to(tl.float32)
    g = tl.load(GAMMA + c, mask=c < C, other=0.0).to(tl.float32)
    tl.store(DGAMMA + c, tl.sum(w * dwc, 1).to(DGAMMA.dtype.element_ty), mask=c < C)
    tl.store(DW + h[None, :] * C + c[:, None], (g[:, None] * dwc).to(DW.dtype.element_ty), mask=mask)
