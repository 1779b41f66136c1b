"""What :mod:`.versus` is asked to measure, and what it says while it does. Free of torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..cases.problems import Axes, BadAxis, resolve_all
from ..schema.problem import Problem
from ..schema.record import Record
from ..sweep.sweep import work
from ..worker.options import PHASE_LIMITS_S, Run
from ..worker.process import Event
from .commits import Code

SIDES = ("a", "b")
LEAN = "lean"  # on the axis of backends: all that run no compiler
LEAST_BLOCKS, MOST_BLOCKS = 2, 25
ENOUGH_ROUNDS, AIMED_ROUNDS, MOST_ROUNDS = 4, 6, 10
TRIES = 2  # a side that failed gets another process before the failure is believed


@dataclass(frozen=True)
class Plan(Run):
    """What to measure: problems, and backends by name, ``all`` or ``lean``; and how."""

    problems: tuple[tuple[Problem, str | None], ...]
    backends: tuple[str, ...]
    budget_s: float = field(default=180.0, kw_only=True)
    rounds: int = MOST_ROUNDS
    limits_s: dict[str, float] = field(default_factory=lambda: {k: min(v, 120.0) for k, v in PHASE_LIMITS_S.items()})


@dataclass
class Cell:
    """A backend on a problem, and how its sides have fared so far."""

    backend: str
    problem: Problem
    source: str | None
    failures: dict[str, list[str]] = field(default_factory=lambda: {side: [] for side in SIDES})
    calls: int = 0  # of one sample, once they are known
    seconds: float = 0.0  # that the slower side's sample takes
    price_s: float = 0.0  # what a round of it took, samples not counted
    over: bool = False

    @property
    def least_s(self) -> float:
        """What a round of it will take at least."""
        return self.price_s + 2 * LEAST_BLOCKS * self.seconds

    def learn(self, ready: Iterable[Event]) -> None:
        """Both sides take as many calls a sample, those of the side that needs more."""
        answers = list(ready)
        self.calls = max(int(answer["calls"]) for answer in answers)
        self.seconds = max(answer["seconds"] / answer["calls"] * self.calls for answer in answers)

    def settle(self) -> None:
        """Nothing more to learn where a side does not run, or has failed as often as it may."""
        for failed in self.failures.values():
            if "unsupported" in failed or len(failed) >= TRIES:
                self.over = True


@dataclass
class Trial:
    """A cell in one round: what each side answered when it was opened, its samples, and how it ended."""

    cell: Cell
    ready: dict[str, Event] = field(default_factory=dict)
    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=lambda: {side: [] for side in SIDES})
    blocks: int = 0

    @property
    def going(self) -> bool:
        """Open on both sides, and neither has failed."""
        return len(self.ready) == len(SIDES) and not self.found

    @property
    def died(self) -> bool:
        """Whether a process ended in it."""
        return any(one.get("died") for one in self.found.values())


class Listener:
    """What a run tells while it goes on; every method may be left as it is."""

    def planned(self, a: Code, b: Code, cells: int) -> None: ...

    def round(self, number: int) -> None: ...

    def cell(self, cell: Cell) -> None: ...

    def dropped(self, cell: Cell) -> None: ...

    def recorded(self, records: list[Record]) -> None: ...


class NothingRuns(RuntimeError):
    """No process of either side came up: says why."""


class NoTime(Exception):
    """The budget is used up."""


def problems_of(axes: list[Axes]) -> tuple[tuple[Problem, str | None], ...]:
    """The problems of these axes, none twice, the cheapest first."""
    found = {problem.key: (problem, source) for problem, source in resolve_all(axes)}
    return tuple(sorted(found.values(), key=lambda one: work(one[0])))


def choose(asked: tuple[str, ...], a: Code, b: Code) -> tuple[str, ...]:
    """The backends asked for by name, ``all`` replaced by those that either side has; ``lean`` stays as it is.

    Raises
    ------
    BadAxis
        For a name that neither side has.
    """
    known = sorted(a.backends() | b.backends())
    names = [name for one in asked for name in (known if one == "all" else [one])]
    for name in names:
        if name not in known and name != LEAN:
            raise BadAxis(f"--backend: expected one of {', '.join((*known, 'all', LEAN))}; got {name!r}")
    return tuple(dict.fromkeys(names))
