"""What this project adds to asv: a thin environment, machines that name their GPU, and a default subset of the grid.

Named in ``asv.conf.json`` and imported by asv's own process, never by what measures. See ``benchmarks/README.md``.

- ``environment_type: "thin"``: asv's virtualenv, except that everything but the project comes from the interpreter
  that runs asv, through one ``.pth``. Each commit's own wheel is installed and comes first on the path. A GPU machine's
  build of torch is part of the platform under test, and installing it again for every environment costs a gigabyte.
- A machine's file says which GPU and driver it has, and is written with defaults where nobody can be asked.
- Of the grid, asv starts a process per number and cell: only the cells that ``BENCH_CELLS`` asks for are started, and
  only cells with a number are printed. Without this, ``asv run`` and ``asv compare`` print every other cell as n/a.
- ``asv compare`` and ``asv continuous`` judge only what is better when it is less.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asv import runner, util
from asv.benchmarks import Benchmarks
from asv.commands import compare
from asv.commands.run import Run
from asv.console import log
from asv.machine import Machine, MachineCollection
from asv.plugins.virtualenv import Virtualenv

from benchmarks.asv import grid as asv_grid
from benchmarks.asv.metrics import SHOWN_ONLY

GPU_KEYS = ("gpu", "driver", "gpu_max_sm_mhz", "gpu_max_memory_mhz", "gpu_memory")
_GPU_QUERY = "name,driver_version,clocks.max.sm,clocks.max.memory,memory.total"


class Thin(Virtualenv):
    """A virtualenv that borrows every package but the project's own."""

    tool_name = "thin"

    @staticmethod
    def _find_python(python: str) -> str | None:
        """Only the running interpreter's version will do: its compiled packages are borrowed."""
        return sys.executable if python == f"{sys.version_info[0]}.{sys.version_info[1]}" else None

    @classmethod
    def matches(cls, python: str) -> bool:
        return cls._find_python(python) is not None

    def _setup(self) -> None:
        log.info(f"Creating thin virtualenv for {self.name}")
        util.check_call([sys.executable, "-m", "virtualenv", "--pip=bundle", "-p", self._executable, self._path])
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = self.run_executable("python", ["-c", code]).strip()
        borrowed = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
        # One line per folder adds it behind the environment's own; .pth files in it, such as that of an editable
        # install of the working tree, are not read.
        Path(site, "borrowed_packages.pth").write_text("".join(f"{folder}\n" for folder in borrowed))
        self.run_executable("python", ["-c", "import asv_runner, setuptools, torch"])


def gpu_facts() -> dict[str, str]:
    """The first GPU as its driver tells it, without CUDA; nothing where no driver answers."""
    command = ["nvidia-smi", f"--query-gpu={_GPU_QUERY}", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    lines = told.strip().splitlines()
    return dict(zip(GPU_KEYS, (value.strip() for value in lines[0].split(",")))) if lines else {}


def _with_gpu(load: Any) -> Any:
    """``Machine.load`` that needs nobody at the keyboard, and adds the GPU to the machine's file."""

    @functools.wraps(load)
    def loaded(cls: type[Machine], *args: Any, **kwargs: Any) -> Machine:
        asked = inspect.signature(load).bind(*args, **kwargs).arguments
        kwargs["use_defaults"] = asked.get("use_defaults", False) or not sys.stdout.isatty()
        machine = load(*args, **kwargs)
        facts = gpu_facts()
        if facts:
            vars(machine).update(facts)
            MachineCollection.save(machine.machine, vars(machine), _path=asked.get("_path"))
        os.environ["BENCH_MACHINE"] = machine.machine
        return machine

    return classmethod(loaded)


def _told(run: Any) -> Any:
    """``Run.run`` that tells the processes which measure where results go, and whether a quick look is enough."""

    @functools.wraps(run)
    def ran(cls: type[Run], *args: Any, **kwargs: Any) -> Any:
        asked = inspect.signature(run).bind(*args, **kwargs).arguments
        folder = Path(asked["conf"].results_dir).resolve()
        # A dry run keeps no results, so its records have no place beside them.
        os.environ["BENCH_RESULTS"] = tempfile.mkdtemp(prefix="asv-dry-run-") if asked.get("dry_run") else str(folder)
        os.environ["BENCH_QUICK"] = "1" if asked.get("quick") else ""
        return run(*args, **kwargs)

    return classmethod(ran)


def _narrowed(discover: Any) -> Any:
    """``Benchmarks.discover`` that starts only the cells asked for: of ``-b`` where it names parameters, else of
    ``BENCH_CELLS``; the measuring processes are told which."""

    @functools.wraps(discover)
    def discovered(cls: type[Benchmarks], *args: Any, **kwargs: Any) -> Benchmarks:
        asked = inspect.signature(discover).bind(*args, **kwargs).arguments.get("regex") or []
        found = discover(*args, **kwargs)
        try:
            os.environ[asv_grid.SELECTED] = json.dumps(narrow(found, [asked] if isinstance(asked, str) else asked))
        except asv_grid.BadCells as e:
            raise util.UserError(str(e)) from e
        return found

    return classmethod(discovered)


def narrow(found: Benchmarks, regexes: list[str]) -> dict[str, list[int]]:
    """Cut asv's selection down in place; returns the cells left, by level, as numbers in the level's grid."""
    left: dict[str, set[int]] = {}
    for name in list(found):
        suite = name.split(".")[-2].lower() if name.count(".") > 1 else ""
        if suite not in asv_grid.GRIDS:
            continue
        chosen = set(found.benchmark_selection[name] or ())
        if not regexes or any(re.search(regex, name) for regex in regexes):
            numbers = {cell: i for i, cell in enumerate(asv_grid.cells(suite))}
            chosen &= {numbers[cell] for cell in asv_grid.wanted(suite)}
        if not chosen:
            del found[name]
            continue
        found.benchmark_selection[name] = sorted(chosen)
        left.setdefault(suite, set()).update(chosen)
    return {suite: sorted(numbers) for suite, numbers in left.items()}


def _brief(formatted: Any) -> Any:
    """A table of results without the rows that are n/a; which cell has no number, and why, its status tells."""

    @functools.wraps(formatted)
    def brief(*args: Any, **kwargs: Any) -> tuple[str, str | None]:
        info, details = formatted(*args, **kwargs)
        return info, details and "\n".join(line for line in details.splitlines() if not line.rstrip().endswith(" n/a"))

    return brief


def _judged(unroll: Any) -> Any:
    """Of a result, what asv is to compare: cells that have a number or failed, of metrics of which less is better."""

    @functools.wraps(unroll)
    def judged(benchmark: str, *args: Any) -> Iterator[tuple]:
        if benchmark.rpartition(".track_")[2] in SHOWN_ONLY:
            return iter(())
        return (cell for cell in unroll(benchmark, *args) if cell[1] is None or cell[1] == cell[1])

    return judged


def setup() -> None:
    """Called by asv once the plugin is imported."""
    runner.format_benchmark_result = _brief(runner.format_benchmark_result)
    compare.unroll_result = _judged(compare.unroll_result)
    Machine.load = _with_gpu(Machine.load)
    Run.run = _told(Run.run)
    Benchmarks.discover = _narrowed(Benchmarks.discover)
