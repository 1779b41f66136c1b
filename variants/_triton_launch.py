"""Launches the kernels: allocates outputs, derives integer row plans from a band plan, and picks configurations."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from pallatom.architecture._remember import remembered

from ._band import BandPlan
from ._triton_config import PAIRS_A_PROGRAM, Config, Sizes, gather_config, pairs_config, pow2
from ._triton_tune import choose
from ._triton_tuned import Direction

Made = TypeVar("Made")


@dataclass(frozen=True)
class Problem:
    """One call: ``q, k, v [B, N, H, D]``, raw ``p [B, N, K, C]``, ``gamma [C]``, ``weight [H, C]``, the mask."""

    q: Tensor
    k: Tensor
    v: Tensor
    p: Tensor
    gamma: Tensor
    weight: Tensor
    mask: Tensor
    eps: float

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """B, N, H, D, K, C."""
        return *self.q.shape, *self.p.shape[2:]  # type: ignore[return-value]

    @property
    def scale(self) -> float:
        return self.q.shape[-1] ** -0.5

    @property
    def compiled_for(self) -> Sizes:
        _, _, heads, head_dim, _, channels = self.sizes
        return Sizes(self.q.dtype, self.p.dtype, heads, head_dim, channels)

    def dims(self) -> dict[str, int]:
        return self.compiled_for.padded()

    @property
    def arch(self) -> int:
        """Compute capability as in ``sm_90``; 0 in the interpreter."""
        if self.q.device.type != "cuda":
            return 0
        major, minor = torch.cuda.get_device_capability(self.q.device)
        return 10 * major + minor


@dataclass(frozen=True)
class Rows:
    """A band plan's rows as int32, and per key-block size the query ranges that were asked for so far."""

    base: Tensor
    start: Tensor
    stop: Tensor
    queries: dict[int, Tensor] = field(default_factory=dict)


@remembered
def rows_of(plan: BandPlan) -> Rows:
    return Rows(plan.base.int(), plan.start.int(), plan.stop.int())


def queries_of(plan: BandPlan, cols: int) -> Tensor:
    """Int32 ``[4, blocks]`` per block of ``cols`` keys: first and last + 1 query that sees some of its keys, and such
    that every query from the third to the fourth sees all of them (an empty range where rows are dead or not in order).
    """
    made = rows_of(plan).queries
    if cols not in made:
        made[cols] = _queries(plan, cols)
    return made[cols]


def _queries(plan: BandPlan, cols: int) -> Tensor:
    n = plan.start.numel()
    first_key = torch.arange(0, n, cols, device=plan.start.device)
    dead = plan.stop <= plan.start
    reach = plan.stop.cummax(0).values  # non-decreasing, also past dead rows
    begin = torch.where(dead, n, plan.start).flip(0).cummin(0).values.flip(0)
    first = torch.searchsorted(reach, first_key, right=True)
    last = torch.maximum(torch.searchsorted(begin, first_key + cols), first)
    if plan.monotone and not bool(dead.any()):
        inner_first = torch.searchsorted(reach, first_key + cols)
        inner_last = torch.searchsorted(begin, first_key, right=True)
    else:
        inner_first, inner_last = last, last
    inner_first = torch.clamp(inner_first, first, last)
    return torch.stack([first, last, inner_first, torch.clamp(inner_last, inner_first, last)]).int()


def in_order(plan: BandPlan) -> bool:
    """Whether blocks of keys are seen by few rows that do not see them: the rows' ranges come to at most four times
    the pairs of the band (always so where starts and stops never decrease)."""
    if plan.monotone:
        return True
    cols = 16
    first, last, *_ = queries_of(plan, cols)
    visited = int((last - first).sum()) * cols
    return visited <= 4 * (int((plan.stop - plan.start).sum()) + cols * plan.start.numel())


_ROWS = 16  # per program of the kernels that go over rows


def _kernels(part: str) -> Any:
    """A module of kernels, imported when first launched: triton is optional."""
    return importlib.import_module(f"._triton_{part}", __package__)


def if_it_fits(run: Callable[[], Made]) -> Made | None:
    """What ``run`` gives; None where one of its kernels wants more shared memory than a multiprocessor has."""
    from triton.runtime.errors import OutOfResources

    try:
        return run()
    except OutOfResources:
        return None


def _choose(direction: Direction, problem: Problem, plan: BandPlan | None = None) -> Config:
    mode = "gather" if plan is None else "holes" if plan.has_holes else "band"
    return choose(direction, mode, problem.compiled_for, problem.q.device, problem.arch)


def _blocks(n: int, size: int) -> int:
    return -(-n // size)


def _groups(heads: int, config: Config) -> int:
    return 1 if config.split_heads is None else _blocks(heads, config.split_heads)


def forward(problem: Problem, plan: BandPlan, config: Config | None = None) -> tuple[Tensor, Tensor]:
    """``(O [B, N, H, D], lse [B, N, H])`` over a band."""
    kernels = _kernels("forward")
    q, p = problem.q, problem.p
    b, n, h, _, slots, _ = problem.sizes
    config = config or _choose("forward", problem, plan)
    o = torch.empty_like(q)
    lse = torch.empty((b, n, h), dtype=torch.float32, device=q.device)
    rows = rows_of(plan)
    kernels.forward_band[(_blocks(n, config.rows), b)](
        q, problem.k, problem.v, p, problem.weight, problem.gamma, rows.base, rows.start, rows.stop,
        problem.mask, o, lse, n, slots, int(problem.mask.dim() == 3), problem.scale, problem.eps,
        **problem.dims(), **config.forward_constants(), HAS_MASK=plan.has_holes, **config.options(),
    )  # fmt: skip
    return o, lse


def backward(
    problem: Problem,
    plan: BandPlan,
    o: Tensor,
    lse: Tensor,
    grad_o: Tensor,
    *,
    deterministic: bool,
    config: Config | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``(dQ, dK, dV, dp, dgamma, dW)`` over a band.

    dQ is added up in fp32 by atomics, ``deterministic`` in one slot per (query, key block), which takes
    ``K / cols + 2`` times Q in fp32. A configuration that splits the backward takes H / C of p for dS while it runs.
    """
    kernels = _kernels("backward")
    q, p = problem.q, problem.p
    b, n, h, d, slots, _ = problem.sizes
    config = config or _choose("backward", problem, plan)
    dims, rows, device = problem.dims(), rows_of(plan), q.device
    heads = {name: dims[name] for name in ("H", "D", "C", "HP", "DH")}
    parts = (slots + config.cols - 2) // config.cols + 1 if deterministic else 1
    blocks = _blocks(n, config.cols)
    delta = torch.empty((b, n, h), dtype=torch.float32, device=device)
    dq_parts = torch.empty((b, parts, n, h, d), dtype=torch.float32, device=device)
    dk, dv, dp = torch.empty_like(problem.k), torch.empty_like(problem.v), torch.empty_like(p)
    split = config.split_heads
    dw_parts = torch.empty(
        (b * blocks if split is None else 0, dims["CP"], dims["HP"]), dtype=torch.float32, device=device
    )
    by_pair = dp if split is None else p.new_empty((b, n, slots, h))
    row_grid = (_blocks(n, _ROWS), b)
    kernels.backward_prepare[row_grid](
        o, grad_o, delta, dq_parts, by_pair, rows.base, rows.start, rows.stop, n, slots,
        **heads | {"C": by_pair.shape[3]}, ZERO_DQ=not deterministic, BM=_ROWS, BT=64,
    )  # fmt: skip
    kernels.backward_band[(blocks, b, _groups(h, config))](
        q, problem.k, problem.v, p, problem.weight, problem.gamma, rows.base, rows.start, rows.stop, problem.mask,
        grad_o, lse, delta, queries_of(plan, config.cols), dq_parts, dk, dv, by_pair, dw_parts,
        n, slots, int(problem.mask.dim() == 3), parts, problem.scale, problem.eps,
        **dims | config.backward_constants(), HAS_MASK=plan.has_holes, ATOMIC=not deterministic, **config.options(),
    )  # fmt: skip
    dq = torch.empty_like(q)
    kernels.backward_finish[row_grid](
        dq_parts, dq, rows.start, rows.stop, n, parts, problem.scale,
        H=h, D=d, ROW=pow2(h * d), BM=_ROWS, BN=config.cols, ATOMIC=not deterministic,
    )  # fmt: skip
    if split is not None:
        dw_parts = _pair_gradients(problem, by_pair, dp)
    return dq, dk, dv, dp, *_weight_gradients(dw_parts, problem)


def _pair_gradients(problem: Problem, g: Tensor, dp: Tensor) -> Tensor:
    """Writes dp, all of it, of ``g = rstd dS [B, N, K, H]``; gives dW's parts."""
    config, dims = pairs_config(problem.compiled_for), problem.dims()
    constants, pairs = config.pairs_constants(), g.numel() // g.shape[3]
    programs = _blocks(pairs, PAIRS_A_PROGRAM)
    dw_parts = torch.empty((programs, dims["CP"], dims["HP"]), dtype=torch.float32, device=g.device)
    _kernels("backward").backward_pairs[(programs,)](
        problem.p, g, problem.weight, problem.gamma, dp, dw_parts, pairs, problem.eps,
        **{name: dims[name] for name in ("H", "C", "HP", "CP")}, **constants, **config.options(),
    )  # fmt: skip
    return dw_parts


def forward_gather(problem: Problem, idx: Tensor, config: Config | None = None) -> tuple[Tensor, Tensor]:
    """``(O [B, N, H, D], lse [B, N, H])`` over any neighbour table ``idx [N, K]``."""
    q = problem.q
    b, n, h, _, slots, _ = problem.sizes
    config = config or _choose("forward", problem)
    o = torch.empty_like(q)
    lse = torch.empty((b, n, h), dtype=torch.float32, device=q.device)
    _kernels("gather").forward_gather[(n, b, _groups(h, config))](
        q, problem.k, problem.v, problem.p, problem.weight, problem.gamma, idx, problem.mask, o, lse,
        n, slots, int(problem.mask.dim() == 3), problem.scale, problem.eps,
        **problem.dims() | config.gather_constants(), **config.options(),
    )  # fmt: skip
    return o, lse


@dataclass(frozen=True)
class Holders:
    """A neighbour table inverted: ``slots`` as ``l K + k``, sorted by the atom that they hold; atom m's are those from
    ``first[m]`` to ``first[m + 1]``. Slots that are dead in every batch item are left out."""

    slots: Tensor
    first: Tensor


@remembered
def holders_of(neighbor_idx: Tensor, valid_mask: Tensor) -> Holders:
    """4 bytes per live slot (8 from 2**31 slots on), and while it is made some 40."""
    n = neighbor_idx.shape[0]
    live = valid_mask if valid_mask.dim() == 2 else valid_mask.any(0)
    slots = live.flatten().nonzero()[:, 0]
    atoms, order = neighbor_idx.flatten()[slots].sort(stable=True)
    first = torch.searchsorted(atoms, torch.arange(n + 1, device=atoms.device))
    narrow = torch.int32 if live.numel() < 2**31 else torch.int64
    return Holders(slots[order].to(narrow), first)


def backward_gather(
    problem: Problem,
    idx: Tensor,
    o: Tensor,
    lse: Tensor,
    grad_o: Tensor,
    *,
    holders: Holders | None = None,
    config: Config | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``(dQ, dK, dV, dp, dgamma, dW)`` over any neighbour table.

    dK and dV are added up by atomics in fp32; deterministic, where the table comes inverted too, key by key from p read
    a second time. A configuration that splits the backward takes H / C of p for dS while it runs.
    """
    q, p = problem.q, problem.p
    b, n, h, _, slots, _ = problem.sizes
    config = config or _choose("backward", problem)
    dims = problem.dims()
    shapes = (n, slots, int(problem.mask.dim() == 3), problem.scale, problem.eps)
    kernels, atomic, split = _kernels("gather"), holders is None, config.split_heads
    dq, dp = torch.empty_like(q), torch.empty_like(p)
    by_pair = dp if split is None else p.new_empty((b, n, slots, h))
    if atomic:
        dk, dv = (torch.zeros(q.shape, dtype=torch.float32, device=q.device) for _ in range(2))
    else:
        dk, dv = torch.empty_like(problem.k), torch.empty_like(problem.v)
    delta = torch.empty((b, n, h), dtype=torch.float32, device=q.device)
    dw_parts = torch.empty(
        (b * n if split is None else 0, dims["CP"], dims["HP"]), dtype=torch.float32, device=q.device
    )
    weights = (problem.weight, problem.gamma)
    kernels.backward_gather[(n, b, _groups(h, config))](
        q, problem.k, problem.v, p, *weights, idx, problem.mask, o, grad_o, lse, delta, dq, dk, dv, by_pair, dw_parts,
        *shapes, **dims | config.gather_backward_constants(), ATOMIC=atomic, **config.options(),
    )  # fmt: skip
    if holders is not None:
        keys = gather_config("keys", problem.compiled_for, problem.arch)
        kernels.backward_gather_keys[(n, b, _groups(h, keys))](
            q, problem.k, problem.v, p, *weights, holders.slots, holders.first, problem.mask, grad_o, lse, delta,
            dk, dv, *shapes, **dims | keys.gather_constants(), **keys.options(),
        )  # fmt: skip
    if split is not None:
        dw_parts = _pair_gradients(problem, by_pair, dp)
    return dq, dk.to(q.dtype), dv.to(q.dtype), dp, *_weight_gradients(dw_parts, problem)


def _weight_gradients(dw_parts: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """``(dgamma [C], dW [H, C])`` from partial sums ``[parts, CP, HP]`` of the centred weight's gradient."""
    dgamma, dweight = torch.empty_like(problem.gamma), torch.empty_like(problem.weight)
    dims = problem.dims()
    _kernels("backward").weight_gradients[(1,)](
        dw_parts.sum(0), problem.weight, problem.gamma, dweight, dgamma, **{x: dims[x] for x in ("H", "C", "HP", "CP")}
    )
    return dgamma, dweight
