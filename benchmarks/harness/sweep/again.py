"""From a record to its cell: the command that measures it once more, and the axes that it was resolved from.

The command is for any machine: it names no folder. A file of the user's own, a structure or a backend, is named by its
base name, so that the command runs beside it. Free of torch.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cases.problems import Axes, BadAxis, resolve
from ..levels import sole_backends
from ..schema.axes import AXES, SYNTHETIC, axis
from ..schema.problem import Problem
from ..schema.record import Record, read
from ..workload import files, workloads

OUT = "again.jsonl"  # of its own: what is on file elsewhere stays the newest there until it is looked at
_KEY_AT_FILE = re.compile(r"(?P<key>.+?@[0-9a-f]{16})@(?P<file>.+)", re.DOTALL)


def command(problem: Problem, backend: str, options: dict[str, Any], threads: object = None) -> str:
    """``python -m benchmarks sweep --backend banded …``, quoted for a shell; ``check`` for what was only gated.

    ``backend`` is a name or the path of a file, ``options`` as a record keeps them.
    """
    name = Path(backend).name
    words = [*([] if name in sole_backends() else ["--backend", name]), *axes_words(problem)]
    words += ["--threads", str(threads)] if isinstance(threads, int) else []
    words += ["--pairs", str(options["gate_pairs"])]
    if not options["speed"]:
        return shlex.join(["python", "-m", "benchmarks", "check", *words])
    words += ["--group-budget-s", f"{options['budget_s']:g}"]
    words += ["--try-oversized"] if options["try_oversized"] else []
    return shlex.join(["python", "-m", "benchmarks", "sweep", *words, "--fresh", "--out", OUT])


def axes_words(problem: Problem) -> list[str]:
    """A problem as options of the command line: every axis that a default could decide, and widths that differ."""
    words: list[str] = []
    for one in AXES:
        value, flag = getattr(problem, one.name), one.flags[0]
        if one.name == "workload":
            if value == SYNTHETIC:
                flag, value = axis("n_atom").flags[0], problem.n_atom
            else:
                flag = "--workload" if value in workloads.names() else "--structure"
        elif (
            one.name == "n_atom"
            or value is None
            or problem.level not in one.levels
            or (one.rare and value == one.default)
        ):
            continue
        words += [flag, str(value)]
    return words


def find(text: str) -> Record:
    """The newest record of a cell, by ``KEY@FILE``, its key being ``backend@problem``.

    Raises
    ------
    BadAxis, MalformedRecord
    """
    match = _KEY_AT_FILE.fullmatch(text)
    if match is None:
        example = "banded@0123456789abcdef@out/records.jsonl"
        raise BadAxis(f"--again: expected BACKEND@PROBLEM@FILE, e.g. {example}; got {text!r}")
    key, path = match["key"], Path(match["file"])
    if not path.is_file():
        raise BadAxis(f"--again: expected a file of records, {path} is none")
    found = None
    for record in read(path):
        found = record if record.key == key else found
    if found is None:
        raise BadAxis(f"--again: {path} holds no record of {key}")
    return found


def recall(problem: Problem, structures: Sequence[str] = ()) -> Axes:
    """The axes that this problem came from; its structure is looked for among ``structures``, by name, and else
    here.

    Raises
    ------
    BadAxis, workloads.WorkloadError
        Its structure is not there, or the code of now makes another problem of these axes.
    """
    p = problem
    source = None if p.workload == SYNTHETIC else p.workload
    if source is not None and source not in workloads.names():
        source = next((path for path in structures if files.bears(path, source)), source)
    asked: dict[str, Any] = {a.name: getattr(p, a.name) for a in AXES if p.level in a.levels}
    axes = Axes(**asked | {"workload": source, "n_atom": p.n_atom if source is None else None})
    now, _ = resolve(axes)
    if source is not None and files.bears(source, p.workload):
        now = now.model_copy(update={"workload": p.workload})
    if now != p:
        differing = [f"{name} {getattr(p, name)} → {getattr(now, name)}" for name in Problem.model_fields
                     if getattr(p, name) != getattr(now, name)]  # fmt: skip
        raise BadAxis(f"--again: the same axes make another problem now: {', '.join(differing)}")
    return axes
