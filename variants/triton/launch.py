"""Launches the kernels: allocates outputs, picks configurations, and passes each call's sizes and plans."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from pallatom.architecture._remember import remembered

from .._backend import UnsupportedError
from ..band.plan import BandPlan
from .config import PAIRS_A_PROGRAM, Config, Sizes, gather_config, pairs_config, pow2, shared_bytes
from .plans import Holders, queries_of, refuse_in_capture, rows_of
from .tune import choose
from .tuned import Direction

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


@contextmanager
def on(device: torch.device) -> Iterator[None]:
    """Make ``device``, the tensors', the current one, on which kernels are launched.

    What CUDA refuses during a graph capture, such as loading a kernel that was never used, raises
    :class:`UnsupportedError`, as a plan that was never made does.
    """
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        try:
            yield
        except RuntimeError as e:
            if not isinstance(e, UnsupportedError) and "captur" in str(e):
                refuse_in_capture(device, f"what it needs ({e})")
            raise


_ROWS = 16  # rows per program of ``backward_prepare`` and ``backward_finish``


def _kernels(part: str) -> Any:
    """A module of kernels, imported when first launched: triton is optional."""
    return importlib.import_module(f".{part}", __package__)


@remembered
def _too_large(plan: BandPlan) -> set[tuple[Direction, Sizes, int]]:
    """Tiles (direction, sizes, architecture) that did not fit at a launch over this plan, whatever ``shared_bytes``
    says."""
    return set()


def if_a_tile_fits(direction: Direction, problem: Problem, plan: BandPlan | None) -> BandPlan | None:
    """``plan`` if a multiprocessor has room for the tile of ``direction``'s band kernel; else None."""
    if plan is None or (direction, problem.compiled_for, problem.arch) in _too_large(plan):
        return None
    need = shared_bytes(direction, problem.compiled_for)
    fits = need == 0 or problem.arch == 0 or need <= _shared_limit(problem.q.device)
    return plan if fits else None


@functools.cache
def _shared_limit(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def if_it_fits(direction: Direction, problem: Problem, plan: BandPlan, run: Callable[[], Made]) -> Made | None:
    """The result of ``run``; None, with a warning, if its kernel needs more shared memory than a multiprocessor has.

    The plan remembers that, and :func:`if_a_tile_fits` then says so before the launch.
    """
    from triton.runtime.errors import OutOfResources

    try:
        return run()
    except OutOfResources as e:
        _too_large(plan).add((direction, problem.compiled_for, problem.arch))
        warnings.warn(f"triton_fused: the {direction}'s tile does not fit this GPU ({e}): gathered", stacklevel=2)
        return None


def splits(direction: Direction, problem: Problem, plan: BandPlan | None) -> bool:
    """Whether the kernel of ``direction`` (the gather kernel if there is no plan) takes the heads in groups."""
    return _choose(direction, problem, plan).split_heads is not None


def _choose(direction: Direction, problem: Problem, plan: BandPlan | None = None) -> Config:
    mode = "gather" if plan is None else "holes" if plan.has_holes else "band"
    return choose(direction, mode, problem.compiled_for, problem.q.device, problem.arch)


def _blocks(n: int, size: int) -> int:
    return -(-n // size)


def _groups(heads: int, config: Config) -> int:
    return 1 if config.split_heads is None else _blocks(heads, config.split_heads)


def forward(
    problem: Problem, plan: BandPlan, config: Config | None = None, *, keep_low: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """``(O [B, N, H, D], low, lse [B, N, H])`` over a band; ``low``: of O's shape with ``keep_low``, else empty."""
    kernels = _kernels("forward")
    q, p = problem.q, problem.p
    b, n, h, _, slots, _ = problem.sizes
    config = config or _choose("forward", problem, plan)
    o, low = torch.empty_like(q), torch.empty_like(q) if keep_low else q.new_empty(0)
    lse = torch.empty((b, n, h), dtype=torch.float32, device=q.device)
    rows = rows_of(plan).bounds.here()
    kernels.forward_band[(_blocks(n, config.rows) * b,)](
        q, problem.k, problem.v, p, problem.weight, problem.gamma, *rows,
        problem.mask, o, low, lse, n, slots, int(problem.mask.dim() == 3), problem.scale, problem.eps,
        **problem.dims(), **config.forward_constants(), HAS_MASK=plan.has_holes, KEEP_LOW=keep_low, **config.options(),
    )  # fmt: skip
    return o, low, lse


def backward(
    problem: Problem,
    plan: BandPlan,
    o: Tensor,
    low: Tensor,
    lse: Tensor,
    grad_o: Tensor,
    *,
    deterministic: bool,
    config: Config | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``(dQ, dK, dV, dp, dgamma, dW)`` over a band.

    dQ is summed in fp32 by atomics, or if ``deterministic`` in one slot per (query, key block), which takes
    ``K / cols + 2`` times Q in fp32. A configuration that splits the backward also allocates g, H / C of p's size.
    """
    kernels = _kernels("backward")
    q, p = problem.q, problem.p
    b, n, h, d, slots, _ = problem.sizes
    config = config or _choose("backward", problem, plan)
    dims, rows, device = problem.dims(), rows_of(plan).bounds.here(), q.device
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
    row_grid = (_blocks(n, _ROWS) * b,)
    kernels.backward_prepare[row_grid](
        o, low, grad_o, delta, dq_parts, by_pair, *rows, n, slots,
        **heads | {"C": by_pair.shape[3]}, ZERO_DQ=not deterministic, KEEP_LOW=low.numel() > 0, BM=_ROWS, BT=64,
    )  # fmt: skip
    kernels.backward_band[(blocks * b, _groups(h, config))](
        q, problem.k, problem.v, p, problem.weight, problem.gamma, *rows, problem.mask,
        grad_o, lse, delta, queries_of(plan, config.cols), dq_parts, dk, dv, by_pair, dw_parts,
        n, slots, int(problem.mask.dim() == 3), parts, problem.scale, problem.eps,
        **dims | config.backward_constants(), HAS_MASK=plan.has_holes, ATOMIC=not deterministic, **config.options(),
    )  # fmt: skip
    dq = torch.empty_like(q)
    kernels.backward_finish[row_grid](
        dq_parts, dq, *rows[1:], n, parts, problem.scale,
        H=h, D=d, ROW=pow2(h * d), BM=_ROWS, BN=config.cols, ATOMIC=not deterministic,
    )  # fmt: skip
    if split is not None:
        dw_parts = _pair_gradients(problem, by_pair, dp)
    return dq, dk, dv, dp, *_weight_gradients(dw_parts, problem)


def _pair_gradients(problem: Problem, g: Tensor, dp: Tensor) -> Tensor:
    """Write all of dp from ``g [B, N, K, H]``, which the split kernel wrote; return dW's partial sums."""
    config, dims = pairs_config(problem.compiled_for), problem.dims()
    constants, pairs = config.pairs_constants(), g.numel() // g.shape[3]
    programs = _blocks(pairs, PAIRS_A_PROGRAM)
    dw_parts = torch.empty((programs, dims["CP"], dims["HP"]), dtype=torch.float32, device=g.device)
    _kernels("backward").backward_pairs[(programs,)](
        problem.p, g, problem.weight, problem.gamma, dp, dw_parts, pairs, problem.eps,
        **{name: dims[name] for name in ("H", "C", "HP", "CP")}, **constants, **config.options(),
    )  # fmt: skip
    return dw_parts


def forward_gather(
    problem: Problem, idx: Tensor, config: Config | None = None, *, keep_low: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """``(O [B, N, H, D], low, lse [B, N, H])`` over any neighbour table ``idx [N, K]``; ``low`` as of ``forward``."""
    q = problem.q
    b, n, h, _, slots, _ = problem.sizes
    config = config or _choose("forward", problem)
    o, low = torch.empty_like(q), torch.empty_like(q) if keep_low else q.new_empty(0)
    lse = torch.empty((b, n, h), dtype=torch.float32, device=q.device)
    _kernels("gather").forward_gather[(n * b, _groups(h, config))](
        q, problem.k, problem.v, problem.p, problem.weight, problem.gamma, idx, problem.mask, o, low, lse,
        n, slots, int(problem.mask.dim() == 3), problem.scale, problem.eps,
        **problem.dims() | config.gather_constants(), KEEP_LOW=keep_low, **config.options(),
    )  # fmt: skip
    return o, low, lse


def backward_gather(
    problem: Problem,
    idx: Tensor,
    o: Tensor,
    low: Tensor,
    lse: Tensor,
    grad_o: Tensor,
    *,
    holders: Holders | None = None,
    config: Config | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``(dQ, dK, dV, dp, dgamma, dW)`` over any neighbour table.

    dK and dV are summed in fp32 by atomics, or with ``holders`` (the inverted table) deterministically, key by key,
    which reads p a second time. A configuration that splits the backward also allocates g, H / C of p's size.
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
    kernels.backward_gather[(n * b, _groups(h, config))](
        q, problem.k, problem.v, p, *weights, idx, problem.mask, o, low, grad_o, lse, delta, dq, dk, dv,
        by_pair, dw_parts, *shapes, **dims | config.gather_backward_constants(), ATOMIC=atomic,
        KEEP_LOW=low.numel() > 0, **config.options(),
    )  # fmt: skip
    if holders is not None:
        keys = gather_config("keys", problem.compiled_for, problem.arch)
        kernels.backward_gather_keys[(n * b, _groups(h, keys))](
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
