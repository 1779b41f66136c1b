"""``structure FILE``, and how the user's files are named and told of elsewhere on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.commands import app
from benchmarks.harness.cases.problems import Axes, resolve_all
from benchmarks.harness.sweep import sweep
from benchmarks.harness.sweep.again import recall
from benchmarks.harness.workload import files
from reports.__main__ import app as report_app
from tests.harness.workload.test_structures import TRIPEPTIDE, pdb
from tests.records_factory import CPU, cell, problem, write

HOSTILE = "[red]a,b|<i>`\x1b[31m\n.pdb"


@pytest.fixture
def twins(tmp_path) -> list[str]:
    """Two files of one hostile name in two folders, of three residues and of two."""
    paths = []
    for folder, atoms in (("one", TRIPEPTIDE), ("two", TRIPEPTIDE[:19])):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / HOSTILE
        path.write_text(pdb(atoms))
        paths.append(str(path))
    return paths


def test_it_says_what_is_read_of_each_file(twins):
    done = CliRunner().invoke(app, ["structure", *twins])
    assert done.exit_code == 0
    assert "\x1b" not in done.stdout
    first, chain, second, _ = done.stdout.splitlines()
    assert first.endswith(": 3 residues in 1 chain, 23 atoms (heavy); left out: nothing")
    assert chain == "  chain 1: 3 residues, 23 atoms"
    assert "one/[red]a,b|<i>`" in first
    assert second.endswith(": 2 residues in 1 chain, 19 atoms (heavy); left out: nothing")
    told = json.loads(CliRunner().invoke(app, ["structure", twins[0], "--atoms", "atom14", "--json"]).stdout)
    assert [(one["file"], one["chains"]) for one in told] == [(twins[0], [{"residues": 3, "atoms": 42}])]


def test_what_it_cannot_read_is_one_line_and_exit_code_2(tmp_path):
    (tmp_path / HOSTILE).write_text("HEADER\n")
    done = CliRunner().invoke(app, ["structure", str(tmp_path / HOSTILE)])
    assert (done.exit_code, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "no ATOM or HETATM record" in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("command", ["sweep", "structure", "compare"])
def test_help_names_every_format(command):
    told = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout
    assert [suffix for suffix in files.KINDS if suffix not in told] == []
    assert "gzipped" in told


def test_files_of_one_base_name_are_told_apart(twins):
    found = resolve_all([Axes(workload=path, atoms="heavy") for path in (*twins, twins[0], "gfp")])
    assert [problem.workload for problem, _ in found] == [f"one/{HOSTILE}", f"two/{HOSTILE}", f"one/{HOSTILE}", "gfp"]
    groups = sweep.plan([Axes(workload=path, atoms="heavy") for path in twins], ("gather",))
    assert {group.source for group in groups} == set(twins)
    lone, _ = resolve_all([Axes(workload=twins[0], atoms="heavy")])[0]
    assert lone.workload == HOSTILE
    told = sweep.files_of(groups[0], "gather")["structure"]
    assert told == f"two/{HOSTILE}: 2 residues in 1 chain, 19 atoms (heavy); left out: nothing"


def test_a_cell_of_one_of_them_is_found_again(twins):
    problem, _ = resolve_all([Axes(workload=path, atoms="heavy") for path in twins])[1]
    assert recall(problem, twins).workload == twins[1]


@pytest.mark.parametrize(
    ("value", "paths"),
    [
        ("a.cif,b.pdb.gz", ["a.cif", "b.pdb.gz"]),
        ("my,protein.cif,b.fa", ["my,protein.cif", "b.fa"]),
        ("a,b", ["a,b"]),
        ("a.cif,", ["a.cif"]),
        ("", []),
    ],
)
def test_a_comma_in_a_name_does_not_split_it(value, paths):
    assert files.split(value) == paths


def test_a_comma_behind_a_suffix_does_not_split_the_name_of_a_file_that_is_there(tmp_path):
    path = tmp_path / "a.cif,b.cif"
    Path(path).touch()
    assert files.split(str(path)) == [str(path)]


def test_the_report_says_what_was_read_of_each_file(tmp_path):
    told = {name: f"{name}: 3 residues in 1 chain, 23 atoms (heavy); left out: nothing" for name in ("a.cif", "b.cif")}
    write(tmp_path / "r.jsonl", [
        cell(CPU, "gather", problem(workload=name), group=name, environment={"structure": line})
        for name, line in told.items()
    ])  # fmt: skip
    report = CliRunner().invoke(report_app, [str(tmp_path), "--out", str(tmp_path / "out")])
    assert report.exit_code == 0, report.output
    assert "; ".join(told.values()) in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
