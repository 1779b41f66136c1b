"""Two states of the code measured against each other in one run: processes in pairs, samples in turn.

One interpreter cannot hold two ``variants``, so each side has a process of its own whose ``sys.path`` begins with that
commit's packages. A *round* starts a fresh pair of processes and goes through all problems in an order of its own. The
cells of a problem are sampled in passes, in an order drawn afresh; a *block* is one sample of either side in a row,
which of them begins being drawn too, and one waits while the other runs. So a block's disturbance hits both sides
alike, a burst hits few blocks of a cell, and what a process owes to chance (addresses, hash seeds, placement of
threads) is drawn anew each round, where :mod:`.regression` can see it.

Every round of a cell leaves two records in one write, which share a group and pair by block. Free of torch.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from ..levels import level_of
from ..ruler.scratch import Scratch
from ..schema.record import Record, append
from ..sweep.sweep import as_asked
from ..worker.options import Options
from ..worker.process import Event, WorkerDied, WorkerTimeout
from .commits import Code
from .side import Side
from .versus_plan import (
    AIMED_ROUNDS,
    ENOUGH_ROUNDS,
    LEAN,
    LEAST_BLOCKS,
    MOST_BLOCKS,
    SIDES,
    Cell,
    Listener,
    NoTime,
    Plan,
    Trial,
    choose,
)
from .versus_records import pair_of, timing_of

FIRST_GATE_PAIRS, LATER_GATE_PAIRS = 1 << 17, 1 << 14
MEMORY_ROUNDS = 2  # allocators keep the same accounts in every process


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
        with Scratch("atom-regress-") as folder:
            sides = {name: Side(name, code, folder / name, self.plan.threads) for name, code in self.codes.items()}
            try:
                for side in sides.values():
                    side.code.export(side.folder)
                yield sides
            finally:
                for side in sides.values():
                    side.stop()

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
            for name in level_of(problem.level).backends(names)
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
        started, self._sampling_s = time.monotonic(), 0.0
        self.listener.round(self.rounds + 1)
        if self.rounds:
            for name in self._draw.sample(SIDES, 2):
                sides[name].start()
        keys = list({cell.problem.key: None for cell in cells})
        self._draw.shuffle(keys)
        for key in keys:
            left = [cell for cell in cells if cell.problem.key == key]
            while left:  # a process that died takes the others' open state along: those begin again without its cell
                left = self._together(sides, left)
        self.rounds += 1
        self._share(time.monotonic() - started - self._sampling_s, [cell for cell in cells if not cell.over])

    def _share(self, price_s: float, cells: list[Cell]) -> None:
        """Plan the next round, after one that took ``price_s`` beside its samples: where the budget does not hold as
        many rounds as a verdict needs, the most expensive cells have had theirs; then what is left for samples."""
        left_s = self._deadline - time.monotonic()
        needed = max(min(ENOUGH_ROUNDS, self.plan.rounds) - self.rounds, 0)
        shared_s = price_s - sum(cell.price_s for cell in cells)
        cells.sort(key=lambda cell: cell.least_s)
        while len(cells) > 1 and needed * (shared_s + sum(cell.least_s for cell in cells)) > left_s:
            dropped = cells.pop()
            dropped.over = True
            price_s -= dropped.price_s
            self.listener.dropped(dropped)
        rounds = max(min(AIMED_ROUNDS, self.plan.rounds) - self.rounds, 1)
        self._share_s = max(left_s / rounds - price_s, 0.0) / max(len(cells), 1)

    # -- a problem in a round ----------------------------------------------------------------------

    def _together(self, sides: dict[str, Side], cells: list[Cell]) -> list[Cell]:
        """The cells of one problem: opened on both sides, sampled in passes that go round among them, closed,
        recorded. Returns those that have no record yet because a process died.

        Raises
        ------
        NoTime
            The budget ended; a round may end in its midst, with the problems that it has.
        """
        trials = [Trial(cell) for cell in self._draw.sample(cells, len(cells))]
        for i, trial in enumerate(trials):
            if self._opened(sides, trial):
                return self._only(sides, trial, trials[:i] + trials[i + 1 :])
        dead = self._sample(sides, [trial for trial in trials if trial.going])
        if dead is not None:
            return self._only(sides, dead, [trial for trial in trials if trial is not dead])
        for trial in trials:
            self._end(sides, trial)
        return []

    def _only(self, sides: dict[str, Side], dead: Trial, others: list[Trial]) -> list[Cell]:
        """Record the cell in which a process died, and what had ended before; the rest is still to be done."""
        self._end(sides, dead, timed=False)
        ended = [trial for trial in others if trial.found and not trial.going]
        for trial in ended:
            self._end(sides, trial, timed=False)
        return [trial.cell for trial in others if trial not in ended]

    def _opened(self, sides: dict[str, Side], trial: Trial) -> bool:
        """Open a cell on both sides; whether a process died of it."""
        started = time.monotonic()
        if started >= self._deadline:
            raise NoTime
        self.listener.cell(trial.cell)
        for name in self._draw.sample(SIDES, 2):
            answer = self._open(sides[name], trial.cell)
            (trial.ready if answer["event"] == "ready" else trial.found)[name] = answer
        trial.cell.price_s = time.monotonic() - started
        return trial.died

    def _end(self, sides: dict[str, Side], trial: Trial, *, timed: bool = True) -> None:
        """Close what is open, pair the samples, record."""
        started = time.monotonic()
        for name in SIDES:
            if name in trial.found:
                continue
            if not sides[name].has(
                trial.cell.backend
            ):  # its process ended since: what the cell is worth is asked again
                answer = self._open(sides[name], trial.cell)
                if answer["event"] != "ready":
                    trial.found[name] = answer
                    continue
            limit_s = self.plan.limits_s["gate"]
            trial.found[name] = self._ask(sides[name], trial.cell, "close", "cell", limit_s=limit_s)
        if timed and trial.samples["b"] and all(one["status"] == "ok" for one in trial.found.values()):
            for name, taken in trial.samples.items():
                timing = timing_of(taken, trial.cell.calls, trial.ready[name]["cache"])
                trial.found[name] = trial.found[name] | {"timing": timing}
        trial.cell.price_s += time.monotonic() - started
        self._record(sides, trial.cell, trial.found)

    def _options(self) -> Options:
        """Of this round."""
        pairs = LATER_GATE_PAIRS if self.rounds else FIRST_GATE_PAIRS
        return Options(gate_pairs=pairs, memory=self.rounds < MEMORY_ROUNDS, limits_s=self.plan.limits_s)

    def _open(self, side: Side, cell: Cell) -> Event:
        try:
            side.describe(cell.problem.device)
            side.enter(cell.problem, cell.source, self._options(), self._deadline)
        except (WorkerDied, WorkerTimeout) as e:
            return self._failure(e)
        known = {"calls": cell.calls, "seconds": cell.seconds} if cell.calls else None
        return self._ask(side, cell, "open", "ready", limit_s=self.plan.limits_s["build"], known=known)

    def _sample(self, sides: dict[str, Side], trials: list[Trial]) -> Trial | None:
        """Passes over the open cells, a block of both sides each time; slow cells are left out of most passes. Returns
        the trial in which a process died."""
        started = time.monotonic()
        for trial in trials:
            trial.cell.learn(trial.ready.values())
            fitting = int(self._share_s / max(2 * trial.cell.seconds, 1e-6))
            trial.blocks = min(max(fitting, LEAST_BLOCKS), MOST_BLOCKS)
        passes = max((trial.blocks for trial in trials), default=0)
        try:
            for i in range(passes):
                due = [t for t in trials if t.going and (i + 1) * t.blocks // passes > i * t.blocks // passes]
                self._draw.shuffle(due)
                for trial in due:
                    if self._block(sides, trial):
                        return trial
        finally:
            self._sampling_s += time.monotonic() - started
        return None

    def _block(self, sides: dict[str, Side], trial: Trial) -> bool:
        """One sample of either side, in an order drawn afresh; whether a process died of it."""
        taken: dict[str, float] = {}
        last = len(trial.samples["b"]) + 1 == trial.blocks
        for name in self._draw.sample(SIDES, 2):
            limit_s, calls = self.plan.limits_s["timing"], trial.cell.calls
            answer = self._ask(sides[name], trial.cell, "sample", "sample", limit_s=limit_s, calls=calls, last=last)
            if answer["event"] != "sample":
                trial.found[name] = answer
                return trial.died
            taken[name] = answer["ms"]
        for name, ms in taken.items():
            trial.samples[name].append(ms)
        return False

    def _ask(self, side: Side, cell: Cell, what: str, wanted: str, *, limit_s: float, **arguments: Any) -> Event:
        """The wanted event, or the cell with which it ended; ``cell`` stands for the latter alone."""
        try:
            events = side.ask(what, backend=cell.backend, limit_s=limit_s, until=self._deadline, **arguments)
        except (WorkerDied, WorkerTimeout) as e:
            return self._failure(e)
        for event in events:
            if event["event"] == wanted:
                return event
        cells = [one for event in events if event["event"] == "cells" for one in event["cells"]]
        missing = {"backend": cell.backend, "status": "crashed", "reason": f"the worker sent no answer to {what!r}"}
        return (cells[-1] if cells else missing) | {"event": "cell"}

    def _failure(self, e: WorkerDied | WorkerTimeout) -> Event:
        """A process that ended or hung, as the cell's status; a hang past the budget is nobody's fault."""
        if isinstance(e, WorkerTimeout) and time.monotonic() >= self._deadline:
            raise NoTime from e
        phase = (e.in_flight or ("", "start"))[1]
        status = "timeout" if isinstance(e, WorkerTimeout) else "crashed"
        last = e.stderr.splitlines()[-1:] if status == "crashed" else []
        reason = "; ".join([str(e), f"in phase: {phase}", *last])
        error = e.stderr or None
        return {"event": "cell", "died": True, "status": status, "reason": reason, "error": error}

    # -- records -----------------------------------------------------------------------------------

    def _record(self, sides: dict[str, Side], cell: Cell, found: dict[str, dict[str, Any]]) -> None:
        """Both sides of this round in one write."""
        asked = as_asked(self._options())
        records = pair_of(sides, cell, found, self.plan, asked, self.run_id, self.rounds + 1)
        for name, one in found.items():
            if one["status"] != "ok":
                cell.failures[name].append(one["status"])
        cell.settle()
        if self.plan.out is not None:
            append(self.plan.out, records)
        self.records += records
        self.listener.recorded(records)
