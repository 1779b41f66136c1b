"""What a sample of a call's time is, on a CPU and on a CUDA device.

The clock knows no benchmark: an arm is a callable without arguments. What happens in the timed
region is one call, with whatever it allocates and frees; everything else is set up before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Literal, Protocol

from .statistics import MARGIN

if TYPE_CHECKING:
    import torch

Arm = Callable[[], object]
Cache = Literal["cold", "hot", "unspecified"]
_HOST_JITTER_MS = 0.3
_MOST_LEAD_MS = 20.0
_IDLE_SYNC_MS = 0.2  # an idle device answers within a tenth of this

_SLOW_ENOUGH = 100  # a first call of so many times the wanted sample is no short call that warmed up


class Clock(Protocol):
    """What :func:`.interleave.interleave` needs of a device."""

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
