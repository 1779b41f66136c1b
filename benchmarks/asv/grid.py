"""The grid that asv measures: the same lists of parameters on every machine, and which of its cells are asked for.

``BENCH_CELLS`` says which: nothing or ``default``, a fixed subset drawn once with a seed; ``all``, the whole grid; or
either of them narrowed, ``all level=block backend=banded,dense n_atom=2048``. A single cell names every axis.

Free of everything but the standard library: asv starts a process per number.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import random
import subprocess
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

from ..harness.levels import level_of, names
from ..harness.schema.axes import axis
from ..harness.schema.cells import ROWS, Cell, value_of

ROOT = Path(__file__).resolve().parents[2]
DEVICES = list(axis("device").choices)
CELLS, SELECTED, DEVICE = "BENCH_CELLS", "BENCH_SELECTED", "BENCH_DEVICE"
KERNELS = "kernels"  # the level of what the compiler makes, which has axes of its own
SEED = 20261122


class BadCells(ValueError):
    """``BENCH_CELLS`` cannot be read: says which word, what was expected, what came."""


@functools.cache
def backends() -> tuple[str, ...]:
    """Every backend of this working tree, whatever the commit under test has: the axis must not change with it."""
    return tuple(sorted(f.stem for f in (ROOT / "variants").glob("*.py") if not f.stem.startswith("_")))


@functools.cache
def declared(backend: str) -> frozenset[str]:
    """What the declaration that ends a backend's file sets to True, read from its text: nothing is imported, torch
    least."""
    for node in ast.parse((ROOT / "variants" / f"{backend}.py").read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="BACKEND")], value=ast.Call(keywords=said)):
                true = (k for k in said if isinstance(k.value, ast.Constant) and k.value.value is True)
                return frozenset(k.arg for k in true if k.arg)
    return frozenset()


# The problem that the default subset turns about.
_PIVOT = {a.parameter: value_of(a.default) for a in ROWS}
_LEVELS = {name: found for name in names() if (found := level_of(name).asv) is not None}
GRIDS: dict[str, dict[str, list[Any]]] = {
    name: {"device": DEVICES, "backend": list(backends())}
    | {a.parameter: [value_of(v) for v in a.asv] for a in ROWS}
    | dict(level.lists)
    for name, level in _LEVELS.items()
} | {KERNELS: {"kernel": ["forward", "backward"], "arch": [80, 90], "dtype": ["float32", "bfloat16"]}}

# The default subset, by device: every problem that a level names, and so many drawn from the rest up to a size. The
# layer itself and the backends of one problem are interleaved, so a problem brings all of its backends.
_LARGEST = {"cpu": 512, "cuda": 16384}


def params(level: str) -> list[list[Any]]:
    """asv's ``params`` of a suite."""
    return list(GRIDS[level].values())


def cells(level: str) -> list[Cell]:
    """Every cell of a level's grid, in asv's order."""
    return list(product(*params(level)))


def default(level: str, devices: Iterable[str]) -> list[Cell]:
    """The fixed subset: it depends on nothing but the seed and the device."""
    grid = GRIDS[level]
    if level == KERNELS:
        return [(kernel, 90, "bfloat16") for kernel in grid["kernel"]]
    chosen: list[Cell] = []
    for device in devices:
        problems = [_PIVOT | dict(pivot) for pivot in _LEVELS[level].pivots[device]]
        drawn = [[_PIVOT[a.parameter]] if a.added else grid[a.parameter] for a in ROWS]  # so that a draw stands
        rest = [dict(zip(_PIVOT, values)) for values in product(*drawn)]
        rest = [one for one in rest if one["n_atom"] <= _LARGEST[device] and one not in problems]
        problems += random.Random(f"{SEED} {device} {level}").sample(rest, _LEVELS[level].drawn.get(device, 0))
        measured = [b for b in grid["backend"] if _fits_default(level, b)]
        chosen += [(device, b, *problem.values()) for problem in problems for b in measured]
    return chosen


def _fits_default(level: str, backend: str) -> bool:
    """Compiling for every shape takes some longer than a whole commit may. Above the seam backends differ by less and
    cost more: those that the seam finds slow are left out there."""
    said = declared(backend) if backend in backends() else frozenset()
    return "compiles" not in said if _LEVELS[level].every_backend else "everyday" in said


def wanted(level: str, text: str | None = None, devices: Iterable[str] | None = None) -> list[Cell]:
    """The cells of a level that ``BENCH_CELLS`` (or ``text``) asks for.

    Raises
    ------
    BadCells
    """
    words = (os.environ.get(CELLS, "") if text is None else text).split()
    whole = "default"
    if words and words[0] in ("default", "all"):
        whole = words.pop(0)
    elif words:
        whole = "all"
    asked = dict(_filter(word) for word in words)
    if level not in asked.pop("level", (level,)):
        return []
    if whole == "all":
        found = cells(level)
    else:
        found = default(level, asked.get("device") or (present() if devices is None else devices))
    axes = list(GRIDS[level])
    if any(axis not in axes for axis in asked):
        return []
    return [cell for cell in found if all(str(cell[axes.index(a)]) in values for a, values in asked.items())]


def _filter(word: str) -> tuple[str, tuple[str, ...]]:
    axis, equals, values = word.partition("=")
    known: dict[str, set[str]] = {"level": set(GRIDS)}
    for grid in GRIDS.values():
        for name, listed in grid.items():
            known.setdefault(name, set()).update(map(str, listed))
    if axis not in known or not equals:
        raise BadCells(
            f"{CELLS}: expected default, all, or AXIS=VALUE,… with an axis out of {', '.join(known)}; got {word!r}"
        )
    asked = tuple(values.split(","))
    for value in asked:
        if value not in known[axis]:
            raise BadCells(f"{CELLS}: {axis}: expected values out of {', '.join(sorted(known[axis]))}; got {value!r}")
    return axis, asked


def present() -> list[str]:
    """The device that the default subset is for: ``BENCH_DEVICE``, or cuda where a driver answers, without torch."""
    named = os.environ.get(DEVICE)
    if named:
        if named not in DEVICES:
            raise BadCells(f"{DEVICE}: expected {' or '.join(DEVICES)}, got {named!r}")
        return [named]
    return ["cuda"] if _driver_answers() else ["cpu"]


@functools.cache
def _driver_answers() -> bool:
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return True
    try:
        told = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return "GPU" in told.stdout


def selected(level: str) -> list[Cell]:
    """What this run measures: the cells that asv's ``-b`` left, as the plugin of ``asv.conf.json`` tells; without that
    plugin, what ``BENCH_CELLS`` asks for."""
    told = os.environ.get(SELECTED)
    if told is None:
        return wanted(level)
    every = cells(level)
    return [every[i] for i in json.loads(told).get(level, [])]
