"""The committed runs of regress on planted commits: judged anew from their samples, they name what was planted."""

from __future__ import annotations

import pytest

from benchmarks.harness.regress.regression import judge
from benchmarks.harness.schema.record import read
from tests import ROOT

FOLDER = ROOT / "reports" / "2026-11-22-regress"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("docs", {}),
        ("slow", {("banded", "attention"): ("slower",)}),
        ("heavy", {("banded", "attention"): ("heavier",), ("banded", "block"): ("heavier",)}),
    ],
)
def test_the_committed_runs_name_what_was_planted_and_nothing_else(name: str, expected: dict) -> None:
    records = list(read(FOLDER / f"{name}.jsonl"))
    found = judge(records)
    assert {(f.backend, f.problem.level): f.regressed for f in found if f.regressed} == expected
    assert sum(f.outcome == "ran" for f in found) == 12
    table = (FOLDER / f"{name}.md").read_text()
    assert ("cells regressed" in table) == bool(expected)
    for finding in found:
        if finding.change is not None:
            assert f"| {finding.change.ratio:.3g} |" in table
