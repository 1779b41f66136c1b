"""``--again KEY@FILE``: a cell on file, and how it was asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import typer

from ..harness.cases import registry
from ..harness.cases.problems import BadAxis
from ..harness.levels import sole_backends
from ..harness.schema.problem import Problem
from ..harness.sweep.again import find
from ..harness.worker.options import Options

# What may be given beside it; where it says how to measure, it counts before what the record says.
OPTION_OF = {"budget_s": "group_budget_s", "gate_pairs": "pairs", "try_oversized": "try_oversized"}
BESIDE = {"again", "backend", "structure", "threads", "budget_s", "fresh", "plan_only", "out", "as_json"}


@dataclass(frozen=True)
class Recalled:
    """``backend``: a name, or the file that it is looked for in; ``threads`` None where the record does not say."""

    problem: Problem
    backend: str
    options: Options
    threads: int | None


def recalled(text: str, ctx: typer.Context, options: Options, files: Iterable[str]) -> Recalled:
    """The cell that ``--again`` names. Of the options, what is given counts, then what the record says, then the
    default; a backend of the user's own is looked for among ``files``, and else here.

    Raises
    ------
    BadAxis, MalformedRecord
    """
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    odd = sorted(given - BESIDE - set(OPTION_OF.values()))
    if odd:
        raise BadAxis(f"--again: the record has all axes, expected no --{odd[0].replace('_', '-')} beside it")
    record = find(text)
    threads = record.provenance.environment.get("threads")
    return Recalled(
        record.problem,
        _backend(record.backend, files),
        _options(record.provenance.options or {}, options, given),
        threads if isinstance(threads, int) and threads > 0 else None,
    )


def _backend(name: str, files: Iterable[str]) -> str:
    import variants

    if name in sole_backends():
        return "all"  # the level has no other
    if name in variants.names():
        return name
    return next((file for file in files if registry.is_file(file) and registry.name_of(file) == name), f"{name}.py")


def _options(recorded: dict[str, object], options: Options, given: set[str]) -> Options:
    asked = {}
    for one in fields(Options):
        value, usual = recorded.get(one.name), getattr(options, one.name)
        if value is None or OPTION_OF.get(one.name) in given:
            continue
        if not isinstance(value, int | float if isinstance(usual, float) else type(usual)):
            raise BadAxis(f"--again: expected the record's option {one.name} to be like {usual!r}, got {value!r}")
        asked[one.name] = value
    return replace(options, **asked)
