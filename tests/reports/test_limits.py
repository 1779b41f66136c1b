"""A page's shares of the limit: today's floor, one ceiling a machine, and what no record holds said to be missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.harness.cases.limits import beyond, floor, limit
from benchmarks.harness.ruler.ceilings import Ceilings
from benchmarks.harness.schema.problem import Problem
from benchmarks.harness.schema.record import Limit, Record
from reports.page.build import build
from reports.read import limits, load
from tests import ROOT
from tests import records_factory as made
from tests.harness.profile.test_profile import a_profile


def with_limit(one: Record, **changes: object) -> Record:
    assert one.limit is not None
    return one.model_copy(update={"limit": Limit.model_validate(one.limit.model_dump() | changes)})


def measured(p: Problem, *, machine: made.Machine = made.CPU, backend: str = "banded", ms: float | None = None,
             where: dict | None = None, **changes: object) -> Record:  # fmt: skip
    one = with_limit(made.cell(machine, backend, p, group=f"g-{p.key}"), **changes)
    one = one.model_copy(update={"provenance": one.provenance.model_copy(update=where or {})})
    if ms is not None:
        assert one.timing is not None
        timing = one.timing.model_copy(update={"median_ms": ms, "ci_low_ms": ms, "ci_high_ms": ms})
        one = one.model_copy(update={"timing": timing})
    return one


def shown(tmp_path: Path, *records: Record) -> load.Collection:
    made.write(tmp_path / "r.jsonl", records)
    return load.load([tmp_path / "r.jsonl"])


def percents(collection: load.Collection) -> list[float | None]:
    return [c.record.limit and c.record.limit.percent for c in collection.cells]


def test_an_old_record_is_judged_by_todays_floor(tmp_path: Path) -> None:
    """Its own counted p once a block; here it is bytes once, at the rate that it recorded."""
    p = made.problem(level="stack", n_atom=4096)
    one = measured(p, ms=1e3, bandwidth_bytes_per_s=1e9, rate_flops_per_s=1e15, percent=77.0)
    (cell,) = shown(tmp_path, one).cells
    found = cell.record.limit
    assert found is not None
    assert (found.floor_bytes, found.definition, found.bound) == (floor(p).bytes, 2, "bytes")
    assert found.percent == pytest.approx(100 * floor(p).bytes / 1e9 / 1.0)


def test_one_ceiling_a_machine_whatever_the_run_or_commit(tmp_path: Path) -> None:
    one = measured(made.problem(n_atom=2048), ms=1e3, bandwidth_bytes_per_s=35e9, rate_flops_per_s=1e15)
    two = measured(made.problem(n_atom=4096), ms=1e3, bandwidth_bytes_per_s=70e9, rate_flops_per_s=1e15,
                   where={"commit": "0123456789ab"})  # fmt: skip
    collection = shown(tmp_path, one, two)
    assert percents(collection) == pytest.approx([floor(r.problem).bytes / 7e8 for r in (one, two)])
    (held,) = collection.machines.values()
    assert "moving 70.0 GB/s (from 35.0 in 2 measurements) by copying, reading not recorded" in held.said()
    assert "exponentials not recorded" in held.said()
    spreads = [c.record.limit and c.record.limit.spread for c in collection.cells]
    assert spreads == pytest.approx(2 * [70 / 52.5 - 1])


@pytest.mark.parametrize(
    ("other", "device"),
    [({"machine": "elsewhere"}, "cpu"), ({"environment": {"threads": 4}}, "cpu"), ({"cpu": "another"}, "cpu"),
     ({"gpu": "another"}, "cuda")],
)  # fmt: skip
def test_machines_and_threads_do_not_mix(tmp_path: Path, other: dict, device: str) -> None:
    machine = made.CPU if device == "cpu" else made.CUDA
    p = made.problem(device=device)
    one = measured(p, machine=machine, ms=1e3, bandwidth_bytes_per_s=1e9, rate_flops_per_s=1e15)
    two = measured(p, machine=machine, ms=1e3, bandwidth_bytes_per_s=4e9, rate_flops_per_s=1e15, where=other)
    collection = shown(tmp_path, one, two)
    assert len(collection.machines) == 2
    first, second = percents(collection)
    assert first == pytest.approx(4 * (second or 0))


def test_products_have_a_ceiling_a_dtype(tmp_path: Path) -> None:
    rates = {"float32": 1e9, "bfloat16": 4e9}
    records = [measured(made.problem(dtype=d), ms=1e6, rate_flops_per_s=r) for d, r in rates.items()]
    collection = shown(tmp_path, *records)
    assert [c.record.limit and c.record.limit.bound for c in collection.cells] == ["flops", "flops"]
    first, second = percents(collection)
    assert first == pytest.approx(4 * (second or 0))


def test_a_cpus_caches_and_memory_stay_apart(tmp_path: Path) -> None:
    """The rate of a small working set judges what is as small, never what is larger."""
    small, large = made.problem(n_atom=512), made.problem(n_atom=16384)
    assert floor(small).bytes < 1 << 26 < 1 << 28 < floor(large).bytes
    common = {"rate_flops_per_s": 1e15, "definition": 2, "bound": "bytes", "spread": 0.02, "ms": 1e4}
    records = [
        measured(small, bandwidth_bytes_per_s=9e10, working_set_bytes=1 << 20, **common),
        measured(large, bandwidth_bytes_per_s=1e10, working_set_bytes=1 << 28, **common),
    ]
    collection = shown(tmp_path, *records)
    found = [c.record.limit for c in collection.cells]
    assert [one and one.bandwidth_bytes_per_s for one in found] == [9e10, 1e10]
    assert [one and one.spread for one in found] == [0.02, 0.02]
    (held,) = collection.machines.values()
    assert "moving 90.0 GB/s within 1.00 MiB, 10.0 GB/s within 256 MiB" in held.said()


def test_exponentials_bind_where_they_are_on_record(tmp_path: Path) -> None:
    p = made.problem(heads=32)
    one = measured(p, ms=1e3, rate_exponentials_per_s=1e8, rate_flops_per_s=1e15, read_bytes_per_s=2e10)
    collection = shown(tmp_path, one)
    found = collection.cells[0].record.limit
    assert found is not None
    assert found.bound == "exponentials"
    assert found.percent == pytest.approx(100 * p.live_pairs * 32 / 1e8)
    (held,) = collection.machines.values()
    assert held.said().endswith("exponentials 0.100 G/s.")
    assert "reading not recorded" not in held.said()


def test_a_run_without_ceilings_stays_without(tmp_path: Path) -> None:
    p = made.problem()
    none = measured(p, backend="gather").model_copy(update={"limit": None})
    assert percents(shown(tmp_path, none, measured(p)))[0] is None


def test_the_page_says_its_ceilings_once(tmp_path: Path) -> None:
    report = build(shown(tmp_path, *made.group(made.CPU, made.problem())), title="t", folder=None)
    (view,) = report.places
    assert sum(said.startswith("Ceilings, the largest on record: moving 18.0 GB/s") for said in view.sure) == 1


def test_planted_zeros_of_an_old_record_are_beyond_the_pages_limit(tmp_path: Path) -> None:
    """What returned at once came out at thousands of percent, and nothing said that it cannot be."""
    p = made.problem(level="stack", mode="fwdbwd", device="cuda", dtype="bfloat16", n_atom=16384)
    honest = made.cell(made.CUDA, "triton_fused", p, group="g")
    cheat = measured(p, machine=made.CUDA, backend="flex", ms=0.011, percent=3634.0)
    collection = shown(tmp_path, honest, cheat)
    found = [c.record.limit for c in collection.cells]
    assert found[0] is not None
    assert found[1] is not None
    assert beyond(found[0]) is None
    assert "% of the limit" in (beyond(found[1]) or "")


@pytest.mark.parametrize(("mode", "low", "high"), [("fwd", 8, 10), ("fwdbwd", 3, 7)])
def test_the_committed_stack_is_far_from_its_limit(mode: str, low: float, high: float) -> None:
    collection = load.load([ROOT / "reports" / "2026-11-22-h200" / "records.jsonl"])
    stacks = [c.record for c in collection.current if c.record.problem.level == "stack"]
    best = max(
        r.limit.percent or 0 for r in stacks if r.problem.mode == mode and r.limit is not None and r.timing is not None
    )
    assert low < best < high


def test_nothing_that_is_committed_is_beyond_its_limit() -> None:
    for folder in ("2026-11-22-h200", "2026-11-22-cpu"):
        cells = load.load([ROOT / "reports" / folder / "records.jsonl"]).cells
        found = [c.record.limit for c in cells if c.record.limit is not None]
        assert found
        assert [said for one in found if (said := beyond(one))] == []


def test_a_profiles_rows_are_multiples_of_the_pages_floor() -> None:
    one = a_profile("triton_fused", n_atom=16384)
    assert one.breakdown is not None
    slow, fast = Ceilings(1e12, 1e14, ""), Ceilings(2e12, 2e14, "")
    one, faster = (
        one.model_copy(update={"limit": limit(one.problem, rates, one.breakdown.call_ms)}) for rates in (slow, fast)
    )
    found = limits.profiled(one, limits.recorded([one, faster]))
    assert found.limit is not None
    assert found.breakdown is not None
    assert found.limit.floor_ms == pytest.approx(limit(one.problem, fast, None).floor_ms)
    assert [row.floors for row in found.breakdown.rows] == [pytest.approx(0.09 / found.limit.floor_ms)]
