"""``profile BACKEND``: where does the time of one call go?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..harness.cases import registry
from ..harness.profile import profiles
from ..harness.schema.profile import PROFILES, Breakdown, Counters, Profile
from ..harness.sweep import sweep as harness
from ..harness.worker.host import Host
from ..harness.worker.kernel_names import LONGEST
from . import console as show
from . import options as opt

SHOWN_ROWS = 12
DISTORTED = 1.5


@opt.reported
@opt.asks()
def profile(
    backend: Annotated[list[str], typer.Argument(help="Backends by name, or .py files; each is profiled by itself.")],
    *,
    asked: opt.Asked,
    counters: Annotated[
        bool,
        typer.Option(help="On a GPU, also count with Nsight Compute (ncu), where it may.", rich_help_panel=opt.RUN),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help=f"A folder: adds to its {PROFILES} and traces/.", rich_help_panel=opt.OUTPUT),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Where does the time of one call go? Kernels or operators with their shares, idle time, the limit.

    The gate comes first: a backend that is wrong gets no profile. With --out the profile is kept beside a trace that
    Perfetto and chrome://tracing open, and the report of that folder shows it.

    Examples:

      python -m benchmarks profile banded --n-atom 2048

      python -m benchmarks profile triton_fused gather --dtype bfloat16 --mode fwd,fwdbwd -n 16384 --out out
    """
    specs = registry.expand(list(opt.paths(backend)))
    if out is not None:
        opt.out_folder(out, PROFILES)
    shown = show.console(stderr=as_json)
    with Host(threads=asked.threads) as host:
        wanted = asked.axes(opt.one_device(asked.device, host), default_workload=("gfp",))
        counting = None
        if counters:
            from ..harness.profile.counters import count

            counting = count
        settings = profiles.settings(out, **asked.run)
        groups = harness.plan(wanted, specs)
        found = profiles.Profiles(groups, settings, Rendered(shown), host, counting).run().records
    if as_json:
        print(json.dumps([one.model_dump(mode="json") for one in found]))
    if out is not None:
        shown.print(f"\nProfiles: {out / PROFILES}. Open a trace of {out / 'traces'} in ui.perfetto.dev.")
    raise typer.Exit(opt.FAILED if any(one.status in ("wrong", "crashed", "timeout") for one in found) else 0)


class Rendered(harness.Observer):
    """Shows each profile as soon as it is there."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self.made = 0

    def recorded(self, records: list) -> None:
        for one in records:
            render(one, self._out)
        self.made += len(records)


def render(one: Profile, out: Console) -> None:
    """One profile for a reader."""
    out.print(show.styled("\n", (one.backend, "bold"), f"  {show.title(one.problem)}"))
    if one.breakdown is None:
        out.print(show.styled("  ", (one.status, show.STYLES[one.status]), f" {one.reason}"))
        return
    out.print("  " + one.summary)
    for line in facts(one):
        out.print("  " + line)
    out.print(table(one.breakdown))


def facts(one: Profile) -> list[str]:
    """What is not in the table, in sentences."""
    b = one.breakdown
    if b is None:
        return []
    said = [
        f"{show.milliseconds(b.call_ms)} a call; {show.milliseconds(b.wall_ms)} under the profiler ({b.calls} calls)."
    ]
    if one.problem.device == "cpu" and b.wall_ms > DISTORTED * b.call_ms:
        said.append("The profiler slowed it down so much that short operators show too large.")
    if one.limit is not None and one.limit.percent is not None:
        bound = {"bytes": f"{show.size(one.limit.floor_bytes)} to move", "flops": "its products"}.get(
            one.limit.bound, "its exponentials"
        )
        said.append(f"{one.limit.percent:.2g}% of the limit: the operation's floor is "
                    f"{show.milliseconds(one.limit.floor_ms)} ({bound}).")  # fmt: skip
    if b.enqueue_ms is not None:
        waits = f", and waits for it {b.syncs:.3g} times" if b.syncs else ""
        took = show.milliseconds(b.enqueue_ms)
        said.append(f"The host needs {took} to hand a call ({b.launches:.3g} launches) to an idle device{waits}.")
    if b.peak_bytes is not None:
        said.append(f"Memory is highest, +{show.size(b.peak_bytes)}, in {b.peak_op or 'no operator of torch'}.")
    if one.counters is not None:
        said.append(counted(one.counters))
    return said


def counted(c: Counters) -> str:
    """Nsight Compute's counters in one sentence, or why there are none."""
    if c.kernel is None:
        return f"No counters: {c.reason}."
    parts = [
        f"{value:.0f}% {word}"
        for value, word in ((c.dram_percent, "of DRAM's bandwidth"), (c.sm_percent, "of the SMs' throughput"),
                            (c.occupancy_percent, "occupancy"))
        if value is not None
    ]  # fmt: skip
    stalls = ", ".join(f"{name} {cycles:.1f}" for name, cycles in list(c.stalls.items())[:3])
    waits = f"; waits most for {stalls} cycles an instruction" if stalls else ""
    return f"Counters of {c.kernel}: {', '.join(parts)}{waits}."


def table(b: Breakdown) -> Table:
    """The longest kernels or operators, then what is left, then what nothing ran in."""
    shown = Table()
    shown.add_column("what", max_width=LONGEST)
    shown.add_column("kind")
    for column in ("launches", "a call", "share", "× floor"):
        shown.add_column(column, justify="right")
    for row in b.rows[:SHOWN_ROWS]:
        shown.add_row(
            row.short, row.kind, f"{row.launches:.3g}", show.milliseconds(row.ms), f"{100 * row.share:.1f}%",
            "–" if row.floors is None else f"{row.floors:.2f}",
        )  # fmt: skip
    rest = len(b.rows[SHOWN_ROWS:]) + b.rows_left_out
    covered = sum(row.share for row in b.rows[:SHOWN_ROWS])
    if rest:
        left = max(1 - covered - b.idle_share, 0)
        shown.add_row(f"{rest} more", "", "", show.milliseconds(left * b.whole_ms), f"{100 * left:.1f}%", "")
    idle = next(reversed(b.kinds))
    shown.add_row(show.styled((idle, "dim")), "", "", show.milliseconds(b.idle_share * b.whole_ms),
                  f"{100 * b.idle_share:.1f}%", "")  # fmt: skip
    return shown
