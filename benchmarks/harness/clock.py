"""Time arms side by side: every block runs each arm once, in an order drawn afresh.

The clock knows no benchmark: an arm is a name and a callable without arguments. What happens in
the timed region is one call, with whatever it allocates and frees; everything else is set up before.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from .statistics import MARGIN, median_interval, paired_ratio

if TYPE_CHECKING:
    import torch

Arm = Callable[[], object]
Cache = Literal["cold", "hot", "unspecified"]
Stop = Literal["converged", "budget", "maximum"]
_HOST_JITTER_MS = 0.3
_MOST_LEAD_MS = 20.0
WALL_CALLS = 10  # of each arm, in its first blocks: an eager call's wait takes no 1% to be told from the device's time
_IDLE_SYNC_MS = 0.2  # an idle device answers within a tenth of this

_SLOW_ENOUGH = 100  # a first call of so many times the wanted sample is no short call that warmed up


class Clock(Protocol):
    """What :func:`interleave` needs of a device."""

    @property
    def cache(self) -> Cache: ...

    @property
    def target_half_width(self) -> float: ...

    def now(self) -> float:
        """Seconds on the host, for budgets."""
        ...

    def sample(self, fn: Arm, calls: int = 1) -> float:
        """Milliseconds per call, over ``calls`` calls."""
        ...

    def wall(self, fn: Arm) -> float | None:
        """Milliseconds that a caller waits for one call, where that is another time than the sample's."""
        ...

    def calibrate(self, fn: Arm) -> tuple[int, float]:
        """Warm ``fn`` up; how many calls make one sample, and seconds that such a sample takes."""
        ...


class CpuClock:
    """Wall time on the host. Calls shorter than ``target_ms`` are batched until a sample lasts that
    long, so that the timer's own cost and resolution do not show.

    With ``threads``, a call that keeps more of them busy than it was given is charged for them: its time is at least
    the processor time of the whole process over ``threads``.
    """

    cache: Cache = "unspecified"
    target_half_width = MARGIN["cpu"]

    def __init__(
        self,
        *,
        target_ms: float = 1.0,
        max_calls: int = 4096,
        timer: Callable[[], float] = time.perf_counter,
        threads: int | None = None,
        processor_timer: Callable[[], float] = time.process_time,
    ) -> None:
        self.target_ms = target_ms
        self.max_calls = max_calls
        self.now = timer
        self._threads = threads
        self._processor = processor_timer

    def sample(self, fn: Arm, calls: int = 1) -> float:
        start, busy = self.now(), self._processor()
        for _ in range(calls):
            fn()
        busy, took = self._processor() - busy, self.now() - start
        return max(took, busy / self._threads if self._threads else 0.0) * 1e3 / calls

    def wall(self, fn: Arm) -> None:
        """No second time: the caller waits for what :meth:`sample` measures."""

    def calibrate(self, fn: Arm) -> tuple[int, float]:
        return _calibrate(self, fn, self.target_ms, self.max_calls)


class CudaClock:
    """Device time between two CUDA events on the current stream.

    ``cold``: before each call, outside its events, a buffer of twice the L2 cache is written and
    read back, so that the call finds none of its inputs there, nor lines that wait to be written
    out; this is repeated until the device stays busy for as long as the host takes to launch the
    call (``enqueue_ms``, from :meth:`calibrate`), so that what is timed is the device's own work, as in
    a stream that runs ahead. What synchronizes inside still shows its gaps. ``hot``: one untimed
    call, then ``calls`` in a row between one pair of events, launch gaps included.

    Work that a call leaves on another stream is counted: what the device still needs once the
    second event has passed, beyond what an idle device takes to say so.
    """

    target_half_width = MARGIN["cuda"]

    def __init__(
        self,
        device: str = "cuda",
        *,
        cache: Literal["cold", "hot"] = "cold",
        target_ms: float = 0.2,
        max_calls: int = 64,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        import torch

        self.cache: Cache = cache
        self.target_ms = target_ms
        self.max_calls = max_calls
        self.now = timer
        self._cuda = torch.cuda
        self._device = torch.device(device)
        self._flush = _l2_flush(self._device) if cache == "cold" else None
        self._leads: dict[int, int] = {}  # flushes before a call, by the arm's id

    def sample(self, fn: Arm, calls: int = 1) -> float:
        with self._cuda.device(self._device):
            if self._flush is None:
                fn()
                return self._between_events(fn, calls) / calls
            total = 0.0
            for _ in range(calls):
                for _ in range(self._leads.get(id(fn), 1)):
                    self._flush()
                total += self._between_events(fn, 1)
            return total / calls

    def wall(self, fn: Arm) -> float:
        """Milliseconds that an eager caller waits for one call on an idle device, its L2 flushed as for a sample."""
        with self._cuda.device(self._device):
            if self._flush is not None:
                self._flush()
            self._cuda.synchronize(self._device)
            start = self.now()
            fn()
            self._cuda.synchronize(self._device)
            return (self.now() - start) * 1e3

    def enqueue_ms(self, fn: Arm) -> float:
        """Milliseconds that the host takes to launch one call, on an idle device; most of three."""
        took = []
        for _ in range(3):
            self._cuda.synchronize(self._device)
            start = self.now()
            fn()
            took.append((self.now() - start) * 1e3)
        self._cuda.synchronize(self._device)
        return max(took)

    def _between_events(self, fn: Arm, calls: int) -> float:
        start = self._cuda.Event(enable_timing=True)
        end = self._cuda.Event(enable_timing=True)
        start.record()
        for _ in range(calls):
            fn()
        end.record()
        end.synchronize()
        passed = self.now()
        self._cuda.synchronize(self._device)  # raises what the call did wrong on the device
        left_ms = (self.now() - passed) * 1e3
        return start.elapsed_time(end) + (left_ms if left_ms > _IDLE_SYNC_MS else 0.0)

    def calibrate(self, fn: Arm) -> tuple[int, float]:
        with self._cuda.device(self._device):
            fn()
            if self._flush is not None:
                flush_ms = max(self._between_events(self._flush, 4) / 4, 1e-3)
                # Between other arms a launch finds the host's caches cold and takes longer than in a row. A call
                # that synchronizes takes the host as long as the device: no lead hides that.
                lead_ms = min(2 * self.enqueue_ms(fn) + _HOST_JITTER_MS, _MOST_LEAD_MS)
                self._leads[id(fn)] = 1 + math.ceil(lead_ms / flush_ms)
        return _calibrate(self, fn, self.target_ms, self.max_calls)


def _l2_flush(device: torch.device) -> Callable[[], None]:
    import torch

    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    buffer = torch.empty(2 * l2_bytes // 4, dtype=torch.int32, device=device)

    def flush() -> None:
        buffer.fill_(1)
        buffer.amax()

    return flush


def make_clock(device: str, *, cache: Literal["cold", "hot"] = "cold") -> Clock:
    """The clock of a device (``cpu``, ``cuda``, ``cuda:1``); ``cache`` matters on CUDA only."""
    if device != "cpu":
        return CudaClock(device, cache=cache)
    import torch

    return CpuClock(threads=torch.get_num_threads())


def _calibrate(clock: Clock, fn: Arm, target_ms: float, max_calls: int) -> tuple[int, float]:
    """Grow the calls per sample until a sample lasts ``target_ms``; a first call that long is taken
    at its word only if a second one is as long, since the first may have had to warm up."""
    calls, ms = 1, math.inf
    clock_ran = 0.0
    for attempt in count():
        before = clock.now()
        ms = clock.sample(fn, calls)
        clock_ran = clock.now() - before
        enough = ms * calls >= target_ms
        if calls >= max_calls or (enough and (attempt > 0 or ms > _SLOW_ENOUGH * target_ms)):
            break
        if not enough:
            wanted = math.ceil(1.2 * target_ms / ms) if ms > 0 else max_calls
            calls = min(max(wanted, 2 * calls), max_calls)
    return calls, clock_ran


@dataclass(frozen=True)
class Interleaved:
    """``samples[arm][i]`` (ms per call) was taken in block ``i``: two arms pair by position, over the
    blocks that both were in. ``order[i]`` is the order within block ``i``.

    ``half_widths[arm]`` belongs to the interval that decided when to stop: of the ratio to the
    fastest arm; for the fastest arm itself, of its own median, which decides only when it is alone.
    ``walls[arm]`` holds a clock's second time, of one more call right after each of the first samples.
    """

    samples: dict[str, list[float]]
    walls: dict[str, list[float]]
    calls_per_sample: dict[str, int]
    stop: dict[str, Stop]
    half_widths: dict[str, float | None]
    order: list[list[str]]
    cache: Cache
    seconds: float


def interleave(
    arms: Mapping[str, Arm],
    *,
    clock: Clock,
    budget_s: float,
    min_blocks: int = 20,
    max_blocks: int = 200,
    floor_blocks: int = 3,
    target_half_width: float | None = None,
    seed: int = 0,
    on_run: Callable[[str], None] | None = None,
    on_sample: Callable[[str, bool], None] | None = None,
) -> Interleaved:
    """Run blocks until every arm's ratio to the fastest is known to ``target_half_width``
    (default: the clock's) after at least ``min_blocks``, or to ``max_blocks``, or to ``budget_s``.
    Whether to stop is decided one block ahead, so that the *closing* block is known as such to the
    harness and to no arm: what its calls made can be looked at as what was timed. Its samples count,
    so an interval may end a little wider than it was when it was narrow enough.

    First every arm is warmed up and calibrated, the same callable under two names once; the budget
    is that of the blocks. It is shared out: an arm too slow to run ``min_blocks`` times within its
    share leaves after as many blocks as do fit, and the others go on without it. Every arm runs
    ``floor_blocks`` times, whatever that takes: a budget too short for this is overrun by it.

    ``on_run(arm)`` is called before each run and ``on_sample(arm, closing)`` right after each sample, both outside
    the timed region; ``closing`` marks an arm's last sample. An exception passes through; the name last given to
    ``on_run`` is its author.
    """
    if not arms:
        raise ValueError("arms: expected at least one, got none")
    if not 1 <= floor_blocks <= min_blocks <= max_blocks:
        raise ValueError(
            f"expected 1 <= floor_blocks <= min_blocks <= max_blocks, got {floor_blocks}, {min_blocks}, {max_blocks}"
        )
    target = clock.target_half_width if target_half_width is None else target_half_width
    announce = on_run or (lambda name: None)
    shown = on_sample or (lambda name, closing: None)
    shuffle = random.Random(seed).shuffle
    samples: dict[str, list[float]] = {name: [] for name in arms}
    walls: dict[str, list[float]] = {name: [] for name in arms}
    order: list[list[str]] = []
    with _quiet_collector() as collect:
        calls, seconds = _calibrate_all(arms, clock, announce)
        allowed, overrun = _share_out(seconds, budget_s, min_blocks, floor_blocks)
        started = clock.now()
        deadline = started + budget_s + overrun
        left = list(arms)
        ending: Stop | None = _ending(
            samples, left, target, 0, min_blocks, max_blocks, floor_blocks, deadline - started
        )
        while left:
            block = left.copy()
            shuffle(block)
            order.append(block)
            for name in block:
                announce(name)
                before = clock.now()
                samples[name].append(clock.sample(arms[name], calls[name]))
                shown(name, ending is not None or len(order) == allowed.get(name))
                if len(walls[name]) < WALL_CALLS and (wall_ms := clock.wall(arms[name])) is not None:
                    walls[name].append(wall_ms)
                seconds[name] = clock.now() - before
                collect()
            if ending is not None:
                break
            left = [name for name in left if len(order) < allowed.get(name, max_blocks)]
            after = [name for name in left if len(order) + 1 < allowed.get(name, max_blocks)]
            spare = deadline - clock.now() - sum(seconds[name] for name in (*left, *after))
            ending = _ending(samples, left, target, len(order), min_blocks, max_blocks, floor_blocks, spare)
        ran = clock.now() - started
    widths = half_widths(samples)
    stop: dict[str, Stop] = {
        name: _stop(taken, widths[name], target, min_blocks, len(order), ending or "budget")
        for name, taken in samples.items()
    }
    return Interleaved(samples, walls, calls, stop, widths, order, clock.cache, ran)


def _ending(
    samples: Mapping[str, list[float]],
    left: list[str],
    target: float,
    done: int,
    min_blocks: int,
    max_blocks: int,
    floor_blocks: int,
    spare_s: float,
) -> Stop | None:
    """Why the next block, after ``done`` ones, is the last; None if it is not. ``spare_s``: what the budget leaves
    beyond it and one more."""
    if left and done >= min_blocks - 1 and _converged(samples, left, target):
        return "converged"
    if done >= max_blocks - 1:
        return "maximum"
    return "budget" if done >= floor_blocks - 1 and spare_s < 0 else None


def _calibrate_all(
    arms: Mapping[str, Arm], clock: Clock, announce: Callable[[str], None]
) -> tuple[dict[str, int], dict[str, float]]:
    """Calls per sample and seconds per sample of every arm; one callable under two names has one of each."""
    found: dict[int, tuple[int, float]] = {}
    for name, fn in arms.items():
        if id(fn) not in found:
            announce(name)
            found[id(fn)] = clock.calibrate(fn)
    calls = {name: found[id(fn)][0] for name, fn in arms.items()}
    return calls, {name: found[id(fn)][1] for name, fn in arms.items()}


def _stop(taken: list[float], width: float | None, target: float, min_blocks: int, blocks: int, ending: Stop) -> Stop:
    """How one arm ended, in a group that ended so after ``blocks``."""
    if len(taken) >= min_blocks and width is not None and width <= target:
        return "converged"
    return "budget" if len(taken) < blocks else ending


def half_widths(samples: Mapping[str, list[float]]) -> dict[str, float | None]:
    """Relative half-width of each arm's ratio to the fastest arm, and of the fastest's own median."""
    fastest = min(samples, key=lambda name: float(np.median(samples[name])))
    widths = {}
    for name, taken in samples.items():
        if name == fastest:
            widths[name] = median_interval(taken).half_width
        else:
            widths[name] = paired_ratio(taken, samples[fastest]).half_width
    return widths


def _converged(samples: Mapping[str, list[float]], active: list[str], target: float) -> bool:
    widths = half_widths({name: samples[name] for name in active})
    if len(active) > 1:
        fastest = min(active, key=lambda name: float(np.median(samples[name])))
        del widths[fastest]
    return all(width is not None and width <= target for width in widths.values())


def _share_out(
    seconds: Mapping[str, float], budget_s: float, min_blocks: int, floor_blocks: int
) -> tuple[dict[str, int], float]:
    """Blocks allowed to the arms that cannot run ``min_blocks`` times (the others are not named), and
    the seconds by which their ``floor_blocks`` overrun the budget.

    Every arm has an equal share of the budget; what a fast arm leaves of its own goes to the slower.
    """
    allowed: dict[str, int] = {}
    left, overrun = budget_s, 0.0
    waiting = len(seconds)
    for name, cost in sorted(seconds.items(), key=lambda item: item[1]):
        share = max(left, 0.0) / waiting
        spend = min_blocks * cost
        if spend > share:
            allowed[name] = max(floor_blocks, int(share / cost))
            spend = allowed[name] * cost
            overrun += max(spend - share, 0.0)
            spend = min(spend, share)
        left -= spend
        waiting -= 1
    return allowed, overrun


@contextmanager
def _quiet_collector() -> Iterator[Callable[[], object]]:
    """Keep Python's garbage collector out of timed regions; yields a quick collection to run between."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield lambda: gc.collect(1)
    finally:
        if was_on:
            gc.enable()


def graphed(fn: Arm, *, warmup: int = 3) -> Arm | str:
    """``fn`` captured in a CUDA graph, as a callable that replays it; or, as text, why it cannot be.

    What synchronizes, allocates on the host's say or branches on device values cannot be captured.
    """
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warmup):
            fn()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            fn()
    except RuntimeError as e:
        torch.cuda.synchronize()  # a context that the failed capture poisoned must not pass for a reason
        return f"no CUDA graph: {str(e).strip().splitlines()[0]}"
    return graph.replay
