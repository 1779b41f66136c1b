"""The levels of the model that are measured, one file each, found by its name: what it is given and returns, its
module, its reference, its floor, its memory and its tolerances. Free of torch and of pydantic until one is built.

May import ``reference`` and what it may; pallatom and variants, inside functions.
"""

from __future__ import annotations

import importlib
import pkgutil

from ._level import SCORE_STD, Level, Work, pair_bytes

__all__ = ["SCORE_STD", "Level", "UnknownLevel", "Work", "level_of", "names", "pair_bytes", "rank", "sole_backends"]


class UnknownLevel(ValueError):
    """No such level: names those that there are, and what came."""


def names() -> tuple[str, ...]:
    """Every level, as the model nests."""
    found = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
    return tuple(sorted(found, key=lambda name: (level_of(name).order, name)))


def level_of(name: str) -> Level:
    """The declaration of a level: ``LEVEL`` of the file of its name.

    Raises
    ------
    UnknownLevel
    """
    where = f"{__name__}.{name}"
    if name.isidentifier() and not name.startswith("_"):
        try:
            return importlib.import_module(where).LEVEL
        except ModuleNotFoundError as e:
            if e.name != where:
                raise
    raise UnknownLevel(f"level: expected one of {', '.join(names())}; got {name!r}")


def sole_backends() -> tuple[str, ...]:
    """What stands in records for a backend at levels in which none takes part."""
    return tuple(sole for name in names() if (sole := level_of(name).sole_backend) is not None)


def rank(name: str) -> int:
    """A level's place as the model nests; one that is no longer here comes after all."""
    known = names()
    return known.index(name) if name in known else len(known)
