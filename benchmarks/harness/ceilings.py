"""The two rates that bound any operation here: moving bytes and multiplying matrices, both measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .memory import available_bytes

_CPU_COPY_BYTES = 256 << 20
_CUDA_COPY_BYTES = 1 << 30
_LONG_ENOUGH_S = 0.15  # a matrix product that takes this long is large enough


@dataclass(frozen=True)
class Ceilings:
    """Measured rates of a device; the copy counts what it reads plus what it writes.

    They are what this process reached with its threads, not a data sheet's figures. An operation
    whose operands fit a cache may beat the bandwidth.
    """

    bandwidth_bytes_per_s: float
    rate_flops_per_s: float
    source: str


def ceilings(device: str, dtype: str) -> Ceilings:
    """Measure both ceilings for ``dtype`` (``float32`` …), best of several, on random operands."""
    import torch

    seconds = _cpu_seconds if device == "cpu" else _cuda_seconds(device)
    generator = torch.Generator(device).manual_seed(0)
    copied = _copy_bytes(device)
    source = torch.randint(0, 256, (copied,), dtype=torch.uint8, device=device, generator=generator)
    target = torch.zeros_like(source)  # zeros, not empty: its pages are touched before the clock runs
    bandwidth = 2 * copied / min(seconds(lambda: target.copy_(source)) for _ in range(10))
    del source, target
    # Half-precision operands may be multiplied in float32, which many CPUs do far faster.
    candidates = {dtype, "float32"} if dtype in ("bfloat16", "float16") else {dtype}
    rates = {name: _matrix_rate(device, getattr(torch, name), seconds, generator) for name in sorted(candidates)}
    fastest = max(rates, key=lambda name: rates[name][0])
    rate, side = rates[fastest]
    precision = f" ({torch.get_float32_matmul_precision()} precision)" if fastest == "float32" else ""
    where = f"{torch.get_num_threads()} threads" if device == "cpu" else torch.cuda.get_device_name(device)
    how = f"copy of {copied >> 20} MiB, {fastest} matmul of side {side}{precision}, {where}"
    return Ceilings(bandwidth, rate, how)


def _copy_bytes(device: str) -> int:
    """At least four times the last cache, at most an eighth of what is free."""
    if device == "cpu":
        wanted = max(_CPU_COPY_BYTES, 4 * (last_cache_bytes() or 0))
    else:
        import torch

        wanted = max(_CUDA_COPY_BYTES, 4 * torch.cuda.get_device_properties(device).L2_cache_size)
    return max(min(wanted, available_bytes(device) // 8), 1 << 20)


def _matrix_rate(device: str, dtype, seconds: Callable[[Callable[[], object]], float], generator) -> tuple[float, int]:
    """Best FLOP/s over square products of growing side, up to one that takes long enough; and its side."""
    import torch

    best, best_side = 0.0, 0
    side, largest = 512, 4096 if device == "cpu" else 16384
    while side <= largest:
        a = torch.randn(side, side, device=device, generator=generator).to(dtype)
        b = torch.randn(side, side, device=device, generator=generator).to(dtype)
        multiply = partial(torch.mm, a, b, out=torch.empty_like(a))
        took = [seconds(multiply)]
        took += [seconds(multiply) for _ in range(2 if took[0] > _LONG_ENOUGH_S else 9)]
        rate = 2 * side**3 / min(took)
        if rate > best:
            best, best_side = rate, side
        if 2 * min(took) > _LONG_ENOUGH_S:
            break
        side *= 2
    return best, best_side


def _cpu_seconds(fn: Callable[[], object]) -> float:
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


def _cuda_seconds(device: str) -> Callable[[Callable[[], object]], float]:
    import torch

    def seconds(fn: Callable[[], object]) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        fn()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3

    return seconds


def last_cache_bytes(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int | None:
    """Size of the CPU's last-level cache as Linux tells it; ``None`` elsewhere."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = []
    for path in folder.glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * units[text[-1]] if text[-1:] in units else int(text))
    return max(sizes, default=None)
