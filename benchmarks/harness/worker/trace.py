"""Where the time of a call went, read from a Chrome trace as ``torch.profiler`` writes it.

A pure function of the trace's events (dictionaries with ``ph cat name ts dur tid args``, times in µs), so that a trace
of any machine can be read anywhere. The calls are marked by annotations named :data:`MARKER`.

On a GPU a call's time is that of the device: its kernels, copies and fills, and the gaps in which none of them runs.
On a CPU it is that of the calling thread: each operator's own time, without that of the operators it calls, and what
is left between them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .kernel_names import IDLE, OUTSIDE, SAID, kind, shorten

MARKER = "profiled call"
DEVICE_WORK = ("kernel", "concurrent_kernel", "gpu_memcpy", "gpu_memset")
RUNTIME = ("cuda_runtime", "cuda_driver")
_ALLOCATORS = ("aten::empty", "aten::resize_", "aten::new_empty")
_CUDA, _CPU = 1, 0  # c10::DeviceType in memory events

Event = dict[str, Any]


class NothingRecorded(ValueError):
    """The trace holds no marked call, or no work of the device; says which."""


@dataclass(frozen=True)
class Item:
    """One kernel or operator, per call; ``op`` is the operator that launched it."""

    name: str
    short: str
    kind: str
    launches: float
    ms: float
    op: str | None = None


@dataclass(frozen=True)
class Breakdown:
    """One call in the mean over ``calls``.

    ``busy_ms``: the union of what ran (device work; on CPU the operators of the calling thread); ``wall_ms``: from the
    first call's start to the last work's end, over the number of calls, profiler included.
    """

    calls: int
    wall_ms: float
    busy_ms: float
    items: list[Item]
    launches: float = 0.0  # launches that the host made, graphs counted as one
    launch_ms: float = 0.0  # host time inside them
    syncs: float = 0.0  # times that the host waited for the device


@dataclass(frozen=True)
class Peak:
    """Most bytes held at once above the start, and the operator that asked for the last of them."""

    peak_bytes: int
    op: str | None


@dataclass
class _Span:
    name: str
    start: float
    end: float
    inner: float = 0.0
    event: Event = field(default_factory=dict)

    @property
    def own(self) -> float:
        return max(self.end - self.start - self.inner, 0.0)


def analyse(events: Sequence[Event], device: str) -> Breakdown:
    """Break the marked calls of a trace down by kernel (``cuda``) or operator (``cpu``).

    Raises
    ------
    NothingRecorded
    """
    calls = sorted(_spans(events, ("user_annotation",), MARKER), key=lambda span: span.start)
    if not calls:
        raise NothingRecorded(f"the trace holds no annotation named {MARKER!r}")
    return _on_device(events, calls) if device == "cuda" else _on_host(events, calls)


def _spans(events: Iterable[Event], categories: tuple[str, ...], name: str | None = None) -> list[_Span]:
    return [
        _Span(str(e["name"]), float(e["ts"]), float(e["ts"]) + float(e.get("dur", 0)), event=e)
        for e in events
        if e.get("ph") == "X" and e.get("cat") in categories and (name is None or e.get("name") == name)
    ]


def union(intervals: Iterable[tuple[float, float]]) -> float:
    """Total length that at least one interval covers."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        if end > reached:
            total += end - max(start, reached)
            reached = end
    return total


def _on_device(events: Sequence[Event], calls: list[_Span]) -> Breakdown:
    start = calls[0].start
    work = [span for span in _spans(events, DEVICE_WORK) if span.end > start]
    if not work:
        raise NothingRecorded("the profiler recorded no kernel, copy or fill of the device")
    end = max(max(span.end for span in work), calls[-1].end)
    n = len(calls)
    runtime = [span for span in _spans(events, RUNTIME) if _within(span, calls)]
    launches = [span for span in runtime if "Launch" in span.name]
    return Breakdown(
        calls=n,
        wall_ms=(end - start) / 1e3 / n,
        busy_ms=union((span.start, span.end) for span in work) / 1e3 / n,
        items=_items(((span.name, span.end - span.start, span.event) for span in work), n, _operators(events)),
        launches=len(launches) / n,
        launch_ms=sum(span.end - span.start for span in launches) / 1e3 / n,
        syncs=sum("Synchronize" in span.name for span in runtime) / n,
    )


def _within(span: _Span, calls: list[_Span]) -> bool:
    """Whether the host did this during a call; the last wait, for the profile's own end, is outside."""
    return any(call.start <= span.start <= call.end for call in calls)


def _operators(events: Iterable[Event]) -> dict[object, str]:
    """Operators by the id that the kernels they launch refer to."""
    return {
        e["args"]["External id"]: str(e["name"])
        for e in events
        if e.get("cat") == "cpu_op" and "External id" in e.get("args", {})
    }


def _on_host(events: Sequence[Event], calls: list[_Span]) -> Breakdown:
    thread = calls[0].event.get("tid")
    ops = [s for s in _spans(events, ("cpu_op",)) if s.event.get("tid") == thread and _within(s, calls)]
    n = len(calls)
    outermost = _nest(ops)
    return Breakdown(
        calls=n,
        wall_ms=sum(call.end - call.start for call in calls) / 1e3 / n,
        busy_ms=union((span.start, span.end) for span in outermost) / 1e3 / n,
        items=_items(((span.name, span.own, span.event) for span in ops), n, {}),
    )


def _nest(spans: list[_Span]) -> list[_Span]:
    """Charge each span's time to the one around it; returns those that nothing is around."""
    outermost: list[_Span] = []
    open_: list[_Span] = []
    for span in sorted(spans, key=lambda s: (s.start, -s.end)):
        while open_ and open_[-1].end <= span.start:
            open_.pop()
        if open_:
            open_[-1].inner += min(span.end, open_[-1].end) - span.start
        else:
            outermost.append(span)
        open_.append(span)
    return outermost


def _items(found: Iterable[tuple[str, float, Event]], calls: int, operators: dict[object, str]) -> list[Item]:
    """Equal names added up, the longest first."""
    took: dict[str, float] = defaultdict(float)
    count: Counter[str] = Counter()
    launched: dict[str, Counter[str]] = defaultdict(Counter)
    host: set[str] = set()
    for name, microseconds, event in found:
        took[name] += microseconds
        count[name] += 1
        if event.get("cat") == "cpu_op":
            host.add(name)
        op = operators.get(event.get("args", {}).get("External id"))
        if op is not None:
            launched[name][op] += 1
    items = [
        Item(
            name=name, short=shorten(name), kind=kind(name, operator=name in host), launches=count[name] / calls,
            ms=total / 1e3 / calls, op=launched[name].most_common(1)[0][0] if launched[name] else None,
        )
        for name, total in took.items()
    ]  # fmt: skip
    return sorted(items, key=lambda item: -item.ms)


def peak(events: Iterable[Event], device: str) -> Peak | None:
    """The allocator's highest point in a trace with memory events; None if it holds none."""
    wanted = _CUDA if device == "cuda" else _CPU
    events = list(events)
    changes = sorted(
        (e for e in events if e.get("name") == "[memory]" and e["args"].get("Device Type") == wanted),
        key=lambda e: e["ts"],
    )
    held = most = 0
    moment: Event | None = None
    for change in changes:
        held += change["args"]["Bytes"]
        if held > most:
            most, moment = held, change
    if moment is None:
        return None
    return Peak(most, _asking(events, moment))


def _asking(events: Iterable[Event], moment: Event) -> str | None:
    """The innermost operator around a moment that is more than an allocation."""
    around = [
        s for s in _spans(events, ("cpu_op",))
        if s.event.get("tid") == moment.get("tid") and s.start <= moment["ts"] <= s.end
        and not s.name.startswith(_ALLOCATORS)
    ]  # fmt: skip
    return shorten(min(around, key=lambda s: s.end - s.start).name) if around else None


@dataclass(frozen=True)
class Shares:
    """A call's time by kind; they add up to 1. ``call_ms`` is what they are shares of."""

    call_ms: float
    kinds: dict[str, float]
    idle: float


def shares(found: Breakdown, device: str, call_ms: float | None) -> Shares:
    """Shares of a call, idle time included.

    On CUDA kernels last as long under the profiler as without it, while the host, which it slows down, takes longer to
    launch them: so the call is as long as ``call_ms`` says, which was measured without the profiler, and what no kernel
    fills of that is idle. On CPU operators are slowed down alike: the profiled wall time is the whole.
    """
    whole = max(call_ms or found.wall_ms, found.busy_ms) if device == "cuda" else max(found.wall_ms, found.busy_ms)
    total = sum(item.ms for item in found.items)
    overlap = found.busy_ms / total if total > found.busy_ms > 0 else 1.0  # streams side by side fill one time
    kinds: dict[str, float] = defaultdict(float)
    for item in found.items:
        kinds[item.kind] += item.ms * overlap / whole
    idle = max(1.0 - sum(kinds.values()), 0.0)
    ranked = dict(sorted(kinds.items(), key=lambda pair: -pair[1]))
    return Shares(whole, ranked | {IDLE if device == "cuda" else OUTSIDE: idle}, idle)


def summary(kinds: dict[str, float], items: Sequence[Item]) -> str:
    """``71% of the call is the fused kernel (forward_band); 12% is idle between launches.``"""
    parts = []
    largest = sorted(kinds.items(), key=lambda pair: -pair[1])
    for i, (name, share) in enumerate(pair for pair in largest if pair[1] >= 0.05 or pair is largest[0]):
        if i == 3:
            break
        verb = "is" if name in SAID else "are" if name.endswith("s") and name != "other" else "is"
        of = " of the call" if i == 0 else ""
        top = next((item.short for item in items if item.kind == name), None)
        named = f" (most: {top})" if top is not None else ""
        parts.append(f"{100 * share:.0f}%{of} {verb} {SAID.get(name, name)}{named}")
    return "; ".join(parts) + "."
