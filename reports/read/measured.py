"""What a record measured, read in one place: its times, in words, and the worst of its gate.

On CUDA there are two times of one call: *device*, the device's own with its queue kept full, and *wall*, what an eager
caller waits, host included; the replay of a captured graph is a third. On a CPU there is one. Backends are compared by
the device's time, where there are two.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from benchmarks.harness.schema.record import Gate, Record
from reports import words

UNRECORDED = "not recorded"
HOST_BOUND = "host-bound"
HOST_BOUND_MEANS = "host-bound: the device idles for more than half of an eager call"


def has_two_times(r: Record) -> bool:
    return r.problem.device == "cuda"


def wall_ms(r: Record) -> float | None:
    """Wall time of an eager call; on a CPU that is the one time there is."""
    if r.timing is None:
        return None
    return r.timing.wall_ms if has_two_times(r) else r.timing.median_ms


def graph_ms(r: Record) -> float | None:
    return _median(r.timing.graph_samples_ms) if r.timing else None


def hot_ms(r: Record) -> float | None:
    return _median(r.timing.hot_samples_ms) if r.timing else None


def _median(samples: Sequence[float] | None) -> float | None:
    return median(samples) if samples else None


def time_words(r: Record) -> str:
    """``37.0 µs on the device, 340 µs of wall time (host-bound)``; the one time of a CPU alone."""
    assert r.timing is not None
    text = words.time(r.timing.median_ms)
    if not has_two_times(r):
        return text
    return f"{text} on the device, {wall_words(r)}"


def wall_words(r: Record) -> str:
    wall = wall_ms(r)
    if wall is None or r.timing is None:
        return f"wall time {UNRECORDED}"
    return f"{words.time(wall)} of wall time" + (f" ({HOST_BOUND})" if r.timing.host_bound else "")


def worst_error(r: Record, *, gradients: bool | None = None) -> float | None:
    """The largest relative error of the gate; of gradients only, of the rest only, or of both (None)."""
    if r.gate is None:
        return None
    held = errors(r.gate).items()
    return max((v for k, v in held if v is not None and gradients in (None, k.startswith("grad"))), default=None)


def worst_slope(r: Record) -> float | None:
    """The slope of the gate that is farthest from 0, with its sign."""
    return max((v for v in slopes(r.gate).values() if v is not None), key=abs, default=None) if r.gate else None


def slopes(g: Gate) -> dict[str, float | None]:
    """<x, ref> / <ref, ref> - 1 by tensor, before timing and of what the last timed call made."""
    return g.slopes | {f"{k}, after timing": v for k, v in g.slopes_after.items()}


def errors(g: Gate) -> dict[str, float | None]:
    """Error norms by tensor, before timing and of what the last timed call made."""
    return g.errors | {f"{k}, after timing": v for k, v in g.errors_after.items()}
