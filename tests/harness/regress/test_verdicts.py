"""What regress says of samples whose truth is known: seeded, synthetic, no process started."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.commands import regress_table as told
from benchmarks.harness.regress import regression
from benchmarks.harness.regress.regression import ALPHA, LEAST_BYTES, Finding, change, judge, weight_of
from benchmarks.harness.ruler.statistics import holm
from benchmarks.harness.schema.problem import Problem
from benchmarks.harness.schema.record import Record, Timing
from tests import records_factory as made

CODE = {"a": "aaaaaaa Before", "b": "bbbbbbb After"}


def rounds_of(
    rng: np.random.Generator, *, ratio: float = 1.0, rounds: int = 6, blocks: int = 8, pair: float = 0.02, block=0.05
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Times of A and B: a level of the round that both share, the luck of a pair of processes, noise of each block."""
    a, b = [], []
    for _ in range(rounds):
        level = np.exp(rng.normal(0, 0.3) + rng.normal(0, block, blocks))
        luck = pair * rng.standard_t(4)
        a.append(10 * level * np.exp(block * rng.standard_t(4, blocks)))
        b.append(10 * level * ratio * np.exp(luck + block * rng.standard_t(4, blocks)))
    return a, b


def record(side: str, number: int, problem: Problem, *, backend: str = "gather", status: str = "ok", samples=None,
           peak: int = 1 << 20, reason: str = "a reason") -> Record:  # fmt: skip
    """One side of one round, as the run leaves it."""
    mark = {regression.MARK: {"side": side, "round": number}}
    ok = status == "ok"
    timing = None if samples is None or not ok else made_timing(samples)
    memory = made.group(made.CPU, problem, backends=("gather",))[0].memory
    assert memory is not None
    return Record(
        run="run", group=f"run/{backend}-{problem.key}-{number}", backend=backend, problem=problem, status=status,  # type: ignore[arg-type]
        reason=None if ok else reason, gate=made.gate(problem) if ok else None, timing=timing,
        memory=memory.model_copy(update={"peak_bytes": peak}) if ok else None,
        provenance=made.provenance(environment=mark),
    )  # fmt: skip


def made_timing(samples: Sequence[float]) -> Timing:
    middle = float(np.median(samples))
    return Timing(
        samples_ms=[float(s) for s in samples], calls_per_sample=1, median_ms=middle, ci_low_ms=middle,
        ci_high_ms=middle, half_width=None, stop="budget", cache="unspecified",
    )  # fmt: skip


def cell(rng: np.random.Generator, problem: Problem, *, peaks: tuple[int, int] = (1 << 20, 1 << 20), **how) -> list:
    """All records of one cell over its rounds."""
    backend = how.pop("backend", "gather")
    a, b = rounds_of(rng, **how)
    return [
        record(side, number, problem, backend=backend, samples=times[number], peak=peak)
        for side, times, peak in (("a", a, peaks[0]), ("b", b, peaks[1]))
        for number in range(len(times))
    ]


def one(records: list[Record]) -> Finding:
    (finding,) = judge(records)
    return finding


def test_the_same_code_is_called_slower_or_faster_in_no_more_runs_than_promised() -> None:
    """200 runs of 24 cells without any difference, with processes that differ by luck and heavy tails everywhere."""
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(200):
        found = [change(*rounds_of(rng, rounds=4)) for _ in range(24)]
        adjusted = holm([one.p_value or 0.0 for one in found])
        said = [regression.speed_of(one, p, margin=regression.MARGIN) for one, p in zip(found, adjusted)]
        alarms += "slower" in said or "faster" in said
    assert alarms <= 200 * ALPHA


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Of 400 cells; three standard deviations below 95% is 91.7%."""
    rng = np.random.default_rng(11)
    found = [change(*rounds_of(rng, ratio=1.2)) for _ in range(400)]
    assert sum((one.low or 0) <= 1.2 <= (one.high or 0) for one in found) >= 400 * 0.917


def test_a_change_of_just_the_margin_is_no_alarm_however_many_rounds() -> None:
    """The hardest case of "does not matter": the truth on the margin itself, a hundred runs."""
    rng = np.random.default_rng(2)
    said = [one(cell(rng, made.problem(), ratio=1.05, rounds=10)).speed for _ in range(100)]
    assert said.count("slower") <= 100 * ALPHA + 3  # three standard deviations of a fair count are 6.5
    assert said.count("faster") == 0


@pytest.mark.parametrize(("ratio", "expected"), [(1.5, "slower"), (1 / 1.5, "faster")])
def test_one_and_a_half_times_is_certain_among_many_cells(ratio: float, expected: str) -> None:
    rng = np.random.default_rng(3)
    problems = [made.problem(n_atom=64 * (i + 1)) for i in range(24)]
    for _ in range(5):
        records = [r for p in problems[1:] for r in cell(rng, p)]
        findings = judge(cell(rng, problems[0], ratio=ratio) + records)
        assert [f.speed for f in findings if f.speed in ("slower", "faster")] == [expected]
        assert findings[0].speed == expected
        change = findings[0].change
        assert change is not None
        assert change.ratio == pytest.approx(ratio, rel=0.1)
        assert findings[0].regressed == (("slower",) if ratio > 1 else ())


def test_a_narrow_interval_about_nothing_is_the_same_and_a_wide_one_is_unresolved() -> None:
    rng = np.random.default_rng(4)
    assert one(cell(rng, made.problem(), pair=0.005, block=0.01)).speed == "same"
    assert one(cell(rng, made.problem(), pair=0.3)).speed == "unresolved"


def test_blocks_cannot_stand_in_for_rounds() -> None:
    """Two processes that differ by luck alone, sampled a thousand times: as a block-wise test would be sure of it."""
    rng = np.random.default_rng(5)
    records = cell(rng, made.problem(), rounds=2, blocks=1000, ratio=1.5)
    found = one(records)
    assert found.speed == "unresolved"
    assert found.change is not None
    assert found.change.blocks == 2000
    assert found.change.low is None


def test_rounds_that_agree_by_luck_are_not_believed_too_much() -> None:
    flat = [[10.0] * 5] * 3
    up = [[10.6] * 5] * 3
    found = change(flat, up)
    assert found.low is not None
    assert found.low < 1.06 - 0.01
    assert one_verdict(found) == "unresolved"
    assert one_verdict(change(flat, flat)) == "same"


def one_verdict(found: regression.Change) -> str:
    return regression.speed_of(found, found.p_value, margin=0.05)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([100 << 20], [200 << 20], "heavier"),
        ([200 << 20], [100 << 20], "lighter"),
        ([100 << 20], [104 << 20], "same"),
        ([100 << 20, 101 << 20], [120 << 20, 119 << 20], "heavier"),
        ([100 << 20, 150 << 20], [120 << 20, 119 << 20], "unresolved"),
        ([1000], [1000 + LEAST_BYTES], "same"),  # a few kilobytes are twice of nothing
        ([], [100 << 20], "n/a"),
        ([0], [1 << 30], "heavier"),
    ],
)
def test_memory_needs_every_process_beyond_the_margin(a: list[int], b: list[int], expected: str) -> None:
    assert weight_of(a, b, margin=0.05) == expected


def test_doubled_memory_is_a_regression_beside_an_unchanged_time() -> None:
    found = one(cell(np.random.default_rng(6), made.problem(), peaks=(8 << 20, 16 << 20), pair=0.003, block=0.01))
    assert (found.speed, found.weight, found.regressed) == ("same", "heavier", ("heavier",))


@pytest.mark.parametrize("status", ["wrong", "oom", "crashed", "timeout"])
def test_what_ran_before_and_fails_now_is_broken_and_the_reverse_is_fixed(status: str) -> None:
    p = made.problem()
    ran = [record("a", n, p, samples=None) for n in range(2)]
    failed = [record("b", n, p, status=status, reason="it fell over") for n in range(2)]
    found = one(ran + failed)
    assert found.regressed == ("broken",)
    assert found.reason == f"{status} at B in 2 of 2 processes: it fell over"
    other = [r.model_copy(update={"provenance": made.provenance(environment=mark(side))}) for r, side in
             [(r, "b") for r in ran] + [(r, "a") for r in failed]]  # fmt: skip
    assert one(other).outcome == "fixed"
    assert one(other).regressed == ()


def mark(side: str) -> dict:
    return {regression.MARK: {"side": side, "round": 1}}


def test_a_failure_that_did_not_repeat_is_told_and_is_no_alarm() -> None:
    p = made.problem()
    records = cell(np.random.default_rng(7), p, rounds=3, pair=0.003, block=0.01)
    records.append(record("a", 3, p, samples=None))
    records.append(record("b", 3, p, status="crashed", reason="once"))
    found = one(records)
    assert (found.outcome, found.speed, found.regressed) == ("ran", "same", ())
    assert "crashed at B in 1 of 4 processes: once" in (found.reason or "")


def test_unsupported_on_either_side_or_failing_on_both_is_not_applicable() -> None:
    p = made.problem()
    for sides in (("ok", "unsupported"), ("unsupported", "ok"), ("unsupported", "unsupported"), ("crashed", "oom")):
        found = one([record(side, 0, p, status=status) for side, status in zip("ab", sides)])
        assert (found.outcome, found.speed, found.weight, found.regressed) == ("n/a", "n/a", "n/a", ()), sides
        assert "a reason" in (found.reason or "")


def test_a_cell_that_the_budget_did_not_reach_is_named() -> None:
    (found,) = judge([], [("gather", made.problem())])
    assert (found.outcome, found.regressed) == ("n/a", ())
    assert "budget" in (found.reason or "")


def test_records_of_another_command_are_refused() -> None:
    with pytest.raises(ValueError, match="bears no side"):
        judge(made.group(made.CPU, made.problem(), backends=("gather",)))


@pytest.mark.parametrize(("a", "b"), [([], []), ([[1.0]], []), ([[1.0, 2.0]], [[1.0]]), ([[]], [[]])])
def test_samples_that_do_not_pair_are_refused(a: list, b: list) -> None:
    with pytest.raises(ValueError, match="rounds and blocks"):
        change(a, b)


def test_a_margin_must_be_one() -> None:
    with pytest.raises(ValueError, match="margin"):
        change([[1.0]], [[1.0]], margin=0)


def account() -> told.Account:
    """A table with everything in it that a table can hold."""
    rng = np.random.default_rng(8)
    p, q = made.problem(), made.problem(n_atom=4096)
    hostile = "a|pipe, <b>a tag</b>, `code`, @somebody\nand a second line"
    records = [
        *cell(rng, p, backend="banded", ratio=1.6),
        *cell(rng, p, backend="dense", peaks=(1 << 20, 1 << 22)),
        *cell(rng, q, backend="dense", pair=0.003, block=0.01),
        *(record(s, 0, q, backend="flex", status=t, reason=hostile) for s, t in (("a", "ok"), ("b", "crashed"))),
        *(record(s, 0, q, backend="triton", status="unsupported", reason="no GPU") for s in "ab"),
    ]
    return told.Account(CODE, judge(records), rounds=6, seconds=61.0)


def test_markdown_shows_regressions_open_and_all_else_folded_and_nobody_can_write_into_it() -> None:
    text = told.markdown(account())
    assert text.startswith(told.MARKER)
    before, after = text.split("<details>")
    assert "3 of 4 cells regressed" in before
    rows = [[line for line in part.splitlines() if line.startswith("| ")] for part in (before, after)]
    assert [[row.split(" |")[0].strip("| ") for row in part] for part in rows] == [
        ["backend", "flex", "banded", "dense"],
        ["backend", "dense"],
    ]
    assert "n/a: triton (1 cell): not supported at A: no GPU" in after
    for line in rows[0] + rows[1]:
        assert line.replace("\\|", "").count("|") == len(told.COLUMNS) + 1, line
    assert "<b>" not in text
    assert "@somebody" not in text
    assert "a second line" in text


def test_markdown_fits_a_comment_whatever_a_backend_says() -> None:
    rng = np.random.default_rng(9)
    problems = [made.problem(n_atom=64 * (i + 1)) for i in range(300)]
    records = [r for p in problems for r in (record("a", 0, p), record("b", 0, p, status="crashed", reason="x" * 9999))]
    text = told.markdown(told.Account(CODE, judge(records + cell(rng, made.problem(window=8)))))
    assert len(text.encode()) < 65_000
    assert "more" in text


def test_json_says_what_the_table_says() -> None:
    found = told.as_json(account())
    assert found["regressed"] is True
    assert {c["backend"]: c["regressed"] for c in found["cells"] if c["regressed"]} == {
        "flex": ["broken"],
        "banded": ["slower"],
        "dense": ["heavier"],
    }
    slow = next(c for c in found["cells"] if c["backend"] == "banded")
    assert slow["change"]["low"] < 1.6 < slow["change"]["high"]
    assert slow["p_adjusted"] <= ALPHA


def test_the_headline_tells_what_is_open_and_what_was_not_measured() -> None:
    unresolved = judge(cell(np.random.default_rng(10), made.problem(), pair=0.5))
    assert "1 of 1 cells are unresolved" in told.Account(CODE, unresolved).headline
    assert "same code" in told.Account(CODE, (), same_code=True).headline
    assert "Nothing to compare" in told.Account(CODE, (), missing="aaaaaaa holds no variants").headline
    nothing = judge([record(s, 0, made.problem(), status="unsupported") for s in "ab"])
    assert "No cell could be measured" in told.Account(CODE, nothing, out=Path("r")).headline
