"""A table before it is HTML, Markdown or CSV. A missing value is a dash that says why."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from benchmarks.harness.schema.axes import Axis, of_role, unusual_in
from benchmarks.harness.schema.problem import Problem
from reports.read.load import SHORT_DTYPE
from reports.read.measured import UNRECORDED
from reports.words import DASH


@dataclass(frozen=True)
class Td:
    """One entry: its text, what it sorts by, why it is missing or what more there is to say, and its kind."""

    text: str
    sort: float | str | None = None
    tip: str | None = None
    backend: str | None = None
    kind: str = ""
    detail: str = ""  # a second, quieter line
    again: str | None = None  # the command that measures it again


@dataclass(frozen=True)
class Column:
    label: str
    numeric: bool = False
    tip: str = ""


@dataclass(frozen=True)
class Table:
    anchor: str
    title: str
    columns: tuple[Column, ...]
    rows: list[list[Td]] = field(default_factory=list)
    note: str = ""
    cards: bool = False  # rows become cards on narrow screens


def text(value: str, tip: str | None = None) -> Td:
    return Td(value, value, tip)


def long(value: str, tip: str | None = None) -> Td:
    """Text that may run over several lines."""
    return Td(value, value, tip, kind="w")


def name(backend: str, tip: str | None = None) -> Td:
    return Td(backend, backend, tip, backend=backend)


def missing(why: str) -> Td:
    return Td(DASH, None, why, kind="na")


def unrecorded() -> Td:
    """What a record made before there was such a thing lacks: said in words, since Markdown has no hover text."""
    return Td(UNRECORDED, None, kind="na")


def without_unrecorded(table: Table) -> Table:
    """Without the columns that no row has anything in because none was recorded; the note names them."""
    empty = [i for i, _ in enumerate(table.columns) if table.rows and all(r[i] == unrecorded() for r in table.rows)]
    if not empty:
        return table
    kept = [i for i in range(len(table.columns)) if i not in empty]
    names = ", ".join(table.columns[i].label for i in empty)
    return replace(
        table, columns=tuple(table.columns[i] for i in kept), rows=[[row[i] for i in kept] for row in table.rows],
        note=f"{table.note} Not recorded by any of these: {names}.".strip(),
    )  # fmt: skip


def num(value: float | None, shown: str, why: str = "not recorded", tip: str | None = None) -> Td:
    return missing(why) if value is None else Td(shown, value, tip, kind="num")


def verdict(value: str) -> Td:
    return Td(value, value, kind=f"v-{value}")


def problem_columns(problems: Iterable[Problem]) -> tuple[tuple[Column, ...], Callable[[Problem], list[Td]]]:
    """The columns that say which problem a row is of, and the row's entries in them: always its sizes, and those of the
    model that are not as usual in some row."""
    more = unusual_in(problems)
    numbers = [*of_role("size"), *more]
    columns = (Column("problem"), Column("workload"), *(Column(a.symbol, True) for a in numbers))

    def cells(p: Problem) -> list[Td]:
        source = f"{p.workload}, {p.atoms}" + (", blocks" if p.window_style == "blocks" else "")
        shown = [num(a.value(p), f"{a.value(p):,}", tip=_cap(a, p)) for a in numbers]
        return [text(f"{p.level} {p.mode} {SHORT_DTYPE[p.dtype]}"), text(source), *shown]

    return columns, cells


def _cap(axis: Axis, p: Problem) -> str | None:
    return "capped" if axis.size and getattr(p, axis.name) is not None else None
