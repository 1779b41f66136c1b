"""The rates that bound any operation here, all measured: moving bytes, multiplying matrices, taking exponentials.

Each is what this process reached with its threads, not a data sheet's figure: the best of several rounds that lie apart
in time, with ``spread = best / median - 1`` over those rounds. A ceiling may be too high, never too low: on a CPU,
where one thread that has to wait holds up all of them, what one thread reaches alone counts times their number.

* Bandwidth: the larger of reading (the faster of two of torch's reductions) and copying (bytes read plus written).
  A CPU's caches may hold a small problem from one call to the next, so small working sets are measured too, and a
  problem is held against the largest one that is no larger than what it has to move. On CUDA the clock empties the
  L2 cache before a call, so that the rate is main memory's. What a call wrote and L2 still holds at its end was not
  written out in its time; so it is in the copy that is measured, where it weighs less.
* Matrix rate: the best square product in the problem's dtype, or in float32 where that is faster; for float32 on CUDA
  also a third of what tensor cores reach in tf32, three products of which have float32's accuracy.
* Exponentials: in registers on CUDA, once in the special function units alone and once with every second one made of
  multiply-adds, as fast kernels do it; over an array in a core's cache on a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from .memory import available_bytes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_ROUNDS, _ROUND_S = 5, 0.01
_CPU_BYTES = 256 << 20
_CUDA_BYTES = 1 << 30
_CACHED_BYTES = tuple(mib << 20 for mib in (1, 4, 16, 32, 64, 128))  # from an L2 cache to a large last one
_TF32_PASSES = 3
_LONG_ENOUGH_S = 0.15  # a matrix product that takes this long is large enough
_EXPONENTIALS = 1 << 14  # elements in a core's cache
_CHAINS, _LOOP, _CUDA_ELEMENTS = 8, 64, 1 << 22

_SPECIAL = 'asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(x[{i}]) : "f"(-x[{i}]));'
# 2^x = 2^n (1 + …), n the nearest integer, which the addition of 1.5 * 2^23 leaves in the lowest bits.
_MULTIPLIED = (
    "{{ float t = 12582912.f - x[{i}]; float f = (12582912.f - t) - x[{i}];"
    " float y = ((0.0558f * f + 0.2402f) * f + 0.6931f) * f + 1.f;"
    " x[{i}] = __uint_as_float(__float_as_uint(y) + (__float_as_uint(t) << 23)); }}"
)
_KERNEL = """template <typename T> T exponentials(T a) {{
  float x[{chains}];
  for (int i = 0; i < {chains}; ++i) x[i] = a + 0.0625f * i;
  #pragma unroll 4
  for (int n = 0; n < {loop}; ++n) {{ {body} }}
  float sum = 0.f;
  for (int i = 0; i < {chains}; ++i) sum += x[i];
  return sum;
}}"""


@dataclass(frozen=True)
class Bandwidth:
    """The larger of reading and copying so many bytes again and again; None is not known."""

    bytes_per_s: float
    read_bytes_per_s: float | None
    copy_bytes_per_s: float | None
    spread: float | None
    working_set_bytes: int


@dataclass(frozen=True)
class Ceilings:
    """Measured rates of a device: main memory's bandwidth, measured on ``main_bytes``; ``cached`` are working sets that
    a cache may hold, the smallest first. A spread that is not known is None, and so is a rate of exponentials that
    could not be had: ``source`` says how all was measured and what was not, ``shared_source`` that of what is the same
    for every dtype. Crosses to another process as ``Ceilings(**asdict(it))``.
    """

    bandwidth_bytes_per_s: float
    rate_flops_per_s: float
    source: str
    read_bytes_per_s: float | None = None
    copy_bytes_per_s: float | None = None
    main_bytes: int = 0
    rate_exponentials_per_s: float | None = None
    bandwidth_spread: float | None = None
    flops_spread: float | None = None
    exponentials_spread: float | None = None
    shared_source: str = ""
    cached: tuple[Bandwidth, ...] = field(default=())

    def __post_init__(self) -> None:
        sets = (b if isinstance(b, Bandwidth) else Bandwidth(**b) for b in self.cached)
        object.__setattr__(self, "cached", tuple(sets))

    def memory(self, needed_bytes: int) -> Bandwidth:
        """The bandwidth that may be had on so many bytes: that of the largest working set which is no larger, or of a
        still larger one that came out faster; the highest where all are larger."""
        rates = self.read_bytes_per_s, self.copy_bytes_per_s, self.bandwidth_spread
        sets = [*self.cached, Bandwidth(self.bandwidth_bytes_per_s, *rates, self.main_bytes)]
        no_larger = [at for at, one in enumerate(sets) if one.working_set_bytes <= needed_bytes]
        return max(sets[max(no_larger, default=0) :], key=lambda one: one.bytes_per_s)

    def raised(self, other: Ceilings) -> Ceilings:
        """The larger of each rate, of two measurements of one device: something else may have run during either."""
        if [one.working_set_bytes for one in self.cached] != [one.working_set_bytes for one in other.cached]:
            raise ValueError("other: expected ceilings of the same working sets, got others")
        best = max(self, other, key=lambda c: c.bandwidth_bytes_per_s)
        flops = max(self, other, key=lambda c: c.rate_flops_per_s)
        exponentials = max(self, other, key=lambda c: c.rate_exponentials_per_s or 0.0)
        return replace(
            best,
            source=flops.source,
            rate_flops_per_s=flops.rate_flops_per_s,
            flops_spread=flops.flops_spread,
            rate_exponentials_per_s=exponentials.rate_exponentials_per_s,
            exponentials_spread=exponentials.exponentials_spread,
            cached=tuple(
                max(pair, key=lambda one: one.bytes_per_s) for pair in zip(self.cached, other.cached, strict=True)
            ),
        )


@dataclass(frozen=True)
class Probe:
    """A call, and how many units of work (bytes, FLOPs, exponentials) it does."""

    units: int
    call: Callable[[], object]


@dataclass(frozen=True)
class _Reached:
    """Units of work a second: the best round's, and the median one's."""

    per_s: float
    typical_per_s: float

    @property
    def spread(self) -> float:
        return self.per_s / self.typical_per_s - 1

    def times(self, threads: int) -> _Reached:
        """What so many threads reach if none is in another's way."""
        return _Reached(threads * self.per_s, threads * self.typical_per_s)


@dataclass(frozen=True)
class _Product:
    """A square product, in words, and what it reached."""

    words: str
    reached: _Reached


Seconds = Callable[[Callable[[], object]], float]


def ceilings(device: str, dtype: str, *, known: Ceilings | None = None) -> Ceilings:
    """Measure all ceilings for ``dtype`` (``float32`` …); what does not depend on it is taken from ``known``."""
    import torch

    seconds = _cpu_seconds if device == "cpu" else _cuda_seconds(device)
    shared = _shared(device, seconds) if known is None else known
    generator = torch.Generator(device).manual_seed(0)
    # Half-precision operands may be multiplied in float32, which many CPUs do far faster.
    candidates = {dtype, "float32"} if dtype in ("bfloat16", "float16") else {dtype}
    products = [_product(device, name, seconds, generator) for name in sorted(candidates)]
    if device != "cpu" and dtype == "float32":
        with _tf32():
            products.append(_product(device, dtype, seconds, generator, passes=_TF32_PASSES))
    fastest = max(products, key=lambda one: one.reached.per_s)
    source = f"{fastest.words}; {shared.shared_source}"
    return replace(shared, rate_flops_per_s=fastest.reached.per_s, flops_spread=fastest.reached.spread, source=source)


def _shared(device: str, seconds: Seconds) -> Ceilings:
    """What depends on no dtype; the matrix rate is still missing."""
    import torch

    main_bytes = _main_bytes(device)
    sizes = [size for size in _CACHED_BYTES if 2 * size <= main_bytes] if device == "cpu" else []
    *cached, main = (_bandwidth(device, size, seconds) for size in (*sizes, main_bytes))
    exponentials, how = _exponentials(device, seconds)
    where = f"{torch.get_num_threads()} threads" if device == "cpu" else torch.cuda.get_device_name(device)
    return Ceilings(
        bandwidth_bytes_per_s=main.bytes_per_s,
        rate_flops_per_s=float("nan"),
        source="",
        shared_source=f"reading and copying {main_bytes >> 20} MiB, {how}, {_ROUNDS} rounds, {where}",
        read_bytes_per_s=main.read_bytes_per_s,
        copy_bytes_per_s=main.copy_bytes_per_s,
        main_bytes=main_bytes,
        rate_exponentials_per_s=None if exponentials is None else exponentials.per_s,
        bandwidth_spread=main.spread,
        exponentials_spread=None if exponentials is None else exponentials.spread,
        cached=tuple(cached),
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _best(ways: Sequence[_Reached]) -> _Reached:
    """Of several ways to do the same work: the best round of any, and the median one of the steadiest."""
    return _Reached(max(way.per_s for way in ways), max(way.typical_per_s for way in ways))


def _reach(probes: Sequence[Probe], seconds: Seconds) -> list[_Reached]:
    """What each probe reaches; a round goes over all of them, so that its repetitions lie apart in time."""
    rounds = [[probe.units / _best_s(probe.call, seconds) for probe in probes] for _ in range(_ROUNDS)]
    return [_Reached(max(rates), median(rates)) for rates in zip(*rounds, strict=True)]


def _best_s(call: Callable[[], object], seconds: Seconds) -> float:
    """The shortest of as many calls as ``_ROUND_S`` holds: a short one has to be met when nothing else runs."""
    took = [seconds(call)]
    while sum(took) < _ROUND_S:
        took.append(seconds(call))
    return min(took)


# -- bytes -----------------------------------------------------------------------------------------


def _moves(device: str, size: int) -> list[Probe]:
    """Two ways to read ``size`` bytes, and a copy that reads half as many and writes them."""
    import torch

    buffer = torch.ones(size // 4, device=device)  # written, so that its pages are there before the clock runs
    source, target = buffer.chunk(2)
    return [Probe(size, call) for call in (buffer.sum, buffer.amax, partial(target.copy_, source))]


def _bandwidth(device: str, size: int, seconds: Seconds) -> Bandwidth:
    """Of all threads, or of one times their number where the last cache, which they share, holds the bytes."""
    import torch

    probes = _moves(device, size)
    found = [_reach(probes, seconds)]
    if device == "cpu" and torch.get_num_threads() > 1:
        at_once = torch.get_num_threads() if size <= (last_cache_bytes() or 0) else 1
        with _one_thread():
            found.append([way.times(at_once) for way in _reach(probes, seconds)])
    read = _best([way for *reads, _ in found for way in reads])
    copy = _best([copy for *_, copy in found])
    either = _best([read, copy])
    return Bandwidth(either.per_s, read.per_s, copy.per_s, either.spread, size)


def _main_bytes(device: str) -> int:
    """At least four times the last cache, at most an eighth of what is free."""
    if device == "cpu":
        wanted = max(_CPU_BYTES, 4 * (last_cache_bytes() or 0))
    else:
        import torch

        wanted = max(_CUDA_BYTES, 4 * torch.cuda.get_device_properties(device).L2_cache_size)
    return max(min(wanted, available_bytes(device) // 8), 1 << 20) // 8 * 8


# -- matrices --------------------------------------------------------------------------------------


def _product(device: str, dtype: str, seconds: Seconds, generator: torch.Generator, *, passes: int = 1) -> _Product:
    """The square product of the highest rate, sides growing up to one that takes long enough.

    ``passes``: products that make up one of the dtype's own accuracy.
    """
    import torch

    found: list[tuple[float, int, Probe]] = []
    side, largest = 512, 4096 if device == "cpu" else 16384
    while side <= largest:
        a, b = (torch.randn(side, side, device=device, generator=generator).to(getattr(torch, dtype)) for _ in range(2))
        probe = Probe(2 * side**3 // passes, partial(torch.mm, a, b, out=torch.empty_like(a)))
        took = _best_s(probe.call, seconds)
        found.append((probe.units / took, side, probe))
        if 2 * took > _LONG_ENOUGH_S:
            break
        side *= 2
    _, side, probe = max(found, key=lambda one: one[0])
    reached, threads = _reach([probe], seconds), torch.get_num_threads()
    if device == "cpu":
        with _one_thread():
            reached += [way.times(threads) for way in _reach([found[0][2]], seconds)]
    precision = f" ({torch.get_float32_matmul_precision()} precision)" if dtype == "float32" else ""
    times = f" in {passes} passes" if passes > 1 else ""
    return _Product(f"{dtype} matmul of side {side}{precision}{times}", _best(reached))


@contextmanager
def _tf32() -> Iterator[None]:
    """Let float32 operands be rounded to tf32 on tensor cores."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# -- exponentials ----------------------------------------------------------------------------------


def _exponentials(device: str, seconds: Seconds) -> tuple[_Reached | None, str]:
    """What the fastest way reaches, and in words how; or why there is none."""
    import torch

    if device == "cpu":
        x = torch.linspace(-1, 0, _EXPONENTIALS)
        out = torch.empty_like(x)
        probes = [Probe(len(x), partial(f, x, out=out)) for f in (torch.exp, torch.exp2)]
        threads = torch.get_num_threads()
        with _one_thread():
            return _best(_reach(probes, seconds)).times(threads), "exponentials in cache"
    x = torch.rand(_CUDA_ELEMENTS, device=device)
    try:
        calls = [_compiled(source, x) for source in exponential_kernels()]
    except Exception as e:  # no run-time compiler, or one that refuses: the other two ceilings stand
        reason = " ".join(str(e).split())[:200]
        return None, f"exponentials not measured ({type(e).__name__}: {reason})"
    probes = [Probe(len(x) * _CHAINS * _LOOP, call) for call in calls]
    return _best(_reach(probes, seconds)), "exponentials in registers"


def exponential_kernels() -> list[str]:
    """CUDA source of an element's many exponentials: by the special function units; every second by multiply-adds."""
    bodies = ([_SPECIAL], [_SPECIAL, _MULTIPLIED])
    return [
        _KERNEL.format(
            chains=_CHAINS,
            loop=_LOOP,
            body=" ".join(kinds[i % len(kinds)].format(i=i) for i in range(_CHAINS)),
        )
        for kinds in bodies
    ]


def _compiled(source: str, x: Tensor) -> Callable[[], object]:
    """The kernel as a call, after a first one that compiles it and shows that it works."""
    import torch

    jitted = torch.cuda.jiterator._create_jit_fn(source)
    if not bool(jitted(x).isfinite().all()):
        raise RuntimeError("the kernel made numbers that are not finite")
    return partial(jitted, x)


# -- clocks ----------------------------------------------------------------------------------------


def _cpu_seconds(fn: Callable[[], object]) -> float:
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


def _cuda_seconds(device: str) -> Seconds:
    import torch

    def seconds(fn: Callable[[], object]) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        fn()  # keeps the device busy while the host launches what is timed
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
