"""The options that commands share, and how what a user typed becomes axes.

Every list option may be repeated or hold commas: ``--window 16,32 --window 64``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..harness.levels import arms
from ..harness.schema.problem import ATOM_SETS, DTYPES, LEVELS
from ..harness.schema.record import CannotRecord, MalformedRecord
from ..harness.schema.shown import shown, shown_lines
from ..harness.sweep.sweep import Settings
from ..harness.worker.host import Host
from ..harness.worker.process import WorkerDied, WorkerTimeout
from ..harness.workload import workloads
from ..harness.workload.problems import Axes, BadAxis, grid

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
Blocks = Annotated[
    list[str], typer.Option("--n-blocks", help="Blocks of a stack, encoder or decoder.", rich_help_panel=AXES)
]
AtomWidths = Annotated[list[str], typer.Option("--c-atom", help="Channels of an atom.", rich_help_panel=AXES)]
PairWidths = Annotated[
    list[str], typer.Option("--c-atompair", help="Channels of a pair of atoms, C.", rich_help_panel=AXES)
]
TokenWidths = Annotated[list[str], typer.Option("--c-token", help="Channels of a residue.", rich_help_panel=AXES)]
TokenPairWidths = Annotated[
    list[str], typer.Option("--c-pair", help="Channels of a pair of residues.", rich_help_panel=AXES)
]
Pairs = Annotated[
    int,
    typer.Option(
        "--pairs", min=1, help="Check at most so many pairs (rows x K); more rows are sampled.", rich_help_panel=RUN
    ),
]
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


def paths(values: Sequence[str] | None) -> tuple[str, ...]:
    """The items of a list option of files: a comma is part of a name where such a file is there."""
    return tuple(dict.fromkeys(p for v in values or () for p in ((v,) if os.path.exists(v) else words([v]))))


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
    **model: Sequence[str],
) -> list[Axes]:
    """Every combination of what was asked for; proteins and synthetic lengths are both sources of atoms. ``model``:
    what else there is of the model's sizes, by the names of :class:`~.cases.Axes`."""
    sizes = numbers("--n-atom", n_atom)
    proteins = words(workload)
    for name in proteins:
        if name not in workloads.names():
            raise BadAxis(f"--workload: expected one of {_names(workloads.names())}; got {name!r}. Files: --structure")
    sources = (*proteins, *paths(structure))
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
    } | {name: numbers(f"--{name.replace('_', '-')}", values) for name, values in model.items()}
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


def out_path(out: Path, option: str = "--out") -> Path:
    """A file that can be added to, found out before anything is measured: it is there afterwards, if only empty."""
    with _writable(option, out, "a file"):
        if out.exists() and not out.is_file():
            what = "a folder" if out.is_dir() else "a device, a pipe or a socket"
            raise BadAxis(f"{option}: expected a file's path, {out} is {what}")
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("ab"):
            pass
    return out


def out_folder(out: Path, *files: str, option: str = "--out") -> Path:
    """A folder that files can be made in, and those of these ``files`` that are there can be written."""
    with _writable(option, out, "a folder"):
        if out.exists() and not out.is_dir():
            raise BadAxis(f"{option}: expected a folder, {out} is a file")
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
        for file in files:
            if (out / file).exists():
                out_path(out / file, option)
    return out


@contextlib.contextmanager
def _writable(option: str, out: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as e:
        if isinstance(e, BadAxis):
            raise
        why = getattr(e, "strerror", None) or e
        raise BadAxis(f"{option}: expected {what} that can be written, got {out}: {why}") from None


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """What cannot be written all the same, since the disk is full by now, leaves as one line too."""
    try:
        yield
    except OSError as e:
        raise CannotRecord(f"{out}: {e.strerror or e}") from None
