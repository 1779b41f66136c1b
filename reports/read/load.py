"""Records from files and folders, sorted into places and settings; the newest of a cell is the current one.

A *place* (:mod:`benchmarks.harness.schema.place`) is one machine, device, commit and all else that decides a
number: numbers of two places never meet in one ratio or on one line.
A *setting* is everything of a problem that is no axis of a plot: level, mode, dtype, model sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from benchmarks.harness import levels
from benchmarks.harness.schema.axes import MODES, SYNTHETIC, axis, curve_axes, of_role
from benchmarks.harness.schema.place import Place, place_of, told_apart
from benchmarks.harness.schema.problem import Problem
from benchmarks.harness.schema.profile import PROFILES
from benchmarks.harness.schema.record import Record, scan
from benchmarks.harness.schema.shown import INSTEAD, shown, shown_lines
from reports.read import limits
from reports.read.plausible import impossible

DTYPES = ("bfloat16", "float16", "float32", "float64")
SHORT_DTYPE = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64"}
MODE_WORDS = {"fwd": "forward", "fwdbwd": "forward + backward", "train": "training step"}


class InputError(ValueError):
    """What was given cannot be reported on; the message says what was expected and what was found."""


@dataclass(frozen=True)
class Setting:
    """What is held fixed along every axis of a plot."""

    level: str
    mode: str
    dtype: str
    extra: tuple[tuple[str, int], ...]  # sizes of the model, by the names of their axes

    @property
    def order(self) -> tuple[int, str, int, int, tuple[tuple[str, int], ...]]:
        return levels.rank(self.level), self.level, MODES.index(self.mode), DTYPES.index(self.dtype), self.extra

    @property
    def label(self) -> str:
        return f"{self.level}, {MODE_WORDS[self.mode]}, {SHORT_DTYPE[self.dtype]}"

    def without(self, name: str) -> Setting:
        """What is held fixed along a curve of this axis."""
        return replace(self, extra=tuple(entry for entry in self.extra if entry[0] != name))


@dataclass(frozen=True)
class Family:
    """The workloads that lie on one curve: one atom set, one window style, proteins or synthetic lengths."""

    kind: str
    atoms: str
    style: str

    @property
    def label(self) -> str:
        style = "" if self.style == "residues" else ", 32 × 128 blocks"
        return f"{'synthetic' if self.kind == 'synthetic' else 'real proteins'}, {self.atoms}{style}"


@dataclass(frozen=True)
class Cell:
    """One record with its place; ``superseded`` when a newer one of the same cell and place is on file."""

    record: Record
    place: Place
    source: str
    superseded: bool = False

    @cached_property
    def impossible(self) -> str | None:
        """Why its speed cannot be true; such a cell is compared with nothing and recommended nowhere."""
        return impossible(self.record)

    @property
    def ok(self) -> bool:
        return self.record.timing is not None and self.impossible is None

    @property
    def status(self) -> str:
        return "impossible" if self.impossible else self.record.status

    @property
    def reason(self) -> str | None:
        return self.impossible or self.record.reason

    @property
    def setting(self) -> Setting:
        return setting(self.record.problem)

    @property
    def family(self) -> Family:
        p = self.record.problem
        return Family("synthetic" if p.workload == SYNTHETIC else "protein", p.atoms, p.window_style)


@dataclass(frozen=True)
class Rejected:
    """A line that is no record, and why; no ``fault``: the beginning of one, which a kill cut off."""

    source: str
    line: int
    why: str
    fault: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", shown(self.source))
        object.__setattr__(self, "why", shown(self.why))


@dataclass(frozen=True)
class Collection:
    cells: tuple[Cell, ...]
    rejected: tuple[Rejected, ...] = ()
    sources: tuple[str, ...] = field(default=())
    machines: dict[limits.Machine, limits.Recorded] = field(default_factory=dict)  # their ceilings, as recorded

    @property
    def current(self) -> list[Cell]:
        return [c for c in self.cells if not c.superseded]

    @property
    def places(self) -> list[Place]:
        """Newest first."""
        newest: dict[Place, str] = {}
        for c in self.cells:
            newest[c.place] = max(newest.get(c.place, ""), c.record.provenance.utc)
        return sorted(newest, key=lambda p: (newest[p], p), reverse=True)


def setting(p: Problem) -> Setting:
    return Setting(p.level, p.mode, p.dtype, tuple((a.name, a.value(p)) for a in of_role("model")))


def setting_labels(collection: Collection) -> dict[Setting, str]:
    """A label per setting, those that curves leave open too. A size of the model is named where it is not as usual, or
    settings of one level differ in it."""
    settings = {setting(c.record.problem) for c in collection.cells}
    settings |= {s.without(a.name) for s in settings for a in curve_axes()}
    out = {}
    for s in settings:
        peers = [dict(o.extra) for o in settings if o.level == s.level]
        differing = {k for k, v in s.extra if len({p[k] for p in peers if k in p}) > 1}
        rows = [(axis(k), v) for k, v in s.extra]
        sizes = [f"{a.symbol} = {v:,}" for a, v in rows if a.name in differing or v != a.usual(s.level)]
        out[s] = ", ".join([s.label, *sizes])
    return out


def load(paths: Sequence[Path], *, strict: bool = False) -> Collection:
    """Every record of ``paths`` (``.jsonl`` files, or folders searched for them).

    A line that is no record is left out and listed in ``rejected``; with ``strict`` it is an error, unless it is the
    beginning of one that a kill cut off. No record at all is an error either way.
    """
    files = list(_files(paths))
    records: list[tuple[Record, str]] = []
    rejected: list[Rejected] = []
    for f in files:
        try:
            for line in scan(f):
                if isinstance(line, Record):
                    records.append((Record.model_validate(cleaned(line.model_dump())), shown(f.name)))
                else:
                    rejected.append(Rejected(f.name, line.number, line.why, fault=line.kind != "unfinished"))
        except OSError as e:
            raise InputError(f"{f}: expected a readable file: {e.strerror}") from e
    faults = [r for r in rejected if r.fault]
    if strict and faults:
        r = faults[0]
        raise InputError(f"{r.source}:{r.line}: {r.why} ({len(faults)} such lines; leave out --strict to pass over)")
    if not records:
        detail = f"; first of {len(rejected)} other lines: {rejected[0].why}" if rejected else ""
        raise InputError(f"expected at least one record in {', '.join(map(str, paths))}, found none{detail}")
    machines = limits.recorded(r for r, _ in records)
    cells = _supersede([(limits.judged(r, machines), source) for r, source in records])
    return Collection(tuple(cells), tuple(rejected), tuple(shown(f.name) for f in files), machines)


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    seen: set[Path] = set()
    for path in paths:
        if path.is_dir():
            files = sorted(f for f in path.rglob("*.jsonl") if f.name != PROFILES)
            if not files:
                raise InputError(f"{path}: expected a folder with .jsonl files in it, found none")
        elif path.is_file():
            files = [path]
        else:
            raise InputError(f"{path}: expected a record file or a folder of them, found nothing there")
        for f in files:
            if f.resolve() not in seen:
                seen.add(f.resolve())
                yield f


def cleaned(data: object) -> object:
    """Nested data with every string fit to be shown, keys too: cleaned on its way in, it is so on every way out."""
    if isinstance(data, str):
        return shown(data) or (data and INSTEAD)
    if isinstance(data, list):
        return [cleaned(x) for x in data]
    if isinstance(data, dict):
        lines = {k: shown_lines(v) for k, v in data.items() if k == "error" and isinstance(v, str)}
        return {cleaned(k): cleaned(v) for k, v in data.items()} | lines
    return data


def _supersede(records: Sequence[tuple[Record, str]]) -> list[Cell]:
    placed = [(r, place_of(r.provenance, r.problem.device), source) for r, source in records]
    distinct = told_apart(place for _, place, _ in placed)
    cells = [Cell(r, distinct[place], source) for r, place, source in placed]
    newest: dict[tuple[Place, str], int] = {}
    for i, c in enumerate(cells):
        key = (c.place, c.record.key)
        if key not in newest or c.record.provenance.utc >= cells[newest[key]].record.provenance.utc:
            newest[key] = i
    keep = set(newest.values())
    return [c if i in keep else Cell(c.record, c.place, c.source, superseded=True) for i, c in enumerate(cells)]
