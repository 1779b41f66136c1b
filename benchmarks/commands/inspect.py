"""``inspect``: what the compiler makes of the fused Triton kernels for a GPU that is not here."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from . import console as show
from . import options as opt

ARCHITECTURES = ("80", "90", "100")
DIRECTIONS = ("forward", "backward")
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


@opt.reported
def inspect(
    arch: Annotated[list[str], typer.Option(help="Compute capabilities, e.g. 80,90,100.")] = list(ARCHITECTURES),  # noqa: B006
    dtype: Annotated[list[str], typer.Option(help="float32, bfloat16, float16.")] = ["bfloat16"],  # noqa: B006
    heads: Annotated[int, typer.Option(min=1, max=16)] = 4,
    head_dim: Annotated[int, typer.Option(min=1, max=64)] = 32,
    channels: Annotated[int, typer.Option(min=1, max=64, help="Pair channels C.")] = 16,
    every_kernel: Annotated[
        bool, typer.Option("--every-kernel", help="Also under a mask, deterministic, and in the gather mode.")
    ] = False,
    every_size: Annotated[
        bool, typer.Option("--every-size", help="Each kind of shipped configuration, up to the largest; minutes.")
    ] = False,
    as_json: opt.Json = False,
) -> None:
    """Compile the fused kernels offline and read their machine code: registers, spills, occupancy, instructions.

    Needs triton and no GPU. Exits with 1 if a kernel spills.
    """
    unknown = [a for a in opt.words(arch) if a not in ARCHITECTURES]
    if unknown:
        raise opt.BadAxis(f"--arch: expected {', '.join(ARCHITECTURES)}, got {unknown[0]}")
    known = ("float32", "bfloat16", "float16")
    odd = [d for d in opt.words(dtype) if d not in known]
    if odd:
        raise opt.BadAxis(f"--dtype: expected {', '.join(known)}, got {odd[0]}")
    from variants._triton_inspect import FAMILIES, KERNELS

    rows = [
        _inspected(kernel, int(a), d, size)
        for size in (FAMILIES if every_size else [(heads, head_dim, channels)])
        for d in opt.words(dtype)
        for a in opt.words(arch)
        for kernel in (KERNELS if every_kernel else DIRECTIONS)
    ]
    if as_json:
        print(json.dumps(rows))
    else:
        _render(rows)
    if any(row["spills"] for row in rows):
        raise typer.Exit(opt.FAILED)


def _inspected(kernel: str, arch: int, dtype: str, size: tuple[int, int, int]) -> dict[str, Any]:
    from variants._triton_inspect import KERNELS, inspect_shipped

    heads, head_dim, channels = size
    found = inspect_shipped(
        **KERNELS[kernel], arch=arch, dtype=dtype, heads=heads, head_dim=head_dim, channels=channels
    )
    return {"shipped_as": kernel, "dtype": dtype, "size": f"H{heads} D{head_dim} C{channels}"} | found.summary()


def _render(rows: list[dict[str, Any]]) -> None:
    table = Table("kernel", "sizes", "arch", "dtype", *COLUMNS.values())
    for row in rows:
        figures = (f"{row[name]:.3g}" if isinstance(row[name], float) else str(row[name]) for name in COLUMNS)
        table.add_row(row["shipped_as"], row["size"], row["arch"], show.SHORT[row["dtype"]], *figures)
    show.console().print(table)
