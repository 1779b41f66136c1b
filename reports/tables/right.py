"""The table that says whether results are right: the gate's errors and slopes, its trial and its control."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.harness.schema.record import Gate
from reports import words
from reports.read.load import SHORT_DTYPE, Cell
from reports.read.measured import after, errors
from reports.tables.table import (
    Column,
    Table,
    Td,
    missing,
    name,
    num,
    problem_columns,
    unrecorded,
    without_unrecorded,
)

CONTROLS = {
    "zeros": "all-zero output",
    "neighbour": "a neighbour a row left out",
    "neighbours": "one neighbour in 16 left out",
}
NO_GRADIENTS = "no gradients in this mode"


def gates(anchor: str, cells: Sequence[Cell]) -> Table:
    gated = [c for c in cells if c.record.gate is not None]
    known, cells_of = problem_columns(c.record.problem for c in gated)
    columns = (
        *known, Column("backend"), Column("gate"), Column("worst output", True), Column("tolerance", True),
        Column("worst gradient", True), Column("tolerance of gradients", True),
        Column("worst slope", True, "⟨x, ref⟩ / ⟨ref, ref⟩ − 1: a scale that a norm of roundings would hide"),
        Column("rows checked", True), Column("timed calls checked", True, "whose own result was compared"),
        Column("small trial", False, "the same backend at a small size that breaks kernels, in its most exact dtype"),
        Column("negative control", True, "the error of an output made wrong on purpose: it must be refused"),
    )  # fmt: skip
    rows = [[*cells_of(c.record.problem), *_row(c, c.record.gate)] for c in gated if c.record.gate is not None]
    note = (
        "Relative error norms ‖x − ref‖ / ‖ref‖ against float64, and slopes: the worst of all tensors, named on hover."
    )
    return without_unrecorded(Table(anchor, "Gate errors", columns, rows, note))


def _row(c: Cell, g: Gate) -> list[Td]:
    timing = c.record.timing
    checked = None if timing is None else timing.calls_checked
    return [
        name(c.record.backend),
        Td("passed" if g.passed else "failed", kind="v-faster" if g.passed else "v-failed"),
        _worst(errors(g), gradients=False), num(g.tolerance, f"{g.tolerance:.1e}"), _worst(errors(g), gradients=True),
        num(g.gradient_tolerance, f"{g.gradient_tolerance or 0:.1e}", NO_GRADIENTS), _slope(g),
        num(g.rows_checked, f"{g.rows_checked:,} of {g.rows_total:,}"),
        unrecorded() if checked is None else num(checked, f"{checked:,}"), _trial(g), _control(g),
    ]  # fmt: skip


def _worst(found: dict[str, float | None], *, gradients: bool) -> Td:
    mine = {k: v for k, v in found.items() if k.startswith("grad") == gradients}
    if not mine:
        return missing(NO_GRADIENTS if gradients else "no output was checked")
    return _largest(mine, ".1e")


def _slope(g: Gate) -> Td:
    every = g.slopes | {after(k): v for k, v in g.slopes_after.items()}
    return _largest(every, "+.1e") if every else unrecorded()


def _largest(found: dict[str, float | None], form: str) -> Td:
    broken = [k for k, v in found.items() if v is None]
    if broken:
        return Td("not finite", float("inf"), ", ".join(broken), kind="num")
    where = max(found, key=lambda k: abs(found[k] or 0.0))
    return num(found[where], f"{found[where]:{form}}", tip=where)


def _trial(g: Gate) -> Td:
    if g.trial is None:
        return unrecorded()
    worst = {name: _largest(found, form) for name, found, form in
             (("error", g.trial.errors, ".1e"), ("slope", g.trial.slopes, "+.1e")) if found}  # fmt: skip
    said = ", ".join(f"worst {name} {td.text}" for name, td in worst.items())
    passed = "passed" if g.trial.passed else "failed"
    return Td(f"{passed}, {SHORT_DTYPE[g.trial.dtype]}", passed, ", ".join(td.tip or "" for td in worst.values()),
              kind="" if g.trial.passed else "s-wrong", detail=said)  # fmt: skip


def _control(g: Gate) -> Td:
    if g.negative_control is None:
        return unrecorded()
    return Td(f"{words.number(g.negative_control, 2)}", g.negative_control, kind="num", detail=CONTROLS[g.control])
