"""A folder of asv results as several machines would leave it, written through asv's own classes.

What is planted: from the fifth commit on ``banded`` is 1.5 times as slow, from the seventh ``gather`` takes twice the
memory. ``triton_fused`` is younger than the third commit and needs the GPU; ``dense`` fails at the larger size.
"""

from __future__ import annotations

import datetime
import itertools
import json
import math
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from asv.benchmarks import Benchmarks
from asv.config import Config
from asv.machine import Machine
from asv.results import Results
from asv.runner import BenchmarkResult

from benchmarks.asv.metrics import STATUS_CODES

BACKENDS: tuple[str, ...] = (
    "gather", "gather_compiled", "dense", "banded", "flex", "triton_fused", "xformers_blocksparse", "xformers_fmha",
    "sdpa_tiles",
)  # fmt: skip
PARAMS: dict[str, tuple[object, ...]] = {
    "device": ("cpu", "cuda"), "backend": BACKENDS, "n_atom": (1024, 4096), "window": (16, 32), "k": ("all",),
    "dtype": ("float32",), "mode": ("fwd", "fwdbwd"),
}  # fmt: skip
UNITS = {
    "latency": "seconds", "peak_memory": "bytes", "first_call": "ms", "status": "code", "gate_error": "relative error",
    "percent_of_limit": "%", "throttle": "code",
}  # fmt: skip
SUITES = {"attention": "block.Attention", "block": "block.Block", "stack": "stack.Stack"}  # level: class of the suite
SLOWER_FROM, HEAVIER_FROM, BORN = 4, 6, 2
Cell = dict[str, object]


@dataclass(frozen=True)
class Host:
    """A machine: how fast it is, how noisy, and what it can run."""

    name: str
    speed: float
    noise: float
    gpu: str = ""

    @property
    def device(self) -> str:
        return "cuda" if self.gpu else "cpu"

    def status(self, cell: Cell, commit: int) -> str:
        if cell["backend"] in ("triton_fused", "xformers_fmha") and not self.gpu:
            return "unsupported"
        if cell["backend"] == "triton_fused" and commit < BORN:
            return "unsupported"
        return "oom" if cell["backend"] == "dense" and cell["n_atom"] == 4096 else "ok"


HOSTS = (Host("laptop", 1.0, 0.012), Host("gpu-box", 40.0, 0.002, "NVIDIA H200"))


def repository(folder: Path, commits: int) -> list[str]:
    """A git repository of so many empty commits, an hour apart; their hashes, oldest first."""
    folder.mkdir(parents=True, exist_ok=True)
    who = {f"GIT_{role}_{what}": text for role in ("AUTHOR", "COMMITTER")
           for what, text in (("NAME", "A Tester"), ("EMAIL", "tester@example.org"))}  # fmt: skip

    def git(*command: str, **environment: str) -> str:
        result = subprocess.run(["git", *command], cwd=folder, env={**os.environ, **who, **environment},
                                capture_output=True, text=True, check=True)  # fmt: skip
        return result.stdout.strip()

    git("init", "-q", "-b", "main")
    hashes = []
    for i in range(commits):
        date = f"{_date_ms(i) // 1000} +0000"
        git("commit", "-q", "--allow-empty", "-m", f"Commit {i}", GIT_AUTHOR_DATE=date, GIT_COMMITTER_DATE=date)
        hashes.append(git("rev-parse", "HEAD"))
    return hashes


def _date_ms(i: int) -> int:
    return 1_780_000_000_000 + i * 3_600_000


def benchmark(suite: str, metric: str, version: str = "1") -> dict[str, object]:
    return {
        "name": f"{SUITES[suite]}.track_{metric}", "params": [[repr(v) for v in values] for values in PARAMS.values()],
        "param_names": list(PARAMS), "unit": UNITS[metric], "type": "track", "version": version, "timeout": 60.0,
        "code": "",
    }  # fmt: skip


def value(metric: str, cell: Cell, host: Host, commit: int, rng: np.random.Generator) -> tuple[object, object]:
    """(value, samples) as the suites return them: nan = not asked for, or a record without that number."""
    status = host.status(cell, commit)
    if cell["device"] != host.device or cell["window"] != 32:
        return math.nan, None
    if metric == "status":
        return float(STATUS_CODES[status]), None
    if status != "ok" or metric == "throttle":
        return math.nan, None
    order, size = BACKENDS.index(str(cell["backend"])), int(str(cell["n_atom"])) / 1024
    if metric == "latency":
        drift = math.exp(rng.normal(0, host.noise / 4))
        base = 0.08 * size / host.speed / (1 + order) * (2.4 if cell["mode"] == "fwdbwd" else 1) * drift
        base *= 1.5 if cell["backend"] == "banded" and commit >= SLOWER_FROM else 1
        return math.nan, list(base * np.exp(rng.normal(0, host.noise, 20)))
    if metric == "peak_memory":
        heavier = cell["backend"] == "gather" and commit >= HEAVIER_FROM
        return float(size * 2**20 * (20 - order) * (2 if heavier else 1)), None
    if metric == "gate_error":
        return 3e-6, None
    return math.nan, [12.5 * (1 + order) / 2 if metric == "percent_of_limit" else 250.0]


Value = Callable[[str, Cell, Host, int, np.random.Generator], tuple[object, object]]


def result(metric: str, host: Host, commit: int, rng: np.random.Generator, values: Value) -> BenchmarkResult:
    cells = [dict(zip(PARAMS, combination, strict=True)) for combination in itertools.product(*PARAMS.values())]
    found = [values(metric, cell, host, commit, rng) for cell in cells]
    # as asv's runner hands samples on: the value is none yet, add_result computes it
    plain = [0.0 if samples is not None else v for v, samples in found]
    samples = [s for _, s in found]
    return BenchmarkResult(plain, samples, [1 if s is not None else None for s in samples], 0, "", None)


def write(
    folder: Path, hashes: Sequence[str], hosts: Sequence[Host] = HOSTS, suites: Sequence[str] = ("attention", "block"),
    *, samples: bool = True, values: Value = value,
) -> Path:  # fmt: skip
    """``folder/results`` as ``asv run`` leaves it."""
    conf = Config()
    conf.results_dir = str(folder / "results")
    found = [benchmark(suite, metric) for suite in suites for metric in UNITS]
    (folder / "results").mkdir(parents=True, exist_ok=True)
    Benchmarks(conf, found).save()
    rng = np.random.default_rng(7)
    for host in hosts:
        machine = Machine()
        machine.__dict__.update(machine=host.name, arch="x86_64", cpu="Some CPU", num_cpu="8", os="Linux", ram="64",
                                gpu=host.gpu)  # fmt: skip
        machine.save(conf.results_dir)
        for i, commit in enumerate(hashes):
            params = {**machine.__dict__, "python": "3.11"}
            results = Results(params, {}, commit, _date_ms(i), "3.11", "sharedvenv-py3.11", {})
            for entry in found:
                metric = str(entry["name"]).partition("track_")[2]
                started = datetime.datetime.fromtimestamp(_date_ms(i) / 1000, datetime.UTC)
                results.add_result(entry, result(metric, host, i, rng, values), started, 1.0, record_samples=samples)
            results.save(conf.results_dir)
    return folder / "results"


def configuration(folder: Path, plugins: Sequence[str] = ()) -> Path:
    """An ``asv.conf.json`` for ``asv publish`` in ``folder``, whose repository is ``folder/repo``."""
    path = folder / "asv.conf.json"
    path.write_text(json.dumps({
        "version": 1, "project": "pallatom", "project_url": "#", "repo": "repo", "branches": ["main"], "dvcs": "git",
        "environment_type": "existing", "results_dir": "results", "html_dir": "html", "plugins": list(plugins),
    }), encoding="utf-8")  # fmt: skip
    return path
