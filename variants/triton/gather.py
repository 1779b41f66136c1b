"""Kernels for an arbitrary neighbour table: one query a program, its keys gathered row by row.

K and V rows come from the second-level cache, ``4 H D`` bytes per pair in 16 bits (16 times p's own in the usual
shape), so this mode is bound by that cache, the band mode by p. Scores are plain sums: no other query shares a row of
keys, so there is no matrix product for the tensor cores. p is read once per group of heads (usually one group, see
below), little beside what is gathered; dp is written once.

dK and dV belong to keys, and a query's program meets its keys in any order: they are added up by fp32 atomics, whose
order and so whose last bits change from run to run; or, deterministically, by a second kernel with one key a program,
which walks over the slots that hold its key (``backward_gather_keys``). That reads p again, 32 bytes at a time.

Every gathered row of K and V, and in the backward its share of dK and dV, is in registers in fp32. Where H D numbers
are too many for them, a program has HP of the H heads, and the groups of heads are the grid's second axis.
"""

# ruff: noqa: E741 — atoms are l and outputs O here; a branch at compile time is no expression
from __future__ import annotations

import triton
import triton.language as tl

from .common import (
    LOG2_E,
    LOWEST,
    get_rounded,
    normal_pair_gradient,
    normalise,
    plain_bias,
    project,
    put_rounded,
    row_lse,
    split_weight,
    spread_weight,
    total_weight,
    weight_product,
)


@triton.jit
def _first_head(H: tl.constexpr, HP: tl.constexpr):
    """The first of the program's HP heads."""
    if H > HP:
        return tl.program_id(1) * HP
    return 0


@triton.jit
def _slots(
    k0, h0, IDX, MASK, P, K, V, SLOTS,
    H: tl.constexpr, D: tl.constexpr, C: tl.constexpr, HP: tl.constexpr, DH: tl.constexpr, CP: tl.constexpr,
    BN: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """``(live [BN], p [PARTS, BN / PARTS, CP], K, V [BN, HP, DH], their offsets and mask)`` of one row's BN slots.

    From slot ``k0`` and head ``h0`` on. A dead slot may hold any index and any p: neither is read.
    """
    slot = k0 + tl.arange(0, BN)
    h = h0 + tl.arange(0, HP)
    d = tl.arange(0, DH)
    c = tl.arange(0, CP)
    live = tl.load(MASK + slot, mask=slot < SLOTS, other=0) != 0
    atom = tl.load(IDX + slot, mask=live, other=0)
    pair = tl.reshape(slot, [PARTS, BN // PARTS])[:, :, None] * C + c[None, None, :]
    p_mask = tl.reshape(live, [PARTS, BN // PARTS])[:, :, None] & (c < C)[None, None, :]
    p = tl.load(P + pair, mask=p_mask, other=0.0)
    at = atom[:, None, None] * (H * D) + h[None, :, None] * D + d[None, None, :]
    at_mask = live[:, None, None] & (h < H)[None, :, None] & (d < D)[None, None, :]
    k = tl.load(K + at, mask=at_mask, other=0.0).to(tl.float32)
    v = tl.load(V + at, mask=at_mask, other=0.0).to(tl.float32)
    return live, p, k, v, at, at_mask


@triton.jit(do_not_specialize=["N", "SLOTS", "mask_per_item"])
def forward_gather(
    Q, K, V, P, W, GAMMA, IDX, MASK, O, LOW, LSE, N, SLOTS, mask_per_item, scale, eps,
    H: tl.constexpr, D: tl.constexpr, C: tl.constexpr, HP: tl.constexpr, DH: tl.constexpr, CP: tl.constexpr,
    BN: tl.constexpr, PARTS: tl.constexpr, KEEP_LOW: tl.constexpr,
):  # fmt: skip
    """One query x its slots: ``O [B, N, H, D]`` and the base-2 log-sum-exp ``LSE [B, N, H]`` (+inf: dead row).

    KEEP_LOW: also ``LOW``, what rounding O lost.
    """
    b = (tl.program_id(0) // N).to(tl.int64)
    l = (tl.program_id(0) % N).to(tl.int64)
    h0 = _first_head(H, HP)
    h = h0 + tl.arange(0, HP)
    d = tl.arange(0, DH)
    w2 = split_weight(W + h0 * C, GAMMA, LOG2_E, H - h0, C, HP, CP, P.dtype.element_ty)
    off = (b * N + l) * (H * D) + h[:, None] * D + d[None, :]
    hd = (h < H)[:, None] & (d < D)[None, :]
    q = tl.load(Q + off, mask=hd, other=0.0).to(tl.float32) * (scale * LOG2_E)
    atoms = b * N * (H * D)
    IDX += l * SLOTS
    MASK += (b * mask_per_item * N + l) * SLOTS
    P += (b * N + l) * SLOTS * C
    m_i = tl.full([HP], LOWEST, tl.float32)
    l_i = tl.zeros([HP], tl.float32)
    acc = tl.zeros([HP, DH], tl.float32)
    for k0 in range(0, SLOTS, BN):
        live, p, k, v, _, _ = _slots(k0, h0, IDX, MASK, P, K + atoms, V + atoms, SLOTS, H, D, C, HP, DH, CP, BN, PARTS)
        s = tl.sum(k * q[None, :, :], 2) + tl.reshape(plain_bias(p, w2, eps, C, CP, HP), [BN, HP])
        s = tl.where(live[:, None], s, LOWEST)
        m_new = tl.maximum(m_i, tl.max(s, 0))
        a = tl.exp2(s - m_new[None, :])
        shrink = tl.exp2(m_i - m_new)
        l_i = l_i * shrink + tl.sum(a, 0)
        acc = acc * shrink[:, None] + tl.sum(a[:, :, None] * v, 0)
        m_i = m_new
    alive = m_i > LOWEST / 2
    inv = tl.where(alive, 1.0 / l_i, 0.0)
    put_rounded(O, LOW, off, acc * inv[:, None], hd, KEEP_LOW)
    tl.store(LSE + (b * N + l) * H + h, row_lse(alive, m_i, l_i), mask=h < H)


@triton.jit(do_not_specialize=["N", "SLOTS", "mask_per_item"])
def backward_gather(
    Q, K, V, P, W, GAMMA, IDX, MASK, O, LOW, DO, LSE, DELTA, DQ, DK, DV, DP, DW,
    N, SLOTS, mask_per_item, scale, eps,
    H: tl.constexpr, D: tl.constexpr, C: tl.constexpr, HP: tl.constexpr, DH: tl.constexpr, CP: tl.constexpr,
    BN: tl.constexpr, PARTS: tl.constexpr, ATOMIC: tl.constexpr, SPLIT: tl.constexpr,
    KEEP_LOW: tl.constexpr,
):  # fmt: skip
    """One query x its slots: writes dQ, dp and its share of dWc, ``DW [B N, CP, HP]``.

    ATOMIC: adds to dK and dV (fp32). Else it writes ``DELTA [B, N, H]`` for ``backward_gather_keys``, which makes them.

    SPLIT (required where HP < H): writes ``g [B, N, SLOTS, H]`` to ``DP``, which ``backward_pairs`` turns into dp and
    dWc.
    """
    b = (tl.program_id(0) // N).to(tl.int64)
    l = (tl.program_id(0) % N).to(tl.int64)
    h0 = _first_head(H, HP)
    h = h0 + tl.arange(0, HP)
    d = tl.arange(0, DH)
    c = tl.arange(0, CP)
    ptype = P.dtype.element_ty
    W += h0 * C
    w2 = split_weight(W, GAMMA, LOG2_E, H - h0, C, HP, CP, ptype)
    wt = spread_weight(W, GAMMA, H - h0, C, HP, CP, ptype)
    off = (b * N + l) * (H * D) + h[:, None] * D + d[None, :]
    hd = (h < H)[:, None] & (d < D)[None, :]
    q = tl.load(Q + off, mask=hd, other=0.0).to(tl.float32)
    do = tl.load(DO + off, mask=hd, other=0.0).to(tl.float32)
    delta = tl.sum(get_rounded(O, LOW, off, hd, KEEP_LOW) * do, 1)
    lse = tl.load(LSE + (b * N + l) * H + h, mask=h < H, other=float("inf"))
    if not ATOMIC:
        tl.store(DELTA + (b * N + l) * H + h, delta, mask=h < H)
    atoms = b * N * (H * D)
    IDX += l * SLOTS
    MASK += (b * mask_per_item * N + l) * SLOTS
    P += (b * N + l) * SLOTS * C
    DP += (b * N + l) * SLOTS * (H if SPLIT else C)
    dq = tl.zeros([HP, DH], tl.float32)
    dw = tl.zeros([PARTS, CP, 2 * HP], tl.float32)
    for k0 in range(0, SLOTS, BN):
        live, p, k, v, at, at_mask = _slots(  # pyright: ignore[reportGeneralTypeIssues]
            k0, h0, IDX, MASK, P, K + atoms, V + atoms, SLOTS, H, D, C, HP, DH, CP, BN, PARTS
        )
        x, rstd = normalise(p, eps, C, CP)
        bias = project(p, x, w2, HP) * rstd[:, :, None]
        s = tl.sum(k * q[None, :, :], 2) * (scale * LOG2_E) + tl.reshape(bias, [BN, HP])
        a = tl.where(live[:, None], tl.exp2(s - lse[None, :]), 0.0)
        ds = a * (tl.sum(v * do[None, :, :], 2) - delta[None, :])
        dq += tl.sum(ds[:, :, None] * k, 0)
        if ATOMIC:
            tl.atomic_add(DK + atoms + at, ds[:, :, None] * (q * scale)[None, :, :], mask=at_mask, sem="relaxed")
            tl.atomic_add(DV + atoms + at, a[:, :, None] * do[None, :, :], mask=at_mask, sem="relaxed")
        slot = tl.reshape(k0 + tl.arange(0, BN), [PARTS, BN // PARTS])[:, :, None]
        there = slot < SLOTS
        ds_p = tl.reshape(ds, [PARTS, BN // PARTS, HP])
        # a dead slot has ds = 0 and so dp = 0
        if SPLIT:
            g = ds_p if ptype == tl.float16 else ds_p * rstd[:, :, None]
            tl.store(DP + slot * H + h[None, None, :], g.to(ptype), mask=there & (h < H)[None, None, :])
        else:
            x = x * rstd[:, :, None]
            ds_p = ds_p.to(ptype)
            dp = normal_pair_gradient(x, rstd, ds_p, wt, C)
            tl.store(DP + slot * C + c[None, None, :], dp.to(ptype), mask=there & (c < C)[None, None, :])
            dw = weight_product(x.to(ptype), ds_p, dw)
    tl.store(DQ + off, (dq * scale).to(DQ.dtype.element_ty), mask=hd)
    if not SPLIT:
        tl.store(DW + (b * N + l) * (CP * HP) + c[:, None] * HP + h[None, :], total_weight(dw, CP, HP))


@triton.jit(do_not_specialize=["N", "SLOTS", "mask_per_item"])
def backward_gather_keys(
    Q, K, V, P, W, GAMMA, HOLDERS, FIRST, MASK, DO, LSE, DELTA, DK, DV, N, SLOTS, mask_per_item, scale, eps,
    H: tl.constexpr, D: tl.constexpr, C: tl.constexpr, HP: tl.constexpr, DH: tl.constexpr, CP: tl.constexpr,
    BN: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One key x the slots that hold it, always in the same order: writes dK and dV.

    ``HOLDERS``: slots, as ``l SLOTS + k``, sorted by the atom they hold; ``FIRST [N + 1]``: where each atom's begin.
    """
    b = (tl.program_id(0) // N).to(tl.int64)
    m = (tl.program_id(0) % N).to(tl.int64)
    h0 = _first_head(H, HP)
    h = h0 + tl.arange(0, HP)
    d = tl.arange(0, DH)
    c = tl.arange(0, CP)
    col = tl.arange(0, BN)
    w2 = split_weight(W + h0 * C, GAMMA, LOG2_E, H - h0, C, HP, CP, P.dtype.element_ty)
    off = (b * N + m) * (H * D) + h[:, None] * D + d[None, :]
    hd = (h < H)[:, None] & (d < D)[None, :]
    k = tl.load(K + off, mask=hd, other=0.0).to(tl.float32) * (scale * LOG2_E)
    v = tl.load(V + off, mask=hd, other=0.0).to(tl.float32)
    Q += b * N * (H * D)
    DO += b * N * (H * D)
    LSE += b * N * H
    DELTA += b * N * H
    MASK += b * mask_per_item * N * SLOTS
    P += b * N * SLOTS * C
    dk = tl.zeros([HP, DH], tl.float32)
    dv = tl.zeros([HP, DH], tl.float32)
    last = tl.load(FIRST + m + 1)
    for i0 in range(tl.load(FIRST + m), last, BN):
        pair = tl.load(HOLDERS + i0 + col, mask=i0 + col < last, other=0).to(tl.int64)
        live = (i0 + col < last) & (tl.load(MASK + pair, mask=i0 + col < last, other=0) != 0)
        l = pair // SLOTS
        at = l[:, None, None] * (H * D) + h[None, :, None] * D + d[None, None, :]
        at_mask = live[:, None, None] & hd[None, :, :]
        q = tl.load(Q + at, mask=at_mask, other=0.0).to(tl.float32)
        do = tl.load(DO + at, mask=at_mask, other=0.0).to(tl.float32)
        stat_mask = live[:, None] & (h < H)[None, :]
        lse = tl.load(LSE + l[:, None] * H + h[None, :], mask=stat_mask, other=float("inf"))
        delta = tl.load(DELTA + l[:, None] * H + h[None, :], mask=stat_mask, other=0.0)
        p_at = tl.reshape(pair, [PARTS, BN // PARTS])[:, :, None] * C + c[None, None, :]
        p_mask = tl.reshape(live, [PARTS, BN // PARTS])[:, :, None] & (c < C)[None, None, :]
        p = tl.load(P + p_at, mask=p_mask, other=0.0)
        bias = tl.reshape(plain_bias(p, w2, eps, C, CP, HP), [BN, HP])
        a = tl.where(stat_mask, tl.exp2(tl.sum(q * k[None, :, :], 2) + bias - lse), 0.0)
        ds = a * (tl.sum(do * v[None, :, :], 2) - delta)
        dk += tl.sum(ds[:, :, None] * q, 0)
        dv += tl.sum(a[:, :, None] * do, 0)
    tl.store(DK + off, (dk * scale).to(DK.dtype.element_ty), mask=hd)
    tl.store(DV + off, dv.to(DV.dtype.element_ty), mask=hd)
