"""The two records that a round of a cell leaves behind in :mod:`.versus`. Free of torch."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from ..ruler.device import code_hash
from ..ruler.statistics import median_interval
from ..schema.record import Provenance, Record, Timing
from ..sweep.again import command
from ..sweep.sweep import portable
from .regression import MARK
from .side import Side
from .versus_plan import MOST_BLOCKS, SIDES, Cell, NothingRuns, Plan


def timing_of(samples: list[float], calls: int, cache: str) -> Timing:
    """Of one side in one round."""
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


def pair_of(
    sides: dict[str, Side], cell: Cell, found: dict[str, dict[str, Any]], plan: Plan, asked: dict[str, Any], run: str,
    number: int,
) -> list[Record]:  # fmt: skip
    """Both sides of a cell in round ``number`` of a run, for which these options were ``asked``; ``found`` is what
    each side's process said of it."""
    where = {name: _provenance(sides, name, found) | {"options": asked} for name in SIDES}
    commits = {name: side.code.short for name, side in sides.items()}
    marks = {name: {MARK: {"side": name, "round": number, **commits}} for name in SIDES}
    group = f"{run}/{cell.problem.key[:8]}-{cell.backend}-{number}"
    again = command(cell.problem, cell.backend, asked, plan.threads)
    common = {"run": run, "group": group, "backend": cell.backend, "problem": cell.problem, "again": again}
    return [_record(common, sides[name], found[name], where[name], marks[name], plan) for name in SIDES]


def _record(
    common: dict[str, Any],
    side: Side,
    one: dict[str, Any],
    known: dict[str, Any],
    mark: dict[str, Any],
    plan: Plan,
) -> Record:
    provenance = known | {
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": [portable(word) for word in plan.argv],
        "seed": plan.seed,
        "environment": known["environment"] | mark | {"load_1min": os.getloadavg()[0]},
    }
    fields = {k: v for k, v in one.items() if k not in ("backend", "event", "died")}
    for name in ("reason", "error"):
        if fields.get(name):
            fields[name] = portable(fields[name].replace(f"{side.folder}{os.sep}", f"<{side.name}>{os.sep}"))
    common = common | {"provenance": Provenance.model_validate(provenance)}
    try:
        return Record.model_validate(common | fields)
    except ValidationError as e:
        one.update(status="crashed", reason="the worker's result breaks the schema", error=str(e))
        return Record.model_validate(common | {name: one[name] for name in ("status", "reason", "error")})


def _provenance(sides: dict[str, Side], name: str, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A side that could not describe itself stands on the other's machine, with code of its own."""
    side = sides[name]
    if side.provenance is not None:
        return side.provenance
    other = next((one.provenance for one in sides.values() if one.provenance is not None), None)
    if other is None:
        raise NothingRuns("; ".join(f"no process of {side} comes up: {one['reason']}" for side, one in found.items()))
    return other | {"commit": side.code.commit, "dirty": side.code.dirty, "code": code_hash(side.folder)}
