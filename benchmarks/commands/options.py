"""The options that commands share, and how what a user typed becomes axes.

Every list option may be repeated or hold commas: ``--window 16,32 --window 64``.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ..harness.cases import registry
from ..harness.cases.problems import Axes, BadAxis, grid, workload_of
from ..harness.schema.axes import AXES, Axis, Device, usual
from ..harness.schema.record import CannotRecord, MalformedRecord
from ..harness.schema.shown import shown, shown_lines
from ..harness.worker.host import Host
from ..harness.worker.process import WorkerDied, WorkerTimeout
from ..harness.workload import workloads
from ..harness.workload.files import FORMATS, split

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
WHAT, RUN, OUTPUT = "What to measure", "How to measure", "Output"


def _names(text: Sequence[str]) -> str:
    return ", ".join(text)


Backends = Annotated[
    list[str],
    typer.Option("--backend", "-b", help="Backends by name, a .py file of your own, or 'all'.", rich_help_panel=WHAT),
]
Pairs = Annotated[
    int,
    typer.Option(
        "--pairs", min=1, help="Check at most so many pairs (rows x K); more rows are sampled.", rich_help_panel=RUN
    ),
]
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


@dataclass(frozen=True)
class Asked:
    """What was typed of the axes, and what every command that measures shares. ``lists``: by parameter, as typed."""

    workload: Sequence[str] | None
    structure: Sequence[str] | None
    lists: Mapping[str, Sequence[str] | None]
    device: str
    seed: int
    threads: int | None

    @property
    def run(self) -> dict[str, Any]:
        """What a run is told of it (:class:`~..harness.worker.options.Run`)."""
        return {"threads": self.threads, "seed": self.seed, "argv": command_line()}

    def but(self, **lists: Sequence[str] | None) -> Asked:
        return replace(self, lists={**self.lists, **lists})

    def axes(self, device: Device, default_workload: tuple[str, ...] = ()) -> list[Axes]:
        """Every combination of what was asked for; proteins and synthetic lengths are both sources of atoms."""
        proteins = words(self.workload)
        for name in proteins:
            if name not in workloads.names():
                known = _names(workloads.names())
                raise BadAxis(f"--workload: expected one of {known}; got {name!r}. Files: --structure")
        shared = {one.name: _values(one, self.lists.get(one.parameter, one.typed)) for one in _listed()}
        sizes, sets = shared.pop("n_atom"), shared.pop("atoms")
        sources = (*proteins, *structures(self.structure))
        if not sources and not sizes:
            sources = default_workload
        shared |= {name: (None,) for name, values in shared.items() if not values and usual(name) is None}
        base = Axes(device=device, seed=self.seed)
        found: list[Axes] = []
        if sources:
            found += grid(base, **shared, workload=sources, atoms=sets or ("heavy",))
            say_what_is_read(found)
        if sizes:
            found += grid(base, **shared, n_atom=sizes, atoms=sets or (usual("atoms"),))
        return found


def _listed(*, rare: bool = True) -> list[Axis]:
    """The axes whose options take lists."""
    return [one for one in AXES if one.name not in ("workload", "device", "seed") and (rare or not one.rare)]


def _values(one: Axis, typed: Sequence[str] | None) -> tuple[Any, ...]:
    return numbers(one.flags[0], typed, one.least) if one.is_number else words(typed)


def asks(*, rare: bool = False, **changed: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Put an option per axis, in the table's order, in the place of a command's parameter ``asked``, which gets an
    :class:`Asked` of what was typed.

    ``rare``: the sizes of the model that few ask for, too. ``changed``, by parameter: another default, or
    ``(annotation, default)`` of its own.
    """

    def asking(command: Callable[..., Any]) -> Callable[..., Any]:
        listed = _listed(rare=rare)
        offered = list(_offered([one for one in AXES if one in listed or one.name in ("device", "seed")], changed))

        @functools.wraps(command)
        def run(*args: Any, **given: Any) -> Any:
            typed = {one.name: given.pop(one.name) for one in offered}
            rest = {name: typed.pop(name) for name in ("workload", "structure", "device", "seed", "threads")}
            return command(*args, **given, asked=Asked(lists=typed, **rest))

        signature = inspect.signature(command)
        parameters = []
        for one in signature.parameters.values():
            parameters += offered if one.name == "asked" else [one]
        hints = get_type_hints(command, include_extras=True)
        named = inspect.Parameter.KEYWORD_ONLY
        parameters = [one.replace(annotation=hints.get(one.name, one.annotation), kind=named) for one in parameters]
        vars(run)["__signature__"] = signature.replace(parameters=parameters)
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return asking


def _offered(axes: Sequence[Axis], changed: dict[str, Any]) -> Iterator[inspect.Parameter]:
    """The parameters of a command, as typer reads them."""
    yield _parameter("workload", list[str] | None, None, f"Real proteins: {_names(workloads.names())}.", "-w")
    yield _parameter("structure", list[str] | None, None, f"Your own file: {FORMATS}.")
    for one in axes:
        kind: Any = {"device": str, "seed": int}.get(one.name, list[str] if one.typed else list[str] | None)
        default: Any = one.typed[0] if kind is str else one.default if kind is int else list(one.typed) or None
        made = _parameter(one.parameter, kind, default, one.help, one.flag, RUN if one.role == "seed" else WHAT)
        own = changed.get(one.parameter, default)
        annotation, default = own if isinstance(own, tuple) else (made.annotation, own)
        yield made.replace(annotation=annotation, default=default)
    yield inspect.Parameter("threads", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Threads)


def _parameter(name: str, kind: Any, default: Any, told: str, flag: str = "", panel: str = WHAT) -> Any:
    flags = (f"--{name.replace('_', '-')}", *([flag] if flag else []))
    option = Annotated[kind, typer.Option(*flags, help=told, rich_help_panel=panel)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=option)


def reported(command: Callable[..., Any]) -> Callable[..., Any]:
    """Bad input leaves as one line and exit code 2, never as a traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (BadAxis, workloads.WorkloadError, registry.UnknownBackend, MalformedRecord) as e:
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


def structures(values: Sequence[str] | None) -> tuple[str, ...]:
    """The same for structure files: a comma is also part of a name unless a suffix stands before it."""
    return tuple(dict.fromkeys(path for value in values or () for path in split(value)))


def say_what_is_read(axes: Sequence[Axes]) -> None:
    """Say on stderr what is read of each of the user's files, and what is left out."""
    asked = dict.fromkeys((one.workload, one.atoms, one.seed) for one in axes if one.workload not in workloads.names())
    for path, atoms, seed in asked:
        if atoms in workloads.ATOM_SETS:  # else it is refused later
            print(shown(f"{path}: {workload_of(path, None, atoms, seed).account}"), file=sys.stderr)


def numbers(option: str, values: Sequence[str] | None, least: int = 1) -> tuple[int, ...]:
    """The items of a list option as whole numbers of at least ``least`` (``64_000`` is fine)."""
    found = []
    for item in words(values):
        try:
            number = int(item)
        except ValueError:
            raise BadAxis(f"{option}: expected whole numbers, got {item!r}") from None
        if number < least:
            raise BadAxis(f"{option}: expected numbers of at least {least}, got {item}")
        found.append(number)
    return tuple(found)


def one_device(asked: str, host: Host) -> Device:
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


def command_line() -> tuple[str, ...]:
    """The command as typed: part of every record."""
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
