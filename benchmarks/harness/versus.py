"""Two states of the code measured against each other in one run: processes in pairs, samples in turn.

One interpreter cannot hold two ``variants``, so each side has a process of its own whose ``sys.path`` begins with that
commit's packages. A *round* starts a fresh pair of processes and goes through all cells in an order of its own; within
a cell the sides take turns, which of them begins being drawn for every block, and one waits while the other runs. So a
block's disturbance hits both sides alike, and what a process owes to chance (addresses, hash seeds, placement of
threads) is drawn anew each round, where :mod:`.regression` can see it.

Every round of a cell leaves two records in one write, which share a group and pair by block. Free of torch.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .cases import INDEX_BACKEND, Axes, BadAxis, resolve
from .commits import Code
from .device import code_hash
from .measure import PHASE_LIMITS_S, Options
from .process import Event, WorkerDied, WorkerTimeout
from .record import Problem, Provenance, Record, Timing, append
from .regression import MARK
from .side import Side
from .statistics import median_interval
from .sweep import portable, work

SIDES = ("a", "b")
LEAN = "lean"  # on the axis of backends: all that run no compiler
LEAST_BLOCKS, MOST_BLOCKS = 2, 15
AIMED_ROUNDS, MOST_ROUNDS = 6, 10
TRIES = 2  # a side that failed gets another process before the failure is believed
FIRST_GATE_PAIRS, LATER_GATE_PAIRS = 1 << 17, 1 << 14
MEMORY_ROUNDS = 2  # allocators keep the same accounts in every process


@dataclass(frozen=True)
class Plan:
    """What to measure: problems, and backends by name, ``all`` or ``lean``; and how."""

    problems: tuple[tuple[Problem, str | None], ...]
    backends: tuple[str, ...]
    budget_s: float = 180.0
    rounds: int = MOST_ROUNDS
    out: Path | None = None
    threads: int | None = None
    seed: int = 0
    argv: tuple[str, ...] = ()
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
    rounds: int = 0
    over: bool = False

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


class Listener:
    """What a run tells while it goes on; every method may be left as it is."""

    def planned(self, a: Code, b: Code, cells: int) -> None: ...

    def round(self, number: int) -> None: ...

    def cell(self, cell: Cell) -> None: ...

    def recorded(self, records: list[Record]) -> None: ...


class NothingRuns(RuntimeError):
    """No process of either side came up: says why."""


class NoTime(Exception):
    """The budget is used up."""


def problems_of(axes: list[Axes]) -> tuple[tuple[Problem, str | None], ...]:
    """The problems of these axes, none twice, the cheapest first."""
    found = {problem.key: (problem, source) for problem, source in map(resolve, axes)}
    return tuple(sorted(found.values(), key=lambda one: work(one[0])))


class Versus:
    """One run over both sides. Use :meth:`run` once."""

    def __init__(self, a: Code, b: Code, plan: Plan, listener: Listener | None = None) -> None:
        self.codes, self.plan, self.listener = {"a": a, "b": b}, plan, listener or Listener()
        self.run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        self.cells: list[Cell] = []
        self.records: list[Record] = []
        self.rounds = 0
        self._draw = random.Random(plan.seed)
        self._share_s = 0.0  # for the samples of one cell in one round
        self._sampling_s = 0.0  # of this round; what else it takes is its price
        self._least_s = 0.0  # of this round, had every cell taken its fewest blocks
        self._deadline = time.monotonic() + plan.budget_s

    def run(self) -> list[Record]:
        """Rounds until the budget is used up or no cell is left; all records, which are on file too.

        A ``KeyboardInterrupt`` ends the processes and passes through; what was recorded is on file.
        """
        with self._sides() as sides, suppress(NoTime):
            self.cells = self._planned(sides)
            self.listener.planned(self.codes["a"], self.codes["b"], len(self.cells))
            # what starting and gating takes is not known yet
            self._share_s = 0.3 * self.plan.budget_s / AIMED_ROUNDS / max(len(self.cells), 1)
            while self.rounds < self.plan.rounds and (left := [cell for cell in self.cells if not cell.over]):
                self._round(sides, left)
        return self.records

    @contextmanager
    def _sides(self) -> Iterator[dict[str, Side]]:
        """Both, their packages in sibling folders whose names are of one length."""
        folder = Path(tempfile.mkdtemp(prefix="atom-regress-"))
        sides = {name: Side(name, code, folder / name, self.plan.threads) for name, code in self.codes.items()}
        try:
            for side in sides.values():
                side.code.export(side.folder)
            yield sides
        finally:
            for side in sides.values():
                side.stop()
            shutil.rmtree(folder, ignore_errors=True)

    def _planned(self, sides: dict[str, Side]) -> list[Cell]:
        """Every backend that either side has, on every problem."""
        for side in sides.values():
            side.start()
        names = choose(self.plan.backends, *self.codes.values())
        if LEAN in names:
            compiling = {name for side in sides.values() for name in self._compiling(side)}
            known = self.codes["a"].backends() | self.codes["b"].backends()
            lean = tuple(sorted(known - compiling))
            names = tuple(dict.fromkeys(one for name in names for one in (lean if name == LEAN else (name,))))
        return [
            Cell(name, problem, source)
            for problem, source in self.plan.problems
            for name in ((INDEX_BACKEND,) if problem.level == "index" else names)
        ]

    def _compiling(self, side: Side) -> list[str]:
        """The backends of one side that run a compiler; none if it cannot even be asked, which will be recorded."""
        try:
            return [name for name, compiles in side.backends().items() if compiles]
        except (WorkerDied, WorkerTimeout):
            return []

    # -- a round -----------------------------------------------------------------------------------

    def _round(self, sides: dict[str, Side], cells: list[Cell]) -> None:
        """A fresh pair of processes through all cells, problem by problem, in an order drawn afresh."""
        started, self._sampling_s, self._least_s = time.monotonic(), 0.0, 0.0
        self.listener.round(self.rounds + 1)
        if self.rounds:
            for name in self._draw.sample(SIDES, 2):
                sides[name].start()
        keys = list({cell.problem.key: None for cell in cells})
        self._draw.shuffle(keys)
        for key in keys:
            own = [cell for cell in cells if cell.problem.key == key]
            self._draw.shuffle(own)
            for cell in own:
                self.listener.cell(cell)
                self._cell(sides, cell)
        self.rounds += 1
        self._aim(time.monotonic() - started - self._sampling_s, sum(not cell.over for cell in cells))

    def _aim(self, price_s: float, cells: int) -> None:
        """Share what the budget leaves among the rounds still aimed at, as far as they fit.

        Raises
        ------
        NoTime
            Another round would not fit.
        """
        left_s, least_s = self._deadline - time.monotonic(), price_s + self._least_s
        if left_s < least_s:
            raise NoTime
        rounds = max(min(min(AIMED_ROUNDS, self.plan.rounds) - self.rounds, int(left_s / max(least_s, 1e-3))), 1)
        self._share_s = max(left_s / rounds - price_s, 0.0) / max(cells, 1)

    # -- a cell in a round -------------------------------------------------------------------------

    def _cell(self, sides: dict[str, Side], cell: Cell) -> None:
        """Both sides of one cell: opened, sampled in turn, closed, recorded."""
        found: dict[str, dict[str, Any]] = {}
        ready: dict[str, Event] = {}
        for name in self._draw.sample(SIDES, 2):
            answer = self._open(sides[name], cell)
            if answer["event"] == "ready":
                ready[name] = answer
            else:
                found[name] = answer
        samples = self._sample(sides, cell, ready, found) if len(ready) == len(SIDES) else None
        for name in ready:
            if name not in found:
                found[name] = self._ask(sides[name], cell, "close", "cell", limit_s=self.plan.limits_s["gate"])
        if samples is not None and all(one["status"] == "ok" for one in found.values()):
            for name, taken in samples.items():
                found[name] = found[name] | {"timing": _timing(taken, cell.calls, ready[name]["cache"])}
        self._record(sides, cell, found)

    def _open(self, side: Side, cell: Cell) -> Event:
        pairs = LATER_GATE_PAIRS if self.rounds else FIRST_GATE_PAIRS
        options = Options(gate_pairs=pairs, memory=self.rounds < MEMORY_ROUNDS, limits_s=self.plan.limits_s)
        try:
            side.describe(cell.problem.device)
            side.enter(cell.problem, cell.source, options, self._deadline)
        except (WorkerDied, WorkerTimeout) as e:
            return self._failure(e, cell.backend)
        known = {"calls": cell.calls, "seconds": cell.seconds} if cell.calls else None
        return self._ask(side, cell, "open", "ready", limit_s=self.plan.limits_s["build"], known=known)

    def _sample(
        self, sides: dict[str, Side], cell: Cell, ready: dict[str, Event], found: dict[str, dict[str, Any]]
    ) -> dict[str, list[float]] | None:
        """Blocks of one sample a side, in turn; None, and the reason in ``found``, if a side fails on the way."""
        started = time.monotonic()
        cell.learn(ready.values())
        blocks = min(max(int(self._share_s / max(2 * cell.seconds, 1e-6)), LEAST_BLOCKS), MOST_BLOCKS)
        samples: dict[str, list[float]] = {name: [] for name in SIDES}
        try:
            for _ in range(blocks):
                for name in self._draw.sample(SIDES, 2):
                    limit_s = self.plan.limits_s["timing"]
                    answer = self._ask(sides[name], cell, "sample", "sample", limit_s=limit_s, calls=cell.calls)
                    if answer["event"] != "sample":
                        found[name] = answer
                        return None
                    samples[name].append(answer["ms"])
        finally:
            took = time.monotonic() - started
            self._sampling_s += took
            self._least_s += took * LEAST_BLOCKS / max(len(samples["b"]), LEAST_BLOCKS)
        return samples

    def _ask(self, side: Side, cell: Cell, what: str, wanted: str, *, limit_s: float, **arguments: Any) -> Event:
        """The wanted event, or the cell with which it ended; ``cell`` stands for the latter alone."""
        try:
            events = side.ask(what, backend=cell.backend, limit_s=limit_s, until=self._deadline, **arguments)
        except (WorkerDied, WorkerTimeout) as e:
            return self._failure(e, cell.backend)
        for event in events:
            if event["event"] == wanted:
                return event
        cells = [one for event in events if event["event"] == "cells" for one in event["cells"]]
        missing = {"backend": cell.backend, "status": "crashed", "reason": f"the worker sent no answer to {what!r}"}
        return (cells[-1] if cells else missing) | {"event": "cell"}

    def _failure(self, e: WorkerDied | WorkerTimeout, backend: str) -> Event:
        """A process that ended or hung, as the cell's status; a hang past the budget is nobody's fault."""
        if isinstance(e, WorkerTimeout) and time.monotonic() >= self._deadline:
            raise NoTime from e
        phase = (e.in_flight or ("", "start"))[1]
        status = "timeout" if isinstance(e, WorkerTimeout) else "crashed"
        last = e.stderr.splitlines()[-1:] if status == "crashed" else []
        reason = "; ".join([str(e), f"in phase: {phase}", *last])
        return {"event": "cell", "backend": backend, "status": status, "reason": reason, "error": e.stderr or None}

    # -- records -----------------------------------------------------------------------------------

    def _record(self, sides: dict[str, Side], cell: Cell, found: dict[str, dict[str, Any]]) -> None:
        """Both sides of this round in one write."""
        where = {name: _provenance(sides, name) for name in SIDES}
        records = [self._as_record(sides[name], cell, found[name], where[name]) for name in SIDES]
        for name, one in found.items():
            if one["status"] != "ok":
                cell.failures[name].append(one["status"])
        cell.rounds += 1
        cell.settle()
        if self.plan.out is not None:
            append(self.plan.out, records)
        self.records += records
        self.listener.recorded(records)

    def _as_record(self, side: Side, cell: Cell, one: dict[str, Any], known: dict[str, Any]) -> Record:
        mark = {"side": side.name, "round": self.rounds + 1, **{name: code.short for name, code in self.codes.items()}}
        provenance = known | {
            "utc": datetime.now(UTC).isoformat(timespec="seconds"),
            "argv": [portable(word) for word in self.plan.argv],
            "seed": self.plan.seed,
            "environment": known["environment"] | {MARK: mark, "load_1min": os.getloadavg()[0]},
        }
        fields = {k: v for k, v in one.items() if k not in ("backend", "event")}
        whole = {
            "run": self.run_id,
            "group": f"{self.run_id}/{cell.problem.key[:8]}-{cell.backend}-{self.rounds + 1}",
            "backend": cell.backend,
            "problem": cell.problem,
            "provenance": Provenance.model_validate(provenance),
            **fields,
            **{name: portable(fields.get(name)) for name in ("reason", "error")},
        }
        return Record.model_validate(whole)


def _provenance(sides: dict[str, Side], name: str) -> dict[str, Any]:
    """A side that could not describe itself stands on the other's machine, with code of its own."""
    side = sides[name]
    if side.provenance is not None:
        return side.provenance
    other = next((one.provenance for one in sides.values() if one.provenance is not None), None)
    if other is None:
        raise NothingRuns("neither side could even describe itself; see the workers' errors above")
    return other | {"commit": side.code.commit, "dirty": side.code.dirty, "code": code_hash(side.folder)}


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


def _timing(samples: list[float], calls: int, cache: str) -> Timing:
    interval = median_interval(samples)
    return Timing(
        samples_ms=samples,
        calls_per_sample=calls,
        median_ms=interval.median,
        ci_low_ms=interval.median if interval.low is None else interval.low,
        ci_high_ms=interval.median if interval.high is None else interval.high,
        half_width=None,
        stop="maximum" if len(samples) == MOST_BLOCKS else "budget",
        cache=cache,  # type: ignore[arg-type]
    )
