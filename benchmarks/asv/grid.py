"""The grid that asv measures: the same lists of parameters on every machine, and which of its cells are asked for.

``BENCH_CELLS`` says which: nothing or ``default``, a fixed subset drawn once with a seed; ``all``, the whole grid; or
either of them narrowed, ``all level=block backend=banded,dense n_atom=2048``. A single cell names every axis.

Free of everything but the standard library: asv starts a process per number.
"""

from __future__ import annotations

import functools
import json
import os
import random
import subprocess
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CELLS, SELECTED, DEVICE = "BENCH_CELLS", "BENCH_SELECTED", "BENCH_DEVICE"
AXES = ("device", "backend", "n_atom", "window", "k", "dtype", "mode")
UNCAPPED = "all"  # on the axis k: every neighbour that the window holds
KERNELS = "kernels"  # the level of what the compiler makes, which has axes of its own
SEED = 20261122

Cell = tuple[Any, ...]  # in the order of the level's axes

# Compiling for every shape takes these longer than a whole commit may: they are measured when they are asked for.
COMPILING = ("flex", "gather_compiled")
DEVICES = ["cpu", "cuda"]
INDEX_BACKEND = "build_sparse_pairs"


class BadCells(ValueError):
    """``BENCH_CELLS`` cannot be read: says which word, what was expected, what came."""


@functools.cache
def backends() -> tuple[str, ...]:
    """Every backend of this working tree, whatever the commit under test has: the axis must not change with it."""
    return tuple(sorted(f.stem for f in (ROOT / "variants").glob("*.py") if not f.stem.startswith("_")))


def _axes(backend: Iterable[str] = (), **lists: list[Any]) -> dict[str, list[Any]]:
    """The axes in the order of ``AXES``."""
    whole: dict[str, list[Any]] = {
        "device": DEVICES,
        "backend": list(backend) or list(backends()),
        "n_atom": [512, 2048, 16384],
        "window": [16, 32],
        "k": [UNCAPPED, 64],
        "dtype": ["float32", "bfloat16"],
        "mode": ["fwd", "fwdbwd"],
    }
    return whole | lists


GRIDS: dict[str, dict[str, list[Any]]] = {
    "attention": _axes(),
    "block": _axes(window=[32], k=[UNCAPPED]),
    "stack": _axes(window=[32], k=[UNCAPPED]),
    "encoder": _axes(window=[32], k=[UNCAPPED]),
    "index": _axes([INDEX_BACKEND], n_atom=[2048, 16384, 65536], k=[UNCAPPED], dtype=["float32"], mode=["fwd"]),
    KERNELS: {"kernel": ["forward", "backward"], "arch": [80, 90], "dtype": ["float32", "bfloat16"]},
}

# The default subset, by device: every problem named here, and so many drawn from the rest up to a size. The layer
# itself and the backends of one problem are interleaved, so a problem brings all of its backends.
_PIVOTS: dict[str, dict[str, list[dict[str, Any]]]] = {
    "cpu": {
        "attention": [{"n_atom": 512}],
        "block": [{"n_atom": 512}],
        "stack": [{"n_atom": 512}],
        "encoder": [{"n_atom": 512}],
        "index": [{"n_atom": 16384}],
    },
    "cuda": {
        "attention": [{"n_atom": 16384, "dtype": "bfloat16"}, {"n_atom": 16384, "dtype": "bfloat16", "mode": "fwdbwd"}],
        "block": [{"n_atom": 16384, "dtype": "bfloat16"}],
        "stack": [{"n_atom": 16384, "dtype": "bfloat16"}],
        "encoder": [{"n_atom": 2048, "dtype": "bfloat16"}],
        "index": [{"n_atom": 16384}],
    },
}
_PIVOT = {"window": 32, "k": UNCAPPED, "dtype": "float32", "mode": "fwd"}
_DRAWN = {"cpu": {"attention": 1}, "cuda": {"attention": 4, "block": 1}}
_LARGEST = {"cpu": 512, "cuda": 16384}
# Above the seam the backends differ by less and cost more: those that the seam finds slow are left out there.
_ABOVE_THE_SEAM = ("banded", "cpu_fused", "sdpa_tiles", "triton_fused")


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
        problems = [_PIVOT | pivot for pivot in _PIVOTS[device][level]]
        rest = [
            dict(zip(AXES[2:], values))
            for values in product(*(grid[axis] for axis in AXES[2:]))
            if values[0] <= _LARGEST[device]
        ]
        rest = [problem for problem in rest if problem not in problems]
        problems += random.Random(f"{SEED} {device} {level}").sample(rest, _DRAWN[device].get(level, 0))
        names = [b for b in grid["backend"] if b not in COMPILING and _fits_default(level, b)]
        chosen += [(device, b, *(problem[axis] for axis in AXES[2:])) for problem in problems for b in names]
    return chosen


def _fits_default(level: str, backend: str) -> bool:
    return level in ("attention", "index") or backend in _ABOVE_THE_SEAM


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
