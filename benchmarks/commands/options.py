"""The options that commands share, and how what a user typed becomes axes.

Every list option may be repeated or hold commas: ``--window 16,32 --window 64``.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..harness import arms, workloads
from ..harness.cases import ATOM_SETS, DTYPES, LEVELS, Axes, BadAxis, grid
from ..harness.host import Host
from ..harness.process import WorkerDied, WorkerTimeout
from ..harness.record import CannotRecord, MalformedRecord
from ..harness.shown import shown, shown_lines
from ..harness.sweep import Settings

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
AXES, RUN, OUTPUT = "What to measure", "How to measure", "Output"


def _names(text: Sequence[str]) -> str:
    return ", ".join(text)


Backends = Annotated[
    list[str],
    typer.Option("--backend", "-b", help="Backends by name, a .py file of your own, or 'all'.", rich_help_panel=AXES),
]
Workloads = Annotated[
    list[str] | None,
    typer.Option("--workload", "-w", help=f"Real proteins: {_names(workloads.names())}.", rich_help_panel=AXES),
]
Structures = Annotated[
    list[str] | None,
    typer.Option("--structure", help="Your own mmCIF, PDB or FASTA file (.gz too).", rich_help_panel=AXES),
]
Sizes = Annotated[
    list[str] | None,
    typer.Option("--n-atom", "-n", help="Synthetic chains of so many atoms, e.g. 1024,2048.", rich_help_panel=AXES),
]
AtomSets = Annotated[
    list[str] | None,
    typer.Option(
        "--atoms",
        help=f"Atoms per residue: {_names(ATOM_SETS)}. [default: heavy for proteins, atom14 for synthetic]",
        rich_help_panel=AXES,
    ),
]
Windows = Annotated[
    list[str],
    typer.Option("--window", help="Window W: residues |i - j| < W/2 see one another.", rich_help_panel=AXES),
]
Caps = Annotated[
    list[str] | None,
    typer.Option("--k", help="Keep only the K nearest atoms along the chain.", rich_help_panel=AXES),
]
Heads = Annotated[list[str], typer.Option("--heads", help="Attention heads H.", rich_help_panel=AXES)]
DTypes = Annotated[list[str], typer.Option("--dtype", help=f"{_names(DTYPES)}.", rich_help_panel=AXES)]
Modes = Annotated[
    list[str],
    typer.Option("--mode", help="fwd, fwdbwd (with all gradients), train (with an AdamW step).", rich_help_panel=AXES),
]
Levels = Annotated[
    list[str],
    typer.Option("--level", help=f"How much of the model: {_names(LEVELS)}.", rich_help_panel=AXES),
]
Device = Annotated[
    str, typer.Option("--device", help="cpu, cuda, or auto: cuda where there is one.", rich_help_panel=AXES)
]
Styles = Annotated[
    list[str],
    typer.Option(
        "--window-style",
        help="residues, or blocks (32 query x 128 key atoms, as AlphaFold3).",
        rich_help_panel=AXES,
    ),
]
Batches = Annotated[list[str], typer.Option("--batch", help="Batch size B.", rich_help_panel=AXES)]
Seed = Annotated[int, typer.Option("--seed", help="Of inputs, weights and order.", rich_help_panel=RUN)]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads. [default: all cores]", rich_help_panel=RUN)
]
GroupBudget = Annotated[
    float,
    typer.Option("--group-budget-s", min=0.1, help="Most seconds to time one problem's backends.", rich_help_panel=RUN),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON on stdout; everything else goes to stderr.", rich_help_panel=OUTPUT)
]


def reported(command: Callable[..., Any]) -> Callable[..., Any]:
    """Bad input leaves as one line and exit code 2, never as a traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (BadAxis, workloads.WorkloadError, arms.UnknownBackend, MalformedRecord) as e:
            print(f"error: {shown(e)}", file=sys.stderr)
            raise typer.Exit(BAD_INPUT) from None
        except CannotRecord as e:
            print(f"error: {shown(e)}", file=sys.stderr)
            raise typer.Exit(FAILED) from None
        except (WorkerDied, WorkerTimeout) as e:
            print(shown_lines(f"error: {e}\n{e.stderr}"), file=sys.stderr)
            raise typer.Exit(FAILED) from None

    return run


def words(values: Sequence[str] | None) -> tuple[str, ...]:
    """The items of a list option, commas split, none twice, in order."""
    items = [item.strip() for value in values or () for item in value.split(",")]
    return tuple(dict.fromkeys(item for item in items if item))


def numbers(option: str, values: Sequence[str] | None) -> tuple[int, ...]:
    """The items of a list option as whole numbers of at least 1 (``64_000`` is fine)."""
    found = []
    for item in words(values):
        try:
            number = int(item)
        except ValueError:
            raise BadAxis(f"{option}: expected whole numbers, got {item!r}") from None
        if number < 1:
            raise BadAxis(f"{option}: expected numbers of at least 1, got {item}")
        found.append(number)
    return tuple(found)


def one_device(asked: str, host: Host) -> Literal["cpu", "cuda"]:
    """The device to use; for ``auto`` and ``cuda`` a worker asks torch."""
    if asked == "cpu":
        return "cpu"
    if asked not in ("cuda", "auto"):
        raise BadAxis(f"--device: expected cpu, cuda or auto; got {asked!r}")
    found = host.devices()
    if found["cuda"]:
        return "cuda"
    if asked == "cuda":
        raise BadAxis(f"--device: cuda was asked for, torch {found['torch']} finds no CUDA device here")
    return "cpu"


def axes(
    *,
    workload: Sequence[str] | None,
    structure: Sequence[str] | None,
    n_atom: Sequence[str] | None,
    atoms: Sequence[str] | None,
    window: Sequence[str],
    k: Sequence[str] | None,
    heads: Sequence[str],
    dtype: Sequence[str],
    mode: Sequence[str],
    level: Sequence[str],
    style: Sequence[str],
    batch: Sequence[str],
    device: Literal["cpu", "cuda"],
    seed: int,
    default_workload: tuple[str, ...] = (),
) -> list[Axes]:
    """Every combination of what was asked for; proteins and synthetic lengths are both sources of atoms."""
    sizes = numbers("--n-atom", n_atom)
    proteins = words(workload)
    for name in proteins:
        if name not in workloads.names():
            raise BadAxis(f"--workload: expected one of {_names(workloads.names())}; got {name!r}. Files: --structure")
    sources = (*proteins, *words(structure))
    if not sources and not sizes:
        sources = default_workload
    sets = words(atoms)
    shared = {
        "level": words(level),
        "mode": words(mode),
        "dtype": words(dtype),
        "heads": numbers("--heads", heads),
        "batch": numbers("--batch", batch),
        "window_style": words(style),
        "window": numbers("--window", window),
        "k_cap": numbers("--k", k) or (None,),
    }
    base = Axes(device=device, seed=seed)
    found: list[Axes] = []
    if sources:
        found += grid(base, **shared, workload=sources, atoms=sets or ("heavy",))
    if sizes:
        found += grid(base, **shared, n_atom=sizes, atoms=sets or ("atom14",))
    return found


def settings(**values: Any) -> Settings:
    """A sweep's settings; the command line as typed is part of every record."""
    return Settings(argv=command_line(), **values)


def command_line() -> tuple[str, ...]:
    """The command as typed."""
    return tuple(sys.argv)


def out_path(out: Path) -> Path:
    """Refuse early what could not be written at the end."""
    if out.is_dir():
        raise BadAxis(f"--out: expected a file's path, {out} is a folder")
    return out
