"""Temporary folders of killed processes are removed by the next one; those of live ones, and of others, are not."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from benchmarks.harness.ruler.scratch import Scratch
from benchmarks.harness.worker.process import Worker
from tests import ROOT

OWNER = """
import sys, tempfile
from benchmarks.harness.ruler.scratch import Scratch
tempfile.tempdir = sys.argv[1]
one = Scratch("kind-")
(one.path / "large").write_bytes(bytes(1000))
print(one.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def owner(folder: Path) -> tuple[subprocess.Popen[str], Path]:
    """Another process with a folder of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_goes_and_what_a_live_one_has_stays(folder: Path) -> None:
    (killed, left), (live, held) = owner(folder), owner(folder)
    killed.kill()
    killed.wait()
    assert left.is_dir()
    with Scratch("another-"):
        assert left.is_dir(), "of another kind"
    with Scratch("kind-") as mine:
        assert not left.exists()
        assert (held / "large").exists()
        with Scratch("kind-"):
            assert mine.is_dir(), "this process lives too"
    assert not mine.exists()
    live.communicate("")
    with Scratch("kind-"):
        assert not held.exists()
    assert list(folder.iterdir()) == []


def test_what_is_not_ours_or_is_being_made_stays(folder: Path) -> None:
    made, old, file, elsewhere = (folder / f"kind-{name}" for name in ("made", "old", "file", "elsewhere"))
    for one in (made, old):
        one.mkdir()
    file.touch()
    (folder / "target").mkdir()
    elsewhere.symlink_to(folder / "target")
    os.utime(old, (time.time() - 1e5,) * 2)
    theirs = folder / "kind-theirs"
    theirs.mkdir()
    (theirs / "owner").touch()
    if os.getuid() == 0:
        os.chown(theirs, 12345, -1)
        with Scratch("kind-"):
            assert theirs.exists()
        os.chown(theirs, 0, -1)
    with Scratch("kind-"):
        assert made.exists()
        assert file.exists()
        assert elsewhere.is_symlink()
        assert not old.exists(), "left by a version that had no locks"
        assert not theirs.exists(), "its lock is free"
    assert (folder / "target").is_dir()


def test_a_worker_leaves_nothing_and_takes_away_what_a_killed_run_left(folder: Path) -> None:
    left = folder / "atom-bench-left"
    left.mkdir()
    (left / "owner").touch()
    worker = Worker(threads=1)
    assert not left.exists()
    assert worker.note_path.parent.parent == folder
    worker.close()
    assert list(folder.iterdir()) == []
