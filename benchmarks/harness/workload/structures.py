"""The protein of a user's structure file, from its atom table.

What counts: model 1; polymer residues that are amino acids (the 20, modified ones, unknown UNK); heavy atoms
as the file has them, so that residues are ragged; of alternative locations the one of highest occupancy.
Chains are those of the file. Residues that were not resolved are no residues here.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .atoms import ATOM14, Workload, WorkloadError, anchors, check_atoms, check_size
from .files import Content
from .structure_tables import BLANK, Atoms, atom_table
from .templates import ATOMIC_NUMBER, BACKBONE, TERMINAL, templates

LARGEST_COORDINATE = 1e6  # Å
HYDROGEN = ("H", "D", "T")
# What force fields call the 20: protonation states and disulfides. The dictionary has other compounds of some of
# these names, so that a name counts only where all atoms are those of the standard residue.
FORCE_FIELD = {
    **dict.fromkeys(("HID", "HIE", "HIP", "HSD", "HSE", "HSP"), "HIS"),
    **dict.fromkeys(("CYX", "CYM"), "CYS"),
    "ASH": "ASP",
    "GLH": "GLU",
    "LYN": "LYS",
}
FORCE_FIELD_ATOMS = {"OT1": "O", "OC1": "O", "OT2": TERMINAL, "OC2": TERMINAL}
STANDARD = 20  # the first rows of the templates


@dataclass(frozen=True)
class Residue:
    """One residue's atoms in canonical order: rows of the table, their names, the row of its template or None."""

    rows: list[int]
    names: list[str]
    template: int | None


def workload(content: Content, atoms: str) -> Workload:
    """The atoms of a structure file's protein, with their positions.

    Raises
    ------
    WorkloadError
        Naming the file and the cause.
    """
    check_atoms(atoms)
    table = atom_table(content)
    table = table.only(~np.isin(np.char.upper(table.element), HYDROGEN))
    chains = _chains(table, content.origin)
    if not chains:
        found = ", ".join(sorted(set(table.residue.tolist()))[:8]) or "none"
        raise WorkloadError(f"{content.origin}: no protein atom (residues found: {found})")
    return _laid_out(content, table, chains, atoms)


def _chains(table: Atoms, origin: str) -> list[list[Residue]]:
    """The protein's residues, chain by chain, each in the order of the file."""
    chains = []
    for residues in _segments(table):
        kept = [_residue(table, rows, origin) for rows in residues]
        if found := [residue for residue in kept if residue is not None]:
            chains.append(found)
    return chains


def _segments(table: Atoms) -> list[list[list[int]]]:
    """Rows of each residue of each chain.

    A residue that comes again starts a new chain of the same name (large assemblies run out of letters),
    unless all its rows are alternative locations: some programs list those apart.
    """
    segments: list[dict[str, list[int]]] = []
    current: dict[str, dict[str, list[int]]] = {}
    if not len(table.name):
        return []
    changes = (table.chain[1:] != table.chain[:-1]) | (table.number[1:] != table.number[:-1])
    edges = [0, *(np.flatnonzero(changes) + 1).tolist(), len(table.name)]
    for first, last in pairwise(edges):
        chain, number = str(table.chain[first]), str(table.number[first])
        rows = range(first, last)
        again = number in current.get(chain, ())
        if chain not in current or (again and np.isin(table.altloc[first:last], BLANK).any()):
            current[chain] = {}
            segments.append(current[chain])
        current[chain].setdefault(number, []).extend(rows)
    return [list(segment.values()) for segment in segments]


def _residue(table: Atoms, rows: list[int], origin: str) -> Residue | None:
    """One residue with one location per atom, or None if it is no part of a protein's chain."""
    rows = _one_residue_name(table, rows)
    where = f"{origin}: residue {_label(table, rows[0])}"
    name = _standard_name(table, rows)
    if not _is_protein(table, rows, name, where):
        return None
    template = templates().index.get(name)
    names = [_canonical(str(table.name[row]), name) for row in rows]
    chosen = _one_location(table, rows, names, where)
    known = templates().atoms[template] if template is not None else BACKBONE
    order = {atom: at for at, atom in enumerate(known)} | {TERMINAL: len(rows) + len(known) + 1}
    pairs = sorted(chosen.items(), key=lambda item: order.get(item[0], len(known)))
    return Residue([row for _, row in pairs], [atom for atom, _ in pairs], template)


def _label(table: Atoms, row: int) -> str:
    return f"{table.residue[row]} {table.chain[row]} {table.number[row]}"


def _standard_name(table: Atoms, rows: list[int]) -> str:
    """The residue's name; that of one of the 20 where a force field's name for it fits all atoms."""
    name = str(table.residue[rows[0]])
    if name not in FORCE_FIELD:
        return name
    standard = FORCE_FIELD[name]
    known = {*templates().atoms[templates().index[standard]], TERMINAL}
    fits = all(_canonical(str(table.name[row]), standard) in known for row in rows)
    return standard if fits else name


def _is_protein(table: Atoms, rows: list[int], name: str, where: str) -> bool:
    """Whether a residue belongs to a protein's chain; raises for one of a chain that nobody knows."""
    backbone = {"N", "CA", "C"} <= {str(table.name[row]) for row in rows}
    in_chain = bool(table.polymer[rows[0]]) or not table.hetero[rows[0]]
    row = templates().index.get(name)
    if row is not None:
        # The 20 as HETATM outside a sequence are ligands: free amino acids.
        return in_chain or (row >= STANDARD and backbone)
    from biotite.structure.info import amino_acid_names

    if name in amino_acid_names():
        return in_chain or backbone
    if backbone and in_chain:
        raise WorkloadError(f"{where}: unknown residue, no amino acid of the Chemical Component Dictionary")
    return False


def _one_residue_name(table: Atoms, rows: list[int]) -> list[int]:
    """Of the residues that share a place (a point mutation in part of the crystal), the rows of the fullest."""
    weight: dict[str, float] = defaultdict(float)
    for row in rows:
        weight[str(table.residue[row])] += float(table.occupancy[row])
    best = max(weight, key=lambda name: weight[name])
    return [row for row in rows if table.residue[row] == best]


def _one_location(table: Atoms, rows: list[int], names: list[str], where: str) -> dict[str, int]:
    """The row of each atom: of the alternative that is occupied most, or the only one that the atom has."""
    weight: dict[str, float] = defaultdict(float)
    seen: set[tuple[str, str]] = set()
    for row, name in zip(rows, names):
        letter = str(table.altloc[row])
        if (name, letter) in seen:
            raise WorkloadError(f"{where}: atom {name} occurs twice")
        seen.add((name, letter))
        if letter not in BLANK:
            weight[letter] += float(table.occupancy[row])
    preferred = max(weight, key=lambda letter: weight[letter]) if weight else ""

    def rank(row: int) -> tuple[bool, float]:
        letter = str(table.altloc[row])
        return letter in (*BLANK, preferred), float(table.occupancy[row])

    chosen: dict[str, int] = {}
    for row, name in zip(rows, names):
        if name not in chosen or rank(row) > rank(chosen[name]):
            chosen[name] = row
    return chosen


def _canonical(atom: str, residue: str) -> str:
    if residue == "ILE" and atom == "CD":
        return "CD1"
    return FORCE_FIELD_ATOMS.get(atom, atom)


def _laid_out(content: Content, table: Atoms, chains: list[list[Residue]], atoms: str) -> Workload:
    """The atoms of an atom set, residue by residue."""
    tok: list[int] = []
    chain_of: list[int] = []
    element: list[int] = []
    local: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    anchor = np.concatenate([anchors(np.arange(len(chain)), np.array(len(chain))) for chain in chains])
    number = 0
    for at, residues in enumerate(chains):
        for residue in residues:
            e, xyz, ref = _atom_set(table, residue, atoms, content.origin)
            tok += [number] * len(e)
            chain_of += [at] * len(e)
            element += e
            positions.append(xyz)
            local.append(ref + anchor[number])
            number += 1
    check_size(len(tok), f"{content.origin}: atom set {atoms}")
    return Workload(
        name=content.name,
        source=content.origin,
        atoms=atoms,
        n_res=number,
        tok_idx=np.array(tok, np.int64),
        chain=np.array(chain_of, np.int64),
        element=np.array(element, np.int64),
        ref_pos=np.concatenate(local).astype(np.float32),
        positions=np.concatenate(positions).astype(np.float32),
    )


def _atom_set(table: Atoms, residue: Residue, atoms: str, origin: str) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Elements, positions and reference coordinates (CA at 0) of one residue's slots."""
    xyz = table.xyz[residue.rows].astype(np.float64)
    where = f"{origin}: residue {_label(table, residue.rows[0])}"
    outside = ~(np.abs(xyz) <= LARGEST_COORDINATE).all(1)
    if outside.any():
        got = xyz[outside][0].tolist()
        raise WorkloadError(f"{where}: expected coordinates within ±{LARGEST_COORDINATE:,.0f} Å, got {got}")
    element = [_element(table, row, name, residue.template, where) for row, name in zip(residue.rows, residue.names)]
    centre = xyz[residue.names.index("CA")] if "CA" in residue.names else xyz.mean(0)
    ref = np.array([_reference(name, residue.template, at - centre) for name, at in zip(residue.names, xyz)])
    if atoms == "heavy":
        return element, xyz, ref
    if atoms == "backbone":
        kept = [at for at, name in enumerate(residue.names) if name in BACKBONE]
        return [element[at] for at in kept], xyz[kept], ref[kept]
    slots = {slot: at for at, name in enumerate(residue.names) if (slot := _slot(residue, at, name)) is not None}
    virtual = np.zeros(3)
    rows = [slots.get(slot) for slot in range(ATOM14)]
    return (
        [0 if at is None else element[at] for at in rows],
        np.stack([centre if at is None else xyz[at] for at in rows]),
        np.stack([virtual if at is None else ref[at] for at in rows]),
    )


def _slot(residue: Residue, at: int, name: str) -> int | None:
    """The atom14 slot: the atom's place in its template, or in the residue if it has none; OXT has no slot."""
    if name == TERMINAL:
        return None
    if residue.template is None:
        return at if at < ATOM14 else None
    known = templates().atoms[residue.template]
    return known.index(name) if name in known[:ATOM14] else None


def _element(table: Atoms, row: int, name: str, template: int | None, where: str) -> int:
    """The atomic number: the template's, else the file's (some programs leave it out, or write CA for a carbon)."""
    if template is not None and name in templates().atoms[template]:
        return int(templates().element[template, templates().atoms[template].index(name)])
    symbol = str(table.element[row]).upper()
    if symbol not in ATOMIC_NUMBER:
        raise WorkloadError(f"{where}: atom {name} is of unknown element {symbol!r}")
    return ATOMIC_NUMBER[symbol]


def _reference(name: str, template: int | None, own: np.ndarray) -> np.ndarray:
    """The template's coordinates of an atom, or, where it has none, the file's own."""
    if template is None:
        return own
    if name == TERMINAL:
        return templates().terminal[template]
    known = templates().atoms[template]
    return templates().xyz[template, known.index(name)] if name in known else own
