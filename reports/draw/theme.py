"""The look of every figure and page: colours with a role, one stable colour and marker per backend.

A figure is drawn once in the light colours, each of which stands for exactly one role; the dark file and the themed
inline version are made from it by replacing colours (``svg``). Hues follow Okabe and Ito (2008), tuned for contrast
on both grounds; markers differ too, so that no reading rests on colour alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count

ROLES: dict[str, tuple[str, str]] = {
    "ground": ("#ffffff", "#14171c"),
    "ink": ("#1b1f24", "#e8eaed"),
    "soft": ("#57606c", "#a3acb8"),
    "rule": ("#c4cad2", "#444c58"),
    "grid": ("#e7eaee", "#272d36"),
    "band": ("#e3ecf6", "#1f2c3d"),
    "noise": ("#f4ead6", "#3a3120"),
    "alarm": ("#b3261e", "#ff8a80"),
}
COLOURS = (
    ("#6a737f", "#9aa4b2"),
    ("#d05a00", "#ff9248"),
    ("#0068b5", "#58b0ff"),
    ("#00875f", "#35cfa0"),
    ("#9a6b00", "#e8b83a"),
    ("#b0297f", "#ff83cb"),
    ("#5a48c8", "#a89bff"),
    ("#7c4a32", "#d19f84"),
    ("#007d91", "#41cbe0"),
    ("#8f1d2c", "#ff7d8c"),
    ("#4f7a00", "#a4d43f"),
    ("#33415c", "#c3cfe6"),
    ("#c2185b", "#ff94b8"),
    ("#00695c", "#7ddccc"),
    ("#7a6f00", "#ddd35a"),
)  # light ground, dark ground
MARKERS = "osD^vPXh<>pd*H8"
MARKER_POINTS = {
    "P": 7.0,
    "X": 7.0,
    "*": 8.0,
    "^": 6.2,
    "v": 6.2,
    "<": 6.2,
    ">": 6.2,
}  # those that fill less of their box
SALT = 47153  # of the hash below: one by which the shipped backends differ, so that none moves another on any page


def slots(names: Iterable[str]) -> dict[str, int]:
    """The slot of each name: the one that its hash gives, or the next that no other of ``names`` has taken.

    A slot is a colour and a marker; both repeat after ``len(COLOURS)`` slots, but in other pairs.
    """
    taken: dict[int, str] = {}
    for name in sorted(set(names)):
        start, n = zlib.crc32(f"{SALT}{name}".encode()), len(COLOURS)
        order = (lap * n + (start + step) % n for lap in count() for step in range(n))
        taken[next(slot for slot in order if slot not in taken)] = name
    return {name: slot for slot, name in taken.items()}


def marker(slot: int) -> str:
    return MARKERS[(slot + slot // len(COLOURS)) % len(MARKERS)]


@dataclass(frozen=True)
class Theme:
    """The colours of one ground, and the colour and marker of each backend (or other series) of a page."""

    dark: bool
    slots: Mapping[str, int] = field(default_factory=dict)

    def role(self, name: str) -> str:
        return ROLES[name][self.dark]

    def colour(self, name: str) -> str:
        return COLOURS[self.slots[name] % len(COLOURS)][self.dark]

    def marker(self, name: str) -> str:
        return marker(self.slots[name])

    def marker_points(self, name: str) -> float:
        return MARKER_POINTS.get(self.marker(name), 5.4)


def css_variables(dark: bool) -> dict[str, str]:
    """Custom properties of one ground: ``--ink``, …, and ``--b0`` … for the colours."""
    out = {f"--{name}": values[dark] for name, values in ROLES.items()}
    return out | {f"--b{i}": c[dark] for i, c in enumerate(COLOURS)}


def replacements(target: str) -> dict[str, str]:
    """Light hex → what stands for it in ``target``: ``"dark"`` hex, or ``"css"`` variable."""
    light = css_variables(False)
    if len(set(light.values())) != len(light):
        raise ValueError("two roles share one light colour: they could not be told apart in a figure")
    dark = css_variables(True)
    return {value: (dark[name] if target == "dark" else f"var({name})") for name, value in light.items()}
