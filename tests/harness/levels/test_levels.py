"""One file a level: what each declares, and that a file more is all that one more level takes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness import levels
from benchmarks.harness.cases.problems import Axes, BadAxis, resolve
from benchmarks.harness.schema.record import read
from tests import ROOT

# The seam twice over: another call, reference and floor, and nothing said of it anywhere else.
TWICE = '''
"""Level ``twice``: the seam, two times its output."""

from .attention import Attention
from ._level import AsvGrid, Work


class Twice(Attention):
    about = "Twice the seam."
    order = 9
    asv = AsvGrid({"n_atom": [64]}, {"cpu": ({"n_atom": 64},), "cuda": ({"n_atom": 64},)})

    def forward(self, p, module, tensors):
        once = super().forward(p, module, tensors)
        return lambda **given: (2 * once(**given)[0],)

    def reference(self, p, x, w, given):
        return (2 * super().reference(p, x, w, given)[0],)

    def floor(self, p):
        return super().floor(p) + Work(flops=p.n_atom, bytes=0)


LEVEL = Twice()
'''


@pytest.mark.parametrize("name", levels.names())
def test_a_level_says_what_it_is_given_and_returns_in_shapes_that_a_problem_has(name: str) -> None:
    level = levels.level_of(name)
    problem, _ = resolve(Axes(level=name, n_atom=64, window=8))
    for operand in (*level.inputs, *level.given, *level.outputs):
        assert all(size > 0 for size in operand.sizes(problem)), operand
    assert level.about.endswith(".")
    assert level.peak_bytes(problem, 0) >= 0
    assert levels.rank(name) == levels.names().index(name)


def test_what_is_no_level_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(BadAxis, match=r"expected one of .*encoder.*got 'decode'"):
        resolve(Axes(level="decode", n_atom=64))
    with pytest.raises(levels.UnknownLevel, match="expected one of"):
        levels.level_of("_level")


def test_one_file_is_all_that_one_more_level_takes(tmp_path: Path) -> None:
    for package in ("pallatom", "variants", "benchmarks"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "reports", tmp_path / "reports", ignore=shutil.ignore_patterns("__pycache__", "2026-*"))
    (tmp_path / "benchmarks" / "harness" / "levels" / "twice.py").write_text(TWICE)

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        whole = [sys.executable, "-m", *command]
        return subprocess.run(whole, cwd=tmp_path, capture_output=True, text=True, check=False)

    axes = ["-n", "64", "--window", "8", "--device", "cpu", "--threads", "1"]
    asked = ["--level", "twice,attention", "--backend", "gather,banded", "--budget-s", "60"]
    swept = run("benchmarks", "sweep", *axes, *asked, "--out", "r.jsonl")
    assert swept.returncode == 0, swept.stdout + swept.stderr
    records = {(r.problem.level, r.backend): r for r in read(tmp_path / "r.jsonl")}
    assert {cell: record.status for cell, record in records.items()} == {
        (level, backend): "ok" for level in ("twice", "attention") for backend in ("gather", "banded")
    }
    one, seam = records["twice", "banded"], records["attention", "banded"]
    assert one.gate is not None
    assert one.gate.trial is not None
    assert one.memory is not None
    assert one.limit is not None
    assert seam.limit is not None
    assert one.limit.floor_flops == seam.limit.floor_flops + 64
    assert "--level twice" in (one.again or "")
    drawn = run("reports", "r.jsonl", "--out", "page")
    assert drawn.returncode == 0, drawn.stderr
    assert "twice, forward" in (tmp_path / "page" / "report.md").read_text()
    listed = (
        "from benchmarks.asv import grid as g; print(g.GRIDS['twice']['n_atom'], len(g.default('twice', ['cpu'])) > 1)"
    )
    told = subprocess.run([sys.executable, "-c", listed], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.stdout.strip() == "[64] True", told.stderr
    refused = run("benchmarks", "sweep", *axes, "--level", "thrice")
    assert refused.returncode == 2
    assert "twice" in refused.stdout + refused.stderr
    checked = run("benchmarks", "check", *axes, "--level", "twice", "--backend", "banded", "--json")
    assert {cell["status"] for cell in json.loads(checked.stdout)} == {"ok"}, checked.stderr
