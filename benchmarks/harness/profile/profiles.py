"""A sweep whose cells are profiles: asked of a worker one backend after another, kept beside their traces."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..cases import registry
from ..cases.problems import Group
from ..schema.problem import Problem
from ..schema.profile import PROFILES, Counters, Profile, scan_profiles
from ..schema.record import Provenance, Record
from ..sweep.sweep import Observer, Pending, Settings, Sweep
from ..worker.host import Host
from ..worker.options import Options

Counting = Callable[[Group, str], Counters]
AGAIN = frozenset({"wrong", "oom", "timeout", "crashed"})  # no profile: worth another try


def settings(
    folder: Path | None, *, gate_pairs: int = Options.gate_pairs, until: float | None = None, **shared: Any
) -> Settings:
    """``folder`` None keeps profiles and traces in memory alone; ``until`` is of ``time.monotonic``; ``shared``: more
    of :class:`~..worker.options.Run`."""
    return Settings(
        out=None if folder is None else folder / PROFILES,
        options=Options(speed=False, gate_pairs=gate_pairs),
        budget_s=None if until is None else until - time.monotonic(),
        retry=AGAIN,
        **shared,
    )


class Profiles(Sweep[Profile]):
    """A profile per backend and problem; ``counting`` counts with the hardware's own counters."""

    request = "profile"

    def __init__(
        self, groups: list[Group], settings: Settings, observer: Observer, host: Host, counting: Counting | None = None
    ) -> None:
        super().__init__(groups, settings, observer, host)
        self._counting = counting

    def _read(self, out: Path) -> Iterable[Profile]:
        return (profile for profile in scan_profiles(out) if isinstance(profile, Profile))

    def _arguments(self, pending: Pending) -> dict[str, Any]:
        if self.settings.out is None:
            return {"traces": {}}
        folder = (self.settings.out.parent / "traces").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        problem = pending.group.problem
        return {
            "traces": {spec: str(folder / trace_name(problem, registry.name_of(spec))) for spec in pending.backends}
        }

    def _kept(self, pending: Pending, cell: dict[str, Any], where: Provenance) -> Profile:
        if cell.get("trace") is not None:
            cell = cell | {"trace": f"traces/{cell['trace']}"}
        if cell["status"] == "ok" and self._counting is not None:
            cell = cell | {"counters": self._counting(pending.group, cell["backend"])}
        return self._checked(Profile, pending, cell, where)


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
            s: t for s in group.backends if (t := times.get(group.problem.key, {}).get(registry.name_of(s))) is not None
        }
        if timed:
            ends = dict.fromkeys((min(timed, key=timed.__getitem__), max(timed, key=timed.__getitem__)))
            chosen.append(Group(group.problem, tuple(ends), group.source))
    return chosen
