"""Numbers as people read them: three digits, a fitting unit, and an interval that says when there is none."""

from __future__ import annotations

import math
import re

from benchmarks.harness.ruler.statistics import Ratio
from benchmarks.harness.schema.axes import SYNTHETIC, of_role, unusual
from benchmarks.harness.schema.problem import Problem

DASH = "–"


def number(value: float, digits: int = 3) -> str:
    """Three significant digits, thousands with commas, no exponent."""
    if abs(value) < 1e-290 or not math.isfinite(value):
        return f"{value:g}"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, places):,.{max(places, 0)}f}"


def two_digits(value: float) -> str:
    return number(value, 2)


def time(ms: float) -> str:
    for limit, scale, unit in ((1e-3, 1e6, "ns"), (1, 1e3, "µs"), (1e3, 1, "ms"), (math.inf, 1e-3, "s")):
        if ms < limit:
            return f"{number(ms * scale)} {unit}"
    raise AssertionError("unreachable: the last limit is infinite")


def size(n_bytes: float) -> str:
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if n_bytes >= 2**power:
            return f"{number(n_bytes / 2**power)} {unit}"
    return f"{n_bytes:.0f} B"


def short(value: float) -> str:
    """An axis label: whole below ten thousand, else three digits (``16.4k``)."""
    for limit, scale, unit in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= limit:
            return f"{value / scale:.3g}{unit}"
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def bare(text: str) -> str:
    """``10.0 ms`` → ``10 ms``: zeros after the point say nothing on an axis."""
    return re.sub(r"\.(\d*?)0+(?=\D|$)", lambda m: f".{m[1]}" if m[1] else "", text)


def times(ratio: float) -> str:
    return f"{number(ratio)}×"


def interval(low: float | None, high: float | None) -> str:
    return "no interval" if low is None or high is None else f"{number(low)}{DASH}{number(high)}"


def ratio(r: Ratio) -> str:
    return f"{times(r.ratio)} ({interval(r.low, r.high)})"


def percent(share: float) -> str:
    return f"{number(100 * share, 2)}%"


def of_hundred(value: float) -> str:
    return f"{number(value)}%"


def p_value(p: float | None) -> str:
    if p is None:
        return DASH
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def sizes(p: Problem) -> str:
    """The sizes of a problem that its setting does not hold, and where they come from."""
    style = {"window": " (32 × 128 blocks)"} if p.window_style == "blocks" else {}
    known = [f"{a.symbol} = {a.value(p):,}{style.get(a.name, '')}" for a in of_role("size")]
    return ", ".join([*([] if p.workload == SYNTHETIC else [p.workload]), *known])


def all_sizes(p: Problem) -> str:
    """As :func:`sizes`, and what of the model is not as usual."""
    return ", ".join([sizes(p), *(f"{a.symbol} = {a.value(p):,}" for a in unusual(p))])


def in_unit(value: float, unit: str) -> str:
    """A value of a metric with its unit."""
    if unit == "seconds":
        return time(1e3 * value) if value else "0 s"
    known = {"ms": time, "bytes": size, "%": of_hundred}
    if unit in known:
        return known[unit](value) if value else f"0 {unit}"
    return number(value)
