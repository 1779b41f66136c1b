"""``sweep``: measure every combination, into a file that a kill cannot spoil and a second call goes on with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, get_args

import typer

from ..harness.cases import registry
from ..harness.cases.problems import BadAxis
from ..harness.schema.record import Status
from ..harness.schema.shown import shown
from ..harness.sweep import sweep as harness
from ..harness.sweep.again import recall
from ..harness.worker.host import Host
from ..harness.worker.options import Options
from . import console as show
from . import options as opt
from .recall import recalled

FAILED_STATUSES = frozenset({"wrong", "crashed"})
STATUSES: tuple[str, ...] = get_args(Status)


@opt.reported
@opt.asks(rare=True)
def sweep(
    ctx: typer.Context,
    backend: opt.Backends = ["all"],  # noqa: B006  typer copies it
    *,
    asked: opt.Asked,
    group_budget_s: opt.GroupBudget = 10.0,
    budget_s: Annotated[
        float | None,
        typer.Option(min=1, help="End after so many seconds; the same call goes on.", rich_help_panel=opt.RUN),
    ] = None,
    try_oversized: Annotated[
        bool, typer.Option(help="Start cells that are predicted not to fit in memory.", rich_help_panel=opt.RUN)
    ] = False,
    pairs: opt.Pairs = Options.gate_pairs,
    again: Annotated[
        str | None,
        typer.Option(
            metavar="KEY@FILE",
            help="Measure one cell on file again, as it was asked for: its key, BACKEND@PROBLEM, and the file.",
            rich_help_panel=opt.RUN,
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option(help="Measure again what is on file.", rich_help_panel=opt.RUN)] = False,
    retry: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Measure again the cells on file with this status: {', '.join(STATUSES)}.", rich_help_panel=opt.RUN
        ),
    ] = None,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Show what would be measured, and stop.", rich_help_panel=opt.RUN)
    ] = False,
    out: Annotated[
        Path, typer.Option(help="The file of records, one JSON line per cell.", rich_help_panel=opt.OUTPUT)
    ] = Path("out/records.jsonl"),
    as_json: opt.Json = False,
) -> None:
    """Measure every combination of the options, gate first, backends of a problem interleaved.

    Each cell (a backend on a problem) ends as one line in the records file with one status: ok, wrong, oom,
    unsupported, timeout or crashed. Stop it at any time: the same command goes on where it was.

    Examples:

      python -m benchmarks sweep --workload ubiquitin,gfp

      python -m benchmarks sweep -n 512,1024,2048 --window 16,32,64 -b gather,banded

      python -m benchmarks sweep --structure my.cif --atoms heavy,atom14 --mode fwdbwd --level block,stack

      python -m benchmarks sweep --again banded@0123456789abcdef@out/records.jsonl

    Then draw the report:  python -m reports out/records.jsonl --out out
    """
    chosen = opt.words(retry)
    for status in chosen:
        if status not in STATUSES:
            raise BadAxis(f"--retry: expected statuses out of {', '.join(STATUSES)}; got {status!r}")
    options = Options(budget_s=group_budget_s, try_oversized=try_oversized, gate_pairs=pairs)
    cell = None if again is None else recalled(again, ctx, options, opt.paths(backend))
    if cell is not None:
        fresh, options = True, cell.options
        asked = replace(asked, seed=cell.problem.seed, threads=asked.threads or cell.threads)
    backends = registry.expand(list(opt.paths(backend)) if cell is None else [cell.backend])
    with Host(threads=asked.threads) as host:
        if cell is not None:
            opt.one_device(cell.problem.device, host)
            wanted = [recall(cell.problem, opt.structures(asked.structure))]
        else:
            wanted = asked.axes(opt.one_device(asked.device, host), default_workload=("ubiquitin", "gfp"))
        groups = harness.plan(wanted, backends)
        if plan_only:
            for group in groups:
                print(show.title(group.problem), "|", shown(", ".join(map(registry.name_of, group.backends))))
            return
        settings = harness.Settings(
            out=opt.out_path(out), options=options, budget_s=budget_s, fresh=fresh, retry=frozenset(chosen), **asked.run
        )
        outcome = run(groups, settings, host, as_json=as_json)
    raise typer.Exit(exit_code(outcome))


def run(
    groups: list[harness.Group], settings: harness.Settings, host: Host, *, as_json: bool = False
) -> harness.Outcome:
    """Run a sweep with progress on the terminal and its table at the end."""
    out = show.console(stderr=as_json)
    try:
        with show.Live(out) as live:
            outcome = harness.Sweep(groups, settings, live, host).run()
    except KeyboardInterrupt:
        out.print(f"\nStopped. {settings.out} holds every cell that had ended; the same command goes on from there.")
        raise typer.Exit(opt.INTERRUPTED) from None
    if as_json:
        print(json.dumps([record.model_dump(mode="json") for record in outcome.records]))
    out.print()
    out.print(show.table(outcome.records))
    out.print(ending(outcome, settings))
    return outcome


def ending(outcome: harness.Outcome, settings: harness.Settings) -> str:
    """What happened, in a sentence or two."""
    counts = {s: sum(r.status == s for r in outcome.records) for s in STATUSES}
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if count) or "no cell"
    where = "" if settings.out is None else f" Records: {settings.out}"
    left = f" {outcome.unfinished} cells had no time: run the same command again." if outcome.unfinished else ""
    return f"{said}, in {outcome.seconds:.0f} s.{left}{where}"


def exit_code(outcome: harness.Outcome) -> int:
    """1 if a gate was red or a cell crashed."""
    return opt.FAILED if any(r.status in FAILED_STATUSES for r in outcome.records) else 0
