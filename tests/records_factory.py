"""Synthetic records that obey the schema: made-up numbers with realistic noise, for the report's tests only.

Time model: ``overhead + cost(backend) * N^a * K * mode``; a block of a group shares one slow drift, every sample has a
small log-normal jitter of its own and, now and then, a spike. All of it is seeded.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.harness.schema.problem import Problem
from benchmarks.harness.schema.record import Gate, Limit, Memory, Provenance, Record, Timing, Trial

ATOMS_PER_RESIDUE = {"backbone": 4, "heavy": 8, "atom14": 14}
ITEMSIZE = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
TOLERANCE = {"float32": 1e-5, "float64": 1e-9, "bfloat16": 2e-2, "float16": 3e-3}


@dataclass(frozen=True)
class Speed:
    """Milliseconds per live pair, exponent in N and peak bytes in units of p, of one backend on one device."""

    ms_per_pair: float
    extra_exponent: float
    peak_over_p: float
    overhead_ms: float
    first_call_ms: float = 5.0
    plan_ms: float | None = None


CPU_SPEEDS = {
    "gather": Speed(1.1e-3, 0.0, 9.0, 0.4),
    "dense": Speed(1.7e-4, 1.0, 2.0, 0.2),
    "banded": Speed(2.2e-5, 0.0, 0.45, 0.3, plan_ms=1.2),
    "flex": Speed(2.25e-5, 0.0, 0.6, 1.0, first_call_ms=9000.0, plan_ms=14.0),
    "gather_compiled": Speed(4.1e-4, 0.0, 4.0, 0.3, first_call_ms=14000.0),
}
CUDA_SPEEDS = {
    "gather": Speed(9.0e-7, 0.0, 9.0, 0.25),
    "dense": Speed(4.0e-7, 1.0, 2.0, 0.10),
    "banded": Speed(1.6e-7, 0.0, 0.8, 0.35, plan_ms=1.0),
    "flex": Speed(7.0e-8, 0.0, 0.3, 0.12, first_call_ms=7000.0, plan_ms=9.0),
    "gather_compiled": Speed(3.0e-7, 0.0, 4.0, 0.09, first_call_ms=21000.0),
    "triton_fused": Speed(1.1e-8, 0.0, 0.04, 0.03, first_call_ms=2500.0, plan_ms=0.6),
}


@dataclass(frozen=True)
class Machine:
    name: str
    device: str
    cpu: str
    gpu: str | None
    memory_bytes: int
    gpu_memory_bytes: int | None
    bandwidth: float
    rate: float
    jitter: float
    speeds: dict[str, Speed] = field(hash=False, default_factory=dict)


CPU = Machine(
    "bench-cpu", "cpu", "AMD EPYC 9V74 80-Core Processor", None, 16 << 30, None, 18e9, 1.1e11, 0.06, CPU_SPEEDS
)
CUDA = Machine(
    "bench-gpu", "cuda", "Intel Xeon Platinum 8592+", "NVIDIA H200", 128 << 30, 139 << 30, 4.1e12, 7.2e14, 0.004,
    CUDA_SPEEDS,
)  # fmt: skip


def problem(
    *, level: str = "attention", mode: str = "fwd", device: str = "cpu", dtype: str = "float32",
    workload: str = "synthetic", atoms: str = "atom14", n_atom: int = 2048, window: int = 32,
    k_cap: int | None = None, **changes: Any,
) -> Problem:  # fmt: skip
    per = ATOMS_PER_RESIDUE[atoms]
    k = min((2 * (window // 2) - 1) * per, n_atom - 1)
    k = min(k, k_cap) if k_cap else k
    fields = {
        "level": level, "mode": mode, "device": device, "dtype": dtype, "workload": workload, "atoms": atoms,
        "n_atom": n_atom, "n_res": max(1, n_atom // per), "window": window, "k_cap": k_cap, "n_neighbor": k,
        "live_pairs": int(n_atom * k * 0.97) * changes.get("batch", 1),
        "n_blocks": 3 if level in ("stack", "encoder", "decoder") else 1,
    }  # fmt: skip
    return Problem.model_validate(fields | changes)


def provenance(machine: Machine = CPU, *, commit: str = "7d4d2c7f00d5", utc: str = "2026-11-22T18:40:00Z", **changes):
    fields: dict = {
        "commit": commit, "dirty": False, "utc": utc, "machine": machine.name, "cpu": machine.cpu, "cores": 2,
        "memory_bytes": machine.memory_bytes, "gpu": machine.gpu, "driver": "580.95" if machine.gpu else None,
        "versions": {"python": "3.11.9", "torch": "2.13.0", "triton": "3.7.1", "numpy": "2.4.6", "xformers": None},
        "code": "0f3a9c", "argv": ["python", "-m", "benchmarks", "sweep"], "seed": 0,
        "environment": {"threads": 2, "OMP_NUM_THREADS": "2"},
    }  # fmt: skip
    state: dict = {"load_1min": 0.3, "cpu_mhz": 2450.0}
    if machine.gpu:
        fields["environment"] |= {"capability": "9.0", "gpu_memory_bytes": machine.gpu_memory_bytes}
        state |= {"sm_mhz": 1965, "temperature_c": 61, "power_mw": 640_000, "throttle": ["software power cap"]}
    fields["environment"] |= {
        "before": state,
        "after": {k: v * 1.01 if isinstance(v, float) else v for k, v in state.items()},
    }
    return Provenance.model_validate(fields | changes)


def gate(p: Problem, *, passed: bool = True, seed: int = 0) -> Gate:
    rng = np.random.default_rng(seed)
    tolerance = TOLERANCE[p.dtype]
    names = ["output"] + (["attention"] if p.level != "attention" else [])
    if p.mode != "fwd":
        names += ["grad:q", "grad:c", "grad:p", "grad:to_q.weight", "grad:pair_bias.weight"]
    scale = 0.02 if passed else 40.0
    errors = {n: float(tolerance * scale * math.exp(rng.normal(0, 0.8))) for n in names}
    return Gate(
        passed=passed, tolerance=tolerance, gradient_tolerance=tolerance * 4 if p.mode != "fwd" else None,
        errors=errors, errors_after=errors if passed else {}, rows_checked=min(p.n_atom, 512), rows_total=p.n_atom,
        negative_control=1.0,
    )  # fmt: skip


def true_ms(machine: Machine, backend: str, p: Problem) -> float:
    """The noise-free time of the made-up machine."""
    s = machine.speeds[backend]
    level = {"attention": 1.0, "block": 1.15, "stack": 3.4, "encoder": 4.4, "decoder": 4.2, "index": 0.1}[p.level]
    mode = {"fwd": 1.0, "fwdbwd": 3.1, "train": 3.3}[p.mode]
    width = ITEMSIZE[p.dtype] / (2 if machine.device == "cuda" else 4)
    pairs = p.live_pairs * (p.n_atom / 4096) ** s.extra_exponent * (434 / max(p.n_neighbor, 1)) ** s.extra_exponent
    return s.overhead_ms * mode + s.ms_per_pair * pairs * level * mode * width


def peak_bytes(machine: Machine, backend: str, p: Problem) -> tuple[int, int, int]:
    """(peak above the inputs, p itself, all inputs) of the made-up machine."""
    item = ITEMSIZE[p.dtype]
    p_bytes = p.n_atom * p.n_neighbor * p.c_atompair * item
    s = machine.speeds[backend]
    grow = p_bytes * s.peak_over_p * (2.2 if p.mode != "fwd" else 1.0)
    square = 5 * p.n_atom**2 * item if s.extra_exponent else 0
    return int(grow + square + p.n_atom * 128 * item), p_bytes, int(p_bytes * 1.2)


def _timing(machine: Machine, backend: str, p: Problem, drift: np.ndarray, rng: np.random.Generator) -> Timing:
    base = true_ms(machine, backend, p)

    def draw() -> np.ndarray:
        noise = drift + rng.normal(0, machine.jitter / 3, drift.size)
        spikes = np.where(rng.random(drift.size) < 0.03, rng.uniform(0.2, 0.6, drift.size), 0.0)
        return base * np.exp(noise + spikes)

    samples = draw()
    half = 1.3 * float(np.std(np.log(samples))) / math.sqrt(len(samples))
    median = float(np.median(samples))
    cuda = machine.device == "cuda"
    return Timing(
        samples_ms=samples.tolist(), calls_per_sample=1, median_ms=median, ci_low_ms=median * (1 - half),
        ci_high_ms=median * (1 + half), half_width=half, stop="converged" if half < 0.03 else "budget",
        cache="cold" if cuda else "unspecified", aa_samples_ms=draw().tolist() if backend == "banded" else None,
        hot_samples_ms=(samples * 0.93).tolist() if cuda else None,
    )  # fmt: skip


def cell(
    machine: Machine, backend: str, p: Problem, *, group: str, run: str = "run-1", drift: np.ndarray | None = None,
    status: str | None = None, reason: str | None = None, seed: int = 0, **where: object,
) -> Record:  # fmt: skip
    """One record; its status follows from the made-up machine's memory and limits unless it is given."""
    origin = provenance(machine, **where)
    common = {"run": run, "group": group, "backend": backend, "problem": p, "provenance": origin}
    status, reason = (status, reason) if status else _status(machine, backend, p)
    if status != "ok":
        failed_gate = gate(p, passed=False) if status == "wrong" else None
        error = f"Traceback (most recent call last):\n  …\nRuntimeError: {reason}" if status == "crashed" else None
        return Record(**common, status=status, reason=reason or f"{status} here", gate=failed_gate, error=error)
    rng = np.random.default_rng(zlib.crc32(f"{backend}@{p.key}{seed}".encode()))
    if drift is None:
        drift = rng.normal(0, machine.jitter, 24)
    timing = _timing(machine, backend, p, drift, rng)
    peak, p_bytes, input_bytes = peak_bytes(machine, backend, p)
    floor_bytes, floor_flops = p_bytes + 4 * p.n_atom * 128 * ITEMSIZE[p.dtype], p.live_pairs * 700
    floor_ms = 1e3 * max(floor_bytes / machine.bandwidth, floor_flops / machine.rate)
    speed = machine.speeds[backend]
    return Record(
        **common, status="ok", gate=gate(p, seed=zlib.crc32(f"{backend}{p.key}".encode())), plan_ms=speed.plan_ms,
        first_call_ms=speed.first_call_ms,        timing=timing,
        memory=Memory(peak_bytes=int(peak * 1.04), model_bytes=peak, input_bytes=input_bytes, p_bytes=p_bytes,
                      source="torch.cuda" if machine.gpu else "torch profiler"),
        limit=Limit(floor_bytes=floor_bytes, floor_flops=floor_flops, bandwidth_bytes_per_s=machine.bandwidth,
                    rate_flops_per_s=machine.rate, floor_ms=floor_ms, bound="bytes",
                    percent=100 * floor_ms / timing.median_ms),
    )  # fmt: skip


def _status(machine: Machine, backend: str, p: Problem) -> tuple[str, str | None]:
    peak, _, inputs = peak_bytes(machine, backend, p)
    free = machine.gpu_memory_bytes or machine.memory_bytes
    if backend == "flex" and machine.device == "cpu" and p.mode != "fwd":
        return "unsupported", "needs CUDA for its backward, found cpu"
    if backend == "triton_fused" and p.dtype == "float64":
        return "unsupported", "needs float32, bfloat16 or float16, found float64"
    if peak + inputs > 1.6 * free:
        return "oom", f"oom (predicted): needs {(peak + inputs) / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
    if peak + inputs > free:
        return (
            "oom",
            f"CUDA out of memory: tried to allocate {peak / 2**30:.1f} GiB" if machine.gpu else "out of memory",
        )
    return "ok", None


def group(machine: Machine, p: Problem, *, backends: Iterable[str] | None = None, blocks: int = 24, seed: int = 0,
          run: str = "run-1", **where: object) -> list[Record]:  # fmt: skip
    """All backends of one problem, interleaved: they share the drift of every block."""
    rng = np.random.default_rng(zlib.crc32(f"{p.key}{seed}".encode()))
    drift = np.cumsum(rng.normal(0, machine.jitter / 2, blocks)) + rng.normal(0, machine.jitter, blocks)
    name = f"{run}-{p.key}"
    return [
        cell(machine, b, p, group=name, run=run, drift=drift, seed=seed, **where)
        for b in (backends or machine.speeds)
    ]  # fmt: skip


def recent(record: Record, *, host_ms: float = 0.12) -> Record:
    """The same record with what the schema has since learned to hold: wall time, slopes, a trial, the way back."""
    held: dict = {"again": f"python -m benchmarks sweep --backend {record.backend} --n-atom {record.problem.n_atom}"}
    if record.gate is not None:
        slopes = dict.fromkeys(record.gate.errors, 0.0001)
        trial = Trial(dtype="float32", passed=True, errors={"output": 3e-7}, slopes={"output": -2e-8})
        held["gate"] = record.gate.model_copy(update={
            "slopes": slopes, "slopes_after": slopes, "control": "neighbour", "trial": trial, "negative_control": 0.31,
        })  # fmt: skip
    if record.timing is not None:
        more: dict = {"calls_checked": 3, "input_sets": 2}
        if record.problem.device == "cuda":
            walls = [t + host_ms for t in record.timing.samples_ms]
            more |= {"wall_samples_ms": walls, "wall_ms": float(np.median(walls)), "graph_reason": "captures nothing"}
        held["timing"] = record.timing.model_copy(update=more)
    return record.model_copy(update=held)


def cpu_sweep(modes: Iterable[str] = ("fwd", "fwdbwd"), **where: object) -> list[Record]:
    """A laptop's sweep: the N, W and K axes at level attention, three real proteins at level block."""
    out: list[Record] = []
    for mode in modes:
        for n in (512, 1024, 2048, 4096, 8192, 16384):
            out += group(CPU, problem(mode=mode, n_atom=n), **where)
    for window in (8, 16, 64):
        out += group(CPU, problem(window=window), **where)
    for k_cap in (64, 128, 256):
        out += group(CPU, problem(k_cap=k_cap), **where)
    for name, n in (("ubiquitin", 602), ("adk", 1656), ("hemoglobin", 4386)):
        out += group(CPU, problem(level="block", workload=name, atoms="heavy", n_atom=n), **where)
    wrong = problem(level="block", dtype="bfloat16")
    out += group(CPU, wrong, backends=["gather", "banded"], **where)
    out.append(cell(CPU, "flex", wrong, group=f"run-1-{wrong.key}", status="wrong", reason="output: 8.1e-01 > 2.0e-02",
                    **where))  # fmt: skip
    out.append(cell(CPU, "gather_compiled", wrong, group=f"run-1-{wrong.key}", status="crashed",
                    reason="the worker died by signal 11", **where))  # fmt: skip
    return out


def cuda_sweep(
    levels: Iterable[str] = ("attention", "block"), modes: Iterable[str] = ("fwd", "fwdbwd"), **where: object
) -> list[Record]:
    """A GPU's sweep: N from 1k to 1M, two dtypes, two modes."""
    out: list[Record] = []
    for level in levels:
        for mode in modes:
            for n in (1024, 4096, 16384, 65536, 262144, 1000000):
                p = problem(level=level, mode=mode, device="cuda", dtype="bfloat16", n_atom=n)
                out += group(CUDA, p, blocks=30, **where)
    for n in (1024, 4096, 16384):
        out += group(CUDA, problem(device="cuda", dtype="float32", n_atom=n), **where)
    for window in (16, 64, 128):
        out += group(CUDA, problem(device="cuda", dtype="bfloat16", n_atom=16384, window=window), **where)
    for k_cap in (64, 128, 256):
        out += group(CUDA, problem(device="cuda", dtype="bfloat16", n_atom=16384, k_cap=k_cap), **where)
    return out


def write(path, records: Iterable[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(r.model_dump_json() + "\n" for r in records), encoding="utf-8")
