"""One look for every figure and page: colours with a role, one stable colour and marker per backend.

A figure is drawn once in the light colours, each of which stands for exactly one role; the dark file and the themed
inline version are made from it by replacing colours (``svg``). Hues follow Okabe and Ito (2008), tuned for contrast
on both grounds; markers differ too, so that no reading rests on colour alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

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
SLOTS: tuple[tuple[str, str, str], ...] = (
    ("#6a737f", "#9aa4b2", "o"),
    ("#d05a00", "#ff9248", "s"),
    ("#0068b5", "#58b0ff", "D"),
    ("#00875f", "#35cfa0", "^"),
    ("#9a6b00", "#e8b83a", "v"),
    ("#b0297f", "#ff83cb", "P"),
    ("#5a48c8", "#a89bff", "X"),
    ("#7c4a32", "#d19f84", "h"),
    ("#007d91", "#41cbe0", "<"),
    ("#8f1d2c", "#ff7d8c", ">"),
    ("#4f7a00", "#a4d43f", "p"),
    ("#33415c", "#c3cfe6", "d"),
    ("#c2185b", "#ff94b8", "*"),
    ("#00695c", "#7ddccc", "H"),
    ("#7a6f00", "#ddd35a", "8"),
)
PREFERRED = {
    "gather": 0, "dense": 1, "banded": 2, "flex": 3, "gather_compiled": 4, "triton_fused": 5,
    "xformers_blocksparse": 6, "xformers_fmha": 7, "sdpa_tiles": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Theme:
    """Hex colours for the roles and slots, of one ground."""

    dark: bool

    def role(self, name: str) -> str:
        return ROLES[name][self.dark]

    def backend(self, name: str, names: Iterable[str] = ()) -> str:
        return SLOTS[slot(name, names)][self.dark]


LIGHT, DARK = Theme(False), Theme(True)


def slot(name: str, names: Iterable[str] = ()) -> int:
    """The colour slot of a backend, from its name alone; ``names`` (all on the page) only settles collisions."""
    if name in PREFERRED:
        return PREFERRED[name]
    free = [i for i in range(len(SLOTS)) if i not in PREFERRED.values()]
    taken: dict[int, str] = {}
    for other in sorted({*names, name} - PREFERRED.keys()):
        start = zlib.crc32(other.encode()) % len(free)
        order = [free[(start + step) % len(free)] for step in range(len(free))]
        taken.setdefault(next((i for i in order if i not in taken), order[0]), other)
        if other == name:
            return next((i for i, held in taken.items() if held == name), order[0])
    raise AssertionError("unreachable: name is in the set walked")


def marker(name: str, names: Iterable[str] = ()) -> str:
    return SLOTS[slot(name, names)][2]


def marker_size(name: str, names: Iterable[str] = ()) -> float:
    """Points: crosses and triangles cover less of their box than discs do."""
    return {"P": 7.0, "X": 7.0, "*": 8.0, "^": 6.2, "v": 6.2, "<": 6.2, ">": 6.2}.get(marker(name, names), 5.4)


def css_variables(dark: bool) -> dict[str, str]:
    """Custom properties of one ground: ``--ink``, …, and ``--b0`` … for the slots."""
    out = {f"--{name}": values[dark] for name, values in ROLES.items()}
    return out | {f"--b{i}": s[dark] for i, s in enumerate(SLOTS)}


def replacements(target: str) -> dict[str, str]:
    """Light hex → what stands for it in ``target``: ``"dark"`` hex, or ``"css"`` variable."""
    light = css_variables(False)
    if len(set(light.values())) != len(light):
        raise ValueError("two roles share one light colour: they could not be told apart in a figure")
    dark = css_variables(True)
    return {value: (dark[name] if target == "dark" else f"var({name})") for name, value in light.items()}
