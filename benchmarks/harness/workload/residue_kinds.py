"""Residues of one kind, those of one name and the same atoms, and their slots in an atom set."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .atoms import ATOM14
from .templates import BACKBONE, TERMINAL, templates


@dataclass(frozen=True, eq=False)
class Kind:
    """Residues of one name that have the same atoms, and what is made of them.

    ``order``: their atoms in canonical order, by place in the file; ``names`` and ``element`` of these; ``template``:
    the template's row or None. ``what``: protein, or what else it is: residues of this kind are then left out;
    ``sure``: its being in a chain does not depend on its bonds.
    """

    what: str
    sure: bool = True
    names: tuple[str, ...] = ()
    order: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    element: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    template: int | None = None


@dataclass(frozen=True, eq=False)
class Slots:
    """A kind's atoms in an atom set: ``take[S]`` by place in the residue, -1 for a virtual atom; ``element[S]``;
    ``ref[S, 3]`` with the CA at 0, nan where the file's own geometry counts; ``ca``: the place of the CA."""

    take: np.ndarray
    element: np.ndarray
    ref: np.ndarray
    ca: int | None


def slots(kind: Kind, atoms: str) -> Slots:
    """Where each slot of a residue of this kind takes its atom from."""
    names, every, virtual = kind.names, range(len(kind.names)), np.zeros(3)
    take: list[int | None] = [at for at in every if atoms == "heavy" or names[at] in BACKBONE]
    if atoms == "atom14":
        at_slot = {slot: at for at in every if (slot := _slot(kind.template, at, names[at])) is not None}
        take = [at_slot.get(slot) for slot in range(ATOM14)]
    return Slots(
        take=np.array([-1 if at is None else at for at in take], np.int64),
        element=np.array([0 if at is None else kind.element[at] for at in take], np.int64),
        ref=np.array([virtual if a is None else _reference(names[a], kind.template) for a in take]).reshape(-1, 3),
        ca=names.index("CA") if "CA" in names else None,
    )


def _slot(template: int | None, at: int, name: str) -> int | None:
    """The atom14 slot: the atom's place in its template, or in the residue if it has none; OXT has no slot."""
    if name == TERMINAL:
        return None
    if template is None:
        return at if at < ATOM14 else None
    known = templates().atoms[template]
    return known.index(name) if name in known[:ATOM14] else None


def _reference(name: str, template: int | None) -> np.ndarray:
    """The template's coordinates of an atom; nan where it has none."""
    if template is None:
        return np.full(3, np.nan)
    if name == TERMINAL:
        return templates().terminal[template]
    known = templates().atoms[template]
    return templates().xyz[template, known.index(name)] if name in known else np.full(3, np.nan)
