"""``regress A..B``: which cells got slower, heavier or broke between two commits; exit code 1 where that is certain."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..harness.cases.problems import BadAxis
from ..harness.regress import regression
from ..harness.regress.commits import BadRange, Code, between
from ..harness.regress.versus import Versus
from ..harness.regress.versus_plan import (
    AIMED_ROUNDS,
    LEAN,
    MOST_ROUNDS,
    Cell,
    Listener,
    NothingRuns,
    Plan,
    choose,
    problems_of,
)
from ..harness.schema.axes import axis
from ..harness.schema.record import CannotRecord, Record
from ..harness.schema.shown import shown_lines
from ..harness.worker.host import Host
from ..harness.worker.process import ROOT, WorkerDied, WorkerTimeout
from ..harness.workload.workloads import WorkloadError
from . import console as show
from . import options as opt
from . import regress_table as told

ITSELF = 3  # the exit code of a failure of this command
SIZES = ["512"]  # small, since every cell is gone through a hundred times


def _told_apart(command: Callable[..., Any]) -> Callable[..., Any]:
    """Exit code 1 is the verdict's alone: whatever else goes wrong leaves by another."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except BadRange as e:
            raise BadAxis(str(e)) from None
        except (typer.Exit, BadAxis, WorkloadError):
            raise
        except KeyboardInterrupt:
            raise typer.Exit(opt.INTERRUPTED) from None
        except (NothingRuns, WorkerDied, WorkerTimeout, CannotRecord) as e:
            print(shown_lines(f"error: {e}\n{getattr(e, 'stderr', '')}").rstrip(), file=sys.stderr)
            raise typer.Exit(ITSELF) from None
        except Exception:
            print(shown_lines(traceback.format_exc()), file=sys.stderr)
            raise typer.Exit(ITSELF) from None

    return run


Modes = Annotated[list[str] | None, typer.Option("--mode", help=axis("mode").help, rich_help_panel=opt.WHAT)]
Levels = Annotated[
    list[str] | None,
    typer.Option(
        "--level",
        help=f"{axis('level').help} [default, with --mode: attention at fwd and block at fwdbwd]",
        rich_help_panel=opt.WHAT,
    ),
]


@opt.reported
@opt.asks(window=["16"], mode=(Modes, None), level=(Levels, None))
@_told_apart
def regress(
    commits: Annotated[
        str,
        typer.Argument(
            metavar="RANGE",
            help="A..B; or A...B, from where B left A (a pull request); or A alone, from A to your working tree.",
        ),
    ],
    backend: Annotated[
        list[str],
        typer.Option(
            "--backend",
            "-b",
            rich_help_panel=opt.WHAT,
            help=f"Backends of either commit by name; 'all'; or '{LEAN}', all that run no compiler.",
        ),
    ] = [LEAN],  # noqa: B006
    *,
    asked: opt.Asked,
    budget_s: Annotated[
        float,
        typer.Option(
            min=1, help="End after so many seconds. More rounds settle smaller changes.", rich_help_panel=opt.RUN
        ),
    ] = 180.0,
    rounds: Annotated[
        int,
        typer.Option(
            min=1, help="At most so many pairs of processes; a verdict on time needs three.", rich_help_panel=opt.RUN
        ),
    ] = MOST_ROUNDS,
    margin: Annotated[
        float, typer.Option(help="A change up to this share of the whole does not matter.", rich_help_panel=opt.RUN)
    ] = regression.MARGIN,
    same: Annotated[
        bool,
        typer.Option(
            "--measure-same",
            help="Measure even if both hold the same code: an A/A test of this machine.",
            rich_help_panel=opt.RUN,
        ),
    ] = False,
    repo: Annotated[
        Path,
        typer.Option(
            help="The git checkout that holds the commits. [default: this project]",
            show_default=False,
            rich_help_panel=opt.RUN,
        ),
    ] = ROOT,
    out: Annotated[
        Path, typer.Option(help="The file of records, every sample in it; added to.", rich_help_panel=opt.OUTPUT)
    ] = Path("out/regress.jsonl"),
    markdown: Annotated[
        Path | None,
        typer.Option(help="Write the result as a Markdown table too, for a comment.", rich_help_panel=opt.OUTPUT),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Did a commit make anything slower, heavier or wrong? Measures both commits in one run, in turn.

    Each round starts a fresh process for either commit, gates every backend against the float64 reference, takes its
    peak memory and times both sides block by block. A cell is 'slower' when B's time exceeds A's by more than the
    margin beyond reasonable doubt (t-tests over rounds, Holm over the table); what the run cannot tell is
    'unresolved' and no alarm. A cell that ran at A and fails at B (wrong, oom, crashed, timeout) is 'broken'.
    Commits need not be built: the packages are read from git, today's harness measures them.

    Exit code 1 exactly if something regressed for certain; else 0; 2 for bad input, 3 if this command itself failed.

    Examples:

      python -m benchmarks regress HEAD~1..HEAD

      python -m benchmarks regress main                       (your uncommitted changes against main)

      python -m benchmarks regress origin/main...HEAD --markdown table.md

      python -m benchmarks regress v1..v2 -b banded -n 2048 --level attention --budget-s 60
    """  # fmt: skip
    if not 0 < margin < 1:
        raise BadAxis(f"--margin: expected a share between 0 and 1, got {margin:g}")
    a, b = between(commits, repo)
    if markdown is not None:
        opt.out_path(markdown, "--markdown")
    account = _account(a, b, margin=margin)
    if (account.missing or account.same_code) and not (same and not account.missing):
        _tell(account, markdown, as_json=as_json)
        return
    opt.out_path(out)
    with Host(threads=asked.threads) as host:
        chosen = opt.one_device(asked.device, host)
    level, mode = asked.lists["level"], asked.lists["mode"]
    sizes = asked.lists["n_atom"] or (None if asked.workload or asked.structure else SIZES)
    wanted = asked.but(level=level or ["attention"], mode=mode or ["fwd"], n_atom=sizes).axes(chosen)
    if not level and not mode:
        wanted += asked.but(level=["block"], mode=["fwdbwd"], n_atom=sizes).axes(chosen)
    backends = opt.words(backend)
    choose(backends, a, b)
    plan = Plan(problems_of(wanted), backends, budget_s=budget_s, rounds=rounds, out=out, **asked.run)
    account = _measure(a, b, plan, margin, as_json=as_json)
    _tell(account, markdown, as_json=as_json)
    raise typer.Exit(opt.FAILED if account.regressions else 0)


def _account(a: Code, b: Code, *, margin: float) -> told.Account:
    """What is known before anything is measured."""
    code = {name: f"{one.short} {one.subject}" for name, one in (("a", a), ("b", b))}
    missing = a.missing() or b.missing()
    same = missing is None and a.tree is not None and a.tree == b.tree
    return told.Account(code, (), margin=margin, missing=missing, same_code=same)


def _measure(a: Code, b: Code, plan: Plan, margin: float, *, as_json: bool) -> told.Account:
    """Run it, with progress on the terminal; interrupted, what was recorded is told all the same."""
    out = show.console(stderr=True)
    started = time.monotonic()
    progress = Progress(out)
    versus = Versus(a, b, plan, progress)
    try:
        with progress.status:
            versus.run()
    except KeyboardInterrupt:
        out.print(f"\nStopped after {versus.rounds} rounds. {plan.out} holds every sample of them.")
        raise typer.Exit(opt.INTERRUPTED) from None
    cells = [(cell.backend, cell.problem) for cell in versus.cells]
    return told.Account(
        code=_account(a, b, margin=margin).code,
        findings=regression.judge(versus.records, cells, margin=margin),
        rounds=versus.rounds,
        seconds=time.monotonic() - started,
        margin=margin,
        out=plan.out,
    )


def _tell(account: told.Account, markdown: Path | None, *, as_json: bool) -> None:
    """The result, in every form that was asked for."""
    if markdown is not None:
        with opt.writing(markdown):
            markdown.write_text(told.markdown(account), encoding="utf-8")
    if as_json:
        print(json.dumps(told.as_json(account)))
    out = show.console(stderr=as_json)
    if account.findings:
        out.print(told.table(account.findings))
        for reason in told.reasons(account.findings):
            out.print(reason)
        out.print(account.method)
    out.print(f"A: {account.code['a']}\nB: {account.code['b']}\n{account.headline}")


class Progress(Listener):
    """Where a run is: a line per round and failure; on a terminal, the cell in flight below them."""

    def __init__(self, out: show.Console) -> None:
        self.out = out
        self.status = out.status("starting a process for each side") if out.is_terminal else contextlib.nullcontext()

    def planned(self, a: Code, b: Code, cells: int) -> None:
        self.out.print(f"{cells} cells, {a.short} against {b.short}.")

    def round(self, number: int) -> None:
        aim = f" of about {AIMED_ROUNDS}" if number <= AIMED_ROUNDS else ""
        self.out.print(f"Round {number}{aim}: a fresh process for each side.")

    def cell(self, cell: Cell) -> None:
        if not isinstance(self.status, contextlib.nullcontext):
            self.status.update(show.styled(f"{cell.backend}: {show.title(cell.problem)}"))

    def dropped(self, cell: Cell) -> None:
        self.out.print(f"  too slow for more rounds in this budget: {cell.backend}: {show.title(cell.problem)}")

    def recorded(self, records: list[Record]) -> None:
        for record in records:
            if record.status not in ("ok", "unsupported"):
                mark = record.provenance.environment[regression.MARK]
                side = str(mark["side"]).upper() if isinstance(mark, dict) else "?"
                self.out.print(f"  {record.backend} at {side}: {record.status}: {record.reason}")
