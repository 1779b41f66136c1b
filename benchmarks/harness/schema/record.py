"""One JSON line per cell: what was asked, what came out, and where it was measured.

A cell is one backend on one problem. Its record ends in exactly one status; a number that was not
measured is null, never 0; a speed exists only beside a green gate. The schema is checked when a
record is written and again when it is read, so that a report never has to guess.

This module is free of torch: reports read records on machines that have none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from .axes import DType
from .jsonl import BadLine as BadLine
from .jsonl import CannotRecord as CannotRecord
from .jsonl import MalformedRecord as MalformedRecord
from .jsonl import append as append
from .jsonl import scan_lines as scan_lines
from .problem import Count, Facts, Finite, Milliseconds, Moment, Positive, Problem, Rate, Sample, Seed, _Frozen

SCHEMA_VERSION = 1

Status = Literal["ok", "wrong", "oom", "unsupported", "timeout", "crashed"]


class Trial(_Frozen):
    """The same backend at a small size that breaks kernels, in the most exact dtype that it has."""

    dtype: DType
    passed: bool
    errors: dict[str, Finite | None]
    slopes: dict[str, Finite | None] = Field(default_factory=dict)


class Gate(_Frozen):
    """Relative error norms ||x - ref|| / ||ref|| against the float64 reference.

    ``errors`` and ``errors_after`` (what the last timed call made) are keyed by tensor: ``output``,
    ``attention`` (the seam alone, where the level holds more than it), ``grad:q`` …. ``slopes`` are
    <x, ref> / <ref, ref> - 1 under the same names: what a norm of roundings would hide. ``negative_control``
    is the error of the found output with one ``neighbour`` a row left out, or one in sixteen where the dtype cannot
    show a single one (``control``; of an all-zero output in records made before there was another); it must
    exceed the tolerance. A value that is not finite is
    recorded as null and fails the gate.
    """

    passed: bool
    tolerance: Finite
    gradient_tolerance: Finite | None
    errors: dict[str, Finite | None]
    errors_after: dict[str, Finite | None] = Field(default_factory=dict)
    slopes: dict[str, Finite | None] = Field(default_factory=dict)
    slopes_after: dict[str, Finite | None] = Field(default_factory=dict)
    rows_checked: Count
    rows_total: Count
    negative_control: Finite | None
    control_tolerance: Finite | None = None  # what it must exceed; ``tolerance`` where there is none of its own
    control: Literal["zeros", "neighbour", "neighbours"] = "zeros"
    trial: Trial | None = None

    @model_validator(mode="after")
    def _green_means_checked(self) -> Gate:
        if not self.passed:
            return self
        told = [*self.errors.items(), *self.errors_after.items(), *self.slopes.items(), *self.slopes_after.items()]
        unknown = [name for name, error in told if error is None]
        if not self.errors or unknown:
            raise ValueError(f"a green gate needs finite errors, got {unknown or 'none at all'}")
        least = self.tolerance if self.control_tolerance is None else self.control_tolerance
        if self.negative_control is not None and self.negative_control <= least:
            raise ValueError(f"the negative control would pass: {self.negative_control} <= {least}")
        return self


class Timing(_Frozen):
    """Steady-state latency; ``samples_ms[i]`` was taken in block ``i`` of the group, so that the
    samples of two backends of one group pair by position.

    On CUDA ``samples_ms`` is the device's own time, and ``wall_samples_ms``, of the first of the same blocks, is
    what an eager caller waits for one call on an idle device, host included. On a CPU the two are one.
    """

    samples_ms: Annotated[list[Sample], Field(min_length=1)]
    calls_per_sample: Positive
    median_ms: Milliseconds
    ci_low_ms: Milliseconds
    ci_high_ms: Milliseconds
    half_width: Finite | None  # relative, of the interval that decides when to stop (interleave.Interleaved)
    stop: Literal["converged", "budget", "maximum"]
    cache: Literal["cold", "hot", "unspecified"]
    aa_samples_ms: list[Sample] | None = None  # the same backend once more per block: the noise floor
    hot_samples_ms: list[Sample] | None = None  # CUDA, by itself: warm cache, launch gaps included
    graph_samples_ms: list[Sample] | None = None  # CUDA, by itself: cold replays of the call captured in a graph
    wall_samples_ms: list[Sample] | None = None
    wall_ms: Milliseconds | None = None  # their median
    hot_reason: str | None = None  # why there are no hot samples
    graph_reason: str | None = None  # why there are no replays
    order_seed: Seed | None = None  # of the order within blocks
    input_sets: Positive | None = None  # input sets that took turns in the timed calls
    calls_checked: Count | None = None  # timed calls whose result was compared with the reference

    @property
    def host_bound(self) -> bool | None:
        """Whether the device idles for more than half of an eager call; None where that was not recorded."""
        return None if self.wall_ms is None else self.wall_ms > 2 * self.median_ms

    @model_validator(mode="after")
    def _median_within_its_interval(self) -> Timing:
        if not self.ci_low_ms <= self.median_ms <= self.ci_high_ms:
            raise ValueError(f"median {self.median_ms} outside its interval [{self.ci_low_ms}, {self.ci_high_ms}]")
        return self


class Memory(_Frozen):
    """``peak_bytes``: most bytes allocated above the inputs during one call; ``model_bytes``: what
    the backend's own model predicts; ``p_bytes``: the pair tensor, the natural unit of both."""

    peak_bytes: Count | None
    model_bytes: Count | None
    input_bytes: Count
    p_bytes: Count
    source: str


class Limit(_Frozen):
    """The operation's floor on this device: max(bytes / bandwidth, FLOPs / rate, exponentials / rate).

    ``definition`` 1, before there was another, counted p once a block in a stack and no exponentials; 2 counts
    inputs, outputs and weights once, and nothing between. ``bandwidth_bytes_per_s`` is the larger of what
    reading and copying reached on ``working_set_bytes`` (main memory where that is None or as large as it gets);
    ``spread`` is the relative spread, over its repetitions, of the ceiling that binds.
    """

    floor_bytes: Count
    floor_flops: Count
    floor_exponentials: Count | None = None
    bandwidth_bytes_per_s: Rate
    working_set_bytes: Count | None = None
    read_bytes_per_s: Rate | None = None
    copy_bytes_per_s: Rate | None = None
    rate_flops_per_s: Rate
    rate_exponentials_per_s: Rate | None = None
    spread: Finite | None = None
    floor_ms: Milliseconds
    bound: Literal["bytes", "flops", "exponentials"]
    percent: Finite | None  # 100 * floor / measured
    definition: Literal[1, 2] = 1


class Provenance(_Frozen):
    """Where and how a number was made. ``environment`` holds device facts that differ by machine
    (clocks, temperature, throttle reasons before and after, load, thread counts)."""

    commit: str | None
    dirty: bool | None
    utc: Moment
    machine: str
    cpu: str
    cores: Positive
    memory_bytes: Count
    gpu: str | None
    driver: str | None
    versions: dict[str, str | None]
    code: str  # hash of the installed pallatom and variants sources
    ruler: str | None = None  # hash of the sources that measure
    tuned: str | None = None  # hash of the tuned file in force; None where there is none
    options: Facts | None = None  # how the group was measured, as asked for: budget, blocks, pairs gated
    argv: list[str]
    seed: Seed
    environment: Facts = Field(default_factory=dict)


class Record(_Frozen):
    """One cell. ``group`` is shared by the cells that were interleaved with one another in one
    process: only those are compared as pairs. ``run`` is shared by one invocation of the sweep."""

    schema_version: Literal[1] = SCHEMA_VERSION
    run: str
    group: str
    backend: str
    problem: Problem
    status: Status
    reason: str | None = None
    error: str | None = None  # the full text of the failure
    path: str | None = None  # which of its algorithms the backend took
    again: str | None = None  # the command that measures this cell, quoted for a shell
    gate: Gate | None = None
    plan_ms: Milliseconds | None = None
    first_call_ms: Milliseconds | None = None
    tuning_ms: Milliseconds | None = None  # of the first call, which is timed without it
    timing: Timing | None = None
    memory: Memory | None = None
    limit: Limit | None = None
    provenance: Provenance

    @model_validator(mode="after")
    def _speed_needs_a_green_gate(self) -> Record:
        if self.timing is not None and (self.status != "ok" or self.gate is None or not self.gate.passed):
            raise ValueError(f"a timing needs status ok and a green gate, got status {self.status!r}, gate {self.gate}")
        if self.status == "ok" and (self.gate is None or not self.gate.passed):
            raise ValueError("status ok needs a green gate")
        if self.status != "ok" and not self.reason:
            raise ValueError(f"status {self.status!r} needs a reason")
        return self

    @property
    def key(self) -> str:
        """Names the cell: backend and problem. Resuming a sweep skips keys that are on file."""
        return f"{self.backend}@{self.problem.key}"


def scan(path: Path) -> Iterator[Record | BadLine]:
    """What each line of a file holds, in order; blank lines hold nothing. Never raises for content."""
    return scan_lines(path, Record)


def read(path: Path) -> Iterator[Record]:
    """The records of one file, in order; unfinished lines are passed over. A cell that was measured
    more than once is here as often: the last one is current, the others are its history.

    Raises
    ------
    MalformedRecord
        At a line that is garbage or no record of this schema. :func:`scan` goes on past it.
    """
    for found in scan(path):
        if isinstance(found, Record):
            yield found
        elif found.kind != "unfinished":
            raise MalformedRecord(f"{path}:{found.number}: {found.why}")
