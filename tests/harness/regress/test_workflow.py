"""The example workflow: its commands exist and run, its actions are pinned, no token that writes meets foreign code."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks.commands import app
from benchmarks.commands.regress_table import MARKER
from tests import ROOT

yaml = pytest.importorskip("yaml")
FILE = ROOT / ".github" / "workflows" / "regress.yml"


@pytest.fixture(scope="module")
def workflow() -> dict[Any, Any]:
    return yaml.safe_load(FILE.read_text())


def steps(workflow: dict[Any, Any], job: str) -> list[dict[str, Any]]:
    return workflow["jobs"][job]["steps"]


def script(workflow: dict[Any, Any], job: str, word: str) -> str:
    (found,) = [step["run"] for step in steps(workflow, job) if word in step.get("run", "")]
    return found


def test_it_runs_on_pull_requests_with_the_least_permissions(workflow: dict[Any, Any]) -> None:
    assert set(workflow[True]) == {"pull_request"}  # YAML reads "on" as true; never pull_request_target
    assert workflow["permissions"] == {}
    assert {name: job["permissions"] for name, job in workflow["jobs"].items()} == {
        "measure": {"contents": "read"},
        "comment": {"pull-requests": "write"},
    }
    assert all(job["timeout-minutes"] <= 30 for job in workflow["jobs"].values())


def test_the_job_that_may_write_runs_nothing_of_the_pull_request(workflow: dict[Any, Any]) -> None:
    comment = workflow["jobs"]["comment"]
    assert "github.event.pull_request.head.repo.full_name == github.repository" in comment["if"]
    assert not any("checkout" in step.get("uses", "") for step in comment["steps"])
    assert not any("python" in step.get("run", "") for step in comment["steps"])
    checkout = next(step for step in steps(workflow, "measure") if "checkout" in step.get("uses", ""))
    assert checkout["with"]["persist-credentials"] is False
    assert checkout["with"]["fetch-depth"] == 0


def test_every_action_is_pinned_to_a_commit_and_says_its_version() -> None:
    used = re.findall(r"uses: (.*)", FILE.read_text())
    assert len(used) >= 4
    for line in used:
        assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_no_text_of_the_event_is_pasted_into_a_script(workflow: dict[Any, Any]) -> None:
    """A branch may be called ``$(rm -rf .)``: what comes from the event goes through the environment."""
    scripts = [step["run"] for job in workflow["jobs"] for step in steps(workflow, job) if "run" in step]
    assert len(scripts) >= 4
    assert not any("${{" in text for text in scripts)


def test_the_command_exists_with_these_options(workflow: dict[Any, Any]) -> None:
    words = shlex.split(script(workflow, "measure", "benchmarks regress"))
    assert words[:4] == ["python", "-m", "benchmarks", "regress"]
    command = typer.main.get_command(app).commands["regress"]  # type: ignore[attr-defined]
    with command.make_context("regress", words[4:]) as context:
        assert context.params["commits"] == "$BASE...$HEAD"
        assert context.params["markdown"] == Path("out/regress.md")
        assert context.params["budget_s"] >= 120
    kept = next(step for step in steps(workflow, "measure") if "upload-artifact" in step.get("uses", ""))
    assert str(context.params["markdown"]) in kept["with"]["path"].split()
    assert str(context.params["out"]) in kept["with"]["path"].split()


def test_what_it_installs_is_in_the_project(workflow: dict[Any, Any]) -> None:
    words = shlex.split(script(workflow, "measure", "pip install"))
    assert (ROOT / words[words.index("--constraint") + 1]).is_file()
    (extra,) = re.findall(r"\.\[(\w+)\]", " ".join(words))
    assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


def bash(text: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """As the runner does it: ``bash -e``."""
    return subprocess.run(
        ["bash", "-e", "-c", text],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(stat.S_IRWXU)


def test_its_scripts_run_and_the_table_gets_into_the_summary(workflow: dict[Any, Any], tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("these sources are no git checkout")
    program(tmp_path / "bin", "python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    path = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    summary = tmp_path / "summary"
    measure, show = (script(workflow, "measure", word) for word in ("benchmarks regress", "GITHUB_STEP_SUMMARY"))
    done = bash(measure, tmp_path, BASE="HEAD", HEAD="HEAD", **path)
    assert done.returncode == 0, done.stderr
    assert bash(show, tmp_path, GITHUB_STEP_SUMMARY=str(summary)).returncode == 0
    assert summary.read_text().startswith(MARKER)
    failed = bash(measure, tmp_path, BASE="no-such-commit", HEAD="HEAD", **path)
    assert failed.returncode == 2


@pytest.mark.parametrize(("known", "expected"), [("", "--method POST r/issues/7/comments"),
                                                 ("41\n42", "--method PATCH r/issues/comments/41")])  # fmt: skip
def test_it_writes_one_comment_and_then_updates_it(
    workflow: dict[Any, Any], tmp_path: Path, known: str, expected: str
) -> None:
    log = tmp_path / "log"
    program(
        tmp_path / "bin", "gh", f'#!/bin/sh\necho "$@" >> {log}\ncase "$*" in *--paginate*) printf "{known}";; esac\n'
    )
    text = script(workflow, "comment", "gh api")
    env = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "COMMENTS": "r/issues", "NUMBER": "7"}
    assert bash(text, tmp_path, **env).returncode == 0
    assert not log.exists()  # nothing was measured: nothing to write
    (tmp_path / "regress.md").write_text(f"{MARKER}\n")
    done = bash(text, tmp_path, **env)
    assert done.returncode == 0, done.stderr
    asked, written = log.read_text().splitlines()
    assert f'startswith("{MARKER}")' in asked
    assert expected in written
    assert "body=@regress.md" in written
