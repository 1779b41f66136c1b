"""Measure what asv asks of one commit: one sweep of the harness, its records kept, their numbers handed to asv.

Nothing is measured here. A commit that does not install as itself, does not import, lacks a backend or crashes has its
records too, each with status and reason: for asv its numbers are n/a, and the run goes on.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

from ..harness.cases import registry
from ..harness.cases.problems import Axes, Group
from ..harness.ruler.device import ForeignPackage, code_hash, code_origin, cpu_cores, cpu_name, total_bytes
from ..harness.ruler.sources import ruler_hash, tuned_hash
from ..harness.schema import kernels, record
from ..harness.schema.cells import axes_of as axes_of_cell
from ..harness.schema.record import Provenance, Record, Status
from ..harness.sweep.again import command
from ..harness.sweep.sweep import Settings, Sweep, as_asked, plan, portable
from ..harness.worker.host import Host
from ..harness.worker.options import Options
from ..harness.worker.process import WorkerDied, WorkerTimeout
from . import grid as asv_grid
from .metrics import KERNEL_METRICS, METRICS, row

RESULTS, QUICK, COMMIT, MACHINE = "BENCH_RESULTS", "BENCH_QUICK", "BENCH_COMMIT", "BENCH_MACHINE"
ENVIRONMENT, ENVIRONMENT_FOLDER = "ASV_ENV_NAME", "ASV_ENV_DIR"
# An interval of 99%, which is asv's, takes eight samples; slow arms leave earlier, and asv says "not significant".
FULL = Options(budget_s=6.0, min_blocks=20)
BRIEF = Options(budget_s=2.0, min_blocks=12, max_blocks=60)

Cache = dict[tuple[str, tuple], dict[str, Any]]
Cells = dict[tuple[str, str], tuple[str, tuple]]  # (problem's key, backend) -> (level, cell)


def measure_commit() -> Cache:
    """The numbers of every selected cell, by (level, cell); its records are appended to :func:`records_path`."""
    if "ASV_COMMIT" in os.environ:
        os.environ[COMMIT] = os.environ["ASV_COMMIT"]
    levels = [level for level in asv_grid.GRIDS if level != asv_grid.KERNELS]
    groups, cells = planned((level, cell) for level in levels for cell in asv_grid.selected(level))
    asked = asv_grid.selected(asv_grid.KERNELS)
    with Host() as host:
        foreign = foreign_code()
        made: list[Record] = []
        for device in dict.fromkeys(group.problem.device for group in groups):
            there = [group for group in groups if group.problem.device == device]
            out = ("crashed", foreign) if foreign else _does_not_start(host, device)
            made += _swept(host, there) if out is None else _none_ran(there, *out)
        out = ("crashed", foreign) if foreign else _does_not_start(host, "cpu")
        inspected = [_inspected(host, *cell) for cell in asked] if out is None else _kernels_out(asked, *out)
    record.append(records_path(".kernels"), inspected)
    found = {cells[r.problem.key, r.backend]: row(r, METRICS) for r in made}
    return found | {(asv_grid.KERNELS, (k.kernel, k.arch, k.dtype)): row(k, KERNEL_METRICS) for k in inspected}


def _swept(host: Host, groups: list[Group]) -> list[Record]:
    settings = Settings(out=records_path(), options=_options(), fresh=True, argv=tuple(sys.argv))
    return Sweep(groups, settings, host=host).run().made


def _options() -> Options:
    return BRIEF if os.environ.get(QUICK) else FULL


def planned(wanted: Iterable[tuple[str, tuple]]) -> tuple[list[Group], Cells]:
    """The harness's groups for these cells, one per problem with all of its backends, and the way back to the cells."""
    problems: dict[Axes, list[tuple[str, tuple]]] = {}
    for level, cell in wanted:
        problems.setdefault(axes_of(level, cell), []).append((level, cell))
    groups: list[Group] = []
    cells: Cells = {}
    for axes, asked in problems.items():
        groups += plan([axes], tuple(cell[1] for _, cell in asked))
        cells |= {(groups[-1].problem.key, cell[1]): (level, cell) for level, cell in asked}
    return groups, cells


def axes_of(level: str, cell: tuple) -> Axes:
    """A cell of asv's grid as the harness's command line would ask for it."""
    return Axes(**axes_of_cell(level, cell))


# -- where the records are ---------------------------------------------------------------------------


def records_path(kind: str = "") -> Path:
    """``RESULTS/MACHINE/records/COMMIT-ENVIRONMENT.jsonl``: beside asv's own file of that commit, named alike."""
    results = Path(os.environ.get(RESULTS) or asv_grid.ROOT / "results")
    commit = os.environ.get(COMMIT) or "unknown"
    environment = os.environ.get(ENVIRONMENT) or "existing"
    return results / machine() / "records" / f"{commit[:8]}-{environment}{kind}.jsonl"


def machine() -> str:
    """The machine's name, the same in asv's results and in the records."""
    return os.environ.get(MACHINE) or platform.node() or "unknown"


# -- is it this commit? ------------------------------------------------------------------------------


def foreign_code() -> str | None:
    """Why what would be measured is not the commit that asv installed; None if it is, or if nobody can tell.

    The installed packages must lie in asv's environment and, where the repository is at hand, hold the very sources of
    the commit: a working tree that got onto the path would be measured under every commit's name.
    """
    try:
        folder = code_origin()
    except ForeignPackage as e:
        return str(e)
    environment = os.environ.get(ENVIRONMENT_FOLDER)
    if environment and not folder.resolve().is_relative_to(Path(environment).resolve()):
        return f"expected the commit's own wheel in asv's environment, pallatom and variants came from {folder}"
    commit, repository = os.environ.get(COMMIT), os.environ.get("ASV_CONF_DIR")
    there = committed_hash(Path(repository), commit) if commit and repository else None
    here = code_hash(folder)
    if there is not None and there != here:
        return f"expected the sources of commit {commit} (hash {there}), the installed ones have hash {here}"
    return None


def committed_hash(repository: Path, commit: str) -> str | None:
    """:func:`~.harness.device.code_hash` of a commit; None where it cannot be read."""
    command = ["git", "-C", str(repository), "archive", "--format=tar", commit, "pallatom", "variants"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        return None
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
        return code_hash(Path(folder))


# -- a commit that does not run ----------------------------------------------------------------------


def _none_ran(groups: list[Group], status: Status, reason: str) -> list[Record]:
    """A record on file for every cell of a commit, or of a device, that cannot be measured."""
    where, run = _provenance(), f"{datetime.now(UTC):%Y%m%dT%H%M%S}-none"
    made = [
        Record(
            run=run, group=f"{run}/{group.problem.key[:8]}", backend=registry.name_of(backend), problem=group.problem,
            status=status, reason=portable(reason), provenance=where,
            again=command(group.problem, backend, as_asked(_options())),
        )
        for group in groups
        for backend in group.backends
    ]  # fmt: skip
    record.append(records_path(), made)
    return made


def _does_not_start(host: Host, device: str) -> tuple[Status, str] | None:
    """Why no worker gets as far as to describe the machine; None if one does."""
    try:
        found = host.devices()
        if not found[device]:
            return "unsupported", f"device: {device} is required, torch {found['torch']} finds none here"
        host.describe(device)
    except (WorkerDied, WorkerTimeout) as e:
        return "crashed", _last_line(e)
    return None


def _last_line(e: WorkerDied | WorkerTimeout) -> str:
    """How the worker ended, and the last thing that it said."""
    said = e.stderr.strip().splitlines()
    return f"this commit does not start: {e}" + (f"; {said[-1]}" if said else "")


def _provenance() -> Provenance:
    """What can be said without the measured code and without torch."""
    try:
        code = code_hash(code_origin())
    except ForeignPackage:
        code = "none"
    return Provenance(
        commit=os.environ.get(COMMIT) or None, dirty=None, utc=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine(), cpu=cpu_name(), cores=cpu_cores(), memory_bytes=total_bytes(), gpu=None, driver=None,
        versions={"python": platform.python_version()}, code=code, argv=[portable(w) or "" for w in sys.argv], seed=0,
        ruler=ruler_hash(), tuned=tuned_hash(), options=as_asked(_options()),
    )  # fmt: skip


# -- kernels -----------------------------------------------------------------------------------------


def _inspected(host: Host, kernel: str, arch: int, dtype: str) -> kernels.KernelRecord:
    """One kernel, compiled in the worker; a compiler that takes the worker with it costs this one."""
    try:
        found = dict(host.one("kernel", "kernel", kernel=kernel, arch=arch, dtype=dtype))["found"]
    except (WorkerDied, WorkerTimeout) as e:
        found = {"status": "crashed", "reason": _last_line(e), "error": e.stderr}
    where = host.describe("cpu") | {"argv": [portable(word) for word in sys.argv], "seed": 0}
    return _kernel_record(kernel, arch, dtype, found, Provenance.model_validate(where))


def _kernels_out(asked: list[tuple], status: Status, reason: str) -> list[kernels.KernelRecord]:
    found = {"status": status, "reason": reason}
    return [_kernel_record(kernel, arch, dtype, found, _provenance()) for kernel, arch, dtype in asked]


def _kernel_record(
    kernel: str, arch: int, dtype: str, found: dict[str, Any], where: Provenance
) -> kernels.KernelRecord:
    now = datetime.now(UTC)
    return kernels.KernelRecord(
        run=f"{now:%Y%m%dT%H%M%S}-kernels", kernel=kernel, arch=arch, dtype=dtype, status=found["status"],
        reason=portable(found.get("reason")), error=portable(found.get("error")), summary=found.get("summary"),
        provenance=where.model_copy(update={"utc": now.isoformat(timespec="seconds")}),
    )  # fmt: skip
