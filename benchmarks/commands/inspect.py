"""``inspect``: what the compiler makes of the fused Triton kernels for a GPU that is not here."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from . import console as show
from . import options as opt

ARCHITECTURES = ("80", "90", "100")
DIRECTIONS = ("forward", "backward")
LABELS = ("kernel", "arch", "dtype", "size", "config", "toolchain")
COLUMNS = {
    "registers": "registers",
    "spills": "spills",
    "shared_bytes": "shared bytes",
    "ctas_per_sm": "programs per SM",
    "occupancy": "occupancy",
    "tensor_core": "tensor core",
    "wide_loads": "128-bit loads",
    "narrow_loads": "narrower",
    "warp_instructions_per_pair": "warp instr. per pair",
}
MANY = 100
"""So many kernels are shown by their ranges, and only those at fault one by one."""
RANGES = {name: COLUMNS[name] for name in ("registers", "spills", "shared_bytes", "ctas_per_sm", "tensor_core",
                                           "warp_instructions_per_pair")}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One kernel to compile: its name in ``KERNELS``, architecture, dtype, and heads, head_dim and channels."""

    kernel: str
    arch: int
    dtype: str
    size: tuple[int, int, int]

    def labels(self) -> dict[str, Any]:
        """What it is, and what it is made of and by: equal where compiling again would give the same."""
        from variants.triton.inspect import KERNELS, shipped, sizes_of
        from variants.triton.tuned import toolchain

        kernel = KERNELS[self.kernel]
        gather, sizes = bool(kernel.get("gather")), sizes_of(self.dtype, self.dtype, *self.size)
        part = "gather" if gather else "forward" if kernel["direction"] == "forward" else "backward"
        heads, head_dim, channels = self.size
        config = shipped(kernel["direction"], sizes, self.arch, gather=gather)
        return {
            "kernel": self.kernel,
            "arch": f"sm_{self.arch}",
            "dtype": self.dtype,
            "size": f"H{heads} D{head_dim} C{channels}",
            "config": {f.name: value for f in fields(config) if (value := getattr(config, f.name)) != f.default},
            "toolchain": toolchain(part),
        }


@opt.reported
def inspect(
    arch: Annotated[list[str], typer.Option(help="Compute capabilities, e.g. 80,90,100.")] = list(ARCHITECTURES),  # noqa: B006
    dtype: Annotated[list[str], typer.Option(help="float32, bfloat16, float16.")] = ["bfloat16"],  # noqa: B006
    heads: Annotated[int, typer.Option(min=1, max=16)] = 4,
    head_dim: Annotated[int, typer.Option(min=1, max=64)] = 32,
    channels: Annotated[int, typer.Option(min=1, max=64, help="Pair channels C.")] = 16,
    every_kernel: Annotated[
        bool,
        typer.Option(
            "--every-kernel", help="Also under a mask, deterministic, a split one's end, and the gather mode."
        ),
    ] = False,
    every_size: Annotated[
        bool, typer.Option("--every-size", help="Each padded size, filled and not: 54 of them, minutes per kernel.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Keep each result as a JSON line of this file; what it holds already is not compiled again."),
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes. [default: one per core]")] = None,
    as_json: opt.Json = False,
) -> None:
    """Compile the fused kernels offline and read their machine code: registers, spills, occupancy, instructions.

    Needs triton and no GPU. Exits with 1 if a kernel spills or does not compile.
    """
    unknown = [a for a in opt.words(arch) if a not in ARCHITECTURES]
    if unknown:
        raise opt.BadAxis(f"--arch: expected {', '.join(ARCHITECTURES)}, got {unknown[0]}")
    known = ("float32", "bfloat16", "float16")
    odd = [d for d in opt.words(dtype) if d not in known]
    if odd:
        raise opt.BadAxis(f"--dtype: expected {', '.join(known)}, got {odd[0]}")
    if out is not None:
        opt.out_path(out)
    from variants.triton.inspect import KERNELS, SIZES

    asked = [
        Job(kernel, int(a), d, size)
        for size in (SIZES if every_size else [(heads, head_dim, channels)])
        for d in opt.words(dtype)
        for a in opt.words(arch)
        for kernel in (KERNELS if every_kernel else DIRECTIONS)
    ]
    rows = list(_kept(asked, out, jobs or os.cpu_count() or 1))
    if as_json:
        print(json.dumps(rows))
    else:
        _render(rows)
    if any(row.get("error") or row["spills"] for row in rows):
        raise typer.Exit(opt.FAILED)


def _kept(asked: list[Job], out: Path | None, processes: int) -> Iterator[dict[str, Any]]:
    """A row for each job: from the file, or else compiled and at once added to it."""
    known = {} if out is None else {_key(row): row for row in _read(out)}
    missing = [job for job in asked if _key(job.labels()) not in known]
    for row in _compiled(missing, min(processes, len(missing))):
        known[_key(row)] = row
        if out is not None:
            with opt.writing(out), out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    return (known[_key(job.labels())] for job in asked)


def _compiled(missing: list[Job], processes: int) -> Iterator[dict[str, Any]]:
    if processes <= 1:
        yield from map(_inspected, missing)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_inspected, missing)


def _key(row: dict[str, Any]) -> str:
    return json.dumps([row[name] for name in LABELS])


def _read(out: Path) -> Iterator[dict[str, Any]]:
    """The file's rows; a last line that a kill cut off is passed over, and what failed to compile is tried again."""
    if not out.exists():
        return
    lines = out.read_text(errors="replace").splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            _key(row)
        except (ValueError, KeyError, TypeError):
            if number == len(lines) and not line.endswith("\n"):
                with out.open("a") as file:  # what is added next begins a line of its own
                    file.write("\n")
                continue
            if line.strip() and not line.startswith('{"kernel":'):
                raise opt.BadAxis(
                    f"--out: {out}:{number}: expected a row of inspect, got {line.strip()[:60]!r}"
                ) from None
            continue
        if not row.get("error"):
            yield row


def _inspected(job: Job) -> dict[str, Any]:
    from variants.triton.inspect import KERNELS, inspect_shipped

    heads, head_dim, channels = job.size
    try:
        found = inspect_shipped(
            **KERNELS[job.kernel], arch=job.arch, dtype=job.dtype, heads=heads, head_dim=head_dim, channels=channels
        )
    except Exception as e:  # that a kernel does not compile is a result, and costs no other
        return job.labels() | {"error": f"{type(e).__name__}: {e}"[:500]}
    return job.labels() | {name: value for name, value in found.summary().items() if name not in LABELS}


def _render(rows: list[dict[str, Any]]) -> None:
    console = show.console()
    bad = [row for row in rows if row.get("error") or row["spills"]]
    if len(rows) > MANY:
        console.print(_ranges(rows))
    listed = bad if len(rows) > MANY else rows
    if listed:
        console.print(_listed(listed))
    failed = sum(bool(row.get("error")) for row in bad)
    console.print(
        f"{len(rows)} compiled kernels: {len(bad) - failed or 'none'} with spills, "
        f"{failed or 'none'} that did not compile."
    )


def _ranges(rows: list[dict[str, Any]]) -> Table:
    """From least to most, by kernel and dtype, of those that compiled."""
    table = Table("kernel", "dtype", "compiled", *RANGES.values())
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if not row.get("error"):
            groups.setdefault((row["kernel"], row["dtype"]), []).append(row)
    for (kernel, dtype), group in groups.items():
        ends = [(min(row[name] for row in group), max(row[name] for row in group)) for name in RANGES]
        cells = (_figure(a) if a == b else f"{_figure(a)} to {_figure(b)}" for a, b in ends)
        table.add_row(kernel, show.SHORT[dtype], str(len(group)), *cells)
    return table


def _figure(value: float) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _listed(rows: list[dict[str, Any]]) -> Table:
    whole = [Column(name, no_wrap=True) for name in ("sizes", "arch", "dtype")]
    table = Table("kernel", *whole, *COLUMNS.values())
    for row in rows:
        head = (row["kernel"], row["size"], row["arch"], show.SHORT[row["dtype"]])
        if row.get("error"):
            table.add_row(*head, row["error"])
            continue
        table.add_row(*head, *(_figure(row[name]) for name in COLUMNS))
    return table
