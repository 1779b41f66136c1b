"""From a record to its cell: the command that it holds, and its key, lead back to the very same problem."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from benchmarks.commands import app, check
from benchmarks.commands import options as opt
from benchmarks.commands import sweep as command_line
from benchmarks.harness import levels
from benchmarks.harness.cases import problems, registry
from benchmarks.harness.schema.axes import ATOM_SETS, AXES, DTYPES, LARGEST, MODES, WINDOW_STYLES
from benchmarks.harness.schema.record import Record, append
from benchmarks.harness.sweep import again
from benchmarks.harness.sweep import sweep as harness
from benchmarks.harness.worker.options import Options
from benchmarks.harness.workload import workloads
from tests import records_factory as made

STRUCTURE = "it's my $HOME, `mine`; (1).fasta"
BACKEND = "my own; backend, 2.py"
OPTIONS = harness.as_asked(Options())


class Asked(Exception):
    """What a command would have measured."""

    def __init__(self, groups: list[problems.Group], settings: harness.Settings, host: harness.Host) -> None:
        super().__init__("measured")
        self.groups, self.settings, self.threads = groups, settings, host.threads


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the user's own files lie; every command is run there, and measures nothing."""
    folder = tmp_path_factory.mktemp("again")
    (folder / STRUCTURE).write_text(">one\nMKVLAAGIVGLLLAQWERTY\n")
    (folder / BACKEND).write_text("BACKEND = None\n")

    def caught(groups: list, settings: harness.Settings, host: harness.Host, **how: Any) -> None:
        raise Asked(groups, settings, host)

    class Caught(harness.Sweep):
        def __init__(self, groups: list, settings: harness.Settings, live: Any, host: harness.Host) -> None:
            raise Asked(groups, settings, host)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(command_line, "run", caught)
        patch.setattr(check.harness, "Sweep", Caught)
        patch.setattr(opt, "one_device", lambda asked, host: asked)
        yield folder


def asked_by(words: list[str]) -> Asked:
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, Asked), result.output
    return result.exception


@st.composite
def any_axes(draw: st.DrawFn) -> problems.Axes:
    level = draw(st.sampled_from(levels.names()))
    own_index = levels.level_of(level).builds_index
    heads = draw(st.sampled_from([1, 2, 4, 8]))
    source = draw(st.sampled_from([None, None, "ubiquitin", STRUCTURE]))
    number = st.integers(1, 9)
    return problems.Axes(
        level=level,
        mode=draw(st.sampled_from(MODES)),
        device=draw(st.sampled_from(["cpu", "cuda"])),
        dtype=draw(st.sampled_from(DTYPES)),
        workload=source,
        n_atom=draw(st.integers(1, 300)) if source is None else None,
        atoms=draw(st.sampled_from(ATOM_SETS)),
        window=draw(st.integers(1, 80)),
        window_style="residues" if own_index else draw(st.sampled_from(WINDOW_STYLES)),
        k_cap=None if own_index else draw(st.none() | st.integers(1, 300)),
        heads=heads,
        batch=draw(number),
        n_blocks=draw(number),
        c_atom=heads * draw(st.sampled_from([1, 16, 32])),
        c_atompair=draw(number),
        c_token=draw(number),
        c_pair=draw(number),
        seed=draw(st.integers(0, LARGEST)),
    )


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    axes=any_axes(), backend=st.sampled_from(["banded", "gather", BACKEND]), threads=st.none() | st.integers(1, 64),
    budget_s=st.sampled_from([0.1, 2.0, 10.0, 12.5]), speed=st.booleans(), oversized=st.booleans(),
    pairs=st.integers(1, 1 << 40),
)  # fmt: skip
def test_the_command_of_a_record_asks_for_the_same_cell(
    folder: Path, axes: problems.Axes, backend: str, threads: int | None, budget_s: float, speed: bool, oversized: bool,
    pairs: int,
) -> None:  # fmt: skip
    problem, _ = problems.resolve(axes)
    asked = Options(budget_s=budget_s, speed=speed, gate_pairs=pairs, try_oversized=oversized and speed)
    (spec,) = levels.level_of(problem.level).backends((backend,))
    text = again.command(problem, str(folder / spec), harness.as_asked(asked), threads)
    words = shlex.split(text)
    assert words[:3] == ["python", "-m", "benchmarks"]
    assert str(folder) not in text
    found = asked_by(words[3:])
    (group,) = found.groups
    assert group.problem == problem
    assert [registry.name_of(one) for one in group.backends] == [registry.name_of(spec)]
    assert found.threads == threads
    assert found.settings.options.speed == speed
    assert found.settings.options.gate_pairs == pairs
    assert not speed or harness.as_asked(found.settings.options) == harness.as_asked(asked)
    assert not speed or (found.settings.fresh and found.settings.out == Path(again.OUT))
    assert problems.resolve(again.recall(problem))[0] == problem


def record_of(axes: problems.Axes, backend: str = "banded", **where: Any) -> Record:
    problem, _ = problems.resolve(axes)
    cell = made.cell(made.CPU, "banded", problem, group="g", **where)
    return cell.model_copy(update={"backend": backend})


@pytest.mark.parametrize("source", [None, "ubiquitin", STRUCTURE])
@pytest.mark.parametrize("backend", ["banded", registry.name_of(BACKEND)])
def test_a_key_and_its_file_are_enough(folder: Path, source: str | None, backend: str) -> None:
    axes = problems.Axes(workload=source, n_atom=None if source else 77, window=9, k_cap=5, seed=3, c_token=8)
    options = harness.as_asked(Options(budget_s=3.5, gate_pairs=99))
    kept = record_of(axes, backend, options=options, environment={"threads": 3})
    path = folder / f"odd @ name {source is None}.jsonl"
    append(path, [record_of(replace(axes, seed=1)), kept])
    found = asked_by(["sweep", "--again", f"{kept.key}@{path}", "--out", "other.jsonl"])
    (group,) = found.groups
    assert group.problem == kept.problem
    assert [registry.name_of(one) for one in group.backends] == [backend]
    assert (found.threads, found.settings.seed, found.settings.fresh) == (3, 3, True)
    assert harness.as_asked(found.settings.options) == options
    assert found.settings.out == Path("other.jsonl")
    other = asked_by(
        ["sweep", "--again", f"{kept.key}@{path}", "--threads", "5", "--group-budget-s", "9", "--out", "o.jsonl"]
    )
    assert (other.threads, other.settings.options.budget_s, other.settings.options.gate_pairs) == (5, 9.0, 99)


def test_a_record_from_before_there_were_options_is_measured_as_is_usual(folder: Path) -> None:
    kept = record_of(problems.Axes(n_atom=50), environment={})
    append(folder / "old.jsonl", [kept])
    found = asked_by(["sweep", "--again", f"{kept.key}@old.jsonl"])
    assert found.threads is None
    assert found.settings.options == Options()


def test_files_of_the_users_own_are_found_where_they_are_said_to_be(folder: Path, tmp_path: Path) -> None:
    kept = record_of(problems.Axes(workload=STRUCTURE), registry.name_of(BACKEND))
    append(tmp_path / "r.jsonl", [kept])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        problems.workload_of.cache_clear()  # of files by their names: a process stays in one folder else
        call = ["sweep", "--again", f"{kept.key}@r.jsonl"]
        missing = CliRunner().invoke(app, call)
        assert missing.exit_code == 2
        assert BACKEND in missing.output
        call += ["-b", str(folder / BACKEND)]
        missing = CliRunner().invoke(app, call)
        assert missing.exit_code == 2
        assert STRUCTURE in missing.output
        found = asked_by([*call, "--structure", str(folder / STRUCTURE)])
    assert found.groups[0].backends == (str(folder / BACKEND),)
    assert found.groups[0].problem == kept.problem


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["nonsense"], ["--again", "BACKEND@PROBLEM@FILE", "'nonsense'"]),
        (["banded@0123456789abcdef@absent.jsonl"], ["--again", "absent.jsonl"]),
        (["banded@0123456789abcdef@one.jsonl"], ["--again", "one.jsonl", "banded@0123456789abcdef"]),
        (["KEY@one.jsonl", "-n", "64"], ["--again", "--n-atom"]),
        (["KEY@one.jsonl", "--seed", "4"], ["--again", "--seed"]),
        (["KEY@moved.jsonl"], ["--again", "live_pairs 1 → ", "another problem"]),
        (["KEY@odd.jsonl"], ["--again", "budget_s", "'long'"]),
    ],
)
def test_what_leads_back_to_no_cell_is_one_line(folder: Path, words: list[str], names: list[str]) -> None:
    kept = record_of(problems.Axes(n_atom=64))
    moved = kept.model_copy(update={"problem": kept.problem.model_copy(update={"live_pairs": 1})})
    odd = record_of(problems.Axes(n_atom=64), options={"budget_s": "long"})
    for name, record in (("one", kept), ("moved", moved), ("odd", odd)):
        (folder / f"{name}.jsonl").unlink(missing_ok=True)
        append(folder / f"{name}.jsonl", [record])
    key = (moved if "moved" in words[0] else kept).key
    result = CliRunner().invoke(app, ["sweep", "--again", words[0].replace("KEY", key), *words[1:]])
    assert result.exit_code == 2, result.output
    assert len(result.output.strip().splitlines()) == 1
    assert all(name in result.output for name in names), result.output


def test_a_file_whose_name_is_no_text_is_refused(folder: Path) -> None:
    """Its record could not be written down."""
    for name, option in (("bytes \udcff.py", "--backend"), ("bytes \udcff.fasta", "--structure")):
        (folder / name).write_text(">one\nMKVL\n")
        result = CliRunner().invoke(app, ["sweep", "--device", "cpu", option, name])
        assert result.exit_code == 2, result.output
        assert f"{option}: expected a file whose name is UTF-8" in result.output
        (folder / name).unlink()


def test_every_named_protein_is_reached_by_its_name() -> None:
    for name in workloads.names()[:2]:
        problem, _ = problems.resolve(problems.Axes(workload=name, atoms="backbone", window=4))
        assert f"--workload {name}" in again.command(problem, "gather", OPTIONS)
    assert {axis.name for axis in AXES} == set(asdict(problems.Axes()))


def test_numbers_that_no_problem_can_have_are_named(folder: Path) -> None:
    far, farther = str(2**31 - 1), str(10**30)
    for words in (
        ["--seed", "-1"], ["--seed", farther], ["--window", farther], ["--c-token", "0"], ["--n-blocks", "0"],
        ["--batch", far, "--n-atom", "99999", "--window", "99999"],
    ):  # fmt: skip
        result = CliRunner().invoke(app, ["sweep", "-n", "64", "--device", "cpu", *words])
        assert result.exit_code == 2, result.output
        assert words[0] in result.output or "can be counted" in result.output
        assert "Traceback" not in result.output
