"""Backward kernels of the band mode: a preparing pass, the key-major main pass, and the end of dQ."""

from __future__ import annotations

import triton
import triton.language as tl

from ._triton_common import LOG2_E, LOWEST, dot, normalise, small_dot, split_weight, spread, spread_weight, within


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


@triton.jit(do_not_specialize=["N", "SLOTS", "mask_per_item", "dq_parts"])
def backward_band(
    Q, K, V, P, W, GAMMA, BASE, START, STOP, MASK, DO, LSE, DELTA, QUERIES, DQ, DK, DV, DP, DW,
    N, SLOTS, mask_per_item, dq_parts, scale, eps,
    H: tl.constexpr, D: tl.constexpr, C: tl.constexpr, HP: tl.constexpr, DH: tl.constexpr, CP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, HAS_MASK: tl.constexpr, ATOMIC: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """BN keys x all queries that see them: dK and dV stay in registers, dp is written once, dQ is added or slotted.

    ``QUERIES [4, blocks]`` holds per key block the first and last + 1 query that sees any of its keys, and those that
    see all of them. ``DW [B, blocks, CP, HP]``: partial sums of dWc, centred and split into dgamma and dW by the caller.
    """
    PAIRS: tl.constexpr = BM * BN
    pid = tl.program_id(0)
    blocks = tl.num_programs(0)
    b = tl.program_id(1).to(tl.int64)
    h = tl.arange(0, HP)
    d = tl.arange(0, DH)
    c = tl.arange(0, CP)
    row = tl.arange(0, BM)
    n = pid * BN + tl.arange(0, BN)
    ptype = P.dtype.element_ty
    w2 = split_weight(W, GAMMA, 1.0 / scale, H, C, HP, CP, ptype)
    wt = spread_weight(W, GAMMA, H, C, HP, CP, ptype)
    hd = (h < H)[:, None, None] & (d < D)[None, None, :]

    atoms = b * N * (H * D)
    Q += atoms
    DO += atoms
    k_off = atoms + n[None, :, None] * (H * D) + h[:, None, None] * D + d[None, None, :]
    k_mask = (n < N)[None, :, None] & hd
    k = tl.load(K + k_off, mask=k_mask, other=0.0)
    v = tl.load(V + k_off, mask=k_mask, other=0.0)
    P += b * N * SLOTS * C
    DP += b * N * SLOTS * C
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
    inner_first = tl.load(QUERIES + 2 * blocks + pid)
    inner_last = tl.load(QUERIES + 3 * blocks + pid)
    for m0 in range(first, last, BM):
        l = m0 + row
        present = l < last
        base = tl.load(BASE + l, mask=present, other=0)
        start = tl.load(START + l, mask=present, other=0)
        stop = tl.load(STOP + l, mask=present, other=0)
        inside = within(n[None, :] - start[:, None], (stop - start)[:, None])
        tile = (row * SLOTS - base)[:, None] + n[None, :]
        origin = SLOTS.to(tl.int64) * m0
        offset = (tl.reshape(tile, [PARTS, PAIRS // PARTS]) * C)[:, :, None] + c[None, None, :]
        keep = tl.reshape(inside, [PARTS, PAIRS // PARTS])[:, :, None]
        q_off = l[None, :, None] * (H * D) + h[:, None, None] * D + d[None, None, :]
        stat_off = l[None, :] * H + h[:, None]
        q_mask = present[None, :, None]
        stat_mask = present[None, :]
        if CP != C:
            keep = keep & (c < C)[None, None, :]
        if HP != H or DH != D:
            q_mask = q_mask & hd
            stat_mask = stat_mask & (h < H)[:, None]
        p = tl.load(P + origin * C + offset, mask=keep, other=0.0)
        q = tl.load(Q + q_off, mask=q_mask, other=0.0)
        do = tl.load(DO + q_off, mask=q_mask, other=0.0)
        lse = tl.load(LSE + stat_off, mask=stat_mask, other=float("inf"))
        delta = tl.load(DELTA + stat_off, mask=stat_mask, other=0.0)

        # scores again, transposed, [head, keys, queries]: so A and dS are dV's and dK's left operands as they are
        x, rstd = normalise(p, eps, C, CP)
        bias = tl.sum(tl.reshape(small_dot(p, w2), [PARTS, PAIRS // PARTS, HP, 2]), 3) * rstd[:, :, None]
        bias = tl.reshape(bias, [BM, BN, HP])
        if HAS_MASK:
            live = tl.load(MASK + origin + tile, mask=inside, other=0) != 0
            bias = tl.where(live[:, :, None], bias, LOWEST)
        elif (m0 < inner_first) | (m0 + BM > inner_last):
            bias = tl.where(inside[:, :, None], bias, LOWEST)
        s = dot(k, tl.permute(q, (0, 2, 1)), tl.permute(bias, (2, 1, 0)))
        a = tl.exp2(s * scale2 - lse[:, None, :])
        dv = dot(a.to(do.dtype), do, dv)
        ds = a * (dot(v, tl.permute(do, (0, 2, 1))) - delta[:, None, :])
        ds_q = ds.to(q.dtype)
        dk = dot(ds_q, q, dk)
        dq = dot(tl.permute(ds_q, (0, 2, 1)), k)
        if ATOMIC:
            tl.atomic_add(DQ + q_off, dq, mask=q_mask, sem="relaxed")
        else:  # the row's slot of this key block: every slot of a row is written exactly once
            meets = (start < (pid + 1) * BN) & (stop > pid * BN)
            slot = (pid - start // BN).to(tl.int64) * N * (H * D)
            tl.store(DQ + slot[None, :, None] + q_off, dq, mask=q_mask & meets[None, :, None])

        # LayerNorm backward of a normalised row x under a weight centred over c, with G = dS Wc^T:
        # dp = rstd (G - x <x, G> / C); dWc = x^T dS
        x = x * rstd[:, :, None]
        ds_p = tl.reshape(tl.permute(ds.to(ptype), (2, 1, 0)), [PARTS, PAIRS // PARTS, HP])
        g = small_dot(spread(ds_p, wt.shape[0] // HP), wt)
        dp = rstd[:, :, None] * (g - x * (tl.sum(x * g, 2) * (1.0 / C))[:, :, None])
        tl.store(DP + origin * C + offset, dp.to(ptype), mask=keep)
        dw = dot(tl.permute(x.to(ptype), (0, 2, 1)), spread(ds_p, 2), dw)

    tl.store(DK + k_off, (dk * scale).to(DK.dtype.element_ty), mask=k_mask)
    tl.store(DV + k_off, dv.to(DV.dtype.element_ty), mask=k_mask)
    total = tl.sum(tl.reshape(tl.sum(dw, 0), [CP, HP, 2]), 2) * 0.5  # dS stands there twice
    DW += (b * blocks + pid) * (CP * HP)
    tl.store(DW + c[:, None] * HP + h[None, :], total)


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
