"""Two records of one group compared: how much faster one is, and what the same code would have shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..ruler.statistics import MARGIN, Ratio, Verdict, noise_floor, noise_of_pair, paired_ratio, verdict
from .record import Record


@dataclass(frozen=True)
class Comparison:
    """Time of one over time of another, paired by block; its p-value is that of no difference beyond the edge."""

    ratio: Ratio
    margin: float
    noise: float | None

    def verdict(self, p_adjusted: float | None = None) -> Verdict:
        """See :func:`.statistics.verdict`; ``p_adjusted`` where this is one of a family."""
        return verdict(self.ratio, margin=self.margin, noise=self.noise, p_adjusted=p_adjusted)


def noise_floors(group: Iterable[Record]) -> dict[str, float]:
    """The A/A noise floor of every backend of one group that was timed against itself."""
    found = {}
    for record in group:
        t = record.timing
        floor = None if t is None or not t.aa_samples_ms else noise_floor(t.samples_ms, t.aa_samples_ms)
        if floor is not None:
            found[record.backend] = floor
    return found


def compared(a: Record, b: Record, floors: Mapping[str, float], *, borrowed: float | None = None) -> Comparison:
    """Time of ``a`` over time of ``b``, two records with times of the group that has these noise floors.

    ``borrowed``: the noise floor of a pair whose group has none.
    """
    assert a.timing is not None
    assert b.timing is not None
    margin = MARGIN[a.problem.device]
    noise = noise_of_pair(a.backend, b.backend, floors)
    noise = borrowed if noise is None else noise
    ratio = paired_ratio(a.timing.samples_ms, b.timing.samples_ms, edge=max(margin, noise or 0.0))
    return Comparison(ratio, margin, noise)
