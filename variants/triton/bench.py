"""One kernel on inputs of its own: what tuning runs and times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..band.plan import band_plan
from . import launch
from .config import Config
from .tune import machine_code
from .tuned import Kernel

_ATOMS, _PER_RESIDUE, _WINDOW = 16_384, 14, 32
_MOST_BYTES = 1 << 30  # of p


def band(n_atom: int, device: str) -> tuple[Tensor, Tensor]:
    """``(neighbor_idx, valid_mask)`` of residues of 14 atoms, each seeing those less than 16 residues away."""
    residue = torch.arange(n_atom, device=device) // _PER_RESIDUE
    reach = _WINDOW // 2 - 1
    start = ((residue - reach) * _PER_RESIDUE).clamp(min=0)
    stop = ((residue + reach + 1) * _PER_RESIDUE).clamp(max=n_atom)
    slots = torch.arange((2 * reach + 1) * _PER_RESIDUE, device=device)
    live = slots < (stop - start)[:, None]
    return torch.where(live, start[:, None] + slots, 0), live


class GpuBench:
    """``run`` gives the kernel's results on 16,384 atoms (fewer where p would take more than 1 GiB)."""

    def __init__(self, kernel: Kernel, device: str = "cuda", n_atom: int = _ATOMS) -> None:
        self.kernel, self.device = kernel, torch.cuda.get_device_name() if device == "cuda" else device
        sizes = kernel.sizes
        slots = (_WINDOW - 1) * _PER_RESIDUE
        n = min(n_atom, _MOST_BYTES // (slots * sizes.channels * sizes.pair_dtype.itemsize))
        gen = torch.Generator(device).manual_seed(0)
        idx, live = band(n, device)
        if kernel.mode == "holes":
            live = live & (torch.rand(live.shape, generator=gen, device=device) < 0.9)
        elif kernel.mode == "gather":  # the same neighbours in another order, a row at a time
            order = torch.rand(idx.shape, generator=gen, device=device).argsort(1)
            idx, live = idx.gather(1, order), live.gather(1, order)

        def normal(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.randn(shape, generator=gen, device=device, dtype=dtype)

        q, k, v, self._grad_o = (normal(1, n, sizes.heads, sizes.head_dim, dtype=sizes.dtype) for _ in range(4))
        p = normal(1, n, slots, sizes.channels, dtype=sizes.pair_dtype)
        gamma = 1 + 0.2 * normal(sizes.channels, dtype=torch.float32)
        weight = normal(sizes.heads, sizes.channels, dtype=torch.float32) / sizes.channels**0.5
        self._problem = launch.Problem(q, k, v, p, gamma, weight, live.view(torch.uint8), 1e-5)
        self._launch = self._band(idx, live) if kernel.mode != "gather" else self._gather(idx)

    def _band(self, idx: Tensor, live: Tensor) -> Callable[[Config], tuple[Tensor, ...]]:
        plan = band_plan(idx, live)
        if self.kernel.direction == "forward":
            return lambda config: launch.forward(self._problem, plan, config)[::2]
        o, low, lse = launch.forward(self._problem, plan, self._forward().shipped(), keep_low=self._keep_low)
        return lambda config: launch.backward(
            self._problem, plan, o, low, lse, self._grad_o, deterministic=False, config=config
        )

    def _gather(self, idx: Tensor) -> Callable[[Config], tuple[Tensor, ...]]:
        if self.kernel.direction == "forward":
            return lambda config: launch.forward_gather(self._problem, idx, config)[::2]
        kept = launch.forward_gather(self._problem, idx, self._forward().shipped(), keep_low=self._keep_low)
        return lambda config: launch.backward_gather(self._problem, idx, *kept, self._grad_o, config=config)

    @property
    def _keep_low(self) -> bool:
        return self.kernel.sizes.dtype != torch.float32

    def _forward(self) -> Kernel:
        return Kernel("forward", self.kernel.mode, self.kernel.sizes, self.kernel.arch)

    def run(self, config: Config) -> tuple[Tensor, ...]:
        return self._launch(config)

    def median_ms(self, config: Config) -> float:
        """Over calls that each find the cache flushed; the flush also hides the time to launch."""
        from triton.testing import do_bench

        found: Any = do_bench(lambda: self._launch(config), warmup=20, rep=100, return_mode="median")
        return float(found)

    def spills(self, config: Config) -> int:
        return machine_code(self.kernel, config).spills
