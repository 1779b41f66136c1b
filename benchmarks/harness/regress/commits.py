"""Two states of the code, by git: which commits a range names, and their packages on disk.

Only what is measured is taken from a commit (``pallatom`` and ``variants``); the ruler is always today's.
Free of torch.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from ..worker.process import ROOT

PACKAGES = ("pallatom", "variants")
_LONGEST_S = 60.0


class BadRange(ValueError):
    """A range that names no two states of the code; says what was expected and what came."""


@dataclass(frozen=True)
class Code:
    """One state of the code. ``commit`` is the full hash; ``dirty``: the working tree on top of it."""

    repo: Path
    name: str
    commit: str
    subject: str
    dirty: bool = False

    @property
    def short(self) -> str:
        return self.commit[:7] + ("+changes" if self.dirty else "")

    @property
    def tree(self) -> str | None:
        """Equal for equal code, in whatever commit; None for a working tree, which may change at any time."""
        if self.dirty:
            return None
        return " ".join(_git(self.repo, "rev-parse", "--verify", "--quiet", f"{self.commit}:{p}") for p in PACKAGES)

    def missing(self) -> str | None:
        """Why this state holds nothing that could be measured; None if it does."""
        wanted = ("pallatom/__init__.py", "variants/_registry.py")
        if self.dirty:
            absent = [path for path in wanted if not (self.repo / path).is_file()]
        else:
            found = _git(self.repo, "ls-tree", "-r", "--name-only", self.commit, "--", *wanted).splitlines()
            absent = [path for path in wanted if path not in found]
        return f"{self.short} holds no {', '.join(absent)}" if absent else None

    def backends(self) -> set[str]:
        """By name: a file of ``variants`` without a leading underscore is one."""
        if self.dirty:
            files = [path.name for path in (self.repo / "variants").glob("*.py")]
        else:
            listed = _git(self.repo, "ls-tree", "--name-only", f"{self.commit}:variants").splitlines()
            files = [name for name in listed if name.endswith(".py")]
        return {name.removesuffix(".py") for name in files if not name.startswith("_")}

    def export(self, folder: Path) -> None:
        """Write the packages into ``folder``, which is part of no checkout."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.dirty:
            for package in PACKAGES:
                shutil.copytree(
                    self.repo / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
                )
            return
        command = ["git", "-C", str(self.repo), "archive", "--format=tar", self.commit, "--", *PACKAGES]
        done = subprocess.run(command, capture_output=True, timeout=_LONGEST_S, check=False)
        if done.returncode:
            raise BadRange(f"{self.name}: {done.stderr.decode(errors='replace').strip()}")
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            archive.extractall(folder, filter="data")


def between(text: str, repo: Path = ROOT) -> tuple[Code, Code]:
    """The two states that a range names, as git does: ``A..B``; ``A...B``, from where B left A on; ``A`` alone, from A
    to the working tree. A side left out is HEAD.

    Raises
    ------
    BadRange
    """
    if not repo.is_dir():
        raise BadRange(f"--repo: expected a folder, {repo} is none")
    top = Path(_git(repo, "rev-parse", "--show-toplevel", told=f"--repo: expected a git checkout, {repo} is none"))
    if text.startswith("-") or not text.strip():
        raise BadRange(f"RANGE: expected A..B, A...B or A, got {text!r}")
    dots = "..." if "..." in text else ".."
    first, found, second = text.partition(dots)
    if not found:
        return _commit(top, first), _working_tree(top)
    if ".." in second:
        raise BadRange(f"RANGE: expected A..B, A...B or A, got {text!r}")
    a, b = _commit(top, first or "HEAD"), _commit(top, second or "HEAD")
    if dots == "...":
        forked = f"RANGE: {a.name} and {b.name} have no common commit (a shallow clone?)"
        a = _commit(top, _git(top, "merge-base", a.commit, b.commit, told=forked))
    return a, b


def _commit(repo: Path, name: str) -> Code:
    told = f"RANGE: expected a commit, {name!r} is none in this repository"
    full = _git(repo, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}", told=told)
    return Code(repo, name, full, _subject(repo, full))


def _working_tree(repo: Path) -> Code:
    head = _commit(repo, "HEAD")
    return Code(repo, "the working tree", head.commit, f"changes since: {head.subject}", dirty=True)


def _subject(repo: Path, commit: str) -> str:
    return _git(repo, "log", "-1", "--format=%s", commit)


def _git(repo: Path, *command: str, told: str | None = None) -> str:
    """One answer of git. ``told`` is what the user reads if it fails; without one, failure is an empty answer."""
    try:
        done = subprocess.run(
            ["git", "-C", str(repo), *command], capture_output=True, text=True, timeout=_LONGEST_S, check=False
        )
    except OSError as e:
        raise BadRange(f"git: expected to be installed, got {e.strerror or e}") from None
    if done.returncode and told is not None:
        detail = done.stderr.strip().splitlines()
        raise BadRange(told + (f" ({detail[-1]})" if detail else ""))
    return done.stdout.strip() if not done.returncode else ""
