"""One JSON line per cell: what was asked, what came out, and where it was measured.

A cell is one backend on one problem. Its record ends in exactly one status; a number that was not
measured is null, never 0; a speed exists only beside a green gate. The schema is checked when a
record is written and again when it is read, so that a report never has to guess.

This module is free of torch: reports read records on machines that have none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

SCHEMA_VERSION = 1

Level = Literal["attention", "block", "stack", "encoder", "decoder", "index"]
Mode = Literal["fwd", "fwdbwd", "train"]
DType = Literal["float32", "float64", "bfloat16", "float16"]
AtomSet = Literal["backbone", "heavy", "atom14"]
WindowStyle = Literal["residues", "blocks"]
Status = Literal["ok", "wrong", "oom", "unsupported", "timeout", "crashed"]

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Problem(_Frozen):
    """Everything that decides the arithmetic, and nothing about who does it.

    ``n_atom``, ``n_res`` and ``n_neighbor`` (K) are the resolved sizes; ``workload`` names where
    they came from (a protein, ``synthetic``, or a file's name).
    """

    level: Level
    mode: Mode
    device: Literal["cpu", "cuda"]
    dtype: DType
    workload: str
    atoms: AtomSet
    n_atom: Positive
    n_res: Positive
    window: Positive
    window_style: WindowStyle = "residues"
    k_cap: Positive | None = None
    n_neighbor: Count
    live_pairs: Count
    batch: Positive = 1
    heads: Positive = 4
    c_atom: Positive = 128
    c_atompair: Positive = 16
    n_blocks: Positive = 1
    c_token: Positive = 384
    c_pair: Positive = 128
    seed: int = 0

    @property
    def head_dim(self) -> int:
        return self.c_atom // self.heads

    @property
    def key(self) -> str:
        """A short stable name of this problem: equal problems have equal keys on every machine."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Gate(_Frozen):
    """Relative error norms ||x - ref|| / ||ref|| against the float64 reference.

    ``errors`` and ``errors_after`` (outputs read again once timing has ended) are keyed by tensor:
    ``output``, ``attention`` (the seam alone, where the level holds more than it), ``grad:q`` ….
    ``negative_control`` is the error that an all-zero output gets; it must exceed the tolerance.
    A value that is not finite is recorded as null and fails the gate.
    """

    passed: bool
    tolerance: Finite
    gradient_tolerance: Finite | None
    errors: dict[str, Finite | None]
    errors_after: dict[str, Finite | None] = Field(default_factory=dict)
    rows_checked: Count
    rows_total: Count
    negative_control: Finite | None


class Timing(_Frozen):
    """Steady-state latency; ``samples_ms[i]`` was taken in block ``i`` of the group, so that the
    samples of two backends of one group pair by position."""

    samples_ms: list[Milliseconds]
    calls_per_sample: Positive
    median_ms: Milliseconds
    ci_low_ms: Milliseconds
    ci_high_ms: Milliseconds
    half_width: Finite | None  # of the interval, relative to the median
    stop: Literal["converged", "budget", "maximum"]
    cache: Literal["cold", "hot", "unspecified"]
    aa_samples_ms: list[Milliseconds] | None = None  # the same backend once more per block: the noise floor
    hot_samples_ms: list[Milliseconds] | None = None
    graph_samples_ms: list[Milliseconds] | None = None


class Memory(_Frozen):
    """``peak_bytes``: most bytes allocated above the inputs during one call; ``model_bytes``: what
    the backend's own model predicts; ``p_bytes``: the pair tensor, the natural unit of both."""

    peak_bytes: Count | None
    model_bytes: Count | None
    input_bytes: Count
    p_bytes: Count
    source: str


class Limit(_Frozen):
    """The operation's floor on this device: max(bytes / bandwidth, FLOPs / rate)."""

    floor_bytes: Count
    floor_flops: Count
    bandwidth_bytes_per_s: Finite
    rate_flops_per_s: Finite
    floor_ms: Milliseconds
    bound: Literal["bytes", "flops"]
    percent: Finite | None  # 100 * floor / measured


class Provenance(_Frozen):
    """Where and how a number was made. ``environment`` holds device facts that differ by machine
    (clocks, temperature, throttle reasons before and after, load, thread counts)."""

    commit: str | None
    dirty: bool | None
    utc: str
    machine: str
    cpu: str
    cores: Positive
    memory_bytes: Count
    gpu: str | None
    driver: str | None
    versions: dict[str, str | None]
    code: str  # hash of the installed pallatom and variants sources
    argv: list[str]
    seed: int
    environment: dict[str, object] = Field(default_factory=dict)


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
    gate: Gate | None = None
    plan_ms: Milliseconds | None = None
    first_call_ms: Milliseconds | None = None
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


class MalformedRecord(ValueError):
    """A line of a record file that is not a record: says which file, which line, and why."""


def append(path: Path, records: Iterable[Record]) -> None:
    """Append records to ``path`` in one write and sync it: a kill leaves all of them or, at worst,
    one unfinished last line, which :func:`read` passes over and the next append starts after."""
    text = "".join(r.model_dump_json() + "\n" for r in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as f:
        if f.tell() and _last_byte(f) != b"\n":
            text = "\n" + text
        f.write(text.encode())
        f.flush()
        os.fsync(f.fileno())


def _last_byte(f) -> bytes:
    f.seek(-1, os.SEEK_END)
    return f.read(1)


def read(path: Path) -> Iterator[Record]:
    """The records of one file, in order.

    An unfinished line (cut off by a kill: it does not parse as JSON) is passed over; a line that is
    JSON but no record of this schema raises :class:`MalformedRecord`.
    """
    with open(path, encoding="utf-8", errors="replace") as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except json.JSONDecodeError:
                continue
            try:
                yield Record.model_validate(fields)
            except ValidationError as e:
                raise MalformedRecord(f"{path}:{number}: not a record of schema {SCHEMA_VERSION}: {e}") from e
