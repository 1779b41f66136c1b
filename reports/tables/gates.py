"""The table that says whether results are right: the gate's errors and slopes, its trial and its control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.harness.schema.record import Gate
from reports import words
from reports.read.load import SHORT_DTYPE, Cell
from reports.read.measured import errors, slopes
from reports.tables.table import (
    Column,
    Table,
    Td,
    missing,
    name,
    num,
    problem_columns,
    tabulate,
    unrecorded,
    whole,
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
    columns = [
        *problem_columns(lambda c: c.record.problem, gated),
        Column("backend", lambda c: name(c.record.backend)),
        Column("gate", lambda c: _passed(c.record.gate)),
        Column("worst output", lambda c: _worst(errors(c.record.gate), gradients=False), True),
        Column("tolerance", lambda c: num(c.record.gate.tolerance, "{:.1e}".format), True),
        Column("worst gradient", lambda c: _worst(errors(c.record.gate), gradients=True), True),
        Column("tolerance of gradients",
               lambda c: num(c.record.gate.gradient_tolerance, "{:.1e}".format, NO_GRADIENTS), True),
        Column("worst slope", lambda c: _slope(c.record.gate), True,
               "⟨x, ref⟩ / ⟨ref, ref⟩ − 1: a scale that a norm of roundings would hide"),
        Column("rows checked", lambda c: _rows(c.record.gate), True),
        Column("timed calls checked", _calls, True, "whose own result was compared"),
        Column("small trial", lambda c: _trial(c.record.gate), False,
               "the same backend at a small size that breaks kernels, in its most exact dtype"),
        Column("negative control", lambda c: _control(c.record.gate), True,
               "the error of an output made wrong on purpose: it must be refused"),
    ]  # fmt: skip
    note = (
        "Relative error norms ‖x − ref‖ / ‖ref‖ against float64, and slopes: the worst of all tensors, named on hover."
    )
    return without_unrecorded(tabulate(anchor, "Gate errors", columns, gated, note))


def _passed(g: Gate) -> Td:
    return Td("passed" if g.passed else "failed", kind="v-faster" if g.passed else "v-failed")


def _rows(g: Gate) -> Td:
    return num(g.rows_checked, lambda n: f"{n:,} of {g.rows_total:,}")


def _calls(c: Cell) -> Td:
    checked = None if c.record.timing is None else c.record.timing.calls_checked
    return unrecorded() if checked is None else num(checked, whole)


def _worst(norms: Mapping[str, float | None], *, gradients: bool) -> Td:
    mine = {k: v for k, v in norms.items() if k.startswith("grad") == gradients}
    if not mine:
        return missing(NO_GRADIENTS if gradients else "no output was checked")
    return _largest(mine, ".1e")


def _slope(g: Gate) -> Td:
    every = slopes(g)
    return _largest(every, "+.1e") if every else unrecorded()


def _largest(values: Mapping[str, float | None], form: str) -> Td:
    broken = [k for k, v in values.items() if v is None]
    if broken:
        return Td("not finite", float("inf"), ", ".join(broken), kind="num")
    where = max(values, key=lambda k: abs(values[k] or 0.0))
    return num(values[where], lambda v: f"{v:{form}}", tip=where)


def _trial(g: Gate) -> Td:
    if g.trial is None:
        return unrecorded()
    worst = {name: _largest(values, form) for name, values, form in
             (("error", g.trial.errors, ".1e"), ("slope", g.trial.slopes, "+.1e")) if values}  # fmt: skip
    said = ", ".join(f"worst {name} {td.text}" for name, td in worst.items())
    passed = "passed" if g.trial.passed else "failed"
    return Td(f"{passed}, {SHORT_DTYPE[g.trial.dtype]}", passed, ", ".join(td.tip or "" for td in worst.values()),
              kind="" if g.trial.passed else "s-wrong", detail=said)  # fmt: skip


def _control(g: Gate) -> Td:
    if g.negative_control is None:
        return unrecorded()
    return num(g.negative_control, lambda v: words.number(v, 2), detail=CONTROLS[g.control])
