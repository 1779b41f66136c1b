"""Which two states of the code a range names, and what of them is written out to be measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.commands import app
from benchmarks.harness.regress.commits import BadRange, Code, between
from tests.planted_repo import Planted, commit, git, make


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return make(tmp_path_factory.mktemp("commits") / "repo")


def names(text: str, repo: Path) -> tuple[str, str]:
    return tuple(code.commit for code in between(text, repo))  # type: ignore[return-value]


def test_two_dots_name_two_commits_and_a_side_left_out_is_head(planted: Planted) -> None:
    p = planted
    assert names(f"{p.base}..{p.slow}", p.path) == (p.base, p.slow)
    assert names("HEAD~2..HEAD~1", p.path) == (p.docs, p.slow)
    assert names("HEAD~1..", p.path) == (p.slow, p.heavy)
    assert names(f"..{p.base[:8]}", p.path) == (p.heavy, p.base)
    assert between(f"{p.base}..{p.docs}", p.path)[1].subject == "Say one thing more in README"


def test_three_dots_begin_where_the_branch_left(tmp_path: Path) -> None:
    p = make(tmp_path / "repo")
    git(p.path, "checkout", "--quiet", "-b", "topic", p.docs)
    (p.path / "README.md").write_text("topic\n")
    topic = commit(p.path, "Work on a branch", day=9)
    assert names("main...topic", p.path) == (p.docs, topic)
    assert names("main..topic", p.path) == (p.heavy, topic)
    git(p.path, "checkout", "--quiet", "--orphan", "island")
    commit(p.path, "Begin elsewhere", day=10)
    with pytest.raises(BadRange, match="main and island have no common commit"):
        between("main...island", p.path)


def test_one_name_is_compared_with_the_working_tree_as_it_is(tmp_path: Path) -> None:
    p = make(tmp_path / "repo")
    (p.path / "variants" / "dense.py").write_text("# not committed\n")
    a, b = between("HEAD~1", p.path)
    assert (a.commit, a.dirty, b.commit, b.dirty) == (p.slow, False, p.heavy, True)
    assert b.tree is None
    b.export(tmp_path / "b")
    assert (tmp_path / "b" / "variants" / "dense.py").read_text() == "# not committed\n"


def test_a_commit_is_written_out_as_it_was_and_holds_only_what_is_measured(planted: Planted, tmp_path: Path) -> None:
    base, heavy = between(f"{planted.base}..{planted.heavy}", planted.path)
    base.export(tmp_path / "a")
    heavy.export(tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["pallatom", "variants"]
    a, b = ((tmp_path / side / "variants" / "banded.py").read_text() for side in "ab")
    assert "_attend_heavy" in b
    assert b.startswith(a)
    assert b == (planted.path / "variants" / "banded.py").read_text()


def test_commits_with_the_same_code_are_known_without_measuring(planted: Planted) -> None:
    def trees(text: str) -> list[str | None]:
        return [code.tree for code in between(text, planted.path)]

    first, second = trees(f"{planted.base}..{planted.docs}")
    assert first == second
    assert first
    first, second = trees(f"{planted.docs}..{planted.slow}")
    assert first != second


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no-such-commit..HEAD", "'no-such-commit'"),
        ("HEAD..no-such-commit", "'no-such-commit'"),
        ("HEAD:README.md..HEAD", "'HEAD:README.md'"),  # a file is no commit
        ("--output=/tmp/x", "'--output=/tmp/x'"),
        ("HEAD~1..HEAD..HEAD", "expected A..B"),
        ("HEAD....HEAD", "'.HEAD'"),
        ("a\nb..HEAD", "expected a commit"),
        ("-1..HEAD", "expected A..B"),
        ("..-x", "expected a commit"),
        ("", "expected A..B"),
    ],
)
def test_a_range_that_is_none_is_bad_input(planted: Planted, text: str, says: str) -> None:
    with pytest.raises(BadRange) as refused:
        between(text, planted.path)
    assert says in str(refused.value)


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["regress", *arguments], terminal_width=300)
    assert "Traceback" not in result.output
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing..HEAD"], "RANGE: expected a commit, 'nothing' is none in this repository"),
        (["HEAD~1..HEAD", "--margin", "0"], "--margin: expected a share between 0 and 1, got 0"),
        (["HEAD~1..HEAD", "--margin", "nan"], "--margin: expected a share between 0 and 1, got nan"),
        (["HEAD~1..HEAD", "--budget-s", "0"], "--budget-s"),
        (["HEAD~1..HEAD", "--backend", "./mine.py"], "--backend: expected one of"),
        (["HEAD~1..HEAD", "--backend", "nothing"], "got 'nothing'"),
        (["HEAD~1..HEAD", "--level", "galaxy"], "--level: expected one of attention"),
        (["HEAD~1..HEAD", "--out", "."], "--out"),
        (["HEAD~1..HEAD", "--markdown", "."], "--markdown"),
        ([], "RANGE"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(planted: Planted, arguments: list[str], says: str) -> None:
    code, output = invoke(*arguments, "--repo", str(planted.path), "--device", "cpu", "--threads", "1")
    assert code == 2, output
    assert says in output


def test_a_folder_that_is_no_checkout_is_bad_input(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        code, output = invoke("HEAD~1..HEAD", "--repo", str(folder))
        assert code == 2
        assert "--repo" in output


def test_the_same_code_is_told_at_once_and_a_commit_without_the_packages_too(tmp_path: Path) -> None:
    p = make(tmp_path / "repo")
    table = tmp_path / "deep" / "table.md"
    code, output = invoke(f"{p.base}..{p.docs}", "--repo", str(p.path), "--markdown", str(table))
    assert code == 0
    assert "same code: nothing was measured" in output
    assert "same code: nothing was measured" in table.read_text()
    git(p.path, "rm", "--quiet", "-r", "variants")
    gone = commit(p.path, "Remove what is measured", day=9)
    code, output = invoke(f"{p.base}..{gone}", "--repo", str(p.path))
    assert code == 0
    assert f"Nothing to compare: {gone[:7]} holds no variants/_registry.py" in output


def test_git_itself_may_be_missing(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BadRange, match="git: expected to be installed"):
        Code(planted.path, "x", planted.base, "").missing()


def test_help_tells_a_newcomer_the_range_the_verdicts_and_the_exit_codes() -> None:
    code, output = invoke("--help")
    assert code == 0
    said = " ".join(output.split())
    for word in ("A...B", "working tree", "unresolved", "Exit code 1 exactly", "--markdown", "--budget-s", "lean"):
        assert word in said, word


def test_a_failure_of_the_command_itself_does_not_pass_for_a_regression(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CI that stops at exit code 1 must be able to rely on what it means."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("benchmarks.commands.regress.between", fail)
    result = CliRunner().invoke(app, ["regress", "HEAD~1..HEAD", "--repo", str(planted.path)])
    assert result.exit_code == 3
    assert "ZeroDivisionError: planted" in result.output
