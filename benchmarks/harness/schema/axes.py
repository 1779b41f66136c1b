"""``AXES``: every quantity that a problem can differ in, one row each, and all that is said of it anywhere.

The command line's options and their help, the checks of values, the fields of a problem and of its record, titles,
columns of tables, names of files, curves, asv's parameters and the command that measures a cell again are made from
these rows. One more scalar axis is one more row here, and the code under ``levels`` that gives it a meaning.

Free of everything but the standard library: asv starts a process per number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

Mode = Literal["fwd", "fwdbwd", "train"]
DType = Literal["float32", "float64", "bfloat16", "float16"]
AtomSet = Literal["backbone", "heavy", "atom14"]
WindowStyle = Literal["residues", "blocks"]
Device = Literal["cpu", "cuda"]

# A level is a file of ``harness/levels``: its name is all that is known of it here.
LEVELS = tuple(sorted(f.stem for f in (Path(__file__).parents[1] / "levels").glob("[!_]*.py")))
MODES: tuple[str, ...] = get_args(Mode)
DTYPES: tuple[str, ...] = get_args(DType)
ATOM_SETS: tuple[str, ...] = get_args(AtomSet)
WINDOW_STYLES: tuple[str, ...] = get_args(WindowStyle)
DEVICES: tuple[str, ...] = get_args(Device)
STACKED = ("stack", "encoder", "decoder")  # levels of more than one block
SYNTHETIC = "synthetic"
LARGEST = 2**31 - 1  # of any number on an axis

# What an axis is to a report. "kind" and "source": words that say what is computed, and on which atoms. "size": free
# along a curve's points and fixed along others, N, W, K. "model": part of the setting that a whole plot shares.
Role = Literal["kind", "source", "size", "model", "seed"]


@dataclass(frozen=True)
class Axis:
    """One row of the table.

    ``name`` is the field of :class:`~.problem.Problem`, ``size`` the field that holds the number that came of it where
    that is another (a cap of neighbours: the K that was found). ``words`` is what sentences call it, with its letter
    behind it; ``unit`` stands in brackets on a curve's axis. ``asked`` is the option's own default where that is not
    ``(default,)``; ``asv`` lists the values of asv's grid, none: asv has no such parameter.
    """

    name: str
    help: str
    role: Role
    default: str | int | None = None
    letter: str = ""
    words: str = ""
    unit: str = ""
    option: str = ""
    flag: str = ""
    asked: tuple[str, ...] | None = None
    choices: tuple[str, ...] = ()
    least: int = 1
    most: int = LARGEST
    size: str = ""
    curve: bool = False  # logarithmic, with a fitted exponent
    levels: tuple[str, ...] = LEVELS  # where it means something; elsewhere it is ``elsewhere``
    elsewhere: int | None = None
    rare: bool = False  # asked for by sweep and check alone; named in a command only where it is not as usual
    asv: tuple[str | int | None, ...] = ()
    added: bool = False  # since there are records: those without it have the default, and their keys stand

    @property
    def flags(self) -> tuple[str, ...]:
        """``("--n-atom", "-n")``"""
        long = "--" + (self.option or self.name).replace("_", "-")
        return (long, self.flag) if self.flag else (long,)

    @property
    def parameter(self) -> str:
        """Its name as a parameter of a command, and of asv."""
        return self.option or self.name

    @property
    def typed(self) -> tuple[str, ...]:
        """What is asked for where nobody says."""
        if self.asked is not None:
            return self.asked
        return () if self.default is None else (str(self.default),)

    @property
    def is_number(self) -> bool:
        return not self.choices and self.name != "workload"

    @property
    def absent(self) -> str | int | None:
        """What a record that does not hold it has."""
        return self.default if self.elsewhere is None else self.elsewhere

    def usual(self, level: str) -> str | int | None:
        return self.default if level in self.levels else self.elsewhere

    @property
    def symbol(self) -> str:
        """``W``; the name of what has no letter."""
        return self.letter or self.name

    @property
    def title(self) -> str:
        """``window W``"""
        return f"{self.words or self.name} {self.letter}".strip()

    def value(self, problem: Any) -> Any:
        """The number of a problem that stands on a curve's axis and in a column."""
        return getattr(problem, self.size or self.name)

    def wrong(self, value: str | int | None) -> str | None:
        """Why an axis cannot have this value; None if it can."""
        if self.choices:
            return None if value in self.choices else f"expected one of {', '.join(self.choices)}; got {value!r}"
        if not self.is_number or (value is None and self.default is None):
            return None
        if isinstance(value, int) and self.least <= value <= self.most:
            return None
        return f"expected a number of at least {self.least} and at most {self.most:,}, got {value}"


AXES: tuple[Axis, ...] = (
    # in the order of the command line's help and of a table's columns
    Axis("workload", "", "source"),
    Axis("n_atom", "Synthetic chains of so many atoms, e.g. 1024,2048.", "size", letter="N", words="atoms", flag="-n",
         curve=True, asv=(512, 2048, 16384)),
    Axis("atoms", f"Atoms per residue: {', '.join(ATOM_SETS)}. [default: heavy for proteins, atom14 for synthetic]",
         "source", "atom14", asked=(), choices=ATOM_SETS),
    Axis("window", "Window W: residues |i - j| < W/2 see one another.", "size", 32, letter="W", words="window",
         unit="residues", curve=True, asv=(16, 32)),
    Axis("k_cap", "Keep only the K nearest atoms along the chain.", "size", letter="K", words="neighbour slots",
         option="k", size="n_neighbor", curve=True, levels=("attention", "block", "stack", "encoder", "decoder"),
         asv=(None, 64)),
    Axis("heads", "Attention heads H.", "model", 4, letter="H", words="heads"),
    Axis("dtype", f"{', '.join(DTYPES)}.", "kind", "float32", choices=DTYPES, asv=("float32", "bfloat16")),
    Axis("mode", "fwd, fwdbwd (with all gradients), train (with an AdamW step).", "kind", "fwd", choices=MODES,
         asv=("fwd", "fwdbwd")),
    Axis("level", f"How much of the model: {', '.join(LEVELS)}.", "kind", "attention", choices=LEVELS),
    Axis("device", "cpu, cuda, or auto: cuda where there is one.", "kind", "cpu", asked=("auto",), choices=DEVICES),
    Axis("window_style", "residues, or blocks (32 query x 128 key atoms, as AlphaFold3).", "source", "residues",
         choices=WINDOW_STYLES),
    Axis("batch", "Batch size B.", "model", 1, letter="B", words="batch", curve=True),
    Axis("n_blocks", "Blocks of a stack, encoder or decoder.", "model", 3, words="blocks", levels=STACKED, elsewhere=1,
         rare=True),
    Axis("c_atom", "Channels of an atom.", "model", 128, rare=True),
    Axis("c_atompair", "Channels of a pair of atoms, C.", "model", 16, letter="C", words="pair channels", rare=True),
    Axis("c_token", "Channels of a residue.", "model", 384, rare=True),
    Axis("c_pair", "Channels of a pair of residues.", "model", 128, rare=True),
    Axis("seed", "Of inputs, weights and order.", "seed", 0, least=0),
)  # fmt: skip


def axis(name: str) -> Axis:
    """The row of this name."""
    return next(a for a in AXES if a.name == name)


def usual(name: str) -> Any:
    """The default of an axis: the one place where it is spelled."""
    return axis(name).default


def absent(name: str) -> Any:
    """What a record without this axis has."""
    return axis(name).absent


def of_role(*roles: Role) -> tuple[Axis, ...]:
    return tuple(a for a in AXES if a.role in roles)


def curve_axes() -> tuple[Axis, ...]:
    return tuple(a for a in AXES if a.curve)


def unusual(problem: Any) -> list[Axis]:
    """The sizes of the model that are not as usual in this problem."""
    return [a for a in of_role("model") if a.value(problem) != a.usual(problem.level)]


def unusual_in(problems: Iterable[Any]) -> list[Axis]:
    """The sizes of the model that a table of these problems has a column for."""
    found = {a.name for p in problems for a in unusual(p)}
    return [a for a in AXES if a.name in found]
