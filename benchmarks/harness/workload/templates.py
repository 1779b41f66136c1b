"""Heavy atoms of amino acid residues: names, elements, reference coordinates, as one padded table.

The numbers come from ``data/residues.json``, which ``scripts/make_residue_templates.py`` makes from the
Chemical Component Dictionary. Nothing but numpy is needed to use them.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BACKBONE = ("N", "CA", "C", "O")
TERMINAL = "OXT"
DATA = Path(__file__).parent / "data"

# fmt: off
SYMBOLS = (
    "", "H", "HE", "LI", "BE", "B", "C", "N", "O", "F", "NE", "NA", "MG", "AL", "SI", "P", "S", "CL", "AR", "K", "CA",
    "SC", "TI", "V", "CR", "MN", "FE", "CO", "NI", "CU", "ZN", "GA", "GE", "AS", "SE", "BR", "KR", "RB", "SR", "Y",
    "ZR", "NB", "MO", "TC", "RU", "RH", "PD", "AG", "CD", "IN", "SN", "SB", "TE", "I", "XE",
    "CS", "BA", "LA", "CE", "PR", "ND", "PM", "SM", "EU", "GD", "TB", "DY", "HO", "ER", "TM", "YB", "LU", "HF", "TA",
    "W", "RE", "OS", "IR", "PT", "AU", "HG", "TL", "PB", "BI", "PO", "AT", "RN", "FR", "RA", "AC", "TH", "PA", "U",
)
# fmt: on
ATOMIC_NUMBER = {symbol: number for number, symbol in enumerate(SYMBOLS) if symbol}

# Ambiguous letters stand for the amide or for leucine; both readings have equally many heavy atoms.
AMBIGUOUS = {"B": "ASN", "Z": "GLN", "J": "LEU"}


@dataclass(frozen=True, eq=False)
class Templates:
    """All residues, padded to the largest (``M`` atoms). Coordinates in Å, CA at the origin.

    ``element [T, M]``, ``xyz [T, M, 3]``: atoms in canonical order (N, CA, C, O, CB …), without OXT;
    ``count [T]``: how many of them; ``terminal [T, 3]``: where OXT is. ``atoms[t]`` are the names,
    ``index[name]`` is the row of a residue, ``letters[letter]`` that of a one-letter code.
    ``amino_acids``: every peptide-linking component of the dictionary, with its heavy atoms where it has no CA.
    """

    index: dict[str, int]
    letters: dict[str, int]
    atoms: tuple[tuple[str, ...], ...]
    count: np.ndarray
    element: np.ndarray
    xyz: np.ndarray
    terminal: np.ndarray
    amino_acids: dict[str, frozenset[str]]


@functools.cache
def templates() -> Templates:
    """The table, read once."""
    content = json.loads((DATA / "residues.json").read_text(encoding="utf-8"))
    residues = content["residues"]
    index = {name: row for row, name in enumerate(residues)}
    letters = {residue["letter"]: index[name] for name, residue in residues.items() if residue["letter"]}
    letters |= {letter: index[name] for letter, name in AMBIGUOUS.items()}
    atoms = tuple(tuple(name for name in residue["names"] if name != TERMINAL) for residue in residues.values())
    count = np.array([len(names) for names in atoms])
    element = np.zeros((len(residues), count.max()), np.int64)
    xyz = np.zeros((*element.shape, 3), np.float32)
    terminal = np.zeros((len(residues), 3), np.float32)
    for row, residue in enumerate(residues.values()):
        n = count[row]
        at = np.array(residue["xyz"], np.float32)
        at -= at[residue["names"].index("CA")]
        element[row, :n] = [ATOMIC_NUMBER[symbol] for symbol in residue["elements"][:n]]
        xyz[row, :n] = at[:n]
        terminal[row] = at[residue["names"].index(TERMINAL)]
    for array in (count, element, xyz, terminal):
        array.setflags(write=False)
    acids = dict.fromkeys(content["amino_acids"]["with_ca"].split(), frozenset[str]())
    acids |= {name: frozenset(found.split()) for name, found in content["amino_acids"]["without_ca"].items()}
    return Templates(index, letters, atoms, count, element, xyz, terminal, acids)
