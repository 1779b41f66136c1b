"""Run groups in a worker that may die, record every cell's one status, and go on where a kill left off.

This is the parent: it plans, waits and writes, and imports no torch. Cells are appended as they end,
those with a speed of one group together, since only they are pairs. What is on file and was made in the
same place, asked for in the same way (:func:`~.place.counts`), is not measured again.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from pydantic import BaseModel, ValidationError

from ..cases import registry
from ..cases.problems import Axes, BadAxis, Group, resolve_all, workload_of
from ..levels import level_of, pair_bytes
from ..ruler.sources import file_hash
from ..schema.place import FILES, counts
from ..schema.problem import Problem
from ..schema.profile import Profile
from ..schema.record import Provenance, Record, append, read
from ..worker.host import START_LIMIT_S, Host, seconds_left
from ..worker.options import Options, Run
from ..worker.process import ROOT, WorkerDied, WorkerTimeout
from ..workload import workloads
from .again import command

# Rough relative work, to put the small first.
_MODE_WEIGHT = {"fwd": 1.0, "fwdbwd": 3.0, "train": 3.2}


Line = TypeVar("Line", bound=BaseModel)
Kept = TypeVar("Kept", Record, Profile)


@dataclass(frozen=True, kw_only=True)
class Settings(Run):
    """How a sweep is run."""

    options: Options = field(default_factory=Options)
    fresh: bool = False
    retry: frozenset[str] = frozenset()


class Observer:
    """What a sweep tells while it runs; every method may be left as it is."""

    def planned(self, cells: int, on_file: int) -> None: ...

    def phase(self, group: Group, backend: str, phase: str) -> None: ...

    def recorded(self, records: list) -> None: ...

    def notice(self, text: str) -> None: ...


@dataclass
class Outcome(Generic[Kept]):
    """All records of the plan, on file before or made now; ``unfinished`` cells had no time."""

    records: list[Kept]
    made: list[Kept]
    unfinished: int
    seconds: float


class BudgetEnded(RuntimeError):
    """The sweep's time is over; what is recorded is complete."""


def plan(axes: Iterable[Axes], backends: tuple[str, ...], *, keep_order: bool = False) -> list[Group]:
    """The groups that these axes ask for, none twice, the smallest first unless ``keep_order``.

    Raises
    ------
    BadAxis, WorkloadError
    """
    groups: dict[str, Group] = {}
    for problem, source in resolve_all(axes):
        names = level_of(problem.level).backends(backends)
        groups.setdefault(problem.key, Group(problem, names, source))
    if not groups:
        raise BadAxis("the axes: expected at least one combination, got none")
    return list(groups.values()) if keep_order else sorted(groups.values(), key=lambda g: work(g.problem))


def work(problem: Problem) -> float:
    """A group's rough relative cost."""
    level = level_of(problem.level)
    return level.weight * _MODE_WEIGHT[problem.mode] * (pair_bytes(problem) + level.input_bytes(problem))


class Sweep(Generic[Kept]):
    """One invocation over planned groups. What a worker is asked for, and what is kept of its answer, a subclass may
    decide (:class:`~..profile.profiles.Profiles`)."""

    request = "group"

    def __init__(
        self, groups: list[Group], settings: Settings, observer: Observer | None = None, host: Host | None = None
    ) -> None:
        self.groups, self.settings = groups, settings
        self.host = host or Host(threads=settings.threads)
        self._own_host = host is None
        self.observer = observer or Observer()
        self.run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        self._graphs = True
        self._made: list[Kept] = []
        self._deadline: float | None = None

    def run(self) -> Outcome[Kept]:
        """Bring every cell of the plan to a record, or stop at the budget.

        A ``KeyboardInterrupt`` ends the worker and passes through; the file is good.
        """
        started = time.monotonic()
        if self.settings.budget_s is not None:
            self._deadline = started + self.settings.budget_s
        unfinished = 0
        kept: list[Kept] = []
        try:
            known = self._on_file()
            todo = [_without(group, known) for group in self.groups]
            kept = [known[key] for group in self.groups for key in _keys(group) if key in known]
            cells = sum(len(group.backends) for group in todo)
            self.observer.planned(cells, len(kept))
            unfinished = cells
            for group in todo:
                if group.backends:
                    before = len(self._made)
                    try:
                        self._group(group)
                    finally:
                        unfinished -= len(self._made) - before
        except BudgetEnded as e:
            self.observer.notice(str(e))
        except BaseException:
            self.host.replace()
            raise
        finally:
            if self._own_host:
                self.host.replace()
        return Outcome(kept + self._made, self._made, unfinished, time.monotonic() - started)

    # -- what is there -----------------------------------------------------------------------------

    def _on_file(self) -> dict[str, Kept]:
        """The records of this plan that count as done, the last one of each cell."""
        out = self.settings.out
        if self.settings.fresh or out is None or not out.exists():
            return {}
        planned = {_key(group, spec): (group, spec) for group in self.groups for spec in group.backends}
        here = functools.cache(lambda key: self._here(*planned[key]))
        known = {
            record.key: record
            for record in self._read(out)
            if record.key in planned  # else its device need not even be here
            and counts(record.provenance, here(record.key), record.problem.device)
        }
        return {key: record for key, record in known.items() if record.status not in self.settings.retry}

    def _read(self, out: Path) -> Iterable[Kept]:
        return cast(Iterable[Kept], read(out))

    def _here(self, group: Group, spec: str) -> Provenance:
        """What the provenance of this cell would be, measured now."""
        where = self._origin(self.host.describe(group.problem.device))
        return where.model_copy(update={"environment": where.environment | files_of(group, spec)})

    def _origin(self, described: dict[str, Any], **environment: Any) -> Provenance:
        """A machine's description, completed by what this sweep was asked."""
        settings = self.settings
        return Provenance.model_validate(
            described
            | {
                "utc": datetime.now(UTC).isoformat(timespec="seconds"),
                "argv": [portable(word) for word in settings.argv],
                "seed": settings.seed,
                "options": as_asked(settings.options),
                "environment": {**described.get("environment", {}), **environment},
            }
        )

    def _ceilings(self, problem: Problem) -> dict[str, Any] | None:
        """Both rates of the device for this dtype; None if measuring them failed, which costs no cell."""
        try:
            return self.host.ceilings(problem.device, problem.dtype)
        except (WorkerDied, WorkerTimeout) as e:
            self.observer.notice(f"no % of limit for {problem.dtype} on {problem.device}: {e}")
            return None

    # -- one group ---------------------------------------------------------------------------------

    def _group(self, group: Group) -> None:
        """Run the group until each of its backends has a record, in as many workers as that takes."""
        left = list(group.backends)
        while left:
            self._check_budget()
            files = {spec: files_of(group, spec) for spec in left}
            pending = Pending(group, left, f"{self.run_id}/{group.problem.key[:8]}-{len(left)}", files)
            provenance, ceilings = self.host.describe(group.problem.device), self._ceilings(group.problem)
            try:
                self._measure(pending, ceilings)
            except WorkerTimeout as e:
                if seconds_left(self._deadline) <= 0:
                    self._record(pending, provenance)
                    raise BudgetEnded(self._budget_text()) from e
                self._blame(pending, e.in_flight, "timeout", str(e), e.stderr)
            except WorkerDied as e:
                self._blame(pending, e.in_flight, "crashed", e.how, e.stderr)
            self._record(pending, provenance)
            done = set(pending.cells)
            left = [spec for spec in left if spec not in done]

    def _measure(self, pending: Pending, ceilings: dict[str, Any] | None) -> None:
        group = pending.group
        options = asdict(self._options())
        self.observer.phase(group, "", "start")
        spent = Phases()
        for event in self.host.ask(
            self.request,
            problem=group.problem.model_dump(mode="json"),
            source=group.source,
            backends=pending.backends,
            options=options,
            ceilings=ceilings,
            **self._arguments(pending),
            limit_s=START_LIMIT_S,
            until=self._deadline,
        ):
            match event["event"]:
                case "phase":
                    spent.enter(event["phase"])
                    self.observer.phase(group, registry.name_of(event["backend"]), event["phase"])
                case "cells":
                    pending.cells |= {cell["backend"]: cell for cell in event["cells"]}
                case "environment":
                    pending.environment = {"before": event["before"], "after": event["after"]} | spent.ended()
        for spec in pending.backends:
            pending.cells.setdefault(
                spec, {"backend": spec, "status": "crashed", "reason": "the worker sent no result for this cell"}
            )

    def _arguments(self, pending: Pending) -> dict[str, Any]:
        """What the request says besides."""
        return {}

    def _options(self) -> Options:
        """The group's own budget, cut to what is left of the sweep's."""
        options = replace(self.settings.options, graphs=self._graphs)
        return replace(options, budget_s=min(options.budget_s, max(1.0, seconds_left(self._deadline) / 3)))

    def _blame(self, pending: Pending, in_flight: tuple[str, str] | None, status: str, how: str, stderr: str) -> None:
        """Give the cell in flight its status. Nobody in flight, or one that has ended already: if nothing at all
        came out of this worker, the whole group is at fault, else the rest just runs again."""
        name, phase = in_flight or ("", "start")
        if phase == "graph" and self._graphs:  # an extra; without it, the cells may well be fine
            self._graphs = False
            self.observer.notice(f"no more CUDA graphs in this sweep: {how}, while {name} was captured")
            return
        if name in pending.backends and name not in pending.cells:
            at_fault = [name]
        else:
            at_fault = [] if pending.cells else pending.backends
        for spec in at_fault:
            pending.cells[spec] = {
                "backend": spec,
                "status": status,
                "reason": f"{how}; in phase: {phase}",
                "error": stderr or None,
            }

    def _record(self, pending: Pending, provenance: dict[str, Any]) -> None:
        """Append what the worker found, in one write."""
        where = self._origin(provenance, **pending.environment)
        records = [self._kept(pending, cell, where) for cell in pending.cells.values()]
        if self.settings.out is not None and records:
            append(self.settings.out, records)
        self._made += records
        self.observer.recorded(records)

    def _kept(self, pending: Pending, cell: dict[str, Any], where: Provenance) -> Kept:
        threads = where.environment.get("threads")
        again = command(pending.group.problem, cell["backend"], as_asked(self.settings.options), threads)
        return cast(Kept, self._checked(Record, pending, cell, where, group=pending.name, again=again))

    def _checked(
        self, model: type[Line], pending: Pending, cell: dict[str, Any], where: Provenance, **own: Any
    ) -> Line:
        """The worker's answer as a line of a file; one that breaks the schema becomes a crash that says so."""
        files = pending.files.get(cell["backend"], {})
        common = own | {
            "run": self.run_id,
            "backend": registry.name_of(cell["backend"]),
            "problem": pending.group.problem,
            "provenance": where.model_copy(update={"environment": where.environment | files}),
        }
        cell = cell | {name: portable(cell.get(name)) for name in ("reason", "error")}
        try:
            return model(**common, **{name: value for name, value in cell.items() if name != "backend"})
        except ValidationError as e:
            reason = "the worker's result breaks the schema"
            error = f"{e}\n{json.dumps(cell)[:4000]}"
            return model(**common, status="crashed", reason=reason, error=error)

    def _check_budget(self) -> None:
        if seconds_left(self._deadline) <= 0:
            raise BudgetEnded(self._budget_text())

    def _budget_text(self) -> str:
        return f"the budget of {self.settings.budget_s:g} s is used up; run the same command again to go on"


@dataclass
class Pending:
    """A group in a worker: who was asked for, and what has come back."""

    group: Group
    backends: list[str]
    name: str
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # of each backend, before it was measured
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)


class Phases:
    """Seconds that a group spent in each phase, summed over its backends, between the worker's own events."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._phase, self._since = "start", time.monotonic()

    def enter(self, phase: str) -> None:
        """Charge the time since the last call to the phase that ends now."""
        now = time.monotonic()
        self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now

    def ended(self) -> dict[str, dict[str, float]]:
        """The last phase too, as an entry of a record's environment."""
        self.enter("end")
        return {"phases_s": {name: round(seconds, 3) for name, seconds in self._seconds.items()}}


def as_asked(options: Options) -> dict[str, Any]:
    """Options as a record keeps them: as they were asked for, without those that cannot change a number."""
    return {name: value for name, value in json.loads(json.dumps(asdict(options))).items() if name != "limits_s"}


def files_of(group: Group, spec: str) -> dict[str, Any]:
    """The user's own files that a cell is made from, by their hashes, and what was read of a structure, as entries of
    its environment; empty where there are none."""
    structure = None if group.source is None or group.source in workloads.names() else group.source
    own = {"backend": spec if registry.is_file(spec) else None, "structure": structure}
    hashes = {name: file_hash(Path(path)) for name, path in own.items() if path is not None}
    found: dict[str, Any] = {FILES: hashes} if hashes else {}
    if structure is not None:
        p = group.problem
        found["structure"] = f"{p.workload}: {workload_of(structure, None, p.atoms, p.seed).account}"
    return found


def portable(text: str | None) -> str | None:
    """As text, without this machine's folders: records are shown to others."""
    if text is None:
        return None
    text = text.encode(errors="backslashreplace").decode()  # a file's name may hold bytes that are no text
    for folder, shown in (
        (sys.prefix, "<python>"),
        (sys.base_prefix, "<python>"),
        (str(ROOT), "."),
        (str(Path.home()), "~"),
    ):
        text = text.replace(folder + os.sep, shown + os.sep)
    return text


def _key(group: Group, spec: str) -> str:
    return f"{registry.name_of(spec)}@{group.problem.key}"


def _keys(group: Group) -> list[str]:
    return [_key(group, spec) for spec in group.backends]


def _without(group: Group, known: dict[str, Any]) -> Group:
    return replace(group, backends=tuple(spec for spec in group.backends if _key(group, spec) not in known))
