"""regress on real processes: planted faults are named, the same code is not, and no broken commit breaks the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.regress.regression import MARK
from benchmarks.harness.schema.record import Record, read
from tests.planted_repo import Planted, commit, count_work, make

SMALL = ("-n", "128", "--window", "16", "--level", "attention", "--mode", "fwd", "--device", "cpu", "--threads", "1")
ENDLESS_S = "2000"  # a budget that no machine uses up


def command(repo: Path, text: str, out: Path) -> list[str]:
    where = ("--repo", str(repo), "--out", str(out), "--budget-s", ENDLESS_S)
    return [sys.executable, "-m", "benchmarks", "regress", text, *SMALL, *where]


def regress(harness: Path, repo: Path, text: str, out: Path, *more: str) -> tuple[int, dict[str, Any]]:
    """Exit code and what ``--json`` prints; ``harness`` is a folder with a copy of this project."""
    asked = [*command(repo, text, out), "--json", *more]
    done = subprocess.run(asked, cwd=harness, capture_output=True, text=True, timeout=2500, check=False)
    assert "Traceback" not in done.stderr
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def regressed(found: dict[str, Any]) -> dict[str, list[str]]:
    return {cell["backend"]: cell["regressed"] for cell in found["cells"] if cell["regressed"]}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Its own harness is beside its commits, with a clock that counts work."""
    made = make(tmp_path_factory.mktemp("run") / "repo", also=("benchmarks",))
    count_work(made.path)
    return made


@pytest.mark.parametrize(
    ("older", "newer", "expected"),
    [("base", "docs", {}), ("docs", "slow", {"banded": ["slower"]}), ("slow", "heavy", {"banded": ["heavier"]})],
)
def test_the_slow_and_the_heavy_commit_are_named_and_nothing_else(
    planted: Planted, tmp_path: Path, older: str, newer: str, expected: dict[str, list[str]]
) -> None:
    a, b = getattr(planted, older), getattr(planted, newer)
    out = tmp_path / "r.jsonl"
    more = ("-b", "banded,dense", "--measure-same", "--rounds", "3")
    code, found = regress(planted.path, planted.path, f"{a}..{b}", out, *more)
    assert regressed(found) == expected, found
    assert code == (1 if expected else 0)
    assert found["rounds"] == 3
    check_records(list(read(out)), a, b)


def check_records(records: list[Record], a: str, b: str) -> None:
    """Every sample is on file, under its own commit, paired by group with the other side's."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.group, []).append(record)
    assert len(groups) == 2 * 3
    for pair in groups.values():
        sides = {record.provenance.environment[MARK]["side"]: record for record in pair}  # type: ignore[index]
        assert {side: r.provenance.commit for side, r in sides.items()} == {"a": a, "b": b}
        first, second = sides["a"].timing, sides["b"].timing
        assert first is not None
        assert second is not None
        assert len(first.samples_ms) == len(second.samples_ms) >= 2
        assert first.calls_per_sample == second.calls_per_sample
    code = [{r.provenance.code for r in records if r.provenance.commit == commit} for commit in (a, b)]
    assert all(len(one) == 1 for one in code)


PLANT = """
import ctypes
from pallatom.architecture import atom_transformers as _at


def _planted(self, *x):
    {body}


BACKEND.block._attend = _planted
"""
FAULTS = {
    "dense": ("return _at.AtomTransformerBlock._attend(self, *x) * 1.01", "wrong"),
    "banded": ("ctypes.string_at(0)", "crashed"),
    "sdpa_tiles": ("raise MemoryError('no room for 7 bytes')", "oom"),
}


def test_what_breaks_is_named_with_its_reason_and_costs_no_other_cell(planted: Planted, tmp_path: Path) -> None:
    """One commit that breaks three backends, each in its way, removes one and adds one; ``gather`` stays."""
    p = make(tmp_path / "repo")
    folder = p.path / "variants"
    for name, (body, _) in FAULTS.items():
        with open(folder / f"{name}.py", "a") as f:
            f.write(PLANT.format(body=body))
    (folder / "newcomer.py").write_text((folder / "gather.py").read_text())
    (folder / "xformers_blocksparse.py").unlink()
    broken = commit(p.path, "Break much", day=9)
    names = ",".join((*FAULTS, "newcomer", "xformers_blocksparse", "gather"))
    more = ("-b", names, "--rounds", "2")
    code, found = regress(planted.path, p.path, f"{p.base}..{broken}", tmp_path / "r.jsonl", *more)
    cells = {cell["backend"]: cell for cell in found["cells"]}
    assert code == 1
    assert regressed(found) == {name: ["broken"] for name in FAULTS}
    for name, (_, status) in FAULTS.items():
        assert cells[name]["reason"].startswith(f"{status} at B in 2 of 2 processes"), cells[name]
    assert "SIGSEGV" in cells["banded"]["reason"]
    assert (cells["newcomer"]["outcome"], cells["xformers_blocksparse"]["outcome"]) == ("n/a", "n/a")
    assert "not supported at A: backend: newcomer is required" in cells["newcomer"]["reason"]
    assert "not supported at B: backend: xformers_blocksparse is" in cells["xformers_blocksparse"]["reason"]
    assert (cells["gather"]["outcome"], cells["gather"]["time"]) == ("ran", "unresolved")  # two rounds are too few


def test_a_commit_that_does_not_even_import_is_broken(planted: Planted, tmp_path: Path) -> None:
    p = make(tmp_path / "repo")
    with open(p.path / "variants" / "__init__.py", "a") as f:
        f.write("raise ImportError('planted: nothing imports')\n")
    broken = commit(p.path, "Break the import", day=9)
    more = ("-b", "gather", "--rounds", "1")
    code, found = regress(planted.path, p.path, f"{p.base}..{broken}", tmp_path / "r.jsonl", *more)
    assert code == 1
    assert regressed(found) == {"gather": ["broken"]}
    assert "ImportError: planted: nothing imports" in found["cells"][0]["reason"]


def test_a_kill_loses_nothing_that_was_recorded(planted: Planted, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    endless = [*command(planted.path, f"{planted.base}..{planted.slow}", out), "-b", "banded", "--rounds", "1000"]
    process = subprocess.Popen(endless, cwd=planted.path, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 2000
        while not (out.exists() and out.read_bytes().count(b"\n") >= 2) and time.monotonic() < deadline:
            time.sleep(0.1)
        children = _children(process.pid)
        assert children
        process.send_signal(signal.SIGKILL)
        process.wait()
    finally:
        process.kill()
    kept = list(read(out))
    assert len(kept) >= 2
    assert {r.provenance.commit for r in kept[:2]} == {planted.base, planted.slow}
    assert kept[0].group == kept[1].group
    gone = time.monotonic() + 300
    while any(_alive(pid) for pid in children) and time.monotonic() < gone:
        time.sleep(0.1)
    assert not any(_alive(pid) for pid in children)


def _children(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
