"""``asv run`` over a small repository with known faults: its results name them, and every number has its record."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.asv import trace as asv_trace
from benchmarks.asv.metrics import STATUS_CODES
from benchmarks.harness.schema.record import Record, read
from tests import planted_repo

ASV = Path(sys.executable).with_name("asv")
CELLS = "all level=attention device=cpu backend=banded,sdpa_tiles n_atom=512 window=32 k=all dtype=float32 mode=fwd"
MACHINE = "testbed"


@dataclass(frozen=True)
class Ran:
    planted: planted_repo.Planted
    broken: str
    said: str

    @property
    def results(self) -> Path:
        return self.planted.path / "results"

    def asv(self, *command: str) -> subprocess.CompletedProcess[str]:
        return _asv(self.planted.path, *command)

    def cells(self, commit: str) -> dict[str, Record]:
        """The records of a commit, by backend."""
        (path,) = (self.results / MACHINE / "records").glob(f"{commit[:8]}-*.jsonl")
        return {one.backend: one for one in read(path)}


def _asv(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("ASV_", "BENCH_", "GIT_"))}
    # Otherwise the C library decides from what one backend frees whether another pays for fresh pages in every call.
    env |= {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}
    env |= {"HOME": str(folder.parent), "BENCH_CELLS": CELLS}
    return subprocess.run([str(ASV), *command], cwd=folder, env=env, capture_output=True, text=True, check=False)


def measured(folder: Path) -> Ran:
    """Five commits, the last of which does not import, measured by one ``asv run``."""
    pytest.importorskip("asv", reason="asv is an optional extra")
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    pages = ("reports/__init__.py", "reports/offline.py", "reports/page/templates")  # the plugin for what asv publishes
    also = ("asv.conf.json", "asv_plugin.py", "benchmarks", *pages)
    planted = planted_repo.make(folder / "repository", also=also)
    file = planted.path / "pallatom" / "__init__.py"
    file.write_text(file.read_text() + "\nraise ImportError('planted: does not import')\n")
    broken = planted_repo.commit(planted.path, "Break the import", day=4)
    planted_repo.count_work(planted.path)
    machine = {"machine": MACHINE, "os": "", "arch": "", "cpu": "", "num_cpu": "2", "ram": ""}
    (folder / ".asv-machine.json").write_text(json.dumps({MACHINE: machine, "version": 1}))
    done = _asv(planted.path, "run", "--quick", "--show-stderr", "--machine", MACHINE, "ALL")
    assert done.returncode == 0, done.stdout + done.stderr
    return Ran(planted, broken, done.stdout)


def test_asv_names_what_was_planted(tmp_path: Path) -> None:
    """One test, since the run behind it takes a minute."""
    ran = measured(tmp_path)
    each_commit_is_measured_as_its_own_code(ran)
    every_number_has_its_record_and_a_changed_one_has_none(ran, tmp_path)
    the_commit_that_does_not_import_is_na_with_a_reason(ran)
    asv_names_the_slower_and_the_heavier_commit_and_no_other(ran)
    the_records_tell_the_same_work_from_more_of_it(ran)
    what_is_compared_is_printed_and_nothing_else(ran)


def every_number_has_its_record_and_a_changed_one_has_none(ran: Ran, tmp_path: Path) -> None:
    numbers = list(asv_trace.trace(ran.results))
    assert [n.why for n in numbers if n.record is None] == []
    assert len({n.file for n in numbers}) == 5
    good = [n for n in numbers if n.benchmark.endswith(("latency", "peak_memory", "first_call"))]
    assert len(good) == 3 * 2 * 4  # metrics, backends, commits that import
    for n in numbers:
        assert n.record is not None
        assert n.record.provenance.commit is not None
        assert n.file.name.startswith(n.record.provenance.commit[:8])
        assert n.record.provenance.machine == n.file.parent.name == MACHINE
    spoilt = tmp_path / "results"
    shutil.copytree(ran.results, spoilt)
    (path,) = (spoilt / MACHINE).glob(f"{ran.planted.heavy[:8]}-*.json")
    peak = next(n.value for n in numbers if n.file.name == path.name and n.benchmark.endswith("peak_memory"))
    path.write_text(path.read_text().replace(str(int(peak)), str(int(peak) + 1)))
    lost = [n for n in asv_trace.trace(spoilt) if n.record is None]
    assert {n.benchmark for n in lost} == {"block.Attention.track_peak_memory"}
    assert asv_trace.main([str(ran.results)]) == 0
    assert asv_trace.main([str(spoilt)]) == 1
    assert asv_trace.main([str(spoilt / "nowhere")]) == 2
    records = spoilt / MACHINE / "records" / f"{path.stem}.jsonl"
    whole = records.read_text()
    records.write_text("garbage\n" + whole)
    assert asv_trace.main([str(spoilt)]) == 2
    records.unlink()
    assert {n.why for n in asv_trace.trace(spoilt) if n.record is None} == {
        "no record of this cell was written before it"
    }


def each_commit_is_measured_as_its_own_code(ran: Ran) -> None:
    codes = {c: {one.provenance.code for one in ran.cells(c).values()} for c in ran.planted.commits}
    assert all(len(found) == 1 for found in codes.values())
    assert codes[ran.planted.base] == codes[ran.planted.docs]
    assert len({min(found) for found in codes.values()}) == 3


def the_commit_that_does_not_import_is_na_with_a_reason(ran: Ran) -> None:
    cells = ran.cells(ran.broken)
    assert {one.status for one in cells.values()} == {"crashed"}
    assert all("planted: does not import" in (one.reason or "") for one in cells.values())
    shown = [n for n in asv_trace.trace(ran.results) if n.file.name.startswith(ran.broken[:8])]
    assert {(n.benchmark, n.value) for n in shown} == {("block.Attention.track_status", STATUS_CODES["crashed"])}


def asv_names_the_slower_and_the_heavier_commit_and_no_other(ran: Ran) -> None:
    p = ran.planted
    named = {
        (a, b): re.findall(
            r"track_(latency|peak_memory|status)\('cpu', '(\w+)'", ran.asv("compare", "--only-changed", a, b).stdout
        )
        for a, b in ((p.base, p.docs), (p.docs, p.slow), (p.slow, p.heavy))
    }
    assert named == {
        (p.base, p.docs): [],
        (p.docs, p.slow): [("latency", "banded")],
        (p.slow, p.heavy): [("peak_memory", "banded")],
    }


def the_records_tell_the_same_work_from_more_of_it(ran: Ran) -> None:
    """What was not touched takes the same to the last digit; half a call more is about half as much more."""
    p = ran.planted
    times: dict[str, list[float]] = {"banded": [], "sdpa_tiles": []}
    for commit in p.commits:
        for backend, cell in ran.cells(commit).items():
            assert cell.timing is not None
            assert len(set(cell.timing.samples_ms)) == 1
            times[backend].append(cell.timing.median_ms)
    base, docs, slow, heavy = times["banded"]
    assert base == docs
    assert slow == heavy
    assert 1.4 < slow / docs < 1.6
    assert len(set(times["sdpa_tiles"])) == 1


def what_is_compared_is_printed_and_nothing_else(ran: Ran) -> None:
    assert "n/a" not in ran.said
    told = ran.asv("compare", ran.planted.slow, ran.planted.heavy).stdout
    assert "track_latency('cpu', 'banded', 512" in told
    assert "cuda" not in told
    assert "first_call" not in told
