"""Records from files and folders, sorted into places and settings; the newest of a cell is the current one.

A *place* (:mod:`benchmarks.harness.place`) is one machine, device, commit and all else that decides a number: numbers
of two places never meet in one ratio or on one line.
A *setting* is everything of a problem that is no axis of a plot: level, mode, dtype, model sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from benchmarks.harness.place import Place, place_of, told_apart
from benchmarks.harness.profile_record import PROFILES
from benchmarks.harness.record import Problem, Record, scan
from reports import limits

LEVELS = ("attention", "block", "stack", "encoder", "decoder", "index")
MODES = ("fwd", "fwdbwd", "train")
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
    extra: tuple[tuple[str, int], ...]  # model sizes

    @property
    def order(self) -> tuple[int, int, int, tuple[tuple[str, int], ...]]:
        return LEVELS.index(self.level), MODES.index(self.mode), DTYPES.index(self.dtype), self.extra

    @property
    def label(self) -> str:
        return f"{self.level}, {MODE_WORDS[self.mode]}, {SHORT_DTYPE[self.dtype]}"


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

    @property
    def ok(self) -> bool:
        return self.record.timing is not None

    @property
    def setting(self) -> Setting:
        return setting(self.record.problem)

    @property
    def family(self) -> Family:
        p = self.record.problem
        return Family("synthetic" if p.workload == "synthetic" else "protein", p.atoms, p.window_style)


@dataclass(frozen=True)
class Rejected:
    """A line that is no record, and why; no ``fault``: the beginning of one, which a kill cut off."""

    source: str
    line: int
    why: str
    fault: bool = True


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
    sizes = ("batch", "heads", "c_atom", "c_atompair", "n_blocks", "c_token", "c_pair")
    return Setting(p.level, p.mode, p.dtype, tuple((name, getattr(p, name)) for name in sizes))


def setting_labels(collection: Collection) -> dict[Setting, str]:
    """A label per setting; model sizes are named only where settings of one level differ in them."""
    found = {setting(c.record.problem) for c in collection.cells}
    out = {}
    for s in found:
        peers = [dict(o.extra) for o in found if o.level == s.level]
        differing = [f"{k} {v}" for k, v in s.extra if len({p[k] for p in peers}) > 1]
        out[s] = ", ".join([s.label, *differing])
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
            for found in scan(f):
                if isinstance(found, Record):
                    records.append((found, f.name))
                else:
                    rejected.append(Rejected(f.name, found.number, found.why, fault=found.kind != "unfinished"))
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
    return Collection(tuple(cells), tuple(rejected), tuple(f.name for f in files), machines)


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    seen: set[Path] = set()
    for path in paths:
        if path.is_dir():
            found = sorted(f for f in path.rglob("*.jsonl") if f.name != PROFILES)
            if not found:
                raise InputError(f"{path}: expected a folder with .jsonl files in it, found none")
        elif path.is_file():
            found = [path]
        else:
            raise InputError(f"{path}: expected a record file or a folder of them, found nothing there")
        for f in found:
            if f.resolve() not in seen:
                seen.add(f.resolve())
                yield f


def _supersede(records: Sequence[tuple[Record, str]]) -> list[Cell]:
    found = [(r, place_of(r.provenance, r.problem.device), source) for r, source in records]
    shown = told_apart(place for _, place, _ in found)
    cells = [Cell(r, shown[place], source) for r, place, source in found]
    newest: dict[tuple[Place, str], int] = {}
    for i, c in enumerate(cells):
        key = (c.place, c.record.key)
        if key not in newest or c.record.provenance.utc >= cells[newest[key]].record.provenance.utc:
            newest[key] = i
    keep = set(newest.values())
    return [c if i in keep else Cell(c.record, c.place, c.source, superseded=True) for i, c in enumerate(cells)]


def to_frame(collection: Collection) -> pd.DataFrame:
    """One row a record, scalar columns only, missing as NA; superseded records are kept and flagged."""
    frame = pd.DataFrame([_row(c) for c in collection.cells])
    return frame.convert_dtypes()


def _row(cell: Cell) -> dict[str, object]:
    r = cell.record
    t, m, lim, g, origin = r.timing, r.memory, r.limit, r.gate, r.provenance
    row: dict[str, object] = {"machine": cell.place.machine, "hardware": cell.place.hardware, "backend": r.backend}
    row |= r.problem.model_dump(mode="json")
    row |= {"status": r.status, "reason": r.reason, "superseded": cell.superseded}
    row |= {
        "median_ms": t and t.median_ms, "ci_low_ms": t and t.ci_low_ms, "ci_high_ms": t and t.ci_high_ms,
        "half_width": t and t.half_width, "n_samples": t and len(t.samples_ms), "stop": t and t.stop,
        "cache": t and t.cache, "plan_ms": r.plan_ms, "first_call_ms": r.first_call_ms,
        "peak_bytes": m and m.peak_bytes, "model_bytes": m and m.model_bytes, "p_bytes": m and m.p_bytes,
        "input_bytes": m and m.input_bytes, "memory_source": m and m.source,
        "floor_ms": lim and lim.floor_ms, "percent_of_limit": lim and lim.percent, "bound": lim and lim.bound,
        "gate_passed": g and g.passed, "tolerance": g and g.tolerance, "worst_error": worst_error(r),
        "rows_checked": g and g.rows_checked, "rows_total": g and g.rows_total,
    }  # fmt: skip
    row |= {
        "commit": origin.commit, "dirty": origin.dirty, "utc": origin.utc, "code": origin.code, "run": r.run,
        "group": r.group, "source": cell.source,
    }  # fmt: skip
    return row


def worst_error(r: Record, *, gradients: bool | None = None) -> float | None:
    """The largest relative error of the gate; of gradients only, of the rest only, or of both (None)."""
    if r.gate is None:
        return None
    values = [
        v
        for k, v in [*r.gate.errors.items(), *r.gate.errors_after.items()]
        if v is not None and (gradients is None or k.startswith("grad") == gradients)
    ]
    return max(values, default=None)
