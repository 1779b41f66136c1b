"""The protein of a user's structure file, from its atom table.

What counts: the first model; residues of a chain that are amino acids (the 20, modified ones, unknown UNK); heavy atoms
as the file has them, so that residues are ragged; of alternative locations the one of highest occupancy.
Chains are those of the file. Residues that were not resolved are no residues here. What was left out is said.

An amino acid is known by its name and its atoms, since lipids and ligands bear the same names; in what a file calls a
polypeptide, by either. A free one is a ligand: without a number in the sequence (mmCIF), as HETATM behind its chain's
TER, or, where a file has no TER, without a bond to its neighbours (PDB).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .atoms import Workload, WorkloadError, account, anchors, check_atoms, check_size
from .cif_table import cif_table
from .files import Content
from .pdb_table import pdb_table
from .residue_kinds import Kind, slots
from .structure_tables import FREE, HYDROGEN, IN_CHAIN, IN_SEQUENCE, UNSAID, WATER, Atoms, counted
from .templates import ATOMIC_NUMBER, BACKBONE, TERMINAL, templates

LARGEST_COORDINATE = 1e6  # Å
# Peptide bonds are 1.33 Å long, and CA atoms 3.8 Å apart across one.
LONGEST_BOND, LONGEST_STEP = 2.0, 4.5  # Å
# What force fields call the 20: protonation states and disulfides. The dictionary has other compounds of some of
# these names, so that a name counts only where all atoms are those of the standard residue.
FORCE_FIELD = {
    **dict.fromkeys(("HID", "HIE", "HIP", "HSD", "HSE", "HSP", "HISA", "HISB", "HISH", "HIS1", "HIS2"), "HIS"),
    **dict.fromkeys(("HISD", "HISE", "HISP"), "HIS"),
    **dict.fromkeys(("CYX", "CYM", "CYSH", "CYS1", "CYS2"), "CYS"),
    **dict.fromkeys(("ASH", "ASPH"), "ASP"),
    **dict.fromkeys(("GLH", "GLUH"), "GLU"),
    **dict.fromkeys(("LYN", "LYSH"), "LYS"),
    "ARGN": "ARG",
}
FORCE_FIELD_ATOMS = {"OT1": "O", "OC1": "O", "OT2": TERMINAL, "OC2": TERMINAL}
ALTERNATIVES = "atom of alternative locations"
NAMED = 6  # ligands, in the line that says what was left out
STANDARD = 20  # the first rows of the templates
_NUCLEOTIDE = re.compile("[ACGUIN]|[DR][ACGTUIN][35]?|ADE|CYT|GUA|THY|URA")


@dataclass(frozen=True)
class Residue:
    """The rows of one residue's atoms, one location each, in canonical order."""

    rows: np.ndarray
    kind: Kind

    def row(self, name: str) -> int | None:
        return int(self.rows[self.kind.names.index(name)]) if name in self.kind.names else None


def workload(content: Content, atoms: str) -> Workload:
    """The atoms of a structure file's protein, with their positions.

    Raises
    ------
    WorkloadError
        Naming the file and the cause.
    """
    check_atoms(atoms)
    table = pdb_table(content) if content.kind == "pdb" else cif_table(content)
    lost = np.asarray(np.isnan(table.xyz).any(1))
    if lost.any():
        table = table.only(~lost, counted(int(lost.sum()), "atom", "without coordinates"))
    light = np.isin(table.element, [HYDROGEN])
    if light.any():
        table = table.only(~light, counted(int(light.sum()), "hydrogen"))
    return _Reading(table, content).workload(atoms)


class _Reading:
    """A table on its way to a workload; counts what is left out."""

    def __init__(self, table: Atoms, content: Content) -> None:
        self.table, self.content = table, content
        self.left: Counter[str] = Counter()
        self.ligands: Counter[str] = Counter()
        self._kinds: dict[tuple, Kind] = {}

    def workload(self, atoms: str) -> Workload:
        chains = [kept for residues in self._segments() if (kept := self._kept(residues))]
        if not chains:
            raise WorkloadError(f"{self.content.origin}: no protein atom ({self._why_none()})")
        return self._laid_out(chains, atoms)

    def _why_none(self) -> str:
        found = ", ".join(sorted(set(self.table.residue.map(str).tolist()))[:8]) or "none"
        acids = [name for name in self.ligands if name in templates().amino_acids]
        free = f"; {', '.join(acids)}: free amino acids, in no chain by the file's own account" if acids else ""
        return f"residues found: {found}{free}"

    # -- residues and chains -----------------------------------------------------------------------

    def _segments(self) -> list[list[np.ndarray]]:
        """Rows of each residue of each chain.

        A residue that comes again starts a new chain of the same name (large assemblies run out of letters),
        unless all its rows are alternative locations: some programs list those apart.
        """
        table = self.table
        if not len(table):
            return []
        strand, number = table.strand, table.number.code
        blank = table.altloc.map(lambda letter: not letter)
        edges = [0, *(np.flatnonzero((np.diff(strand) != 0) | (np.diff(number) != 0)) + 1).tolist(), len(table)]
        segments: list[dict[int, np.ndarray]] = []
        current: dict[int, dict[int, np.ndarray]] = {}
        for first, last in pairwise(edges):
            chain, place = int(strand[first]), int(number[first])
            rows = np.arange(first, last)
            before = current.get(chain, {}).get(place)
            if chain not in current or (before is not None and blank[first:last].any()):
                current[chain] = {}
                segments.append(current[chain])
                before = None
            current[chain][place] = rows if before is None else np.concatenate([before, rows])
        return [list(segment.values()) for segment in segments]

    def _kept(self, residues: list[np.ndarray]) -> list[Residue]:
        """The protein's residues of one chain, in the order of the file; what else there is is counted."""
        found = [self._residue(rows) for rows in residues]
        kept = []
        for at, residue in enumerate(found):
            if residue.kind.what != "protein":
                self._leave_out(residue)
            elif residue.kind.sure or any(self._bonded(*pair) for pair in pairwise(found[max(at - 1, 0) : at + 2])):
                kept.append(residue)
            else:
                self._leave_out(residue)
        return kept

    def _leave_out(self, residue: Residue) -> None:
        what = residue.kind.what
        if what in ("protein", "ligand"):
            self.ligands[self.table.residue[residue.rows[0]]] += 1
        else:
            self.left[what] += 1

    def _bonded(self, before: Residue, behind: Residue) -> bool:
        """Whether a peptide bond can join them; by CA where a trace has no more."""
        if before.kind.what != behind.kind.what:
            return False
        for a, b, most in (("C", "N", LONGEST_BOND), ("CA", "CA", LONGEST_STEP)):
            first, second = before.row(a), behind.row(b)
            if first is not None and second is not None:
                return bool(np.linalg.norm(self.table.xyz[first] - self.table.xyz[second]) <= most)
        return False

    def _residue(self, rows: np.ndarray) -> Residue:
        """One residue with one location per atom."""
        table = self.table
        codes = table.residue.code[rows]
        if (codes != codes[0]).any():
            rows = self._one_residue_name(rows)
        kind = self._kind(rows)
        if kind is None:
            rows = self._one_location(rows)
            kind = self._kind(rows)
            assert kind is not None
        return Residue(rows[kind.order] if kind.what == "protein" else rows, kind)

    def _kind(self, rows: np.ndarray) -> Kind | None:
        """The kind of a residue; None where atoms of it occur in several locations."""
        table, first = self.table, rows[0]
        names = table.name.code[rows]
        key = (table.residue.code[first], names.tobytes(), table.element[rows].tobytes(),
               table.said[first], table.hetero[first])  # fmt: skip
        kind = self._kinds.get(key)
        if kind is None:
            name = self._standard_name(rows)
            canonical = [_canonical(table.name[row], name) for row in rows]
            what, sure = self._what(rows, name, set(canonical))
            if what == "protein" and len(set(canonical)) < len(canonical):
                return None
            kind = self._kinds[key] = self._protein(rows, name, canonical, sure) if what == "protein" else Kind(what)
        return kind

    def _protein(self, rows: np.ndarray, name: str, names: list[str], sure: bool) -> Kind:
        template = templates().index.get(name)
        known = templates().atoms[template] if template is not None else BACKBONE
        place = {atom: at for at, atom in enumerate(known)} | {TERMINAL: len(rows) + len(known) + 1}
        order = sorted(range(len(rows)), key=lambda at: place.get(names[at], len(known)))
        element = np.array([self._element(rows[at], names[at], template) for at in order])
        return Kind("protein", sure, tuple(names[at] for at in order), np.array(order), element, template)

    def _where(self, row: int) -> str:
        table = self.table
        return f"{self.content.origin}: residue {table.residue[row]} {table.chain[row]} {table.number[row]}"

    def _standard_name(self, rows: np.ndarray) -> str:
        """The residue's name; that of one of the 20 where a force field's name for it fits all atoms."""
        name = self.table.residue[rows[0]]
        if name not in FORCE_FIELD:
            return name
        standard = FORCE_FIELD[name]
        known = {*templates().atoms[templates().index[standard]], TERMINAL}
        return standard if all(_canonical(self.table.name[row], standard) in known for row in rows) else name

    def _what(self, rows: np.ndarray, name: str, names: set[str]) -> tuple[str, bool]:
        """What a residue is, and whether that is sure; raises for one of a chain that nobody knows.

        In a protein's sequence, the dictionary's amino acids count, and whatever has a CA. Elsewhere a name is not
        enough, since lipids and ligands bear the same ones: an amino acid has a CA, or atoms of the dictionary's alone.
        """
        table, first = self.table, rows[0]
        said, own = table.said[first], table.residue[first] in table.peptides
        row = templates().index.get(name)
        template = set() if row is None else {*templates().atoms[row], TERMINAL}
        backbone = {"N", "CA", "C"} <= names
        carbon = any(table.name[r] == "CA" and (table.element[r] == ATOMIC_NUMBER["C"] or backbone) for r in rows)
        other = _other(name, names), True
        if said == FREE:
            return other
        if row is not None and row < STANDARD:
            if names & template:
                return "protein", said != UNSAID
            if said == UNSAID:
                return other
            raise WorkloadError(
                f"{self._where(first)}: expected atoms of {name}, got {', '.join(sorted(names)[:4])}: "
                "coarse-grained beads are not read"
            )
        if name in templates().amino_acids:
            known = templates().amino_acids[name] or template
            if said != IN_SEQUENCE and not (carbon or names <= known):
                return other
            return "protein", said != UNSAID or backbone or own
        if not carbon:
            return other
        if said == IN_SEQUENCE or own:
            return "protein", True
        if backbone and said == IN_CHAIN:
            if table.hetero[first]:
                return "protein", True
            unknown = "unknown residue, no amino acid of the Chemical Component Dictionary"
            raise WorkloadError(f"{self._where(first)}: {unknown}")
        return other

    def _one_residue_name(self, rows: np.ndarray) -> np.ndarray:
        """Of the residues that share a place (a point mutation in part of the crystal), the rows of the fullest."""
        codes, weight = self.table.residue.code[rows], defaultdict(float)
        for code, occupancy in zip(codes.tolist(), self.table.occupancy[rows].tolist()):
            weight[code] += occupancy
        kept = rows[codes == max(weight, key=lambda code: weight[code])]
        self.left[ALTERNATIVES] += len(rows) - len(kept)
        return kept

    def _one_location(self, rows: np.ndarray) -> np.ndarray:
        """The row of each atom: of the alternative that is occupied most, or the only one that the atom has."""
        table, name = self.table, self._standard_name(rows)
        names = [_canonical(table.name[row], name) for row in rows]
        weight: dict[str, float] = defaultdict(float)
        seen: set[tuple[str, str]] = set()
        for row, atom in zip(rows, names):
            letter = table.altloc[row]
            if (atom, letter) in seen:
                raise WorkloadError(f"{self._where(rows[0])}: atom {atom} occurs twice")
            seen.add((atom, letter))
            if letter:
                weight[letter] += float(table.occupancy[row])
        preferred = max(weight, key=lambda letter: weight[letter]) if weight else ""

        def rank(row: int) -> tuple[bool, float]:
            return table.altloc[row] in ("", preferred), float(table.occupancy[row])

        chosen: dict[str, int] = {}
        for row, atom in zip(rows.tolist(), names):
            if atom not in chosen or rank(row) > rank(chosen[atom]):
                chosen[atom] = row
        self.left[ALTERNATIVES] += len(rows) - len(chosen)
        return np.array(list(chosen.values()))

    def _element(self, row: int, name: str, template: int | None) -> int:
        """The atomic number: the template's, else the file's (some programs leave it out, or write CA for a carbon)."""
        if template is not None and name in templates().atoms[template]:
            return int(templates().element[template, templates().atoms[template].index(name)])
        if self.table.element[row] < 1:
            raise WorkloadError(f"{self._where(row)}: atom {name} is of an unknown element")
        return int(self.table.element[row])

    # -- atoms -------------------------------------------------------------------------------------

    def _laid_out(self, chains: list[list[Residue]], atoms: str) -> Workload:
        """The atoms of an atom set, residue by residue."""
        residues = [residue for chain in chains for residue in chain]
        lengths = np.array([len(chain) for chain in chains])
        rows = np.concatenate([residue.rows for residue in residues])
        xyz = self._coordinates(rows)
        own = np.array([len(residue.rows) for residue in residues])
        base = np.cumsum(own) - own
        slots_of = {kind: slots(kind, atoms) for kind in {residue.kind for residue in residues}}
        laid = [slots_of[residue.kind] for residue in residues]
        tok = np.repeat(np.arange(len(residues)), [len(one.take) for one in laid])
        check_size(len(tok), f"{self.content.origin}: atom set {atoms}")
        centre = np.stack([xyz[at + one.ca] if one.ca is not None else xyz[at : at + size].mean(0)
                           for at, size, one in zip(base.tolist(), own.tolist(), laid)])  # fmt: skip
        take, ref = (np.concatenate([getattr(one, field) for one in laid]) for field in ("take", "ref"))
        positions = np.where(take[:, None] < 0, centre[tok], xyz[np.maximum(take, 0) + base[tok]])
        anchor = np.concatenate([anchors(np.arange(length), np.array(length)) for length in lengths])
        chain_of = np.repeat(np.arange(len(chains)), lengths)
        return Workload(
            name=self.content.name,
            source=self.content.origin,
            atoms=atoms,
            n_res=len(residues),
            tok_idx=tok,
            chain=np.unique(chain_of[tok], return_inverse=True)[1],  # numbers those that have atoms
            element=np.concatenate([one.element for one in laid]),
            ref_pos=(np.where(np.isnan(ref), positions - centre[tok], ref) + anchor[tok]).astype(np.float32),
            positions=positions.astype(np.float32),
            account=self._account(len(residues), len(chains), len(tok), atoms),
        )

    def _coordinates(self, rows: np.ndarray) -> np.ndarray:
        xyz = self.table.xyz[rows]
        outside = (np.abs(xyz) > LARGEST_COORDINATE).any(1)
        if outside.any():
            at = int(outside.argmax())
            where, got = self._where(int(rows[at])), xyz[at].tolist()
            raise WorkloadError(f"{where}: expected coordinates within ±{LARGEST_COORDINATE:,.0f} Å, got {got}")
        return xyz

    def _account(self, residues: int, chains: int, n_atom: int, atoms: str) -> str:
        """What was read, and what was not, in one line."""
        left = [counted(count, *what.split(" ", 1)) for what, count in sorted(self.left.items()) if count]
        if self.ligands:
            names = ", ".join(f"{name} × {n:,}" if n > 1 else name for name, n in self.ligands.most_common(NAMED))
            more = f", {len(self.ligands) - NAMED} more" if len(self.ligands) > NAMED else ""
            left.append(f"{counted(self.ligands.total(), 'ligand')} ({names}{more})")
        left += self.table.elsewhere
        return account(residues, chains, n_atom, atoms, left)


def _other(name: str, names: set[str]) -> str:
    if name in WATER:
        return "water"
    sugar = bool({"C1'", "C1*"} & names)
    return "nucleotide" if _NUCLEOTIDE.fullmatch(name) or (sugar and {"P", "O5'", "O5*"} & names) else "ligand"


def _canonical(atom: str, residue: str) -> str:
    if residue == "ILE" and atom == "CD":
        return "CD1"
    return FORCE_FIELD_ATOMS.get(atom, atom)
