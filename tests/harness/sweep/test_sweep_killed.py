"""Who is killed: a sweep leaves a good file and goes on where it was, a worker says how it died."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.harness.cases import problems
from benchmarks.harness.schema.record import read
from benchmarks.harness.sweep import sweep as harness
from benchmarks.harness.worker.process import Worker, WorkerDied, WorkerTimeout
from tests import ROOT

SWEEP = [
    "-n",
    "64,80,96,112,128",
    "--window",
    "4,8",
    "-b",
    "gather,banded",
    "--group-budget-s",
    "0.3",
    "--threads",
    "1",
]


WAITS = """

_attend_at_once = BandedBlock._attend


def _attend_when_told(self, Q, *others):
    import pathlib, time

    while Q.shape[1] in (112, 128) and not (pathlib.Path(__file__).parents[1] / "go").exists():
        time.sleep(0.05)
    return _attend_at_once(self, Q, *others)


BandedBlock._attend = _attend_when_told
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the project, which nobody edits between two calls; at 112 and 128 atoms ``banded`` waits for a file."""
    for name in ("pallatom", "variants", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "variants" / "banded.py", "a") as f:
        f.write(WAITS)
    return tmp_path


def start_sweep(out: Path, tree: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "benchmarks", "sweep", "--device", "cpu", *SWEEP, "--out", str(out)]
    # a shell starts its background jobs with Control-C ignored, and children inherit that
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        command, cwd=tree, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heed
    )


def wait_for_lines(path: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 2000
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {count} records in time; exit code {process.poll()}")


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in listed.stdout.split()]


def test_a_sweep_killed_half_way_ends_with_the_same_cells_as_an_undisturbed_one(tree: Path) -> None:
    out = tree / "r.jsonl"
    process = start_sweep(out, tree)
    wait_for_lines(out, 4, process)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = list(read(out))
    assert 4 <= len(before) < 20
    assert workers
    assert all(gone(worker) for worker in workers), "a worker outlived its sweep"
    with open(out, "a") as f:
        f.write('{"schema_version":1,"run":"cut off by the ki')

    (tree / "go").touch()
    finished = start_sweep(out, tree)
    said, _ = finished.communicate(timeout=2000)
    assert finished.returncode == 0, said
    after = list(read(out))
    grid = problems.grid(problems.Axes(), n_atom=(64, 80, 96, 112, 128), window=(4, 8), mode=("fwd",))
    undisturbed = harness.plan(grid, ("gather", "banded"))
    assert {r.key for r in after} == {f"{b}@{g.problem.key}" for g in undisturbed for b in g.backends}
    assert len(after) == 20  # none twice
    assert [r.key for r in after[: len(before)]] == [r.key for r in before]
    assert {r.status for r in after} == {"ok"}
    third, _ = start_sweep(out, tree).communicate(timeout=1000)
    assert third.startswith("0 cells to measure, 20 are on file already")


def gone(pid: int) -> bool:
    for _ in range(6000):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_control_c_leaves_a_good_file_and_says_how_to_go_on(tree: Path) -> None:
    out = tree / "r.jsonl"
    process = start_sweep(out, tree)
    wait_for_lines(out, 2, process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "the same command goes on" in said
    assert "Traceback" not in said
    assert list(read(out))


def test_a_worker_that_dies_says_how_and_one_that_waits_too_long_is_ended() -> None:
    worker = Worker(threads=1)
    try:
        worker.request("devices")
        assert [e["event"] for e in worker.events(limit_s=600)] == ["devices"]
        os.kill(worker.pid, signal.SIGTERM)
        with pytest.raises(WorkerDied, match="SIGTERM"):
            list(worker.events(limit_s=600))
    finally:
        worker.close()
    worker = Worker(threads=1)
    try:
        with pytest.raises(WorkerTimeout, match=r"0\.1 s"):  # nothing was asked, so nothing will come
            list(worker.events(limit_s=0.1))
        assert not worker.alive
    finally:
        worker.close()


def test_the_worker_is_the_first_to_go_when_memory_runs_out() -> None:
    worker = Worker(threads=1)
    try:
        worker.request("devices")
        list(worker.events(limit_s=600))
        assert Path(f"/proc/{worker.pid}/oom_score_adj").read_text().strip() == "1000"
    finally:
        worker.close()
