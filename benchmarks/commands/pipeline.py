"""``bench`` and ``gpu``: everything in a row, bounded in time, each step written before the next begins."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from ..harness import arms
from ..harness import sweep as harness
from ..harness.cases import Axes, Group, grid
from ..harness.host import Host
from ..harness.measure import Options
from ..harness.record import Record
from . import check, doctor
from . import console as show
from . import options as opt
from . import sweep as sweeping

REPORT_S, REPORT_SHARE = 40.0, 0.15  # kept back from a budget for drawing the page: the lesser of both
BENCH_S = 285.0
LEVELS = ("attention", "block")
GATE_SHARE = 0.3  # every cell of the sweep has its own gate too; this one goes over modes and dtypes first
Dev = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Programme:
    """What to gate and what to sweep, in this order."""

    gate: list[Group]
    sweep: list[Group]
    options: Options


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
    with Host(threads=threads) as host:
        programmes = [(bench_programme("cpu"), 1.0)]
        if opt.one_device("auto", host) == "cuda":
            programmes = [(gpu_programme("cuda"), 0.6), (bench_programme("cpu"), 1.0)]
        raise typer.Exit(_run(programmes, out, budget_s, ends, host))


@opt.reported
def gpu(
    out: Annotated[Path, typer.Option(help="The folder for records and report.")] = Path("out/gpu"),
    budget_s: Annotated[float, typer.Option(min=30, help="Most seconds for all of it.")] = 540.0,
    device: Annotated[str, typer.Option(help="cuda; cpu tries the same path where there is no GPU.")] = "cuda",
    threads: opt.Threads = None,
) -> None:
    """All that needs a GPU, in an order such that whatever time it gets, what it has done is complete and written.

    Doctor, gate over backends, modes and dtypes, ceilings, then bf16 over sizes and windows (attention, block,
    stack, encoder), fp32, fp16, real proteins, report. A second call goes on where the first ended.
    """
    ends = time.monotonic() + budget_s
    with Host(threads=threads) as host:
        raise typer.Exit(_run([(gpu_programme(opt.one_device(device, host)), 1.0)], out, budget_s, ends, host))


def bench_programme(device: Dev) -> Programme:
    """Two cores, four minutes: one size with every backend, then proteins, lengths, gradients, windows and a cap."""
    every = arms.expand(["all"])
    base = Axes(device=device, n_atom=2048)
    protein = replace(base, atoms="heavy", n_atom=None, workload="ubiquitin")
    small = replace(base, n_atom=1024)
    steps: list[tuple[Iterable[Axes], tuple[str, ...]]] = [
        ([base], every),
        (grid(protein, workload=("ubiquitin", "gfp")), quick(every)),
        (grid(base, n_atom=(512, 1024)), quick(every)),
        ([replace(base, mode="fwdbwd"), replace(base, level="block")], quick(every)),
        (grid(small, window=(16, 64)), quick(every)),
        ([replace(small, k_cap=64)], quick(every)),
        (grid(base, n_atom=(4096, 256)), quick(every)),
        (grid(protein, workload=("1a28", "1bd2")), quick(every)),
        (
            [replace(protein, workload="gfp", mode="fwdbwd"), replace(protein, workload="gfp", level="encoder")],
            quick(every),
        ),
    ]
    gate = grid(replace(protein, mode="fwdbwd"), dtype=("float32", "bfloat16"))
    return Programme(
        gate=harness.plan(gate, quick(every), keep_order=True), sweep=in_order(steps), options=Options(budget_s=5.0)
    )


def quick(backends: tuple[str, ...]) -> tuple[str, ...]:
    """Those that do not compile for every shape."""
    return tuple(spec for spec in backends if not arms.load(spec).compiles)


def in_order(steps: Iterable[tuple[Iterable[Axes], tuple[str, ...]]]) -> list[Group]:
    """The groups of all steps, none twice: the first step that asks for a problem names its backends."""
    groups: dict[str, Group] = {}
    for axes, backends in steps:
        for group in harness.plan(axes, backends, keep_order=True):
            groups.setdefault(group.problem.key, group)
    return list(groups.values())


def gpu_programme(device: Dev) -> Programme:
    """bf16 at the size that tells most, then over N, above the seam and over W; then other dtypes and real proteins.

    A backend that compiles for every shape costs half a minute per problem: it takes part where it is compared, in
    the ``broad`` steps, and is left out of the ``lean`` ones.
    """
    on_gpu = device == "cuda"
    every = arms.expand(["all"])
    lean = quick(every)
    pivot, near, far = (16384, (4096, 65536, 1024), (262144, 1_000_000)) if on_gpu else (256, (512,), (1024,))
    proteins = ("ubiquitin", "gfp", "1bd2", "4jsv", "1aon") if on_gpu else ("ubiquitin",)
    base = Axes(device=device, dtype="bfloat16", n_atom=pivot)
    protein = replace(base, atoms="heavy", n_atom=None)
    both = ("fwd", "fwdbwd")
    windows = (16, 64, 128)
    steps: list[tuple[Iterable[Axes], tuple[str, ...]]] = [
        (grid(base, mode=both), every),
        (grid(base, mode=both, n_atom=near), every),
        (grid(base, mode=both, n_atom=far), lean),
        (grid(base, level=("block",), mode=both), every),
        ([replace(base, level="block", n_atom=far[-1])], lean),
        (grid(base, window=windows), every),
        (grid(base, dtype=("float32", "float16"), mode=both), lean),
        (grid(base, level=("stack", "encoder"), mode=both), lean),
        (grid(protein, workload=proteins), lean),
        (grid(base, k_cap=(64, 128, 256)), lean),
        (grid(base, window_style=("blocks",), mode=both), lean),
        (grid(base, mode=("fwdbwd",), window=windows), lean),
        (grid(protein, workload=proteins, mode=("fwdbwd",)), lean),
        (grid(base, level=("block", "stack", "encoder"), mode=both, n_atom=near), lean),
        (grid(base, dtype=("float32", "float16"), mode=both, n_atom=(*near, *far)), lean),
        (grid(base, mode=both, window=windows, n_atom=(*near, *far)), lean),
    ]
    gated = grid(
        replace(protein, workload="ubiquitin", mode="fwdbwd"), dtype=("bfloat16", "float32", "float16"), level=LEVELS
    )
    return Programme(
        gate=harness.plan(gated, every, keep_order=True),
        sweep=in_order(steps),
        options=Options(budget_s=3.0, gate_pairs=1 << 19 if on_gpu else 1 << 17),
    )


def _run(programmes: list[tuple[Programme, float]], out: Path, budget_s: float, ends: float, host: Host) -> int:
    """Doctor, then each programme in its share of the time that is left, then the report; 1 if a gate was red."""
    console = show.console()
    out.mkdir(parents=True, exist_ok=True)
    console.rule("doctor")
    found = doctor.examine(host, tuple({p.sweep[0].problem.device: None for p, _ in programmes}), rates=False)
    (out / "doctor.json").write_text(json.dumps(found, indent=1))
    doctor.render(found, console)
    records: list[Record] = []
    failed = False
    sweeps_end = ends - min(REPORT_S, REPORT_SHARE * budget_s)
    for programme, share in programmes:
        left = sweeps_end - time.monotonic()
        for step, part in (("gate", GATE_SHARE), ("sweep", 1.0)):
            until = sweeps_end - left * (1 - share * part)
            outcome = _step(console, step, programme, out, until, host)
            if outcome is not None:
                records += outcome.records if step == "sweep" else []
                failed = failed or bool(sweeping.exit_code(outcome))
    console.print()
    console.print(show.table(records))
    for text in fastest(records):
        console.print(text)
    host.replace()  # the report gets the machine to itself
    _report(console, out, ends)
    return opt.FAILED if failed else 0


def _step(
    console: Console, step: str, programme: Programme, out: Path, until: float, host: Host
) -> harness.Outcome | None:
    """One sweep until a moment; None if it has come."""
    gating = step == "gate"
    groups = programme.gate if gating else programme.sweep
    console.rule(f"{step} on {groups[0].problem.device}")
    left = until - time.monotonic()
    if left < 1:
        console.print(f"No time is left for {len(groups)} problems: run the same command again.")
        return None
    options = replace(programme.options, speed=False, memory=False) if gating else programme.options
    settings = opt.settings(out=out / ("gate.jsonl" if gating else "records.jsonl"), options=options, budget_s=left)
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


def fastest(records: list[Record]) -> list[str]:
    """One sentence per problem: its fastest backend, and how much slower the plain layer is."""
    problems: dict[str, list[Record]] = {}
    for record in records:
        if record.timing is not None:
            problems.setdefault(record.problem.key, []).append(record)
    said = []
    for timed in problems.values():
        ranked = sorted(timed, key=lambda r: r.timing.median_ms if r.timing else 0.0)
        best, plain = ranked[0], next((r for r in ranked if r.backend == "gather"), None)
        against = ""
        if plain is not None and plain is not best:
            assert plain.timing is not None
            assert best.timing is not None
            against = f", {plain.timing.median_ms / best.timing.median_ms:.3g}× faster than gather"
        said.append(f"{show.title(best.problem)}: [bold]{best.backend}[/bold]{against}")
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
        console.print(done.stdout.strip(), markup=False)
    else:
        console.print(f"No report (records: {records}): {done.stderr.strip()[-600:]}", markup=False)
