"""Interchangeable ways to compute the atom attention, one file each.

A file of this package without a leading underscore is a backend; its stem is the backend's name. Importing the
package imports no backend, no torch and no optional library, so that a command line can list :func:`names` at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._backend import Backend, Cost, Shape, UnsupportedError
from ._registry import convert, load, names, path, why_unavailable

if TYPE_CHECKING:
    from .band.plan import BandPlan, NotABand, band_plan

__all__ = [
    "Backend",
    "BandPlan",
    "Cost",
    "NotABand",
    "Shape",
    "UnsupportedError",
    "band_plan",
    "convert",
    "load",
    "names",
    "path",
    "why_unavailable",
]


def __getattr__(name: str) -> object:
    """Import what needs torch (the band plan) when it is first asked for."""
    if name in ("BandPlan", "NotABand", "band_plan"):
        from .band import plan

        return getattr(plan, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
