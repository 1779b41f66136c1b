"""The wheel holds what is measured, all of it, and nothing that measures."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile

import pytest

from tests import ROOT

MEASURED = ("pallatom", "variants")
NOT_INSTALLED = {".md", ".pyc"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in the wheel that setuptools builds from a copy of the project."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    for name in (*MEASURED, "benchmarks", "reports"):
        ignored = shutil.ignore_patterns("__pycache__", "20*-*", "data")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    build = "from setuptools.build_meta import build_wheel; build_wheel('out')"
    done = subprocess.run([sys.executable, "-c", build], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (made,) = (folder / "out").glob("*.whl")
    return set(zipfile.ZipFile(made).namelist())


def test_every_source_of_what_is_measured_is_in_the_wheel(wheel: set[str]) -> None:
    files = {f for name in MEASURED for f in (ROOT / name).rglob("*") if f.is_file() and f.suffix not in NOT_INSTALLED}
    sources = {f.relative_to(ROOT).as_posix() for f in files}
    assert {"variants/cpu/fused.cpp", "variants/cpu/vector.h", "variants/triton/forward.py"} <= sources
    assert sources - wheel == set()


def test_nothing_that_measures_is_in_the_wheel(wheel: set[str]) -> None:
    tops = {name.partition("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(MEASURED)
