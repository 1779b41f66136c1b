"""The same code twice, on this machine as it is: every verdict but *same* and *unresolved* is false, 1 is the truth."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness.ruler import statistics as st
from benchmarks.harness.ruler.clock import CpuClock
from benchmarks.harness.ruler.interleave import interleave
from benchmarks.harness.schema.record import read

TRIAL_S = 1.0
BACKENDS = ("cpu_fused", "banded", "dense")
Trial = tuple[st.Verdict, bool, int]  # the verdict, whether the interval holds 1, blocks or rounds


def same_callable(seconds: float, *, n_atom: int = 128) -> Iterator[dict[str, Any]]:
    """Each backend's attention against itself in one process, by the clock and the rule of ``sweep``."""
    from benchmarks.harness.cases import inputs, registry
    from benchmarks.harness.cases.case import Case
    from benchmarks.harness.cases.problems import Axes, resolve
    from benchmarks.harness.ruler.device import pin_threads

    pin_threads(1)
    problem, source = resolve(Axes(n_atom=n_atom, window=16, device="cpu"))
    built = inputs.build(problem, source)
    for backend in BACKENDS:
        case = Case(built, registry.converted(backend, built.module))
        found: list[Trial] = []
        until, seed = time.monotonic() + seconds / len(BACKENDS), 0
        while time.monotonic() < until:
            found.append(_blocks(case, seed))
            seed += 1
        yield _row("blocks", f"{backend}, N {n_atom}", found)


def _blocks(case: Any, seed: int) -> Trial:
    ran = interleave(
        dict.fromkeys(("a", "a again", "b", "b again"), case), clock=CpuClock(), budget_s=TRIAL_S, seed=seed,
    )  # fmt: skip
    margin, samples = st.MARGIN["cpu"], ran.samples
    floors = {name: floor for name in "ab" if (floor := st.noise_floor(samples[name], samples[f"{name} again"]))}
    noise = st.noise_of_pair("a", "b", floors)
    ratio = st.paired_ratio(samples["b"], samples["a"], edge=max(margin, noise or 0.0))
    assert ratio.low is not None
    assert ratio.high is not None
    return st.verdict(ratio, margin=margin, noise=noise), ratio.low <= 1 <= ratio.high, ratio.n


def on_record(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """The A/A arms of records made before, by the margin alone: their noise floor would be made of the same samples."""
    for path in paths:
        found: list[Trial] = []
        for record in read(path):
            if record.timing is not None and record.timing.aa_samples_ms:
                margin = st.MARGIN[record.problem.device]
                ratio = st.paired_ratio(record.timing.aa_samples_ms, record.timing.samples_ms, edge=margin)
                if ratio.low is not None and ratio.high is not None:
                    found.append((st.verdict(ratio, margin=margin), ratio.low <= 1 <= ratio.high, ratio.n))
        yield _row("A/A arms on record", path.parent.as_posix(), found) | {"load": None, "cores": None}


def same_commit(seconds: float, *, n_atom: int = 128) -> Iterator[dict[str, Any]]:
    """HEAD against HEAD by ``regress``: fresh processes every round, a table judged together."""
    found: list[Trial] = []
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > seconds / 4:
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable, "-m", "benchmarks", "regress", "HEAD..HEAD", "--measure-same", "--json",
                "-n", str(n_atom), "--device", "cpu", "--threads", "1", "-b", ",".join(BACKENDS), "--rounds", "5",
                "--budget-s", f"{min(left, 240.0):.0f}", "--out", str(Path(folder) / "records.jsonl"),
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode not in (0, 1):  # 1 is a verdict, and here a false one
                raise RuntimeError(f"regress left with {done.returncode}: {done.stderr.strip()[-500:]}")
            told = json.loads(done.stdout)
        for cell in told["cells"]:
            change = cell["change"]
            if change is not None and change["low"] is not None:
                found.append((cell["time"], change["low"] <= 1 <= change["high"], change["rounds"]))
    yield _row("rounds", f"{len(BACKENDS)} backends × 2 levels, N {n_atom}", found)


def _row(protocol: str, what: str, found: list[Trial]) -> dict[str, Any]:
    words = Counter(word for word, _, _ in found)
    return {
        "protocol": protocol, "what": what, "trials": len(found), "faster": words["faster"], "slower": words["slower"],
        "same": words["same"], "unresolved": words["unresolved"], "covered": sum(held for _, held, _ in found),
        "mean_n": sum(n for _, _, n in found) / max(len(found), 1), "load": os.getloadavg()[0],
        "cores": os.cpu_count(),
    }  # fmt: skip
