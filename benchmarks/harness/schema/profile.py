"""One JSON line per profile: where the time of one call of a backend on a problem goes.

Like :mod:`.record` it is free of torch, checked when written and when read; no profile exists beside a red gate.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from .problem import Count, Milliseconds, Problem, _Frozen
from .record import Gate, Limit, Provenance, Status, scan_lines

PROFILES = "profiles.jsonl"  # beside records.jsonl
Share = Annotated[float, Field(ge=0, le=1.0001, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Row(_Frozen):
    """A kernel or operator, per call. ``floors``: its time in units of the whole operation's floor."""

    name: str
    short: str
    kind: str
    op: str | None = None
    launches: Amount
    ms: Milliseconds
    share: Share
    floors: Amount | None = None


class Counters(_Frozen):
    """What Nsight Compute counted for the heaviest kernel, or why it did not. Percent of peak; stalls in cycles per
    instruction issued, the largest first."""

    reason: str | None = None
    kernel: str | None = None
    duration_us: Amount | None = None
    dram_percent: Amount | None = None
    sm_percent: Amount | None = None
    occupancy_percent: Amount | None = None
    registers: Amount | None = None
    stalls: dict[str, Amount] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _counted_or_why_not(self) -> Counters:
        if (self.kernel is None) == (self.reason is None):
            raise ValueError(f"counters have either a kernel or a reason, got {self.kernel!r} and {self.reason!r}")
        return self


class Breakdown(_Frozen):
    """One call in the mean over ``calls`` steady ones.

    ``call_ms`` without the profiler, ``wall_ms`` with it, ``busy_ms`` that something ran; ``whole_ms`` is what shares
    are of: ``call_ms`` on CUDA, ``wall_ms`` on CPU. ``enqueue_ms``: how long the host takes to launch one call.
    """

    calls: Count
    call_ms: Milliseconds
    wall_ms: Milliseconds
    busy_ms: Milliseconds
    whole_ms: Milliseconds
    kinds: dict[str, Share]
    idle_share: Share
    rows: list[Row]
    rows_left_out: Count = 0
    launches: Amount = 0.0
    launch_ms: Milliseconds = 0.0
    syncs: Amount = 0.0
    enqueue_ms: Milliseconds | None = None
    peak_bytes: Count | None = None
    peak_op: str | None = None

    @model_validator(mode="after")
    def _shares_add_up(self) -> Breakdown:
        if not 0.98 <= sum(self.kinds.values()) <= 1.02:
            raise ValueError(f"shares of the call: expected a sum of 1, got {sum(self.kinds.values()):.3f}")
        return self


class Profile(_Frozen):
    """One profile. ``trace`` is the name of a gzipped Chrome trace in the same folder."""

    schema_version: Literal[1] = 1
    what: Literal["profile"] = "profile"
    run: str
    backend: str
    problem: Problem
    status: Status
    reason: str | None = None
    error: str | None = None
    gate: Gate | None = None
    breakdown: Breakdown | None = None
    limit: Limit | None = None
    counters: Counters | None = None
    trace: str | None = None
    summary: str = ""
    provenance: Provenance

    @model_validator(mode="after")
    def _no_profile_of_a_red_gate(self) -> Profile:
        green = self.status == "ok" and self.gate is not None and self.gate.passed
        if self.breakdown is not None and not green:
            raise ValueError(f"a breakdown needs status ok and a green gate, got status {self.status!r}")
        if self.status == "ok" and (self.breakdown is None or not green):
            raise ValueError("status ok needs a green gate and a breakdown")
        if self.status != "ok" and not self.reason:
            raise ValueError(f"status {self.status!r} needs a reason")
        return self

    @property
    def key(self) -> str:
        """Names the profile: backend and problem."""
        return f"{self.backend}@{self.problem.key}"


def scan_profiles(path: Path) -> Iterator[Profile | str]:
    """The profiles of one file; for a line that holds none, which and why. A cut-off last line is passed over."""
    for found in scan_lines(path, Profile):
        if isinstance(found, Profile):
            yield found
        elif found.kind != "unfinished":
            yield f"{path.name}:{found.number}: {found.why}"
