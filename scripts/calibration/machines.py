"""Machines that exist on paper: times whose truth is known, disturbed as real ones are.

A machine is gone through visit by visit (one sample of one arm). Log time of visit ``t`` is

    true + noise · e_t + walk_t + ar_t + burst_t

e: independent, normal or Student's t with ``tails`` degrees of freedom; walk: a drift that wanders, ``drift`` a visit;
ar: AR(1) of standard deviation ``sway``, remembered for ``memory`` visits; burst: begins with chance ``bursts``, lasts
``length`` visits in the mean, and slows them by Exp(``height``). What outlasts a visit hits a block's arms alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import signal

from benchmarks.harness.ruler.clock import Cache


@dataclass(frozen=True)
class Machine:
    """Its disturbances, relative; see the module."""

    noise: float
    tails: float = math.inf
    drift: float = 0.0
    sway: float = 0.0
    memory: float = 8.0
    bursts: float = 0.0
    length: float = 6.0
    height: float = 0.5

    def disturbance(self, rng: np.random.Generator, visits: int) -> np.ndarray:
        """Log disturbance of every visit, ``[visits]``."""
        e = rng.normal(size=visits) if math.isinf(self.tails) else rng.standard_t(self.tails, visits)
        out = self.noise * e + np.cumsum(rng.normal(0, self.drift, visits))
        if self.sway:
            phi = math.exp(-1 / self.memory)
            start = [phi * rng.normal()]
            out += self.sway * signal.lfilter([1], [1, -phi], rng.normal(0, math.sqrt(1 - phi**2), visits), zi=start)[0]
        for begin in np.flatnonzero(rng.random(visits) < self.bursts):
            end = begin + rng.geometric(1 / self.length)
            out[begin:end] += rng.exponential(self.height, out[begin:end].size)
        return out

    def scaled(self, factor: float) -> Machine:
        """The same character with other amplitudes, as a GPU has it: a third of the noise, a third of the margin."""
        return replace(
            self, noise=self.noise * factor, drift=self.drift * factor, sway=self.sway * factor,
            height=self.height * factor,
        )  # fmt: skip


MACHINES = {
    "calm": Machine(0.04, drift=0.005),
    "swaying": Machine(0.05, sway=0.10, drift=0.002),
    "bursty": Machine(0.04, tails=3, bursts=0.03),
}
"""As a two-core virtual machine shows itself: alone, beside another's load, and beside short foreign jobs."""


class PaperClock:
    """A clock of ``interleave`` for arms that return their true milliseconds."""

    cache: Cache = "unspecified"

    def __init__(self, machine: Machine, rng: np.random.Generator, visits: int, target_half_width: float) -> None:
        self.target_half_width = target_half_width
        self._factors = np.exp(machine.disturbance(rng, visits)).tolist()
        self._visit = 0

    def now(self) -> float:
        return 0.0

    def sample(self, fn: Callable[[], object], calls: int = 1) -> float:
        true_ms = fn()
        assert isinstance(true_ms, float)
        self._visit += 1
        return true_ms * self._factors[self._visit - 1]

    def wall(self, fn: Callable[[], object]) -> None:
        """No second time."""

    def calibrate(self, fn: Callable[[], object]) -> tuple[int, float]:
        return 1, 0.0
