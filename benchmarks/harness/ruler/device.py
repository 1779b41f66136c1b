"""What a number was measured on: the facts that a record keeps as its provenance.

A fact that cannot be had is ``None``; no fact is worth failing a run for, except one: measuring
somebody else's code (:func:`code_origin`).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import math
import os
import platform
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .ceilings import Ceilings, ceilings
from .memory import available_bytes, peak_memory, total_bytes
from .sources import ruler_hash, tuned_hash

__all__ = [
    "Ceilings",
    "ForeignPackage",
    "available_bytes",
    "ceilings",
    "code_origin",
    "describe",
    "peak_memory",
    "pin_threads",
    "state",
]

MEASURED = ("pallatom", "variants")
SOURCES = {".py", ".cpp", ".h"}
LIBRARIES = ("torch", "triton", "xformers", "jaxtyping", "numpy", "scipy")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# Bits of nvmlDeviceGetCurrentClocksEventReasons, by their meaning.
THROTTLE_BITS = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clocks",
}


class ForeignPackage(RuntimeError):
    """A package that bears our name is not ours."""


def describe(device: str) -> dict[str, Any]:
    """Every field of :class:`~.record.Provenance` but ``argv``, ``seed`` and ``options``: complete it with
    ``Provenance(**describe(device), argv=sys.argv, seed=seed)``. ``BENCH_MACHINE`` names the machine
    where its host name says nothing, or too much."""
    folder = code_origin()
    commit, dirty = git_state(folder)
    gpu = _gpu_facts(device) if device != "cpu" else {}
    return {
        "commit": commit,
        "dirty": dirty,
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": os.environ.get("BENCH_MACHINE") or platform.node() or "unknown",
        "cpu": cpu_name(),
        "cores": cpu_cores(),
        "memory_bytes": total_bytes(),
        "gpu": gpu.pop("gpu", None),
        "driver": gpu.pop("driver", None),
        "versions": versions(),
        "code": code_hash(folder),
        "ruler": ruler_hash(),
        "tuned": tuned_hash(),
        "environment": {"platform": platform.platform(), **_threads(), **gpu, "start": state(device)},
    }


def state(device: str) -> dict[str, Any]:
    """What changes while measuring: load and CPU clock; GPU clocks, temperature, power, throttle reasons."""
    facts: dict[str, Any] = {"load_1min": os.getloadavg()[0], "cpu_mhz": _cpu_mhz()}
    if device != "cpu":
        with _nvml(device) as (nvml, handle):
            facts |= {
                "sm_mhz": _ask(nvml, "nvmlDeviceGetClockInfo", handle, 1),
                "memory_mhz": _ask(nvml, "nvmlDeviceGetClockInfo", handle, 2),
                "max_sm_mhz": _ask(nvml, "nvmlDeviceGetMaxClockInfo", handle, 1),
                "temperature_c": _ask(nvml, "nvmlDeviceGetTemperature", handle, 0),
                "power_mw": _ask(nvml, "nvmlDeviceGetPowerUsage", handle),
                "power_limit_mw": _ask(nvml, "nvmlDeviceGetEnforcedPowerLimit", handle),
                "throttle": _throttle(nvml, handle),
            }
    return facts


def pin_threads(count: int) -> dict[str, Any]:
    """Set torch's threads for one op, here and (by environment) in child processes; returns what then holds."""
    import torch

    if count < 1:
        raise ValueError(f"count: expected at least 1 thread, got {count}")
    for name in THREAD_VARIABLES:
        os.environ[name] = str(count)
    torch.set_num_threads(count)
    return _threads()


def _threads() -> dict[str, Any]:
    import torch

    return {
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        **{name: os.environ.get(name) for name in (*THREAD_VARIABLES, "OMP_WAIT_POLICY")},
    }


def cpu_cores() -> int:
    """Cores that this process may keep busy: its affinity, or its control group's quota where that is less."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(allowed, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or the quota is the word "max"
        return allowed


def cpu_name() -> str:
    """The model's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine() or "unknown"


def _cpu_mhz() -> float | None:
    import psutil

    with contextlib.suppress(OSError, RuntimeError, NotImplementedError):
        frequency = psutil.cpu_freq()
        return None if frequency is None or not frequency.current else round(frequency.current, 1)
    return None


def versions() -> dict[str, str | None]:
    """Python and the libraries that the numbers depend on; ``None`` where one is not installed."""
    import torch

    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["cuda"] = torch.version.cuda
    found["torch_git"] = torch.version.git_version
    return found


def code_origin() -> Path:
    """The folder that holds the ``pallatom`` and ``variants`` which are measured, without importing them.

    Raises
    ------
    ForeignPackage
        One is missing, they come from different installations, or ``variants`` is the unrelated
        package of that name on the public index.
    """
    folders = {}
    for name in MEASURED:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ForeignPackage(f"{name}: expected this project's package, found none")
        folders[name] = Path(spec.origin).parent
    if not (folders["variants"] / "_registry.py").is_file():
        raise ForeignPackage(f"variants: expected this project's package, found another one in {folders['variants']}")
    if folders["variants"].parent != folders["pallatom"].parent:
        raise ForeignPackage(f"expected pallatom and variants side by side, got {folders}")
    return folders["variants"].parent


def code_hash(folder: Path) -> str:
    """One hash over the sources of ``pallatom`` and ``variants``: equal code, equal hash, installed or not."""
    digest = hashlib.sha256()
    for path in sorted(p for name in MEASURED for p in (folder / name).rglob("*") if p.suffix in SOURCES):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """The commit of the checkout that ``folder`` is the root of, and whether the code differs from it;
    for installed or exported code, which belongs to no checkout, what ``BENCH_COMMIT`` says, and ``None``."""

    def git(*command: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "--no-optional-locks", "-C", str(folder), *command],
                capture_output=True,
                text=True,
                timeout=20,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    top, head = git("rev-parse", "--show-toplevel"), git("rev-parse", "--verify", "--quiet", "HEAD")
    if top is None or head is None or Path(top).resolve() != folder.resolve():
        return os.environ.get("BENCH_COMMIT"), None
    changed = git("status", "--porcelain", "--", *MEASURED, "benchmarks")
    return head, None if changed is None else bool(changed)


def _gpu_facts(device: str) -> dict[str, Any]:
    """What does not change: the name, and what a kernel's limits depend on."""
    import torch

    facts = torch.cuda.get_device_properties(device)
    with _nvml(device) as (nvml, _):
        driver = _ask(nvml, "nvmlSystemGetDriverVersion")
    return {
        "gpu": facts.name,
        "driver": driver,
        "capability": f"{facts.major}.{facts.minor}",
        "multiprocessors": facts.multi_processor_count,
        "gpu_memory_bytes": facts.total_memory,
        "l2_bytes": getattr(facts, "L2_cache_size", None),
    }


@contextlib.contextmanager
def _nvml(device: str) -> Iterator[tuple[Any, Any]]:
    """NVIDIA's management library and the handle of ``device``, found by its UUID since the order of
    devices may differ; ``(None, None)`` where either cannot be had."""
    import torch

    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # the library is missing or no driver answers: all of its facts are unknown then
        yield None, None
        return
    try:
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        yield pynvml, _ask(pynvml, "nvmlDeviceGetHandleByUUID", uuid)
    finally:
        pynvml.nvmlShutdown()


def _ask(nvml: Any, function: str, *arguments: Any) -> Any:
    """One answer of the management library; ``None`` where this card, driver or version has none."""
    if nvml is None or any(argument is None for argument in arguments):
        return None
    try:
        answer = getattr(nvml, function)(*arguments)
    except (AttributeError, nvml.NVMLError):
        return None
    return answer.decode() if isinstance(answer, bytes) else answer


def _throttle(nvml: Any, handle: Any) -> list[str] | None:
    bits = _ask(nvml, "nvmlDeviceGetCurrentClocksEventReasons", handle)
    if bits is None:
        bits = _ask(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    return None if bits is None else [name for bit, name in THROTTLE_BITS.items() if bits & bit]
