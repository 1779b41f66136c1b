"""Ask a worker for profiles, write each as a line of its own, and do not ask twice for what is on file.

This is the parent's side: it imports no torch, and a worker's death or silence is one profile's status.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..levels import arms
from ..schema.place import counts
from ..schema.problem import Problem
from ..schema.profile import PROFILES, Counters, Profile, scan_profiles
from ..schema.record import Provenance, Record, append
from ..sweep.sweep import as_asked, files_of, portable
from ..worker.host import START_LIMIT_S, Host, seconds_left
from ..worker.options import Options
from ..worker.process import WorkerDied, WorkerTimeout
from ..workload.problems import Group

Counting = Callable[[Group, str], Counters]


@dataclass(frozen=True)
class Settings:
    """``folder`` None keeps profiles and traces in memory alone; ``until`` is of ``time.monotonic``."""

    folder: Path | None = None
    gate_pairs: int = 1 << 18
    until: float | None = None
    argv: tuple[str, ...] = ()
    counting: Counting | None = None


class Profiler:
    """One invocation over planned groups."""

    def __init__(self, host: Host, settings: Settings) -> None:
        self.host, self.settings = host, settings
        self.run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"

    def run(self, groups: Iterable[Group], tell: Callable[[Profile], None] = lambda profile: None) -> list[Profile]:
        """A profile per backend and problem, on file before or made now; those that the time does not reach are left
        out. ``tell`` hears of each as soon as it is written."""
        on_file = self._on_file()
        found: list[Profile] = []
        for group in groups:
            known = {spec: self._known(on_file, group, spec) for spec in group.backends}
            kept = [profile for profile in known.values() if profile is not None]
            made = self._group(group, [spec for spec, profile in known.items() if profile is None])
            for profile in made:
                tell(profile)
            found += kept + made
        return found

    def _on_file(self) -> dict[str, list[Profile]]:
        """Good or unsupported profiles by their key; a crash is worth another try."""
        path = None if self.settings.folder is None else self.settings.folder / PROFILES
        known: dict[str, list[Profile]] = {}
        for profile in scan_profiles(path) if path is not None and path.exists() else ():
            if isinstance(profile, Profile) and profile.status in ("ok", "unsupported"):
                known.setdefault(profile.key, []).append(profile)
        return known

    def _known(self, on_file: dict[str, list[Profile]], group: Group, spec: str) -> Profile | None:
        """The last one on file that counts for what would be made here and now."""
        found = on_file.get(f"{arms.name_of(spec)}@{group.problem.key}", [])
        here = self._origin(group, files_of(group, spec)) if found else None
        device = group.problem.device
        return next((one for one in reversed(found) if here and counts(one.provenance, here, device)), None)

    def _options(self) -> Options:
        return Options(speed=False, gate_pairs=self.settings.gate_pairs)

    def _origin(self, group: Group, files: dict[str, Any]) -> Provenance:
        """The provenance of a profile that is made now, from these files of the user's."""
        described = self.host.describe(group.problem.device)
        asked = {
            "utc": datetime.now(UTC).isoformat(timespec="seconds"),
            "argv": [portable(word) for word in self.settings.argv],
            "seed": group.problem.seed,
            "options": as_asked(self._options()),
            "environment": described["environment"] | files,
        }
        return Provenance.model_validate(described | asked)

    def _group(self, group: Group, waiting: list[str]) -> list[Profile]:
        """Ask until every backend has its profile, in as many workers as that takes, or the time is over."""
        made: list[Profile] = []
        over = False
        while waiting and not over and seconds_left(self.settings.until) > 1:
            files = {spec: files_of(group, spec) for spec in waiting}  # before they are read
            answers, over = self._ask(group, waiting)
            fresh = [self._profile(group, spec, answer, files[spec]) for spec, answer in answers.items()]
            if self.settings.folder is not None:
                append(self.settings.folder / PROFILES, fresh)
            made += fresh
            waiting = [spec for spec in waiting if spec not in answers]
        return made

    def _ask(self, group: Group, waiting: list[str]) -> tuple[dict[str, dict[str, Any]], bool]:
        """What came back by backend, at least one unless the time is over; and whether it is."""
        answers: dict[str, dict[str, Any]] = {}
        try:
            for event in self.host.ask(
                "profile",
                problem=group.problem.model_dump(mode="json"),
                source=group.source,
                backends=waiting,
                options=asdict(self._options()),
                ceilings=self._ceilings(group.problem),
                traces=self._traces(group, waiting),
                limit_s=START_LIMIT_S,
                until=self.settings.until,
            ):
                if event["event"] == "cells":
                    answers |= {cell["backend"]: cell for cell in event["cells"]}
                elif event["event"] == "profile":
                    answers[event["backend"]] = {"status": "ok"} | event
            silent = {"status": "crashed", "reason": "the worker sent no result for this profile"}
            return answers | {spec: silent for spec in waiting if spec not in answers}, False
        except WorkerTimeout as e:
            if seconds_left(self.settings.until) <= 0:
                return answers, True
            return _blamed(answers, waiting, e.in_flight, "timeout", str(e), e.stderr), False
        except WorkerDied as e:
            return _blamed(answers, waiting, e.in_flight, "crashed", e.how, e.stderr), False

    def _ceilings(self, problem: Problem) -> dict[str, Any] | None:
        """Both rates of the device; None if measuring them failed, which costs no profile."""
        try:
            return self.host.ceilings(problem.device, problem.dtype)
        except (WorkerDied, WorkerTimeout):
            return None

    def _traces(self, group: Group, waiting: list[str]) -> dict[str, str]:
        if self.settings.folder is None:
            return {}
        folder = (self.settings.folder / "traces").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        return {spec: str(folder / trace_name(group.problem, arms.name_of(spec))) for spec in waiting}

    def _profile(self, group: Group, spec: str, answer: dict[str, Any], files: dict[str, Any]) -> Profile:
        common = {
            "run": self.run_id,
            "backend": arms.name_of(spec),
            "problem": group.problem,
            "provenance": self._origin(group, files),
        }
        fields = {name: value for name, value in answer.items() if name not in ("event", "backend")}
        fields |= {name: portable(fields.get(name)) for name in ("reason", "error")}
        if fields.get("trace") is not None:
            fields["trace"] = f"traces/{fields['trace']}"
        if answer.get("status") == "ok" and self.settings.counting is not None:
            fields["counters"] = self.settings.counting(group, spec)
        try:
            return Profile(**common, **fields)
        except ValidationError as e:
            return Profile(**common, status="crashed", reason="the worker's result breaks the schema", error=str(e))


def _blamed(
    answers: dict[str, dict[str, Any]],
    waiting: list[str],
    in_flight: tuple[str, str] | None,
    status: str,
    how: str,
    stderr: str,
) -> dict[str, dict[str, Any]]:
    """The backend in flight gets the status; nobody in flight and nothing came out: all of them."""
    name, phase = in_flight or ("", "start")
    named = name in waiting and name not in answers
    at_fault = [name] if named else [] if answers else waiting
    why = {"status": status, "reason": f"{how}; in phase: {phase}", "error": stderr or None}
    return answers | dict.fromkeys(at_fault, why)


def trace_name(problem: Problem, backend: str) -> str:
    """``attention-fwd-bf16-16384-1f3a9c-banded.json.gz``."""
    kind = f"{problem.level}-{problem.mode}-{problem.dtype}-{problem.n_atom}"
    return f"{kind}-{problem.key[:6]}-{backend}.json.gz"


def best_and_worst(records: Iterable[Record], wanted: Iterable[Group]) -> list[Group]:
    """The fastest and the slowest backend of each wanted problem, by the times just measured; a problem without
    times is left out, one backend alone is both."""
    chosen = []
    times: dict[str, dict[str, float]] = {}
    for record in records:
        if record.timing is not None:
            times.setdefault(record.problem.key, {})[record.backend] = record.timing.median_ms
    for group in wanted:
        timed = {
            s: t for s in group.backends if (t := times.get(group.problem.key, {}).get(arms.name_of(s))) is not None
        }
        if timed:
            ends = dict.fromkeys((min(timed, key=timed.__getitem__), max(timed, key=timed.__getitem__)))
            chosen.append(Group(group.problem, tuple(ends), group.source))
    return chosen
