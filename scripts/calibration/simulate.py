"""All simulations, in as many processes as there are cores; the numbers depend on the seeds alone."""

from __future__ import annotations

import csv
import gc
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.harness.regress import regression
from benchmarks.harness.ruler.statistics import MARGIN

from . import trials
from .machines import MACHINES

IN_MARGINS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
BEYOND = (0.10, 0.20)  # of every protocol, where its margins do not reach so far
Task = tuple[Callable[..., dict], tuple]


def differences(margin: float) -> list[float]:
    """0 to 20%, denser about the margin."""
    return sorted({round(m * margin, 4) for m in IN_MARGINS} | {d for d in BEYOND if d > margin * max(IN_MARGINS)})


def verdict_tasks(scale: float) -> list[Task]:
    """``scale`` 1, on the CPU: 300 runs where rates are small (no difference, exactly the margin), 60 on the curve."""
    tasks: list[Task] = []
    for device, share in (("cpu", scale), ("cuda", scale / 2)):
        for k, name in enumerate(MACHINES):
            for difference in differences(MARGIN[device]):
                runs = max(2, int(share * (300 if difference in (0.0, MARGIN[device]) else 60)))
                seed = (1, ord(device[1]), k, int(1e4 * difference))
                tasks.append((trials.count_blocks, (device, name, difference, runs, seed)))
    for number in (3, 4, 6, 10):
        for k, name in enumerate(trials.LUCK):
            for difference in differences(regression.MARGIN):
                runs = max(2, int(scale * 500))
                tasks.append(
                    (trials.count_rounds, (name, number, difference, runs, (2, number, k, int(1e4 * difference))))
                )
    return tasks


def cover_tasks(scale: float) -> list[Task]:
    tasks: list[Task] = []
    for k, name in enumerate(MACHINES):
        for n in (2, 3, 5, 6, 8, 12, 20, 30, 60, 100, 200):
            tasks.append((trials.cover, ("paired blocks", name, n, max(2, int(scale * 1000)), (3, k, n))))
            if n >= 6:
                tasks.append((trials.cover, ("single median", name, n, max(2, int(scale * 500)), (4, k, n))))
        tasks.append((trials.cover_alone, (name, max(2, int(scale * 200)), (5, k))))
    return tasks + [(trials.cover_looked_at, (nominal, max(2, int(scale * 1000)), (7,))) for nominal in (0.95, 0.965)]


def family_tasks(scale: float) -> list[Task]:
    return [
        (trials.family, (protocol, 28, at_margin, max(2, int(scale * 300)), (6, k, int(at_margin))))
        for k, protocol in enumerate(("5 blocks", "12 blocks", "30 blocks", "regress"))
        for at_margin in (0.0, 1.0)
    ]


def simulate(folder: Path, *, scale: float, processes: int) -> None:
    """Write ``verdicts.csv``, ``cover.csv`` and ``families.csv``."""
    folder.mkdir(parents=True, exist_ok=True)
    # What a process has imported is nothing for the collector that the clock runs between samples: frozen.
    with ProcessPoolExecutor(processes, initializer=gc.freeze) as pool:
        made = {
            "families": [pool.submit(f, *args) for f, args in family_tasks(scale)],
            "cover": [pool.submit(f, *args) for f, args in cover_tasks(scale)],
            "verdicts": [pool.submit(f, *args) for f, args in verdict_tasks(scale)],
        }
        for name, futures in made.items():
            write(folder / f"{name}.csv", (future.result() for future in futures))


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
