"""Time arms side by side: every block runs each arm once, in an order drawn afresh.

An arm is a name and a callable without arguments; what a sample of it is belongs to the clock.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .clock import Arm, Cache, Clock
from .statistics import median_interval, paired_ratio

Stop = Literal["converged", "budget", "maximum"]
WALL_CALLS = 10  # of each arm, in its first blocks: an eager call's wait takes no 1% to be told from the device's time


@dataclass(frozen=True)
class Interleaved:
    """``samples[arm][i]`` (ms per call) was taken in block ``i``: two arms pair by position, over the
    blocks that both were in. ``order[i]`` is the order within block ``i``.

    ``half_widths[arm]`` belongs to the interval that decided when to stop: of the ratio to the
    fastest arm; for the fastest arm itself, of its own median, which decides only when it is alone.
    ``walls[arm]`` holds a clock's second time, of one more call right after each of the first samples.
    """

    samples: dict[str, list[float]]
    walls: dict[str, list[float]]
    calls_per_sample: dict[str, int]
    stop: dict[str, Stop]
    half_widths: dict[str, float | None]
    order: list[list[str]]
    cache: Cache
    seconds: float


def interleave(
    arms: Mapping[str, Arm],
    *,
    clock: Clock,
    budget_s: float,
    min_blocks: int = 20,
    max_blocks: int = 200,
    floor_blocks: int = 3,
    target_half_width: float | None = None,
    seed: int = 0,
    on_block: Callable[[int], None] | None = None,
    on_run: Callable[[str], None] | None = None,
    on_sample: Callable[[str, bool], None] | None = None,
) -> Interleaved:
    """Run blocks until every arm's ratio to the fastest is known to ``target_half_width``
    (default: the clock's) after at least ``min_blocks``, or to ``max_blocks``, or to ``budget_s``.
    Whether to stop is decided one block ahead, so that the *closing* block is known as such to the
    harness and to no arm: what its calls made can be looked at as what was timed. Its samples count,
    so an interval may end a little wider than it was when it was narrow enough.

    First every arm is warmed up and calibrated, the same callable under two names once; the budget
    is that of the blocks. It is shared out: an arm too slow to run ``min_blocks`` times within its
    share leaves after as many blocks as do fit, and the others go on without it. Every arm runs
    ``floor_blocks`` times, whatever that takes: a budget too short for this is overrun by it.

    ``on_block(number)`` is called before each block, ``on_run(arm)`` before each run and ``on_sample(arm, closing)``
    right after each sample, all outside the timed region; ``closing`` marks an arm's last sample. An exception passes
    through; the name last given to ``on_run`` is its author.
    """
    if not arms:
        raise ValueError("arms: expected at least one, got none")
    if not 1 <= floor_blocks <= min_blocks <= max_blocks:
        raise ValueError(
            f"expected 1 <= floor_blocks <= min_blocks <= max_blocks, got {floor_blocks}, {min_blocks}, {max_blocks}"
        )
    target = clock.target_half_width if target_half_width is None else target_half_width
    announce = on_run or (lambda name: None)
    shown = on_sample or (lambda name, closing: None)
    shuffle = random.Random(seed).shuffle
    samples: dict[str, list[float]] = {name: [] for name in arms}
    walls: dict[str, list[float]] = {name: [] for name in arms}
    order: list[list[str]] = []
    with _quiet_collector() as collect:
        calls, seconds = _calibrate_all(arms, clock, announce)
        allowed, overrun = _share_out(seconds, budget_s, min_blocks, floor_blocks)
        started = clock.now()
        deadline = started + budget_s + overrun
        left = list(arms)
        ending: Stop | None = _ending(
            samples, left, target, 0, min_blocks, max_blocks, floor_blocks, deadline - started
        )
        while left:
            block = left.copy()
            shuffle(block)
            order.append(block)
            if on_block is not None:
                on_block(len(order))
            for name in block:
                announce(name)
                before = clock.now()
                samples[name].append(clock.sample(arms[name], calls[name]))
                shown(name, ending is not None or len(order) == allowed.get(name))
                if len(walls[name]) < WALL_CALLS and (wall_ms := clock.wall(arms[name])) is not None:
                    walls[name].append(wall_ms)
                seconds[name] = clock.now() - before
                collect()
            if ending is not None:
                break
            left = [name for name in left if len(order) < allowed.get(name, max_blocks)]
            after = [name for name in left if len(order) + 1 < allowed.get(name, max_blocks)]
            spare = deadline - clock.now() - sum(seconds[name] for name in (*left, *after))
            ending = _ending(samples, left, target, len(order), min_blocks, max_blocks, floor_blocks, spare)
        ran = clock.now() - started
    widths = half_widths(samples)
    stop: dict[str, Stop] = {
        name: _stop(taken, widths[name], target, min_blocks, len(order), ending or "budget")
        for name, taken in samples.items()
    }
    return Interleaved(samples, walls, calls, stop, widths, order, clock.cache, ran)


def _ending(
    samples: Mapping[str, list[float]],
    left: list[str],
    target: float,
    done: int,
    min_blocks: int,
    max_blocks: int,
    floor_blocks: int,
    spare_s: float,
) -> Stop | None:
    """Why the next block, after ``done`` ones, is the last; None if it is not. ``spare_s``: what the budget leaves
    beyond it and one more."""
    if left and done >= min_blocks - 1 and _converged(samples, left, target):
        return "converged"
    if done >= max_blocks - 1:
        return "maximum"
    return "budget" if done >= floor_blocks - 1 and spare_s < 0 else None


def _calibrate_all(
    arms: Mapping[str, Arm], clock: Clock, announce: Callable[[str], None]
) -> tuple[dict[str, int], dict[str, float]]:
    """Calls per sample and seconds per sample of every arm; one callable under two names has one of each."""
    found: dict[int, tuple[int, float]] = {}
    for name, fn in arms.items():
        if id(fn) not in found:
            announce(name)
            found[id(fn)] = clock.calibrate(fn)
    calls = {name: found[id(fn)][0] for name, fn in arms.items()}
    return calls, {name: found[id(fn)][1] for name, fn in arms.items()}


def _stop(taken: list[float], width: float | None, target: float, min_blocks: int, blocks: int, ending: Stop) -> Stop:
    """How one arm ended, in a group that ended so after ``blocks``."""
    if len(taken) >= min_blocks and width is not None and width <= target:
        return "converged"
    return "budget" if len(taken) < blocks else ending


def half_widths(samples: Mapping[str, list[float]]) -> dict[str, float | None]:
    """Relative half-width of each arm's ratio to the fastest arm, and of the fastest's own median."""
    fastest = min(samples, key=lambda name: float(np.median(samples[name])))
    widths = {}
    for name, taken in samples.items():
        if name == fastest:
            widths[name] = median_interval(taken).half_width
        else:
            widths[name] = paired_ratio(taken, samples[fastest]).half_width
    return widths


def _converged(samples: Mapping[str, list[float]], active: list[str], target: float) -> bool:
    widths = half_widths({name: samples[name] for name in active})
    if len(active) > 1:
        fastest = min(active, key=lambda name: float(np.median(samples[name])))
        del widths[fastest]
    return all(width is not None and width <= target for width in widths.values())


def _share_out(
    seconds: Mapping[str, float], budget_s: float, min_blocks: int, floor_blocks: int
) -> tuple[dict[str, int], float]:
    """Blocks allowed to the arms that cannot run ``min_blocks`` times (the others are not named), and
    the seconds by which their ``floor_blocks`` overrun the budget.

    Every arm has an equal share of the budget; what a fast arm leaves of its own goes to the slower.
    """
    allowed: dict[str, int] = {}
    left, overrun = budget_s, 0.0
    waiting = len(seconds)
    for name, cost in sorted(seconds.items(), key=lambda item: item[1]):
        share = max(left, 0.0) / waiting
        spend = min_blocks * cost
        if spend > share:
            allowed[name] = max(floor_blocks, int(share / cost))
            spend = allowed[name] * cost
            overrun += max(spend - share, 0.0)
            spend = min(spend, share)
        left -= spend
        waiting -= 1
    return allowed, overrun


@contextmanager
def _quiet_collector() -> Iterator[Callable[[], object]]:
    """Keep Python's garbage collector out of timed regions; yields a quick collection to run between."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield lambda: gc.collect(1)
    finally:
        if was_on:
            gc.enable()
