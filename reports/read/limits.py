"""Shares of the machine's limit, computed again for a whole page: one definition of the floor, one ceiling a machine.

A record holds the limit that its own run measured, by the definition of its day. On a page every percentage is
``100 * floor(problem) / time`` (``cases.limits`` of the bench), each rate being the largest that any record of the
machine holds: per dtype for products, per working set for bytes (a CPU's caches are faster than its main memory), one
for exponentials. A ceiling is what a machine can do at most, so that a run in which it came out lower says something
of that run only; how far it drifted is told beside it. What no record holds binds nothing and is said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from pydantic import ValidationError

from benchmarks.harness import levels
from benchmarks.harness.cases.limits import limit
from benchmarks.harness.ruler.ceilings import Bandwidth, Ceilings
from benchmarks.harness.schema.profile import Profile
from benchmarks.harness.schema.record import Limit, Record
from reports import words

_ALL_BYTES = 2**62  # a working set that is not on record was main memory
SHORT_DTYPE = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64"}


@dataclass(frozen=True)
class Machine:
    """What has one set of ceilings: a GPU, or a CPU with its threads, in a machine; whatever the commit."""

    name: str
    hardware: str
    threads: object


def machine_of(one: Record | Profile) -> Machine:
    """Where a record or a profile was made."""
    origin = one.provenance
    if one.problem.device == "cuda":
        return Machine(origin.machine, origin.gpu or "unnamed GPU", None)
    return Machine(origin.machine, origin.cpu, origin.environment.get("threads"))


@dataclass(frozen=True)
class Recorded:
    """Every limit on record of one machine, with the dtype of its problem."""

    limits: tuple[tuple[str, Limit], ...]

    def ceilings(self, dtype: str) -> Ceilings | None:
        """The largest of each; None where no product in ``dtype`` was measured."""
        products = self._flops(dtype)
        if not products:
            return None
        *cached, main = (self._bandwidth(size) for size in self._sizes())
        exponentials = self._exponentials()
        return Ceilings(
            bandwidth_bytes_per_s=main.bytes_per_s,
            rate_flops_per_s=max(products),
            source="the largest on record",
            read_bytes_per_s=main.read_bytes_per_s,
            copy_bytes_per_s=main.copy_bytes_per_s,
            main_bytes=main.working_set_bytes,
            rate_exponentials_per_s=max(exponentials, default=None),
            bandwidth_spread=main.spread,
            flops_spread=self._spread(products, "flops"),
            exponentials_spread=self._spread(exponentials, "exponentials"),
            cached=tuple(cached),
        )

    def said(self) -> str:
        """All ceilings in a sentence, each with what else was recorded of it."""
        bytes_of = {size: [one.bandwidth_bytes_per_s for one in self._of_size(size)] for size in self._sizes()}
        named = len(bytes_of) > 1
        moved = [
            _range(rates, 1e9, "GB/s") + (f" within {words.size(size)}" if named and size != _ALL_BYTES else "")
            for size, rates in bytes_of.items()
        ]
        products = [
            f"{_range(rates, 1e12, 'TFLOP/s')} in {short}"
            for dtype, short in SHORT_DTYPE.items()
            if (rates := self._flops(dtype))
        ]
        exponentials = self._exponentials()
        read = (
            ""
            if any(one.read_bytes_per_s is not None for _, one in self.limits)
            else " by copying, reading not recorded"
        )
        return (
            f"Ceilings, the largest on record: moving {', '.join(moved)}{read}; "
            f"products {', '.join(products)}; exponentials "
            + (f"{_range(exponentials, 1e9, 'G/s')}." if exponentials else "not recorded.")
        )

    def _sizes(self) -> list[int]:
        return sorted({one.working_set_bytes or _ALL_BYTES for _, one in self.limits})

    def _of_size(self, size: int) -> list[Limit]:
        return [one for _, one in self.limits if (one.working_set_bytes or _ALL_BYTES) == size]

    def _bandwidth(self, size: int) -> Bandwidth:
        ones = self._of_size(size)
        rates = [one.bandwidth_bytes_per_s for one in ones]
        reads = [one.read_bytes_per_s for one in ones if one.read_bytes_per_s is not None]
        copies = [one.copy_bytes_per_s for one in ones if one.copy_bytes_per_s is not None]
        spread = self._spread(rates, "bytes", [one for one in ones if one.bound == "bytes"])
        return Bandwidth(max(rates), max(reads, default=None), max(copies, default=None), spread, size)

    def _flops(self, dtype: str) -> list[float]:
        return [one.rate_flops_per_s for kind, one in self.limits if kind == dtype]

    def _exponentials(self) -> list[float]:
        return [one.rate_exponentials_per_s for _, one in self.limits if one.rate_exponentials_per_s is not None]

    def _spread(self, rates: Sequence[float], bound: str, ones: Sequence[Limit] | None = None) -> float | None:
        """The largest that a run found within itself, or how far the largest rate lies above the median one."""
        ones = [one for _, one in self.limits if one.bound == bound] if ones is None else ones
        known = [one.spread for one in ones if one.spread is not None]
        distinct = sorted(set(rates))
        if len(distinct) > 1:
            known.append(distinct[-1] / median(distinct) - 1)
        return max(known, default=None)


def _range(rates: Sequence[float], scale: float, unit: str) -> str:
    low, high = words.number(min(rates) / scale), words.number(max(rates) / scale)
    return f"{high} {unit}" if low == high else f"{high} {unit} (from {low} in {len(set(rates))} measurements)"


def recorded(ones: Iterable[Record | Profile]) -> dict[Machine, Recorded]:
    """The limits of records and profiles, by machine."""
    limits: dict[Machine, list[tuple[str, Limit]]] = defaultdict(list)
    for one in ones:
        if one.limit is not None:
            limits[machine_of(one)].append((one.problem.dtype, one.limit))
    return {machine: Recorded(tuple(held)) for machine, held in limits.items()}


def on_this_page(one: Record | Profile, measured_ms: float | None, machines: dict[Machine, Recorded]) -> Limit | None:
    """The limit of a problem by today's definition and the machine's ceilings; None where its own run had none, or
    sizes and rates are such that no floor can be held in a record, or its level is no longer measured."""
    if one.limit is None:
        return None
    own, machine = Recorded(((one.problem.dtype, one.limit),)), machine_of(one)
    ceilings = machines.get(machine, own).ceilings(one.problem.dtype) or own.ceilings(one.problem.dtype)
    assert ceilings is not None
    try:
        return limit(one.problem, ceilings, measured_ms)
    except (ValidationError, ArithmeticError, levels.UnknownLevel):
        return None


def judged(one: Record, machines: dict[Machine, Recorded]) -> Record:
    """The record with the page's limit in place of its own."""
    return one.model_copy(update={"limit": on_this_page(one, one.timing and one.timing.median_ms, machines)})


def profiled(one: Profile, machines: dict[Machine, Recorded]) -> Profile:
    """The profile with the page's limit, and its rows as multiples of that floor."""
    if one.breakdown is None or (limit_here := on_this_page(one, one.breakdown.call_ms, machines)) is None:
        return one
    rows = [
        row if row.floors is None else row.model_copy(update={"floors": row.ms / limit_here.floor_ms})
        for row in one.breakdown.rows
    ]
    return one.model_copy(update={"limit": limit_here, "breakdown": one.breakdown.model_copy(update={"rows": rows})})
