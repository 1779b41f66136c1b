"""``bench`` and ``gpu``: everything in a row, bounded in time, each step written before the next begins."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from ..harness.profile import profiles
from ..harness.schema.record import Record
from ..harness.sweep import sweep as harness
from ..harness.worker.host import Host
from ..harness.worker.options import Options
from . import check, doctor
from . import console as show
from . import options as opt
from . import profile as profiling
from . import sweep as sweeping
from .programmes import Device, Programme, Stage, bench_programme, gpu_programme

PROFILE_S, PROFILE_SHARE = 60.0, 0.25  # most for the profiles; what comes before leaves them the lesser of both
REPORT_S, REPORT_SHARE = 40.0, 0.15  # kept back from a budget for drawing the page: the lesser of both
BENCH_S = 285.0
FILES = ("doctor.json", "gate.jsonl", "records.jsonl", profiles.PROFILES)
GATE_SHARE = 0.3  # every cell of the sweep has its own gate too; this one goes over modes and dtypes first
Share = tuple[Device, Callable[[Device, frozenset[str]], Programme], float]  # of the time that is left


@opt.reported
def bench(
    out: Annotated[Path, typer.Option(help="The folder for records and report.")] = Path("out"),
    budget_s: Annotated[float, typer.Option(min=30, help="Most seconds for all of it.")] = BENCH_S,
    threads: opt.Threads = None,
) -> None:
    """Everything in one go: doctor, gate, a sweep over real proteins and sizes, the report. No GPU needed.

    Ends by naming the fastest backend per size. With a CUDA GPU, that is measured too. A second call goes on
    where the first ended.
    """
    ends = time.monotonic() + budget_s
    opt.out_folder(out, *FILES)
    with Host(threads=threads) as host:
        programmes: list[Share] = [("cpu", bench_programme, 1.0)]
        if opt.one_device("auto", host) == "cuda":
            programmes.insert(0, ("cuda", gpu_programme, 0.6))
        raise typer.Exit(_run(programmes, out, budget_s, ends, host))


@opt.reported
def gpu(
    out: Annotated[Path, typer.Option(help="The folder for records and report.")] = Path("out/gpu"),
    budget_s: Annotated[float, typer.Option(min=30, help="Most seconds for all of it.")] = 540.0,
    device: Annotated[str, typer.Option(help="cuda; cpu tries the same path where there is no GPU.")] = "cuda",
    threads: opt.Threads = None,
) -> None:
    """All that needs a GPU, in an order such that whatever time it gets, what it has done is complete and written.

    Doctor, gate over backends, modes and dtypes, ceilings, bf16 at one size, profiles of its fastest and its slowest
    backend, real proteins, sizes, levels, windows, fp32, fp16, caps, report. A second call goes on where the first
    ended.
    """
    ends = time.monotonic() + budget_s
    opt.out_folder(out, *FILES)
    with Host(threads=threads) as host:
        programmes: list[Share] = [(opt.one_device(device, host), gpu_programme, 1.0)]
        raise typer.Exit(_run(programmes, out, budget_s, ends, host))


def _run(programmes: list[Share], out: Path, budget_s: float, ends: float, host: Host) -> int:
    """Doctor, then each programme in its share of the time that is left, then the report; 1 if a gate was red."""
    console = show.console()
    console.rule("doctor")
    found = doctor.examine(host, tuple(device for device, _, _ in programmes), rates=False)
    with opt.writing(out / "doctor.json"):
        (out / "doctor.json").write_text(json.dumps(found, indent=1))
    doctor.render(found, console)
    records: list[Record] = []
    failed = False
    measured_by = ends - min(REPORT_S, REPORT_SHARE * budget_s)
    for device, make, share in programmes:
        programme = make(device, compiling(found, device))
        own_end = measured_by - (measured_by - time.monotonic()) * (1 - share)
        swept: list[Record] = []
        for i, stage in enumerate(programme.stages):
            if stage.kind == "profile":
                until = min(own_end, time.monotonic() + PROFILE_S)
                _profiles(console, stage.groups, programme.options, swept, out, until, host)
                continue
            to_come = any(later.kind == "profile" for later in programme.stages[i + 1 :])
            until = own_end - (min(PROFILE_S, PROFILE_SHARE * budget_s) if to_come else 0.0)
            if stage.kind == "gate":
                until -= (1 - GATE_SHARE) * (until - time.monotonic())
            outcome = _step(console, stage, programme.options, out, until, host)
            if outcome is not None:
                swept += outcome.records if stage.kind == "sweep" else []
                failed = failed or bool(sweeping.exit_code(outcome))
        records += swept
    console.print()
    console.print(show.table(records))
    for text in fastest(records):
        console.print(text)
    host.replace()  # the report gets the machine to itself
    _report(console, out, ends)
    return opt.FAILED if failed else 0


def compiling(found: dict[str, Any], device: Device) -> frozenset[str]:
    """The backends that compile for every shape, by what the doctor found."""
    return frozenset(name for name, facts in found["devices"][device]["backends"].items() if facts["compiles"])


def _step(
    console: Console, stage: Stage, options: Options, out: Path, until: float, host: Host
) -> harness.Outcome | None:
    """One stage until a moment; None if it has come."""
    gating, groups = stage.kind == "gate", stage.groups
    if not groups:
        return None
    console.rule(f"{stage.kind} on {groups[0].problem.device}")
    left = until - time.monotonic()
    if left < 1:
        console.print(f"No time is left for {len(groups)} problems: run the same command again.")
        return None
    options = replace(options, speed=False, memory=False) if gating else options
    settings = harness.Settings(
        argv=opt.command_line(), out=out / ("gate.jsonl" if gating else "records.jsonl"), options=options, budget_s=left
    )
    try:
        with show.Live(console) as live:
            outcome = harness.Sweep(groups, settings, live, host).run()
    except KeyboardInterrupt:
        console.print(f"\nStopped. {out} holds every cell that had ended; the same command goes on from there.")
        raise typer.Exit(opt.INTERRUPTED) from None
    if gating:
        console.print(check.table(outcome.records))
    console.print(sweeping.ending(outcome, settings))
    return outcome


def _profiles(
    console: Console,
    groups: list[harness.Group],
    options: Options,
    swept: list[Record],
    out: Path,
    until: float,
    host: Host,
) -> None:
    """Profile the fastest and the slowest backend of these problems; whatever goes wrong costs only that."""
    chosen = profiles.best_and_worst(swept, groups)
    console.rule(f"profile on {groups[0].problem.device}")
    if not chosen:
        console.print("Nothing to profile: none of its problems has a time yet.")
        return
    settings = profiles.settings(out, gate_pairs=options.gate_pairs, until=until, argv=opt.command_line())
    shown = profiling.Rendered(console)
    try:
        found = profiles.Profiles(chosen, settings, shown, host).run().records
    except KeyboardInterrupt:
        raise typer.Exit(opt.INTERRUPTED) from None
    except Exception as e:  # the sweep is on file: the report must come, whatever a profile does
        console.print(f"The profiles stopped: {type(e).__name__}: {e}")
        return
    finally:
        if shown.made:
            host.replace()  # a process that was profiled may launch more slowly than before
    asked = sum(len(group.backends) for group in chosen)
    left = f" {asked - len(found)} had no time: run the same command again." if len(found) < asked else ""
    console.print(f"{len(found)} profiles on file.{left}")


def fastest(records: list[Record]) -> list[Text]:
    """One sentence per problem: its fastest backend, who is not told apart from it, and how it stands to the plain
    layer, by paired blocks."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.timing is not None:
            groups.setdefault(record.group, []).append(record)
    said = []
    for timed in groups.values():
        best, *others = sorted(timed, key=show.by_speed)
        compared = {r.backend: show.against(r, best, timed) for r in others}
        tied = [name for name, (_, told) in compared.items() if told != "slower"]
        also = f" (not told apart from {', '.join(tied)})" if tied else ""
        plain = compared.get(show.PLAIN)
        by = f", {plain[0]:.3g}× faster than {show.PLAIN}" if plain is not None and show.PLAIN not in tied else ""
        said.append(show.styled(f"{show.title(best.problem)}: ", (best.backend, "bold"), f"{also}{by}"))
    return said


def _report(console: Console, out: Path, ends: float) -> None:
    """Draw the page in a process of its own; a report that cannot be drawn costs no record."""
    records = out / "records.jsonl"
    if not records.exists():
        console.print("No records, so no report.")
        return
    command = [sys.executable, "-m", "reports", str(records), "--out", str(out)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=max(REPORT_S, ends - time.monotonic()), check=False
        )
    except subprocess.TimeoutExpired:
        console.print(f"The report took too long. Draw it with: {' '.join(command[1:])}")
        return
    if done.returncode == 0:
        console.print(done.stdout.strip())
    else:
        console.print(f"No report (records: {records}): {done.stderr.strip()[-600:]}")
