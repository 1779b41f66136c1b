"""Tuning: each candidate configuration is compiled, checked against the shipped one, timed; the fastest is kept.

On request only: ``tune`` (``python -m benchmarks tune``), or where ``PALLATOM_TRITON_AUTOTUNE=1`` at a kernel's first
use. It runs on inputs of its own, a band of atom14 residues in a window of 32, so that the result depends on no
caller's sizes or values, and keeps the result in the file of :mod:`~.tuned`. Its time is recorded (``tunings``,
``tuning_ms``), so that it can be subtracted from that of the call that asked for it.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from .config import SPLITS, Config, Sizes
from .tuned import (
    AUTOTUNE,
    TUNED_FILE,
    Direction,
    Kernel,
    Mode,
    add_tuned,
    autotune_asked,
    config_for,
    tuned,
    tuned_file,
)

if TYPE_CHECKING:
    from .inspect import Inspection

LEAD = 0.02
"""The least relative gain that displaces the shipped default: more than repeated timings differ by."""

# relative error norm of two configurations' results, each with the rounding of its dtype
_AGREES = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}

_log = logging.getLogger(__name__)


class Bench(Protocol):
    """A kernel on inputs of its own: runs, timings and machine code of one configuration."""

    device: str

    def run(self, config: Config) -> Sequence[Tensor]: ...
    def median_ms(self, config: Config) -> float: ...
    def spills(self, config: Config) -> int: ...


@dataclass(frozen=True)
class Trial:
    """``ms`` of a candidate that was timed, or the ``reason`` why it was not."""

    config: Config
    ms: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Tuning:
    """One kernel tuned. The first trial is that of the shipped default; ``tuning_ms`` is what it all took."""

    kernel: Kernel
    device: str
    best: Config
    trials: tuple[Trial, ...]
    tuning_ms: float

    @property
    def shipped_ms(self) -> float:
        assert self.trials[0].ms is not None
        return self.trials[0].ms

    @property
    def best_ms(self) -> float:
        return next(t.ms for t in self.trials if t.config == self.best and t.ms is not None)


class Process:
    """What this process has tuned: ``done`` in order, ``tried`` at first use. One kernel is tuned at a time.

    The record belongs to the process, because a kernel is tuned once in it, whichever block asks, and because the time
    that tuning took is subtracted from the time of the call that asked. Results hold here even if the file cannot be
    written.
    """

    def __init__(self) -> None:
        self.done: list[Tuning] = []
        self.tried: set[Kernel] = set()
        self.lock = threading.RLock()

    def best(self, kernel: Kernel) -> Config:
        """The kernel's configuration as it was last tuned here; the shipped default if it was not."""
        return next((t.best for t in reversed(self.done) if t.kernel == kernel), None) or kernel.shipped()


_process = Process()


class TuningError(RuntimeError):
    """The shipped default itself could not be run or timed, so there is nothing to compare with."""


def candidates(kernel: Kernel) -> tuple[Config, ...]:
    """The shipped default first, then one or two dozen others."""
    if kernel.mode == "gather":
        split = kernel.shipped().split_heads
        rows = [Config(1, cols, warps, 1, split_heads=split) for cols in (16, 32, 64) for warps in (2, 4, 8)]
        others = (None, *_splits(kernel.sizes)) if kernel.direction == "backward" else (None,)
        rows += [Config(1, 16, warps, 1, split_heads=n) for n in others for warps in (2, 4, 8)]
    elif kernel.direction == "forward":
        rows = [
            Config(16, 16, 2, 3), Config(16, 16, 2, 3, 168), Config(16, 16, 4, 2), Config(16, 16, 4, 3),
            Config(16, 16, 4, 3, 128), Config(32, 16, 4, 2), Config(32, 16, 4, 3, 168), Config(16, 32, 4, 2),
            Config(16, 16, 8, 1), Config(16, 16, 8, 2), Config(32, 16, 8, 2),
        ]  # fmt: skip
    else:
        rows = [
            Config(16, 16, 4, 1), Config(16, 16, 4, 2), Config(16, 16, 4, 3), Config(16, 16, 4, 2, 168),
            Config(16, 16, 8, 1), Config(16, 16, 8, 2), Config(32, 16, 4, 2), Config(32, 16, 8, 1),
            Config(16, 32, 8, 1), Config(16, 32, 8, 2),
            *(Config(16, 16, warps, stages, split_heads=split) for split in _splits(kernel.sizes)
              for warps, stages in ((4, 1), (4, 2), (8, 1))),
        ]  # fmt: skip
    return tuple(dict.fromkeys([kernel.shipped(), *rows]))


def _splits(sizes: Sizes) -> tuple[int, ...]:
    """The widest groups of heads that a split backward may have: all heads, and half of them."""
    heads = sizes.padded()["HP"]
    return tuple(n for n in SPLITS if heads // 2 <= n <= heads)


def tune_kernel(kernel: Kernel, bench: Bench, clock: Callable[[], float] = time.perf_counter) -> Tuning:
    """Try every candidate on ``bench``. Raises :class:`TuningError` where the shipped default does not run."""
    begin = clock()
    shipped, *others = candidates(kernel)
    try:
        want = [t.detach().double() for t in bench.run(shipped)]
        trials = [Trial(shipped, bench.median_ms(shipped))]
    except Exception as e:
        raise TuningError(f"{kernel.name}: the shipped default {shipped} failed: {_short(e)}") from e
    if not all(bool(t.isfinite().all()) for t in want):
        raise TuningError(f"{kernel.name}: the shipped default {shipped} gave numbers that are not finite")
    trials += [_try(bench, config, want, _AGREES[kernel.sizes.dtype]) for config in others]
    timed = [(t.ms, t.config) for t in trials if t.ms is not None]
    best_ms, best = min(timed, key=lambda pair: pair[0])
    if best_ms > (1 - LEAD) * timed[0][0]:
        best = shipped
    done = Tuning(kernel, bench.device, best, tuple(trials), 1e3 * (clock() - begin))
    _process.done.append(done)
    _log.info("%s: %s, %.4f ms (shipped: %.4f), tuned in %.0f ms", kernel.name, best, done.best_ms, done.shipped_ms,
              done.tuning_ms)  # fmt: skip
    return done


def _try(bench: Bench, config: Config, want: Sequence[Tensor], tolerance: float) -> Trial:
    """A candidate is timed if it compiles without a spill, runs, and gives what the shipped default gives."""
    try:
        spills = bench.spills(config)
        if spills:
            return Trial(config, reason=f"spills: {spills} loads and stores of local memory")
        got = bench.run(config)
        error = max(_distance(g, w) for g, w in zip(got, want, strict=True))
        for t in got:  # so that its memory, handed out again, can be no later candidate's right answer
            t.fill_(torch.nan)
        if not error <= tolerance:
            return Trial(config, reason=f"wrong: differs from the shipped default by {error:.1e}, not {tolerance:.0e}")
        return Trial(config, bench.median_ms(config))
    except Exception as e:  # that a candidate fails is a result
        return Trial(config, reason=f"failed: {_short(e)}")


def _distance(got: Tensor, want: Tensor) -> float:
    norm = float(want.norm())
    return float((got.double() - want).norm()) / (norm if norm > 0 else 1.0)


def _short(e: Exception) -> str:
    return f"{type(e).__name__}: {str(e).strip()[:200]}"


def tunings() -> tuple[Tuning, ...]:
    """Everything that this process has tuned, in order."""
    return tuple(_process.done)


def tuning_ms() -> float:
    """What tuning has taken in this process so far."""
    return sum(done.tuning_ms for done in _process.done)


def keep(done: Tuning, path: Path) -> None:
    """Add a tuning's result to the file."""
    figures = {"ms": done.best_ms, "shipped_ms": done.shipped_ms, "tuning_ms": done.tuning_ms, "device": done.device}
    add_tuned(path, done.kernel, done.best, **figures)


def tune(kernels: Iterable[Kernel], path: Path, *, bench: Callable[[Kernel], Bench] | None = None) -> Iterator[Tuning]:
    """Tune each kernel on the current CUDA device, and keep the results in ``path`` as they come."""
    for kernel in kernels:
        done = tune_kernel(kernel, (bench or gpu_bench)(kernel))
        keep(done, path)
        yield done


def machine_code(kernel: Kernel, config: Config) -> Inspection:
    """What the compiler makes of the kernel with this configuration; needs no GPU."""
    from .inspect import inspect_shipped

    sizes = kernel.sizes
    return inspect_shipped(
        kernel.direction,
        arch=kernel.arch,
        dtype=str(sizes.dtype).removeprefix("torch."),
        pair_dtype=str(sizes.pair_dtype).removeprefix("torch."),
        heads=sizes.heads,
        head_dim=sizes.head_dim,
        channels=sizes.channels,
        holes=kernel.mode == "holes",
        gather=kernel.mode == "gather",
        config=config,
    )


def gpu_bench(kernel: Kernel) -> Bench:
    from .bench import GpuBench

    return GpuBench(kernel)


def choose(direction: Direction, mode: Mode, sizes: Sizes, device: torch.device, arch: int) -> Config:
    """What to launch with: the tuned entry, or the shipped default; with autotuning on, an entry is made first."""
    if not (os.environ.get(TUNED_FILE) or os.environ.get(AUTOTUNE)):
        return _shipped(direction, mode, sizes, arch)
    kernel = Kernel(direction, mode, sizes, arch)
    if autotune_asked() and tuned(kernel) is None:
        return tune_at_first_use(kernel, device)
    return config_for(kernel)


@functools.cache
def _shipped(direction: Direction, mode: Mode, sizes: Sizes, arch: int) -> Config:
    """Cached, because every launch asks."""
    return Kernel(direction, mode, sizes, arch).shipped()


def tune_at_first_use(kernel: Kernel, device: torch.device, bench: Callable[[Kernel], Bench] = gpu_bench) -> Config:
    """Tune the kernel once in this process; where that fails, warn with the reason and use the shipped default."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return _process.best(kernel)  # tuning would synchronise, which a capture forbids
    with _process.lock:
        if kernel not in _process.tried:
            _process.tried.add(kernel)
            _tune_here(kernel, device, bench)
        return _process.best(kernel)


def _tune_here(kernel: Kernel, device: torch.device, bench: Callable[[Kernel], Bench]) -> None:
    path = tuned_file()
    assert path is not None
    try:
        if device.type != "cuda":
            raise TuningError(f"a CUDA device is required to tune, {device} was found")
        with torch.cuda.device(device):
            done = tune_kernel(kernel, bench(kernel))
        keep(done, path)
    except (TuningError, torch.OutOfMemoryError, OSError) as e:
        warnings.warn(f"{AUTOTUNE}: {kernel.name}: {_short(e)}", stacklevel=4)
