"""What asv tracks of a cell: one number out of one record of the harness, and what a status is as a number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..harness.schema.kernels import KernelRecord
    from ..harness.schema.record import Record

# Larger is worse, so that asv's own comparison sees a cell that stopped working.
STATUS_CODES = {"ok": 0, "wrong": 1, "oom": 2, "unsupported": 3, "timeout": 4, "crashed": 5}
# Reasons for which a GPU ran below the clock it could have had, as bits of one number.
THROTTLE_CODES = {
    "software power cap": 1,
    "hardware slowdown": 2,
    "software thermal slowdown": 4,
    "hardware thermal slowdown": 8,
    "hardware power brake": 16,
    "sync boost": 32,
}
# asv takes a larger number for a worse one. It draws these and does not judge by them: less is not better, the number
# was seen once, or it may differ by chance as long as the gate, and so the status, is what it was.
SHOWN_ONLY = ("first_call", "gate_error", "percent_of_limit", "occupancy", "tensor_core")

Value = float | dict[str, Any] | None


@dataclass(frozen=True)
class Metric:
    """One number of a record; None where the record has none."""

    unit: str
    title: str
    of: Callable[[Any], Value]


def _latency(record: Record) -> Value:
    """As asv's statistics take it: each sample the time of one call."""
    if record.timing is None:
        return None
    return {"samples": [ms / 1e3 for ms in record.timing.samples_ms], "number": 1}


def _wall(record: Record) -> Value:
    """As :func:`_latency`, of an eager call with its host's share; None on a CPU, where that is the latency itself."""
    if record.timing is None or record.timing.wall_samples_ms is None:
        return None
    return {"samples": [ms / 1e3 for ms in record.timing.wall_samples_ms], "number": 1}


def _peak(record: Record) -> Value:
    return None if record.memory is None else record.memory.peak_bytes


def _gate_error(record: Record) -> Value:
    """The worst tensor's; a tensor that is not finite has no error, and the status tells of it."""
    if record.gate is None:
        return None
    errors = [e for e in (*record.gate.errors.values(), *record.gate.errors_after.values()) if e is not None]
    return max(errors, default=None)


def _percent_of_limit(record: Record) -> Value:
    return None if record.limit is None else record.limit.percent


def _throttle(record: Record) -> Value:
    """Every reason that held before or after the cell's group; None where nobody could be asked, as on a CPU."""
    states = [record.provenance.environment.get(when) for when in ("before", "after")]
    told = [s["throttle"] for s in states if isinstance(s, dict) and s.get("throttle") is not None]
    return sum({THROTTLE_CODES[r] for reasons in told for r in reasons if r in THROTTLE_CODES}) if told else None


METRICS: dict[str, Metric] = {
    "latency": Metric("seconds", "time of one call, on a GPU the device's own", _latency),
    "wall": Metric("seconds", "time that an eager caller waits for one call on a GPU", _wall),
    "peak_memory": Metric("bytes", "peak memory above the inputs", _peak),
    "first_call": Metric("ms", "first call, compiling included", lambda record: record.first_call_ms),
    "status": Metric("code", "status", lambda record: STATUS_CODES[record.status]),
    "gate_error": Metric("relative error", "worst error against the float64 reference", _gate_error),
    "percent_of_limit": Metric("%", "share of the device's limit", _percent_of_limit),
    "throttle": Metric("code", "why the GPU held its clock back", _throttle),
}


def _figure(name: str) -> Callable[[KernelRecord], Value]:
    def of(record: KernelRecord) -> Value:
        value = None if record.summary is None else record.summary.get(name)
        return None if isinstance(value, str) else value

    return of


KERNEL_METRICS: dict[str, Metric] = {
    "registers": Metric("registers", "registers per thread", _figure("registers")),
    "spills": Metric("instructions", "loads and stores of spilled registers", _figure("spills")),
    "stack_bytes": Metric("bytes", "stack per thread", _figure("stack_bytes")),
    "shared_bytes": Metric("bytes", "shared memory per block", _figure("shared_bytes")),
    "instructions_per_pair": Metric(
        "warp instructions", "warp instructions per pair in the main loop", _figure("warp_instructions_per_pair")
    ),
    "occupancy": Metric("share", "warps that fit a multiprocessor", _figure("occupancy")),
    "tensor_core": Metric("instructions", "tensor-core instructions", _figure("tensor_core")),
    "status": Metric("code", "status", lambda record: STATUS_CODES[record.status]),
}


def row(record: Record | KernelRecord, metrics: dict[str, Metric]) -> dict[str, Value]:
    """All numbers of one record."""
    return {name: metric.of(record) for name, metric in metrics.items()}
