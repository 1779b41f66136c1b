"""How regress divides its time, on sides that answer at once: no process is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.harness.regress import versus
from benchmarks.harness.regress.commits import Code
from benchmarks.harness.regress.regression import judge
from benchmarks.harness.regress.versus_plan import ENOUGH_ROUNDS, LEAST_BLOCKS, SIDES, Cell, Listener, Plan
from benchmarks.harness.schema.record import Record
from benchmarks.harness.worker.process import WorkerDied, WorkerTimeout
from tests import records_factory as made

A, B = (Code(Path("nowhere"), side, side * 40, f"commit {side}") for side in "ab")


class Time:
    """A clock that moves only when somebody works."""

    now = 0.0

    def monotonic(self) -> float:
        return Time.now


class FakeSide:
    """A side whose backends take the seconds that they are told to, and die where they are told to."""

    def __init__(self, name: str, costs: dict[str, float], deaths: dict[str, int]) -> None:
        self.name, self.code, self.folder = name, A if name == "a" else B, Path(f"/gone/{name}")
        self.costs, self.deaths = costs, deaths
        self.provenance = made.provenance(environment={}).model_dump(exclude={"argv", "seed"})
        self.open: set[str] = set()
        self.starts = 0
        self.asked: list[str] = []

    def start(self) -> None:
        self.starts += 1
        self.open.clear()
        Time.now += 1.0

    def stop(self) -> None:
        self.open.clear()

    def has(self, backend: str) -> bool:
        return backend in self.open

    def describe(self, device: str) -> dict:
        return self.provenance

    def enter(self, *_: object) -> None: ...

    def ask(self, what: str, *, backend: str, limit_s: float, until: float, **_: object) -> list[dict]:
        self.asked.append(f"{what} {backend}")
        Time.now = min(Time.now + self.costs[backend], until)
        if Time.now >= until:
            raise WorkerTimeout(what, limit_s, None, "")
        if what == "open":
            self.open.add(backend)
            return [{"event": "ready", "calls": 1, "seconds": self.costs[backend], "cache": "unspecified"}]
        if backend not in self.open:
            raise KeyError(backend)
        if what == "sample":
            self.deaths[backend] = self.deaths.get(backend, -1) - 1
            if self.deaths[backend] == 0:
                self.open.clear()
                raise WorkerDied("planted", (backend, "timing"), "")
            return [{"event": "sample", "ms": 1e3 * self.costs[backend]}]
        self.open.discard(backend)
        cell = {"backend": backend, "status": "ok", "gate": made.gate(made.problem()).model_dump(mode="json")}
        return [{"event": "cells", "cells": [cell]}]


class Told(Listener):
    def __init__(self) -> None:
        self.gone: list[str] = []

    def dropped(self, cell: Cell) -> None:
        self.gone.append(cell.backend)


def run(
    monkeypatch: pytest.MonkeyPatch, costs: dict[str, float], *, budget_s: float, deaths: dict[str, int] | None = None,
    rounds: int = 10,
) -> tuple[versus.Versus, dict[str, FakeSide], Told]:  # fmt: skip
    Time.now = 0.0
    monkeypatch.setattr(versus, "time", Time())
    sides = {name: FakeSide(name, costs, dict(deaths or {}) if name == "b" else {}) for name in SIDES}
    told = Told()
    one = versus.Versus(A, B, Plan((), (), budget_s=budget_s, rounds=rounds), told)
    cells = [Cell(name, made.problem(), None) for name in costs]

    class Sides:
        def __enter__(self) -> dict[str, FakeSide]:
            return sides

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(one, "_sides", Sides)
    monkeypatch.setattr(one, "_planned", lambda _: cells)
    one.run()
    return one, sides, told


def rounds_by_backend(records: list[Record]) -> dict[str, int]:
    return {name: sum(r.backend == name for r in records) // 2 for name in {r.backend for r in records}}


def test_the_budget_is_kept_and_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    one, sides, told = run(monkeypatch, {"gather": 0.1, "dense": 0.02, "banded": 0.01}, budget_s=60)
    assert 0.5 * 60 < Time.now <= 60
    assert told.gone == []
    assert min(rounds_by_backend(one.records).values()) >= ENOUGH_ROUNDS
    for side in sides.values():  # the first pair is started before the plan; the last round may be cut short
        assert side.starts in (one.rounds - 1, one.rounds)


def test_a_cell_too_slow_for_enough_rounds_makes_room_and_is_left_unresolved(monkeypatch: pytest.MonkeyPatch) -> None:
    one, _, told = run(monkeypatch, {"gather": 3.0, "dense": 0.02, "banded": 0.01}, budget_s=60)
    assert told.gone == ["gather"]
    done = rounds_by_backend(one.records)
    assert done["gather"] < ENOUGH_ROUNDS <= min(done["dense"], done["banded"])
    said = {f.backend: f.speed for f in judge(one.records)}
    assert said == {"gather": "unresolved", "dense": "same", "banded": "same"}


def test_every_pair_of_samples_is_two_sides_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    one, sides, _ = run(monkeypatch, {"gather": 0.1, "dense": 0.01}, budget_s=30)
    samples = [[word for word in side.asked if word.startswith("sample")] for side in sides.values()]
    assert samples[0] == samples[1]
    for record in one.records:
        assert record.timing is not None
        assert len(record.timing.samples_ms) >= LEAST_BLOCKS
    first = samples[0][: len(samples[0]) // one.rounds]
    assert "sample dense" in first[first.index("sample gather") :]  # among one another, not one after the other


def test_a_death_while_sampling_costs_the_cell_its_round_and_the_others_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    costs = {"gather": 0.01, "dense": 0.01, "banded": 0.01}
    one, _, _ = run(monkeypatch, costs, budget_s=60, deaths={"dense": 3}, rounds=4)
    by_round = {(r.backend, r.group) for r in one.records}
    assert len(one.records) == 2 * 3 * 4
    failed = [r for r in one.records if r.status != "ok"]
    assert [(r.backend, r.status) for r in failed] == [("dense", "crashed")]
    assert len(by_round) == 3 * 4
    finding = next(f for f in judge(one.records) if f.backend == "dense")
    assert (finding.outcome, finding.regressed) == ("ran", ())
    assert all(r.timing is not None for r in one.records if r.backend != "dense")


def test_a_side_that_keeps_dying_is_given_up_after_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {"gather": 0.01, "dense": 0.01}

    original = FakeSide.ask

    def ask(self: FakeSide, what: str, **how: object) -> list[dict]:
        if self.name == "b" and what == "sample" and how["backend"] == "dense":
            self.open.clear()
            raise WorkerDied("planted", ("dense", "timing"), "")
        return original(self, what, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(FakeSide, "ask", ask)
    one, _, _ = run(monkeypatch, costs, budget_s=60, rounds=5)
    assert rounds_by_backend(one.records) == {"gather": 5, "dense": 2}
    finding = next(f for f in judge(one.records) if f.backend == "dense")
    assert finding.regressed == ("broken",)
