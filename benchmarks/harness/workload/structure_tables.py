"""The atom table of a structure file, whatever its format: which :mod:`.pdb_table` and :mod:`.cif_table` fill."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .templates import ATOMIC_NUMBER

WATER = frozenset(["HOH", "WAT", "DOD", "H2O", "OH2", "SOL", "SPC", "TIP", "TP3", "T3P", "TIP3", "TIP4", "TIP5"])
HYDROGEN = 1  # deuterium and tritium too
UNKNOWN = -1  # no element's number
# What the file says of an atom's residue: nothing; that it is written in a chain; that a protein's sequence lists it;
# that it is in no chain.
UNSAID, IN_CHAIN, IN_SEQUENCE, FREE = range(4)


@dataclass(frozen=True)
class Words:
    """A column of few different words: row ``r`` holds ``words[code[r]]``."""

    words: list[str]
    code: np.ndarray

    def __getitem__(self, row: int) -> str:
        return self.words[self.code[row]]

    def map(self, function: Callable[[str], Any]) -> np.ndarray:
        return np.array([function(word) for word in self.words])[self.code]


def words(values: Iterable[Hashable], spell: Callable[[Any], str] = str) -> Words:
    """A column out of its values; values that are spelled alike are one word."""
    index: dict[Hashable, int] = {}
    code = np.fromiter((index.setdefault(value, len(index)) for value in values), np.int32)
    spelled: dict[str, int] = {}
    again = [spelled.setdefault(spell(value), len(spelled)) for value in index]
    return Words(list(spelled), np.array(again, np.int32)[code])


@dataclass(frozen=True)
class Atoms:
    """The atoms of the first model as columns of one length.

    ``strand`` numbers the chains, those of one name too; ``said`` is what the file says of the residue; ``element`` an
    atomic number. ``peptides``: names that the file itself declares amino acids. ``elsewhere``: what the file holds
    beside these atoms, in words.
    """

    strand: np.ndarray
    said: np.ndarray
    hetero: np.ndarray
    chain: Words
    number: Words
    residue: Words
    name: Words
    altloc: Words
    element: np.ndarray
    occupancy: np.ndarray
    xyz: np.ndarray
    peptides: frozenset[str] = frozenset()
    elsewhere: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.element)

    def only(self, rows: np.ndarray, *elsewhere: str) -> Atoms:
        """These rows; ``elsewhere`` says what the others were."""
        columns = {
            field: Words(column.words, column.code[rows]) if isinstance(column, Words) else column[rows]
            for field, column in vars(self).items()
            if isinstance(column, Words | np.ndarray)
        }
        return replace(self, **columns, elsewhere=(*self.elsewhere, *elsewhere))


def counted(number: int, noun: str, rest: str = "") -> str:
    """``3 ligands``, ``1 atom without coordinates``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}{rest and ' '}{rest}"


def elements(symbol: Words, name: Words, of_name: Callable[[str], int]) -> np.ndarray:
    """Atomic numbers by symbol, and for atoms whose symbol says nothing by name."""
    known = symbol.map(_of_symbol)
    return np.where(known == 0, name.map(of_name), known).astype(np.int16)


def _of_symbol(text: str) -> int:
    """The atomic number; 0 where nothing is said (blank, or digits: old PDB files count lines there)."""
    symbol = text.strip().upper().rstrip("0123456789+-")  # a charge may follow
    if symbol in ("", ".", "?"):
        return 0
    return HYDROGEN if symbol in ("D", "T") else ATOMIC_NUMBER.get(symbol, UNKNOWN)


def first_letter(name: str) -> int:
    """The element whose symbol is a name's first letter, which is right for C, N, O, S, H and P."""
    return _of_symbol(name.lstrip("0123456789*'\"")[:1]) or UNKNOWN
