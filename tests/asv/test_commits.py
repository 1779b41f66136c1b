"""A commit that cannot run has no numbers, has reasons, and fails nothing; measuring is not done where asv forks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.asv import measure as asv_measure
from benchmarks.asv.metrics import STATUS_CODES
from benchmarks.harness.ruler import device
from benchmarks.harness.schema import record
from benchmarks.harness.schema.record import Record
from benchmarks.harness.worker.kernels import inspect
from benchmarks.harness.worker.process import Worker
from tests import ROOT, planted_repo

# As asv does it: the benchmarks by an importer of their own, the project's packages from the path. torch is refused in
# this very process; the harness's worker is another.
MEASURE = """
import json, sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ImportError("torch has no place in a process that asv starts")
sys.meta_path.insert(0, NoTorch())
sys.path.insert(0, sys.argv[1])
from asv_runner._aux import update_sys_path
update_sys_path(sys.argv[2])
import importlib
rows = importlib.import_module("benchmarks.asv.measure").measure_commit()
assert "torch" not in sys.modules
print(json.dumps([[level, cell, row] for (level, cell), row in rows.items()]))
"""
CELLS = "all level=attention n_atom=512 window=16 k=64 dtype=float32 mode=fwd backend="


def measured(
    code: Path, folder: Path, backends: str, device: str = "cpu"
) -> tuple[dict[str, dict[str, Any]], list[Record]]:
    """What asv would be given for the code in this folder, by backend, and the records behind it."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("ASV_", "BENCH_"))}
    env |= {
        "BENCH_CELLS": f"{CELLS}{backends} device={device}",
        "BENCH_RESULTS": str(folder / "results"),
        "BENCH_QUICK": "1",
    }
    env |= {"BENCH_MACHINE": "testbed", "ASV_COMMIT": "0123456789abcdef", "ASV_ENV_NAME": "thin"}
    command = [sys.executable, "-P", "-c", MEASURE, str(code), str(ROOT / "benchmarks")]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    path = folder / "results" / "testbed" / "records" / "01234567-thin.jsonl"
    return {cell[1]: row for _, cell, row in json.loads(done.stdout)}, list(record.read(path))


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """The measured packages, to be spoiled."""
    for package in ("pallatom", "variants"):
        shutil.copytree(ROOT / package, tmp_path / "code" / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "code"


def _append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def test_a_backend_that_is_missing_crashes_or_takes_other_parameters_costs_itself_alone(
    code: Path, tmp_path: Path
) -> None:
    (code / "variants" / "banded.py").unlink()  # as in a commit older than it
    dies, other = (
        "def _dies(self, *inputs):\n    import ctypes; ctypes.string_at(0)",
        "def _other(self, *_, another): ...",
    )
    for backend, spoilt in (
        ("sdpa_tiles", f"{dies}\n\n\nSdpaTilesBlock._attend = _dies"),
        ("xformers_blocksparse", f"{other}\n\n\nXformersBlocksparseBlock._attend = _other"),
    ):
        _append(code / "variants" / f"{backend}.py", f"\n\n{spoilt}\n")
    rows, records = measured(code, tmp_path, "banded,sdpa_tiles,dense,xformers_blocksparse")
    assert {name: row["status"] for name, row in rows.items()} == {
        "banded": STATUS_CODES["unsupported"],
        "sdpa_tiles": STATUS_CODES["crashed"],
        "xformers_blocksparse": STATUS_CODES["crashed"],
        "dense": STATUS_CODES["ok"],
    }
    told = {one.backend: one.reason or "" for one in records}
    assert told["banded"].startswith("backend: banded is required, this code has cpu_fused, dense, ")
    assert "SIGSEGV" in told["sdpa_tiles"]
    assert "another" in told["xformers_blocksparse"]
    for name, row in rows.items():
        measured_too = [metric for metric in ("latency", "peak_memory", "gate_error") if row[metric] is not None]
        assert bool(measured_too) == (name == "dense"), name
    timing = next(one.timing for one in records if one.backend == "dense")
    assert timing is not None
    assert rows["dense"]["latency"]["samples"] == [ms / 1e3 for ms in timing.samples_ms]
    assert {one.provenance.machine for one in records} == {"testbed"}
    assert {one.provenance.commit for one in records} == {"0123456789abcdef"}


def test_a_commit_whose_variants_lack_what_todays_harness_asks_for_is_measured_as_far_as_it_goes(
    code: Path, tmp_path: Path
) -> None:
    _append(code / "variants" / "__init__.py", "\ndel convert\n")
    rows, records = measured(code, tmp_path, "dense")
    assert rows["dense"]["status"] == STATUS_CODES["crashed"]
    assert "no attribute 'convert'" in (records[0].reason or "")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda code: shutil.rmtree(code / "variants"), "variants"),
        (lambda code: (code / "variants" / "_registry.py").unlink(), "expected this project's package"),
    ],
)
def test_a_commit_without_the_packages_is_not_started(code: Path, tmp_path: Path, spoil: Any, told: str) -> None:
    spoil(code)
    (code / "variants").mkdir(exist_ok=True)
    (code / "variants" / "__init__.py").touch()
    rows, records = measured(code, tmp_path, "dense,banded")
    assert {row["status"] for row in rows.values()} == {STATUS_CODES["crashed"]}
    assert len(records) == 2
    assert all(told in (one.reason or "") for one in records)


def test_a_device_that_is_not_there_is_a_reason_not_a_failure(code: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    rows, records = measured(code, tmp_path, "dense,banded", device="cuda")
    assert {row["status"] for row in rows.values()} == {STATUS_CODES["unsupported"]}
    assert all((one.reason or "").startswith("device: cuda is required, torch ") for one in records)


# -- is it the commit's own code? --------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path) -> tuple[Path, str]:
    folder = tmp_path / "repository"
    for package in ("pallatom", "variants"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text(f"# {package}\n")
    (folder / "variants" / "_registry.py").write_text("# ours\n")
    (folder / "variants" / "cpu").mkdir()
    (folder / "variants" / "cpu" / "fused.cpp").write_text("// compiled where it runs\n")
    planted_repo.git(folder, "init", "--quiet", "--initial-branch=main")
    return folder, planted_repo.commit(folder, "Begin", day=0)


def _installed(folder: Path, monkeypatch: pytest.MonkeyPatch, repository: Path, commit: str, inside: Path) -> None:
    monkeypatch.setattr(asv_measure, "code_origin", lambda: folder)
    monkeypatch.setenv("ASV_ENV_DIR", str(inside))
    monkeypatch.setenv("ASV_CONF_DIR", str(repository))
    monkeypatch.setenv("BENCH_COMMIT", commit)


def test_the_commits_own_wheel_is_told_from_a_working_tree(
    repository: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, commit = repository
    environment = tmp_path / "environment"
    site = environment / "site-packages"
    shutil.copytree(tree, site, ignore=shutil.ignore_patterns(".git"))
    _installed(site, monkeypatch, tree, commit, environment)
    assert asv_measure.foreign_code() is None
    _installed(tree, monkeypatch, tree, commit, environment)
    assert "expected the commit's own wheel in asv's environment" in (asv_measure.foreign_code() or "")
    _installed(site, monkeypatch, tree, commit, environment)
    for source in ("variants/__init__.py", "variants/cpu/fused.cpp"):
        kept = (site / source).read_text()
        (site / source).write_text("// another commit's\n")
        assert f"expected the sources of commit {commit}" in (asv_measure.foreign_code() or ""), source
        (site / source).write_text(kept)
    assert asv_measure.foreign_code() is None


def test_a_commit_that_git_cannot_show_is_taken_on_its_place_alone(
    repository: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, _ = repository
    assert asv_measure.committed_hash(tree, "0" * 40) is None
    assert asv_measure.committed_hash(tmp_path, "HEAD") is None
    _installed(tree, monkeypatch, tmp_path, "0" * 40, tree)
    assert asv_measure.foreign_code() is None


def test_this_projects_own_commit_hashes_as_its_checkout_does(tmp_path: Path) -> None:
    command = ["git", "-C", str(ROOT), "archive", "--format=tar", "HEAD", "pallatom", "variants"]
    archive = subprocess.run(command, capture_output=True, check=False)
    if archive.returncode:
        pytest.skip("not a git checkout")
    subprocess.run(["tar", "-x", "-C", str(tmp_path)], input=archive.stdout, check=True)
    assert asv_measure.committed_hash(ROOT, "HEAD") == device.code_hash(tmp_path)


# -- kernels -----------------------------------------------------------------------------------------


def _inspected(code: Path) -> dict[str, Any]:
    """The forward kernel of the code in this folder, as the harness's worker reads it."""
    worker = Worker(code=code, extra_env={"TRITON_INTERPRET": "0"})
    try:
        worker.request("kernel", kernel="forward", arch=90, dtype="bfloat16")
        (found,) = (event["found"] for event in worker.events(limit_s=1200) if event["event"] == "kernel")
    finally:
        worker.close()
    return found


def test_kernels_of_a_commit_without_an_inspector_are_unsupported(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code / "variants" / "triton" / "inspect.py").unlink()
    found = _inspected(code)
    assert found["status"] == "unsupported"
    assert "variants.triton.inspect" in found["reason"]
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert inspect("forward", 90, "bfloat16")["status"] == "unsupported"


def test_a_commit_older_than_the_present_layout_is_inspected_by_its_own_inspector(code: Path) -> None:
    shutil.rmtree(code / "variants" / "triton")
    (code / "variants" / "_triton_inspect.py").write_text(
        "class Found:\n    def summary(self):\n        return {'spills': 7}\n\n\n"
        "def inspect_shipped(kernel, *, arch, dtype):\n    return Found()\n"
    )
    assert _inspected(code)["summary"] == {"spills": 7}


def test_what_a_commit_lacks_does_not_come_from_an_editable_install(code: Path, monkeypatch, tmp_path: Path) -> None:
    """setuptools' finder hands out the children of a package that it maps, whoever imported the package."""
    (code / "variants" / "triton" / "inspect.py").unlink()
    site = tmp_path / "site"
    site.mkdir()
    (site / "planted_finder.py").write_text(
        "import sys\nfrom importlib.machinery import PathFinder\n"
        f"MAPPING = {{'variants': {str(ROOT / 'variants')!r}}}\n"
        "class Finder:\n    @classmethod\n    def find_spec(cls, name, path=None, target=None):\n"
        "        parent = name.rpartition('.')[0]\n"
        "        return PathFinder.find_spec(name, path=[MAPPING[parent]]) if parent in MAPPING else None\n"
        "sys.meta_path.append(Finder)\n"
    )
    (site / "sitecustomize.py").write_text("import planted_finder\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    assert "variants.triton.inspect" in _inspected(code)["reason"]


def test_a_commit_that_makes_a_kernel_spill_is_worse_to_asv_without_a_gpu(code: Path) -> None:
    pytest.importorskip("triton", reason="triton is an optional extra")
    compare = pytest.importorskip("asv.commands.compare", reason="asv is an optional extra")
    before = _inspected(code)["summary"]["spills"]
    _append(
        code / "variants" / "triton" / "config.py",
        "\n_as_it_was = forward_config\n\n\ndef forward_config(*sizes):\n"
        "    from dataclasses import replace\n\n    return replace(_as_it_was(*sizes), max_registers=64)\n",
    )
    after = _inspected(code)["summary"]["spills"]
    assert after > before == 0
    assert compare._is_result_better(before, after, None, None, 1.1)
