"""A table before it is HTML, Markdown or CSV. A missing value is a dash that says why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
    """A heading, and the entry that an item has below it."""

    label: str
    entry: Callable[[Any], Td]
    numeric: bool = False
    tip: str = ""


@dataclass(frozen=True)
class Table:
    anchor: str
    title: str
    columns: Sequence[Column]
    rows: list[list[Td]]
    note: str = ""
    cards: bool = False  # rows become cards on narrow screens


def tabulate(
    anchor: str, title: str, columns: Sequence[Column], items: Iterable[Any], note: str = "", *, cards: bool = False
) -> Table:
    """A row an item."""
    return Table(anchor, title, columns, [[c.entry(item) for c in columns] for item in items], note, cards)


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
        table, columns=[table.columns[i] for i in kept], rows=[[row[i] for i in kept] for row in table.rows],
        note=f"{table.note} Not recorded by any of these: {names}.".strip(),
    )  # fmt: skip


def num(
    value: float | None, show: Callable[[Any], str], why: str = "not recorded", tip: str | None = None, detail: str = ""
) -> Td:
    """A number as ``show`` spells it, or why there is none."""
    return missing(why) if value is None else Td(show(value), value, tip, kind="num", detail=detail)


def whole(value: float) -> str:
    return f"{value:,.0f}"


def verdict(value: str) -> Td:
    return Td(value, value, kind=f"v-{value}")


def problem_columns(problem_of: Callable[[Any], Problem], items: Iterable[Any]) -> list[Column]:
    """What was measured, of items that have a problem: always its sizes, and those of the model that are not as usual
    for some item."""

    def of(entry: Callable[[Problem], Td]) -> Callable[[Any], Td]:
        return lambda item: entry(problem_of(item))

    def source(p: Problem) -> str:
        return f"{p.workload}, {p.atoms}" + (", blocks" if p.window_style == "blocks" else "")

    def number(a: Axis) -> Callable[[Problem], Td]:
        return lambda p: num(a.value(p), whole, tip="capped" if a.size and getattr(p, a.name) is not None else None)

    return [
        Column("problem", of(lambda p: text(f"{p.level} {p.mode} {SHORT_DTYPE[p.dtype]}"))),
        Column("workload", of(lambda p: text(source(p)))),
        *(Column(a.symbol, of(number(a)), True) for a in (*of_role("size"), *unusual_in(map(problem_of, items)))),
    ]
