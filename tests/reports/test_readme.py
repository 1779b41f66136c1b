"""README's numbers come from records in the repository, and from nowhere else."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reports.__main__ import app
from reports.page import readme
from reports.read.load import InputError
from tests import ROOT
from tests import records_factory as make

EMPTY = f"# Title\n\nbefore\n\n{readme.BEGIN}\n{readme.END}\n\nafter\n"


def fill(folder: Path, *, out: str = "reports/x") -> str:
    """A README made from records beside it; the command's output."""
    make.write(folder / "reports" / "x" / "records.jsonl", make.group(make.CPU, make.problem()))
    (folder / "README.md").write_text(EMPTY, encoding="utf-8")
    records, page, target = folder / "reports/x/records.jsonl", folder / out, folder / "README.md"
    result = CliRunner().invoke(app, [str(records), "--out", str(page), "--readme", str(target)])
    return f"{result.exit_code} {result.output}"


def test_block_can_be_made_again_from_the_records_it_names(tmp_path):
    assert fill(tmp_path).startswith("0")
    target = tmp_path / "README.md"
    text = target.read_text(encoding="utf-8")
    assert text.startswith("# Title\n\nbefore\n")
    assert text.endswith("\nafter\n")
    assert readme.expected(target) == readme.current(target)
    assert "**Use `banded`" in text
    for linked in re.findall(r'(?:src|srcset)="([^"]+)"|\]\(([^)]+)\)', text):
        assert (tmp_path / "".join(linked)).is_file()
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "reports", moved / "reports")
    shutil.copy(target, moved / "README.md")
    assert readme.expected(moved / "README.md") == readme.current(target)


def test_a_number_changed_by_hand_is_noticed(tmp_path):
    assert fill(tmp_path).startswith("0")
    target = tmp_path / "README.md"
    text = target.read_text(encoding="utf-8")
    number = re.search(r"(\d+\.\d+)×", text)
    assert number is not None
    target.write_text(text.replace(number[1], "99.9"), encoding="utf-8")
    assert readme.expected(target) != readme.current(target)


def test_a_readme_without_markers_or_a_report_outside_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("no markers", encoding="utf-8")
    with pytest.raises(InputError, match="results:begin"):
        readme.current(tmp_path / "README.md")
    outcome = fill(tmp_path / "inner", out="../outside")
    assert outcome.startswith("2")
    assert "inside" in outcome


def test_this_readme_shows_what_the_committed_records_give():
    listed = subprocess.run(
        ["git", "ls-files", "reports"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout
    records = {line for line in listed.splitlines() if line.endswith(".jsonl")}
    held = readme.current(ROOT / "README.md")
    named = readme.SOURCE.search(held)
    if named is None:
        assert held == "", "README shows results but names no records"
        return
    assert set(named["records"].split()) <= records, "README's records are not in the repository"
    assert readme.expected(ROOT / "README.md") == held
