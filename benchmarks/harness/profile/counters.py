"""Nsight Compute on one call: what its heaviest kernel is bound by, by the hardware's own counters.

``ncu`` runs a process of its own that builds the problem, warms up, and opens the profiler's window around one call.
Clocks are left as they are (``--clock-control none``). Where ``ncu`` is missing, may not read the counters, or takes
too long, the answer is that reason; nothing else depends on it.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable

from ..cases.problems import Group
from ..schema.problem import Problem
from ..schema.profile import Counters
from ..worker.kernel_names import shorten
from ..worker.process import ROOT

LIMIT_S = 150.0
_MOST_KERNELS = 60
_SECTIONS = ("SpeedOfLight", "Occupancy", "WarpStateStats", "LaunchStats")
_DURATION = "gpu__time_duration.sum"
# By their beginnings: versions of ncu differ in what follows.
_DRAM = ("dram__throughput.avg.pct_of_peak_sustained_elapsed", "gpu__dram_throughput.avg.pct_of_peak")
_SM = ("sm__throughput.avg.pct_of_peak_sustained_elapsed",)
_OCCUPANCY = ("sm__warps_active.avg.pct_of_peak_sustained_active",)
_REGISTERS = ("launch__registers_per_thread",)
_STALL = ("smsp__average_warps_issue_stalled_", "_per_issue_active.ratio")
_TO_MICROSECONDS = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3, "s": 1e6,
                    "second": 1e6}  # fmt: skip
Run = Callable[..., subprocess.CompletedProcess[str]]


def count(group: Group, spec: str, *, limit_s: float = LIMIT_S, run: Run = subprocess.run) -> Counters:
    """Count one call of a backend; never raises for what ``ncu`` does."""
    if group.problem.device != "cuda":
        return Counters(reason="counters are a GPU's; this is the CPU")
    ncu = shutil.which("ncu")
    if ncu is None:
        return Counters(reason="ncu (Nsight Compute) is not on PATH")
    asked = {"problem": group.problem.model_dump(mode="json"), "source": group.source, "backend": spec}
    command = [ncu, "--csv", "--page", "raw", "--clock-control", "none", "--profile-from-start", "off",
               "--launch-count", str(_MOST_KERNELS)]  # fmt: skip
    command += [word for section in _SECTIONS for word in ("--section", section)]
    command += [sys.executable, "-m", "benchmarks.harness.profile.counters", json.dumps(asked)]
    try:
        done = run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return Counters(reason=f"ncu took longer than {limit_s:g} s")
    except OSError as e:
        return Counters(reason=f"ncu did not start: {e.strerror}")
    if "ERR_NVGPUCTRPERM" in done.stdout + done.stderr:
        return Counters(reason="this user may not read the GPU's counters (ERR_NVGPUCTRPERM)")
    return parse(done.stdout)


def parse(text: str) -> Counters:
    """The heaviest kernel of ``ncu --csv --page raw``: a header, a line of units, a line per launch, and ncu's own
    words (``==PROF== …``) around them."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    rows = list(csv.DictReader(io.StringIO("\n".join(lines))))
    if not rows or _DURATION not in rows[0]:
        said = next((line for line in reversed(text.splitlines()) if line.startswith("==")), "")
        return Counters(reason=f"ncu gave no table of counters{': ' + said.strip('= ') if said else ''}")
    units = rows[0] if not (rows[0].get("ID") or "").strip() else {}
    kernels = rows[1:] if units else rows
    if not kernels:
        return Counters(reason="ncu saw no kernel in the call")
    heaviest = max(kernels, key=lambda row: _number(row.get(_DURATION)) or 0.0)
    stalls = {
        name.removeprefix(_STALL[0]).removesuffix(_STALL[1]).replace("_", " "): value
        for name, text in heaviest.items()
        if name.startswith(_STALL[0]) and name.endswith(_STALL[1]) and (value := _number(text))
    }
    took, scale = _number(heaviest[_DURATION]), _TO_MICROSECONDS.get(units.get(_DURATION, "ns"))
    return Counters(
        kernel=shorten(heaviest.get("Kernel Name") or "unnamed"),
        duration_us=None if took is None or scale is None else took * scale,
        dram_percent=_first(heaviest, _DRAM),
        sm_percent=_first(heaviest, _SM),
        occupancy_percent=_first(heaviest, _OCCUPANCY),
        registers=_first(heaviest, _REGISTERS),
        stalls=dict(sorted(stalls.items(), key=lambda pair: -pair[1])[:6]),
    )


def _first(row: dict[str, str], names: Iterable[str]) -> float | None:
    """The first of these metrics that the table has, by the beginning of its name."""
    for name in names:
        for column, text in row.items():
            if column.startswith(name) and (value := _number(text)) is not None:
                return value
    return None


def _number(text: str | None) -> float | None:
    """``1,234.5`` as ncu writes it; None for what is no number."""
    try:
        value = float((text or "").replace(",", ""))
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None


def main(asked: str) -> None:
    """What runs under ``ncu``: one call inside the profiler's window."""
    import torch

    from ..cases import inputs, registry
    from ..cases.case import Case

    request = json.loads(asked)
    built = inputs.build(Problem.model_validate(request["problem"]), request["source"])
    case = Case(built, registry.converted(request["backend"], built.module))
    for _ in range(3):
        case()
    torch.cuda.synchronize()
    with torch.cuda.profiler.profile():
        case()
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1])
