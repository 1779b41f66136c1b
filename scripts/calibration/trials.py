"""One simulated run of a protocol, and what it said of a difference that is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from benchmarks.harness.regress import regression
from benchmarks.harness.ruler import statistics as st
from benchmarks.harness.ruler.interleave import interleave

from .machines import MACHINES, Machine, PaperClock

MOST_BLOCKS = 200
SHAPES = {"cpu": MACHINES, "cuda": {name: m.scaled(1 / 3) for name, m in MACHINES.items()}}
LUCK = {"1% luck": 0.01, "2% luck": 0.02, "5% luck": 0.05}
"""Of a pair of processes in a round: what addresses and hash seeds do, 1 sd."""


@dataclass(frozen=True)
class Said:
    """What one run says of time b over time a. ``bare``: the verdict by the margin alone, as if no noise were known."""

    verdict: st.Verdict
    bare: st.Verdict
    covered: bool
    n: int
    converged: bool


def blocks(machine: Machine, device: str, difference: float, seed: tuple[int, ...]) -> Said:
    """The protocol of ``sweep`` and ``compare``: two arms, each with its A/A arm, until the clock's rule stops them."""
    rng = np.random.default_rng(seed)
    true = {"a": 1.0, "a again": 1.0, "b": 1.0 + difference, "b again": 1.0 + difference}
    margin = st.MARGIN[device]
    clock = PaperClock(machine, rng, len(true) * MOST_BLOCKS, margin)
    arms = {name: (lambda ms=ms: ms) for name, ms in true.items()}
    ran = interleave(arms, clock=clock, budget_s=1.0, max_blocks=MOST_BLOCKS, seed=int(rng.integers(1 << 31)))
    floors = {name: st.noise_floor(ran.samples[name], ran.samples[f"{name} again"]) or 0.0 for name in "ab"}
    noise = st.noise_of_pair("a", "b", floors)
    ratio = st.paired_ratio(ran.samples["b"], ran.samples["a"], edge=max(margin, noise or 0.0))
    return Said(
        st.verdict(ratio, margin=margin, noise=noise), st.verdict(ratio, margin=margin),
        _holds(ratio, 1 + difference), ratio.n, ran.stop["b"] == "converged",
    )  # fmt: skip


def alone(machine: Machine, seed: tuple[int, ...], truth: float) -> bool:
    """Whether the interval of a lone arm's median, which then decides when to stop, holds the truth."""
    rng = np.random.default_rng(seed)
    clock = PaperClock(machine, rng, MOST_BLOCKS, st.MARGIN["cpu"])
    ran = interleave({"a": lambda: 1.0}, clock=clock, budget_s=1.0, max_blocks=MOST_BLOCKS)
    return _holds(st.median_interval(ran.samples["a"]), truth)


def pair(machine: Machine, n: int, seed: tuple[int, ...], difference: float = 0.0) -> tuple[list[float], list[float]]:
    """Two arms over ``n`` blocks in random order, with no rule that stops them."""
    rng = np.random.default_rng(seed)
    visits = machine.disturbance(rng, 2 * n).reshape(n, 2)
    visits = np.where(rng.random((n, 1)) < 0.5, visits, visits[:, ::-1])
    a, b = np.exp(visits).T
    return a.tolist(), ((1 + difference) * b).tolist()


def rounds(luck: float, count: int, difference: float, rng: np.random.Generator, size: int = 8) -> regression.Change:
    """The protocol of ``regress``: ``count`` rounds of ``size`` blocks; a round's level is shared, its luck is not."""
    a, b = [], []
    for _ in range(count):
        level = np.exp(rng.normal(0, 0.2) + rng.normal(0, 0.05, size))
        odds = luck * rng.standard_t(5) / np.sqrt(5 / 3)
        a.append(level * np.exp(0.04 * rng.standard_t(4, size)))
        b.append((1 + difference) * level * np.exp(odds + 0.04 * rng.standard_t(4, size)))
    return regression.change(a, b)


def _holds(found: st.Ratio | st.Interval, truth: float) -> bool:
    return found.low is not None and found.high is not None and found.low <= truth <= found.high


@dataclass(frozen=True)
class Count:
    """Verdicts of one protocol on one machine at one true difference."""

    protocol: str
    machine: str
    margin: float
    difference: float
    trials: int
    faster: int
    slower: int
    same: int
    unresolved: int
    slower_by_margin_alone: int
    covered: int
    converged: int
    mean_n: float


def count_blocks(device: str, name: str, difference: float, trials: int, seed: tuple[int, ...]) -> dict:
    said = [blocks(SHAPES[device][name], device, difference, (*seed, i)) for i in range(trials)]
    return _count(device, name, st.MARGIN[device], difference, said)


def count_rounds(name: str, number: int, difference: float, trials: int, seed: tuple[int, ...]) -> dict:
    rng = np.random.default_rng(seed)
    said = []
    for _ in range(trials):
        found = rounds(LUCK[name], number, difference, rng)
        word = st.verdict(found, margin=regression.MARGIN, p_adjusted=found.p_value)
        covered = found.low is not None and found.high is not None and found.low <= 1 + difference <= found.high
        said.append(Said(word, word, covered, number, False))
    return _count(f"regress, {number} rounds", name, regression.MARGIN, difference, said)


def _count(protocol: str, name: str, margin: float, difference: float, said: list[Said]) -> dict:
    words = Counter(one.verdict for one in said)
    bare = sum(one.bare == "slower" for one in said)
    return asdict(Count(
        protocol, name, margin, difference, len(said), words["faster"], words["slower"], words["same"],
        words["unresolved"], bare, sum(one.covered for one in said), sum(one.converged for one in said),
        float(np.mean([one.n for one in said])),
    ))  # fmt: skip


def cover(interval: str, name: str, n: int, trials: int, seed: tuple[int, ...]) -> dict:
    """How often one kind of interval holds the truth, without a rule that stops."""
    machine = MACHINES[name]
    if interval == "single median":
        machine = steady(machine)
        truth, find = median_of(machine), lambda a, b: st.median_interval(a)
    else:
        truth, find = 1.0, st.paired_ratio
    hits = 0
    for i in range(trials):
        a, b = pair(machine, n, (*seed, i)) if interval != "single median" else (series(machine, n, (*seed, i)), [])
        hits += _holds(find(a, b), truth)
    return {"interval": interval, "machine": name, "n": n, "trials": trials, "covered": hits}


def cover_alone(name: str, trials: int, seed: tuple[int, ...]) -> dict:
    machine = steady(MACHINES[name])
    truth = median_of(machine)
    hits = sum(alone(machine, (*seed, i), truth) for i in range(trials))
    return {"interval": "single median, stopped", "machine": name, "n": 0, "trials": trials, "covered": hits}


def cover_looked_at(nominal: float, trials: int, seed: tuple[int, ...]) -> dict:
    """What looking costs: intervals of this nominal cover, stopped by the clock's rule on plain normal noise."""
    rng, hits = np.random.default_rng(seed), 0
    confidence = 1 - (1 - nominal) / st.UNLOOKED
    for _ in range(trials):
        a, n = np.exp(rng.normal(0, 0.11, MOST_BLOCKS)), 20
        while True:
            found = st.paired_ratio(a[:n], np.ones(n), confidence=confidence)
            if n == MOST_BLOCKS or (found.half_width or 1) <= st.MARGIN["cpu"]:
                break
            n += 1
        hits += _holds(found, 1.0)
    return {"interval": f"nominal {nominal:.1%}, stopped", "machine": "normal noise", "n": 0, "trials": trials,
            "covered": hits}  # fmt: skip


def steady(machine: Machine) -> Machine:
    """Without its drift, under which one arm's median has no fixed truth; its memory is of four blocks at most."""
    return Machine(**(asdict(machine) | {"drift": 0.0, "memory": 4.0, "length": 4.0}))


def series(machine: Machine, n: int, seed: tuple[int, ...]) -> list[float]:
    return np.exp(machine.disturbance(np.random.default_rng(seed), n)).tolist()


def median_of(machine: Machine) -> float:
    return float(np.exp(np.median(machine.disturbance(np.random.default_rng(0), 1_000_000))))


def family(protocol: str, cells: int, at_margin: float, trials: int, seed: tuple[int, ...]) -> dict:
    """Of so many runs of a table whose every cell has the same true difference: those with any false verdict at all."""
    rng = np.random.default_rng(seed)
    alarms = sum(any(_table(protocol, cells, at_margin, rng)) for _ in range(trials))
    return {"protocol": protocol, "cells": cells, "margins": at_margin, "trials": trials, "alarms": alarms}


def _table(protocol: str, cells: int, at_margin: float, rng: np.random.Generator) -> Iterator[bool]:
    margin = regression.MARGIN if protocol == "regress" else st.MARGIN["cpu"]
    difference = at_margin * margin
    if protocol == "regress":
        found = [rounds(0.02, 6, difference, rng) for _ in range(cells)]
    else:
        n = int(protocol.split()[0])
        sampled = [pair(MACHINES["bursty"], n, (int(rng.integers(1 << 62)),), difference) for _ in range(cells)]
        found = [st.paired_ratio(b, a, edge=margin) for a, b in sampled]
    adjusted = st.holm([one.p_value or 0.0 for one in found])
    for one, p in zip(found, adjusted):
        yield st.verdict(one, margin=margin, p_adjusted=p) in ("faster", "slower")
