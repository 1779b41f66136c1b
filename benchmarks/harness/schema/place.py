"""The same place: what must be equal for two numbers to be one measurement, made twice.

One definition for whoever asks: a sweep or a profile that goes on where it was (:func:`counts`), and a report, where
numbers of two places never meet in one ratio or on one line (:func:`place_of`). A place is a machine, a device, a
commit, and all else that decides a number: the measured sources, the ruler (the sources that measure), the threads,
the driver, every library's version, the tuned file in force. How a group was measured (``options``) makes no other
place, but a number that was asked for otherwise does not stand for the one that is asked for now.

Free of torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from .record import Provenance

NOT_RECORDED = "not recorded"  # by records that are older than the field
FILES = "files"  # the entry of a record's environment for hashes of the user's own files: backend, structure


@dataclass(frozen=True, order=True)
class Place:
    """``hardware`` is a GPU, or a CPU with its threads; ``facts`` is what else decides a number, by name; ``apart``
    is empty unless another place looks the same without it (:func:`told_apart`)."""

    machine: str
    device: str
    hardware: str
    commit: str
    facts: tuple[tuple[str, str], ...] = ()
    apart: str = ""

    @property
    def label(self) -> str:
        return f"{self.hardware} ({self.machine})"

    @property
    def tag(self) -> str:
        """A short name of what sets it apart from places that look the same; empty where there is none."""
        return hashlib.sha256(self.apart.encode()).hexdigest()[:6] if self.apart else ""


def place_of(origin: Provenance, device: str) -> Place:
    """Where something was measured."""
    threads = origin.environment.get("threads")
    hardware = origin.gpu or "unnamed GPU"
    if device == "cpu":
        hardware = origin.cpu + ("" if threads is None else f", {threads} thread{'' if threads == 1 else 's'}")
    facts = {
        "CPU": origin.cpu,
        "driver": origin.driver or "none",
        "threads": NOT_RECORDED if threads is None else str(threads),
        "code": origin.code,
        "ruler": origin.ruler or NOT_RECORDED,
        "tuned file": origin.tuned or ("none" if origin.ruler else NOT_RECORDED),
        **{name: version or "none" for name, version in sorted(origin.versions.items())},
    }
    commit = (origin.commit or "unknown")[:12] + ("+changes" if origin.dirty else "")
    return Place(origin.machine, device, hardware, commit, tuple(facts.items()))


def told_apart(places: Iterable[Place]) -> dict[Place, Place]:
    """Every place as it is to be shown: those that would look the same are told apart by the facts that differ."""
    alike: dict[tuple[str, ...], list[Place]] = {}
    for place in dict.fromkeys(places):
        alike.setdefault((place.machine, place.device, place.hardware, place.commit), []).append(place)
    shown = {}
    for group in alike.values():
        every = [dict(place.facts) for place in group]
        for place, facts in zip(group, every, strict=True):
            differing = {n: v for n, v in facts.items() if any(other.get(n) != v for other in every)}
            apart = ", ".join(f"{name} {value[:24]}" for name, value in differing.items())
            hardware = f"{place.hardware}, {apart}" if apart else place.hardware
            shown[place] = replace(place, hardware=hardware, apart=apart)
    return shown


def counts(found: Provenance, here: Provenance, device: str) -> bool:
    """Whether what is on file stands for what would be measured ``here`` and now: made in the same place, asked for
    with the same options, from the same files of the user's. What a record does not say is not the same."""
    return (
        found.ruler is not None
        and found.options is not None
        and found.options == here.options
        and found.environment.get(FILES) == here.environment.get(FILES)
        and place_of(found, device) == place_of(here, device)
    )
