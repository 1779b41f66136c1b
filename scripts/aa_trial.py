"""How often does each way of measuring tell a code from itself on this machine?

Every trial times one operation against itself, 24 samples an arm, in one of two orders, and asks
whether an interval or a verdict sees a difference, how wide the interval is and how far off the ratio.
Nothing here asserts; it is the evidence for the protocol, to be looked at.

    python -m scripts.aa_trial [SECONDS]
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np
from scipy import stats

from benchmarks.harness.clock import CpuClock, interleave
from benchmarks.harness.device import pin_threads
from benchmarks.harness.statistics import MARGIN, Ratio, noise_floor, paired_ratio, verdict

SAMPLES = 24
Trial = tuple[float, float, float, bool]  # ratio, low, high, told apart by the verdict


def unpaired(a: list[float], b: list[float], seed: int) -> tuple[float, float, float]:
    """Ratio of medians with a percentile bootstrap that resamples each arm by itself."""
    found = stats.bootstrap(
        (np.log(a), np.log(b)),
        lambda x, y, axis=-1: np.median(x, axis=axis) - np.median(y, axis=axis),
        method="percentile",
        n_resamples=1000,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(np.median(a) / np.median(b)), float(np.exp(found.low)), float(np.exp(found.high))


def sequential(fn: Callable[[], object], clock: CpuClock, calls: int) -> tuple[list[float], list[float]]:
    """All samples of one arm, then all of the other."""
    first = [clock.sample(fn, calls) for _ in range(SAMPLES)]
    return first, [clock.sample(fn, calls) for _ in range(SAMPLES)]


def trial(fn: Callable[[], object], seed: int) -> dict[str, Trial]:
    """One A/A trial of each way, side by side in time."""
    clock = CpuClock()
    ran = interleave(
        {"a": fn, "b": fn, "aa": fn}, clock=clock, budget_s=1e9, min_blocks=SAMPLES, max_blocks=SAMPLES, seed=seed
    )
    a, b = ran.samples["a"], ran.samples["b"]
    ratio, noise = paired_ratio(a, b, seed=seed), noise_floor(a, ran.samples["aa"])
    before, after = sequential(fn, clock, ran.calls_per_sample["a"])
    return {
        "sequential, unpaired": _as_trial(*unpaired(before, after, seed)),
        "interleaved, unpaired": _as_trial(*unpaired(a, b, seed)),
        "interleaved, paired": _as_trial(ratio.ratio, ratio.low or 0, ratio.high or 0, _differs(ratio, noise)),
    }


def _differs(ratio: Ratio, noise: float | None) -> bool:
    return verdict(ratio, margin=MARGIN["cpu"], noise=noise) in ("faster", "slower")


def _as_trial(ratio: float, low: float, high: float, told: bool | None = None) -> Trial:
    excludes = not low <= 1 <= high
    return ratio, low, high, (excludes and abs(np.log(ratio)) > np.log1p(MARGIN["cpu"])) if told is None else told


def report(trials: dict[str, list[Trial]]) -> None:
    print(f"{'':24}{'trials':>8}{'excludes 1':>12}{'told apart':>12}{'width':>8}{'error: median':>15}{'90%':>8}")
    for name, found in trials.items():
        ratio, low, high, told = np.array(found).T
        off = np.abs(ratio - 1)
        print(
            f"{name:24}{len(found):8}{np.mean((low > 1) | (high < 1)):12.0%}{np.mean(told):12.0%}"
            f"{np.median((high - low) / ratio):8.1%}{np.median(off):15.2%}{np.quantile(off, 0.9):8.2%}"
        )


def main(seconds: float) -> None:
    import torch

    pin_threads(torch.get_num_threads())
    x, y = torch.randn(384, 384), torch.randn(1 << 22)
    out = torch.empty_like(y)
    operations = {"matrix product, 384": lambda: x @ x, "add in place, 16 MiB": lambda: torch.add(y, 1.0, out=out)}
    for label, fn in operations.items():
        trials: dict[str, list[Trial]] = defaultdict(list)
        until, seed = time.monotonic() + seconds / len(operations), 0
        while time.monotonic() < until:
            for name, one in trial(fn, seed).items():
                trials[name].append(one)
            seed += 1
        print(f"\n{label}: {torch.get_num_threads()} threads")
        report(trials)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
