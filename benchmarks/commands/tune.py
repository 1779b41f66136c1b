"""``tune``: the fused Triton kernels' tiles, timed on the GPU at hand, and the best kept in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from . import console as show
from . import options as opt

if TYPE_CHECKING:
    from variants.triton.config import Config
    from variants.triton.tune import Trial, Tuning
    from variants.triton.tuned import Kernel

DTYPES = ("float32", "bfloat16", "float16")
DIRECTIONS = ("forward", "backward")
MODES = ("band", "holes", "gather")


@opt.reported
def tune(
    heads: Annotated[int, typer.Option(min=1, max=16)] = 4,
    head_dim: Annotated[int, typer.Option(min=1, max=64)] = 32,
    c_pair: Annotated[int, typer.Option(min=1, max=64, help="Pair channels C.")] = 16,
    dtype: Annotated[list[str], typer.Option(help=f"{', '.join(DTYPES)}.")] = ["bfloat16"],  # noqa: B006
    direction: Annotated[list[str], typer.Option(help="forward, backward.")] = list(DIRECTIONS),  # noqa: B006
    mode: Annotated[list[str], typer.Option(help="band, holes (a band under a mask), gather.")] = ["band"],  # noqa: B006
    write: Annotated[
        Path | None,
        typer.Option(help="The file to add to. [default: $PALLATOM_TRITON_TUNED, or one in the user's cache folder]"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Compile the candidates for --arch and time nothing: needs no GPU.")
    ] = False,
    arch: Annotated[int, typer.Option(min=80, help="Compute capability of a dry run, e.g. 90.")] = 90,
    as_json: opt.Json = False,
) -> None:
    """Time the fused kernels' candidate tiles on this GPU and keep the best, for PALLATOM_TRITON_TUNED to name.

    Each candidate is first checked against the shipped default; those that spill or fail are named with the reason.
    Results serve any number of atoms. A minute or two for each kernel, most of it the compiler's.
    """
    asked = {"--dtype": (dtype, DTYPES), "--direction": (direction, DIRECTIONS), "--mode": (mode, MODES)}
    for option, (given, known) in asked.items():
        odd = [word for word in opt.words(given) if word not in known]
        if odd or not opt.words(given):
            raise opt.BadAxis(f"{option}: expected {', '.join(known)}, got {odd[0] if odd else 'nothing'!r}")
    capability = arch if dry_run else _capability()
    kernels = list(
        _kernels(heads, head_dim, c_pair, opt.words(dtype), opt.words(direction), opt.words(mode), capability)
    )
    rows = _dry(kernels) if dry_run else _timed(kernels, write)
    if as_json:
        print(json.dumps(list(rows)))
    else:
        for row in rows:
            _render(row)


def _capability() -> int:
    import torch

    if not torch.cuda.is_available():
        found = f"torch {torch.__version__} finds no CUDA device here"
        raise opt.BadAxis(f"tune: a GPU is needed to time on, {found}; --dry-run compiles the candidates without one")
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def _kernels(
    heads: int, head_dim: int, c_pair: int, dtypes: Iterable[str], directions: Any, modes: Any, arch: int
) -> Iterator[Kernel]:
    import torch

    from variants.triton.config import Sizes
    from variants.triton.tuned import Kernel

    for name in dtypes:
        sizes = Sizes(getattr(torch, name), getattr(torch, name), heads, head_dim, c_pair)
        for mode in modes:
            for direction in directions:
                yield Kernel(direction, mode, sizes, arch)


def _timed(kernels: list[Kernel], write: Path | None) -> Iterator[dict[str, Any]]:
    from variants.triton import tune as tuning
    from variants.triton import tuned as file

    named = os.environ.get(file.TUNED_FILE)
    if write is not None:
        opt.out_folder(write.parent, write.name, option="--write")  # the file itself is replaced, never begun
    path = write or (Path(named) if named else file.default_file())
    try:
        for done in tuning.tune(kernels, path):
            yield _row(done) | {"file": str(path)}
    except (file.TunedFileError, tuning.TuningError, OSError) as e:
        raise opt.BadAxis(str(e)) from None


def _row(done: Tuning) -> dict[str, Any]:
    return {
        "kernel": done.kernel.name,
        "device": done.device,
        "best": _label(done.best),
        "best_ms": done.best_ms,
        "shipped_ms": done.shipped_ms,
        "tuning_ms": done.tuning_ms,
        "trials": [_trial(t) for t in done.trials],
    }


def _trial(trial: Trial) -> dict[str, Any]:
    return {"config": _label(trial.config), "ms": trial.ms, "reason": trial.reason}


def _dry(kernels: list[Kernel]) -> Iterator[dict[str, Any]]:
    """What tuning would time, and what it would skip because it spills or does not compile."""
    from variants.triton.tune import candidates, machine_code

    for kernel in kernels:
        trials = []
        for config in candidates(kernel):
            try:
                found, reason = machine_code(kernel, config).summary(), None
                if found["spills"]:
                    reason = f"spills: {found['spills']} loads and stores of local memory"
            except Exception as e:  # that a candidate does not compile is a result
                found, reason = {}, f"failed: {type(e).__name__}: {str(e)[:200]}"
            trials.append({"config": _label(config), "ms": None, "reason": reason} | found)
        yield {"kernel": kernel.name, "best_ms": None, "trials": trials}


def _render(row: dict[str, Any]) -> None:
    table = Table("tile", "time", "of the shipped default", "", title=row["kernel"])
    for trial in row["trials"]:
        ms, label = trial["ms"], trial["config"]
        if ms is None:
            table.add_row(label, "", "", trial["reason"] or "would be timed")
        else:
            kept = "kept" if trial["config"] == row["best"] else ""
            table.add_row(label, f"{1e3 * ms:.1f} µs", f"{ms / row['shipped_ms']:.3f}", kept)
    console = show.console()
    console.print(table)
    if row["best_ms"] is not None:
        console.print(f"Tuned in {row['tuning_ms'] / 1e3:.0f} s; kept in {row['file']}. To use it:")
        console.print(f"  export PALLATOM_TRITON_TUNED={row['file']}", soft_wrap=True)


def _label(config: Config) -> str:
    """``16 x 16, 2 warps, 3 stages``, and what else is not usual."""
    parts = [f"{config.rows} x {config.cols}", f"{config.num_warps} warps", f"{config.num_stages} stages"]
    if config.max_registers is not None:
        parts.append(f"{config.max_registers} registers")
    if config.split_heads is not None:
        parts.append(f"{config.split_heads} heads a program, dp apart")
    return ", ".join(parts)
