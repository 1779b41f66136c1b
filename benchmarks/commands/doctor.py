"""``doctor``: what this machine is, what runs on it, and what does not and why."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..harness.worker.host import Host
from . import console as show
from . import options as opt

MODES = ("fwd", "fwdbwd")


@opt.reported
def doctor(
    device: Annotated[list[str] | None, typer.Option(help="cpu, cuda. [default: all that there are]")] = None,
    rates: Annotated[bool, typer.Option(help="Measure bandwidth and matrix rate (some seconds).")] = True,
    as_json: opt.Json = False,
) -> None:
    """What is this machine, which backends run on it, and why do the others not?

    Always exits with 0 unless the bench itself is broken: a backend that cannot run here is a fact, not a fault.
    """
    with Host() as host:
        found = examine(host, opt.words(device), rates=rates)
    if as_json:
        print(json.dumps(found))
    else:
        render(found, show.console())


def examine(host: Host, devices: tuple[str, ...] = (), *, rates: bool = True) -> dict[str, Any]:
    """Ask a worker: the machine, availability by device, backend, dtype and mode, and the measured ceilings."""
    there = host.devices()
    present = [name for name in ("cpu", "cuda") if there[name]]
    for name in devices:
        if name not in ("cpu", "cuda"):
            raise opt.BadAxis(f"--device: expected cpu or cuda, got {name!r}")
        if name not in present:
            raise opt.BadAxis(f"--device: cuda was asked for, torch {there['torch']} finds no CUDA device here")
    return {"devices": {name: _facts(host, name, rates=rates) for name in devices or present}}


def _facts(host: Host, device: str, *, rates: bool) -> dict[str, Any]:
    dtypes = ("float32",) if device == "cpu" else ("float32", "bfloat16", "float16")
    return {
        "machine": host.describe(device),
        "backends": host.one("availability", "availability", device=device)["backends"],
        "ceilings": {dtype: host.ceilings(device, dtype) for dtype in dtypes if rates},
    }


def render(found: dict[str, Any], out: Console) -> None:
    """The same for a reader."""
    for name, facts in found["devices"].items():
        machine = facts["machine"]
        what = machine["gpu"] or machine["cpu"]
        size = show.size(machine["memory_bytes"])
        out.print(show.styled("\n", (name, "bold"), f": {what}, {machine['cores']} cores, {size}"))
        known = {k: v for k, v in machine["versions"].items() if v and k != "torch_git"}
        out.print("  " + ", ".join(f"{k} {v}" for k, v in known.items()))
        commit = machine["commit"] or "unknown"
        out.print(f"  commit {commit[:12]}{' with changes' if machine['dirty'] else ''}, code {machine['code']}")
        for dtype, rate in facts["ceilings"].items():
            exponentials = rate["rate_exponentials_per_s"]
            out.print(
                f"  ceilings {show.SHORT[dtype]}: {rate['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s (reading "
                f"{rate['read_bytes_per_s'] / 1e9:.1f}, copying {rate['copy_bytes_per_s'] / 1e9:.1f}), "
                f"{rate['rate_flops_per_s'] / 1e12:.3g} TFLOP/s, "
                + ("no" if exponentials is None else f"{exponentials / 1e9:.3g} G")
                + f" exponentials/s ({rate['source']})"
            )
        out.print(_table(name, facts["backends"]))


def _table(device: str, backends: dict[str, Any]) -> Table:
    shown = Table(title=f"Backends on {device}", title_justify="left")
    for column in ("backend", "what it is", "runs", "why not"):
        shown.add_column(column)
    for name, facts in backends.items():
        runs = [
            f"{show.SHORT[dtype]} {mode}" for dtype, modes in facts["reasons"].items()
            for mode, reasons in modes.items() if not reasons
        ]  # fmt: skip
        shown.add_row(name, facts["summary"], _short_list(runs), _reasons(facts["reasons"]))
    return shown


def _short_list(runs: list[str]) -> str | Text:
    by_dtype: dict[str, list[str]] = {}
    for run in runs:
        dtype, mode = run.split()
        by_dtype.setdefault(mode, []).append(dtype)
    said = "\n".join(f"{mode}: {', '.join(dtypes)}" for mode, dtypes in by_dtype.items())
    return said or show.styled(("no", "red"))


def _reasons(reasons: dict[str, dict[str, list[str]]]) -> str:
    """Every reason once."""
    every = [reason for modes in reasons.values() for found in modes.values() for reason in found]
    return "\n".join(dict.fromkeys(every))
