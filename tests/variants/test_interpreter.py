"""The tests of the interpreter's process come out here as they went there: green, red, skipped, dead or hung."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests import ROOT

PLANTED = """
import os, time
import pytest

pytestmark = pytest.mark.interpreted

@pytest.fixture
def broken():
    raise ValueError("a fixture of no use")

def test_green():
    assert os.environ["TRITON_INTERPRET"] == "1"

def test_red():
    print("said before")
    assert 6 * 9 == 42

def test_skipped():
    pytest.skip("for a reason")

def test_broken(broken):
    pass

def test_dead():
    os._exit(7)

def test_green_after_a_death():
    pass

@pytest.mark.timeout(2)
def test_hung():
    time.sleep(3600)

def test_green_after_a_hang():
    pass
"""


def test_every_outcome_is_reported_here_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "test_planted.py").write_text(PLANTED)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = interpreted\n")
    options = ["-p", "tests.conftest", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", "-n", "2", "-rA"]
    command = [sys.executable, "-m", "pytest", *options, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2000, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "3 failed, 3 passed, 1 skipped, 1 error" in done.stdout, done.stdout
    for line in (
        "PASSED .*test_green$", "PASSED .*test_green_after_a_death$", "PASSED .*test_green_after_a_hang$",
        "FAILED .*test_red", "FAILED .*test_dead", "FAILED .*test_hung", "ERROR .*test_broken",
        "SKIPPED .* for a reason", "said before", "ValueError: a fixture of no use", "ended with exit code 7",
        r"Timeout \(>2",
    ):  # fmt: skip
        assert re.search(line, done.stdout, re.MULTILINE), f"{line}\n{done.stdout}"
