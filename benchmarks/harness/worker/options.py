"""How a group is measured. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

# The longest that a phase may take for one backend; the timing gets its budget on top.
PHASE_LIMITS_S = {
    "build": 300.0,
    "first call": 300.0,
    "gate": 300.0,
    "plan": 120.0,
    "memory": 120.0,
    "timing": 120.0,
    "graph": 120.0,
    "profile": 120.0,
}


@dataclass(frozen=True)
class Options:
    """How a group is measured; everything here may differ between two runs of one problem."""

    budget_s: float = 10.0
    min_blocks: int = 20
    max_blocks: int = 200
    gate_pairs: int = 1 << 18  # pairs whose whole reference is computed for the gate; of more, a sample of rows
    try_oversized: bool = False
    speed: bool = True  # False: the gate alone
    memory: bool = True
    graphs: bool = True
    limits_s: dict[str, float] = field(default_factory=lambda: dict(PHASE_LIMITS_S))


@dataclass(frozen=True, kw_only=True)
class Run:
    """What every run that measures is told, whatever it measures. ``out`` None keeps its records in memory alone."""

    out: Path | None = None
    budget_s: float | None = None
    threads: int | None = None
    seed: int = 0
    argv: tuple[str, ...] = ()
