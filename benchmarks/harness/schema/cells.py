"""A problem as a cell of asv's grid: its parameters in asv's order, as results on file have them.

Free of everything but the standard library, as :mod:`.axes`: reports name cells with it, and so does every process of
asv's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .axes import AXES

Cell = tuple[Any, ...]
UNCAPPED = "all"  # on the axis k: every neighbour that the window holds
ROWS = tuple(a for a in AXES if a.asv)
# The parameters, in an order that results on file have: a new axis comes last.
PARAMETERS = ("device", "backend", *(a.parameter for a in ROWS))


def value_of(value: Any) -> Any:
    """A value of an axis as asv's grid spells it: no cap has a word, since asv shows None as nothing."""
    return UNCAPPED if value is None else value


def cell_of(backend: Any, problem: Mapping[str, Any]) -> Cell:
    """The cell of one backend's record, in the grid of now; ``problem`` by the names of its fields. A record that was
    made before there was an axis has its default."""
    values = (value_of(problem.get(a.name, a.absent)) for a in ROWS)
    return brief((problem.get("device"), backend, *values))


def brief(cell: Cell) -> Cell:
    """A cell without the last axes where they are as usual: so it is named in results from before there were those."""
    added = [value_of(a.default) for a in ROWS if a.added]
    known = len(PARAMETERS) - len(added)
    while len(cell) > known and cell[-1] == added[len(cell) - known - 1]:
        cell = cell[:-1]
    return cell


def axes_of(level: str, cell: Cell) -> dict[str, Any]:
    """A cell as values of the harness's axes, by name."""
    device, _, *values = cell
    named = {a.name: None if value == UNCAPPED else value for a, value in zip(ROWS, values)}
    return {"level": level, "device": device} | named
