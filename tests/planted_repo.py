"""A small git repository made of this project's own sources, with known faults planted in it.

Its history is a straight line: ``base``; ``docs`` (a README line, no code); ``slow`` (``banded`` does honest extra
work); ``heavy`` (``banded`` holds a second working memory during its call, on top of ``slow``). Whoever looks for
regressions must name the last two and no other.

With ``benchmarks`` among its files, it can measure itself with a clock that no other process disturbs: see
:func:`count_work`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests import ROOT

BUILD = ("pallatom", "variants", "pyproject.toml", "README.md", "LICENSE", ".gitignore")
_IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", ".asv")
_FIRST_DAY = 1_760_000_000  # commits a day apart: tools that order by date see the history's order

# Appended to a backend's file rather than patched into it, so that the backend may change as it likes.
# The work is real: whole calls more, and one more over the first atoms. They keep nothing; where a gradient is taken,
# there are nearly twice as many for the backward pass that they leave out.
_SLOW = """

from pallatom.architecture._remember import remembered as _remembered

_attend_once = BandedBlock._attend


@eager
def _attend_more(self, Q, K, V, p, neighbor_idx, valid_mask):
    out = _attend_once(self, Q, K, V, p, neighbor_idx, valid_mask)
    more = {more} * (1.9 if torch.is_grad_enabled() else 1)
    with torch.no_grad():
        for _ in range(int(more)):
            _attend_once(self, Q, K, V, p, neighbor_idx, valid_mask)
        n = int(Q.shape[1] * (more % 1))
        if n:
            idx, mask = _first_atoms(neighbor_idx, valid_mask, n)
            _attend_once(self, Q[:, :n], K[:, :n], V[:, :n], p[:, :n], idx, mask)
    return out


@_remembered
def _first_atoms(neighbor_idx, valid_mask, n):
    idx = neighbor_idx[:n]
    mask = valid_mask[..., :n, :] & (idx < n)
    return idx.masked_fill(~mask.reshape(-1, *idx.shape)[0], 0), mask


BandedBlock._attend = _attend_more
"""

_HEAVY = """

_attend_lean = BandedBlock._attend


@eager
def _attend_heavy(self, Q, K, V, p, neighbor_idx, valid_mask):
    call = Q, K, V, p, neighbor_idx, valid_mask
    held = torch.empty(int({more} * _peak_bytes(self, *call)), dtype=torch.uint8, device=Q.device)
    out = _attend_lean(self, *call)
    if out.requires_grad:
        out.grad_fn.metadata["held"] = held  # as long as the graph that autograd keeps
    return out


_peaks = {{}}


def _peak_bytes(self, *call):
    Q, K, V, p, neighbor_idx, valid_mask = call
    mode = "fwdbwd" if torch.is_grad_enabled() else "fwd"
    key = mode, Q.shape, neighbor_idx.shape, Q.dtype, p.dtype, Q.device.type
    if key not in _peaks:
        sizes = Q.shape[0], Q.shape[1], neighbor_idx.shape[-1], Q.shape[2], Q.shape[3], p.shape[-1]
        shape = Shape(*sizes, int(valid_mask.sum()), Q.itemsize, p.itemsize, Q.device.type)
        measured = mode == "fwd" and Q.device.type == "cpu"
        _peaks[key] = _allocated(lambda: _attend_lean(self, *call)) if measured else cost(shape, mode).peak_bytes
    return _peaks[key]


def _allocated(call):
    call()  # what it makes once and keeps is made here
    with torch.autograd.profiler.profile(profile_memory=True) as seen:
        out = call()
    events = [e for e in seen.kineto_results.events() if e.name() == "[memory]"]
    del out
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


BandedBlock._attend = _attend_heavy
"""

# Appended to the harness's clock. ``empty`` makes memory, no numbers: the heavy commit is no slower.
_COUNTED = """

class _Work:
    _count = None

    def __call__(self) -> float:
        if self._count is None:
            from torch.utils._python_dispatch import TorchDispatchMode
            from torch.utils._pytree import tree_leaves

            class Count(TorchDispatchMode):
                made = 0

                def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                    out = func(*args, **(kwargs or {}))
                    if not func.__name__.startswith("empty"):
                        self.made += sum(x.numel() for x in tree_leaves(out) if hasattr(x, "numel"))
                    return out

            self._count = Count()
            self._count.__enter__()
        return self._count.made * 2.0**-30


_timers = CpuClock.__init__.__kwdefaults__
_timers.update({name: _Work() for name, default in _timers.items() if callable(default)})
"""


@dataclass(frozen=True)
class Planted:
    """The repository and the full hashes of its commits, oldest first."""

    path: Path
    base: str
    docs: str
    slow: str
    heavy: str

    @property
    def commits(self) -> tuple[str, ...]:
        return self.base, self.docs, self.slow, self.heavy


def make(folder: Path, *, slowdown: float = 1.5, memory: float = 2.0, also: Iterable[str] = ()) -> Planted:
    """Make the repository in ``folder`` (new), ``main`` checked out at ``heavy``, nothing uncommitted.

    ``slowdown``: how many times the work ``banded`` does from ``slow`` on; ``memory``: how many times its peak above
    the inputs from ``heavy`` on, both of the attention itself. ``also``: further files and folders of the project, by
    their path, that are part of the first commit (``asv.conf.json``, ``benchmarks``).
    """
    if slowdown < 1 or memory < 1:
        raise ValueError(f"slowdown, memory: expected factors of at least 1, got {slowdown} and {memory}")
    folder.mkdir(parents=True)
    for name in (*BUILD, *also):
        _copy(name, folder)
    git(folder, "init", "--quiet", "--initial-branch=main")
    base = commit(folder, "Begin", day=0)
    _append(folder / "README.md", "\nA sentence that no machine runs.\n")
    docs = commit(folder, "Say one thing more in README", day=1)
    _append(folder / "variants" / "banded.py", _SLOW.format(more=slowdown - 1))
    slow = commit(folder, "Let banded do more work than it needs", day=2)
    _append(folder / "variants" / "banded.py", _HEAVY.format(more=memory - 1))
    heavy = commit(folder, "Let banded hold more memory than it needs", day=3)
    return Planted(folder, base, docs, slow, heavy)


def count_work(folder: Path) -> None:
    """Let the harness in ``folder`` take for time what torch's operations make: about a nanosecond for each number.

    The rest of it is as it is. What takes longer by this clock does more work, the same whoever else is busy.
    """
    _append(folder / "benchmarks" / "harness" / "ruler" / "clock.py", _COUNTED)


def commit(folder: Path, message: str, *, day: int) -> str:
    """Commit everything in ``folder``, dated ``day`` days after the first; returns the full hash."""
    git(folder, "add", "--all")
    date = f"{_FIRST_DAY + day * 86_400} +0000"
    git(folder, "commit", "--quiet", "--message", message, dates=date)
    return git(folder, "rev-parse", "HEAD")


def git(folder: Path, *command: str, dates: str | None = None) -> str:
    """Run git free of the user's own configuration, hooks and of any repository around."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    env |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    for who in ("AUTHOR", "COMMITTER"):
        env |= {f"GIT_{who}_NAME": "A Tester", f"GIT_{who}_EMAIL": "tester@example.org"}
        if dates is not None:
            env[f"GIT_{who}_DATE"] = dates
    done = subprocess.run(["git", *command], cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"git {' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


def _copy(name: str, folder: Path) -> None:
    source, target = ROOT / name, folder / name
    if source.is_dir():
        shutil.copytree(source, target, ignore=_IGNORED)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def _append(path: Path, text: str) -> None:
    assert path.is_file(), path
    with open(path, "a", encoding="utf-8") as f:
        f.write(text)
