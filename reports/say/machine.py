"""Where the numbers of one place were made: hardware, versions, and how the device behaved meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reports import words
from reports.read.load import Cell

MOMENTS = ("start", "before", "after")  # environment entries that hold one state of the device each
NAMES = {
    "sm_mhz": "SM clock", "memory_mhz": "memory clock", "max_sm_mhz": "highest SM clock", "cpu_mhz": "CPU clock",
    "power_mw": "power", "power_limit_mw": "power limit", "temperature_c": "temperature", "load_1min": "load, 1 minute",
    "throttle": "clocks held back by", "gpu_memory_bytes": "GPU memory", "l2_bytes": "L2 cache",
}  # fmt: skip
HARMLESS = {"idle", "application clocks", "none", ""}
UNITS = {
    "bytes": words.size,
    "mw": lambda v: f"{v / 1e3:.0f} W",
    "mhz": lambda v: f"{v:,.0f} MHz",
    "c": lambda v: f"{v:g} °C",
}


def facts(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """What is known of a place, of its newest record unless it varies."""
    newest = max(cells, key=lambda c: c.record.provenance.utc).record.provenance
    first = min(c.record.provenance.utc for c in cells)
    installed = ", ".join(f"{k} {v}" for k, v in sorted(newest.versions.items()) if v and k != "torch_git")
    absent = ", ".join(sorted(k for k, v in newest.versions.items() if not v))
    changes = " with uncommitted changes" if newest.dirty else ""
    known = [
        ("machine", newest.machine),
        ("CPU", f"{newest.cpu}, {newest.cores} cores"),
        ("memory", words.size(newest.memory_bytes)),
        ("GPU", newest.gpu),
        ("driver", newest.driver),
        ("versions", installed),
        ("absent", absent),
        ("commit", (newest.commit or "unknown") + changes),
        ("code", newest.code),
        ("measured", f"{first} to {newest.utc}"),
        ("command", " ".join(newest.argv)),
        ("seed", str(newest.seed)),
    ]
    files = dict.fromkeys(str(v) for c in cells if (v := c.record.provenance.environment.get("structure")))
    known += [("structure", "; ".join(files))]
    fixed = [(k, v) for k, v in newest.environment.items() if k not in (*MOMENTS, "structure") and v is not None]
    return [(k, v) for k, v in known if v] + [(_spell(k), _value(k, v)) for k, v in sorted(fixed)] + behaviour(cells)


def behaviour(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """The range of each state that was read before and after the cells: clocks, temperature, load, throttling."""
    seen: dict[str, list[object]] = {}
    for cell in cells:
        environment = cell.record.provenance.environment
        for moment in MOMENTS:
            state = environment.get(moment)
            for key, value in state.items() if isinstance(state, dict) else ():
                if value is not None:
                    seen.setdefault(str(key), []).append(value)
    out = []
    for key, values in sorted(seen.items()):
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) == len(values):
            low, high = min(numbers), max(numbers)
            span = _value(key, low) if low == high else f"{_value(key, low)} to {_value(key, high)}"
            out.append((_spell(key), span))
        else:
            out.append((_spell(key), ", ".join(sorted(_reasons(values))) or "none"))
    return out


def throttling(cells: Sequence[Cell]) -> list[str]:
    """The reasons, other than idleness, for which the device held its clocks back while these cells were measured."""
    reasons: set[str] = set()
    for cell in cells:
        for moment in MOMENTS:
            state = cell.record.provenance.environment.get(moment)
            if isinstance(state, dict) and state.get("throttle"):
                reasons |= _reasons([state["throttle"]])
    return sorted(reasons - HARMLESS)


def _reasons(values: Iterable[object]) -> set[str]:
    out: set[str] = set()
    for value in values:
        out |= {str(v) for v in value} if isinstance(value, list | tuple) else {str(value)}
    return out


def _spell(key: str) -> str:
    if key in NAMES or key.isupper():
        return NAMES.get(key, key)
    words_of = key.split("_")
    return " ".join(words_of[:-1] if len(words_of) > 1 and words_of[-1] in UNITS else words_of)


def _value(key: str, value: object) -> str:
    unit = UNITS.get(key.rsplit("_", 1)[-1]) if "_" in key else None
    if unit is not None and isinstance(value, int | float):
        return unit(value)
    if isinstance(value, dict):
        return ", ".join(f"{_spell(str(k))} {_value(str(k), v)}" for k, v in value.items() if v is not None)
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
