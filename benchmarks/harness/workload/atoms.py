"""A workload's atoms, and how they are laid out from sequences of residues.

Slots per residue: ``backbone`` holds N, CA, C, O; ``heavy`` the residue's own heavy atoms, OXT too where
a chain ends; ``atom14`` always 14, those beyond the residue's atoms being virtual: element 0, at CA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .templates import ATOMIC_NUMBER, BACKBONE, templates

ATOM_SETS = ("backbone", "heavy", "atom14")
ATOM14 = 14
CA_SPACING = 3.8  # Å between the CA of consecutive residues joined by a trans peptide bond
MAX_ATOM = 16_000_000  # more is a slip of the keyboard: its index alone would take terabytes


class WorkloadError(ValueError):
    """Atoms that cannot be had: says which file or name, and why."""


@dataclass(frozen=True, eq=False)
class Workload:
    """The atoms that attention runs over, as read-only arrays.

    ``tok_idx int64[N]`` residue of each atom, ascending through all chains, 0 … ``n_res - 1`` (a residue
    without atoms is possible); ``chain int64[N]``; ``element int64[N]`` atomic number, 0 for a virtual atom;
    ``ref_pos float32[N, 3]`` reference geometry in Å; ``positions float32[N, 3]`` in Å, where a file gave them.
    ``account``: what was read of a user's file and what was left out, in one line.
    """

    name: str
    source: str
    atoms: str
    n_res: int
    tok_idx: np.ndarray
    chain: np.ndarray
    element: np.ndarray
    ref_pos: np.ndarray
    positions: np.ndarray | None = None
    account: str | None = None

    def __post_init__(self) -> None:
        for array in (self.tok_idx, self.chain, self.element, self.ref_pos, self.positions):
            if array is not None:
                array.setflags(write=False)

    @property
    def n_atom(self) -> int:
        return len(self.tok_idx)

    @property
    def chain_sizes(self) -> list[tuple[int, int]]:
        """Residues that have atoms, and atoms, of each chain."""
        first = np.concatenate([[True], np.diff(self.tok_idx) > 0])
        return list(zip(np.bincount(self.chain[first]).tolist(), np.bincount(self.chain).tolist()))


def account(n_res: int, chains: int, n_atom: int, atoms: str, left_out: Sequence[str]) -> str:
    """What was read of a file, in one line."""
    read = f"{n_res:,} residue{'s' * (n_res != 1)} in {chains:,} chain{'s' * (chains != 1)}"
    return f"{read}, {n_atom:,} atoms ({atoms}); left out: {', '.join(left_out) or 'nothing'}"


def check_atoms(atoms: str) -> None:
    if atoms not in ATOM_SETS:
        raise WorkloadError(f"atoms: expected one of {', '.join(ATOM_SETS)}; got {atoms!r}")


def check_size(n_atom: int, origin: str) -> None:
    if not 1 <= n_atom <= MAX_ATOM:
        raise WorkloadError(f"{origin}: expected 1 to {MAX_ATOM:,} atoms, got {n_atom:,}")


def slots(residues: np.ndarray, atoms: str) -> np.ndarray:
    """How many atoms each residue (a row of the templates) has in an atom set, OXT apart."""
    if atoms == "heavy":
        return templates().count[residues]
    return np.full(len(residues), len(BACKBONE) if atoms == "backbone" else ATOM14)


def anchors(number: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Where residue ``number`` of a chain of ``length`` residues has its CA, in Å: ``float32[R, 3]``.

    The chain winds like a snake through a cube with a lattice constant of 3.8 Å, so that consecutive
    residues are 3.8 Å apart, as along a real chain, and coordinates stay as small as a folded protein's:
    on a straight line, 100,000 residues would leave nothing of a bond's length in float32, or in bfloat16.
    """
    side = np.ceil(np.cbrt(length)).astype(np.int64)
    layer, within = np.divmod(number, side * side)
    within = np.where(layer % 2, side * side - 1 - within, within)
    row, column = np.divmod(within, side)
    column = np.where(row % 2, side - 1 - column, column)
    return (CA_SPACING * np.stack([column, row, layer], -1)).astype(np.float32)


def from_chains(name: str, source: str, chains: Sequence[np.ndarray], atoms: str) -> Workload:
    """All atoms of whole chains, each given as its residues' rows in the templates."""
    check_atoms(atoms)
    lengths = np.array([len(chain) for chain in chains])
    residues = np.concatenate(chains)
    chain_of_residue = np.repeat(np.arange(len(chains)), lengths)
    number = np.arange(len(residues)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    ends = number + 1 == lengths[chain_of_residue]
    count = slots(residues, atoms)
    if atoms == "heavy":
        # The deposited sequences end in a carboxylate: with OXT the systems' published totals come out
        # (602 for ubiquitin, 60,998 for 1aon with its 21 chains).
        count = count + ends
    tok = np.repeat(np.arange(len(residues)), count)
    slot = np.arange(len(tok)) - np.repeat(np.cumsum(count) - count, count)
    element, local = _templates_at(residues[tok], slot)
    if atoms == "heavy":
        last = np.cumsum(count)[ends] - 1
        element[last] = ATOMIC_NUMBER["O"]
        local[last] = templates().terminal[residues[ends]]
    ref_pos = local + anchors(number, lengths[chain_of_residue])[tok]
    return Workload(name, source, atoms, len(residues), tok, chain_of_residue[tok], element, ref_pos)


def _templates_at(residues: np.ndarray, slot: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Element and local coordinates of one atom each; a slot past the residue's atoms is a virtual one at CA."""
    table = templates()
    inside = slot < table.count[residues]
    at = np.where(inside, slot, 0)
    element = np.where(inside, table.element[residues, at], 0)
    return element, np.where(inside[:, None], table.xyz[residues, at], np.float32(0))


def cut(workload: Workload, n_atom: int) -> Workload:
    """The first ``n_atom`` atoms; the last residue may lose some of its own."""
    tok = workload.tok_idx[:n_atom]
    first = (workload.chain, workload.element, workload.ref_pos)
    chain, element, ref_pos = (array[:n_atom] for array in first)
    return Workload(workload.name, workload.source, workload.atoms, int(tok[-1]) + 1, tok, chain, element, ref_pos)
