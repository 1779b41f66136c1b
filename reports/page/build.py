"""What a report says, before it is a page: one view per place, figures and tables written beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path

from benchmarks.harness.schema.axes import curve_axes
from reports import words
from reports.draw import figures
from reports.draw.panel import Drawing, Picture, render
from reports.find import analyse, curves
from reports.find.analyse import Contest, Pair
from reports.find.curves import Crossing
from reports.find.history import History
from reports.find.regions import regions as regions_of
from reports.marks import bold
from reports.page import chronicle
from reports.page.chronicle import Chronicle
from reports.read.frame import to_frame
from reports.read.limits import machine_of
from reports.read.load import Cell, Collection, Place, setting_labels
from reports.say import answer, machine
from reports.tables import chronicle_tables, profiles, right, summary, tables
from reports.tables.profiles import Section
from reports.tables.table import Table

MANY_PAIRS = 400
LONGEST_NAME = 180  # of a figure's file, without what is put behind it


@dataclass(frozen=True)
class Gallery:
    title: str
    note: str
    pictures: list[Picture]


@dataclass(frozen=True)
class PlaceView:
    """Everything said about one place."""

    place: Place
    anchor: str
    headline: list[str]
    answer: Table
    brief: Table  # the rows of the answer that tell most
    capacity: Table
    sure: list[str]
    galleries: list[Gallery]
    tables: list[Table]
    facts: list[tuple[str, str]]
    notices: list[str]


@dataclass(frozen=True)
class HistoryView:
    """Everything said about what commits did."""

    said: Chronicle
    galleries: list[Gallery]


@dataclass(frozen=True)
class Report:
    title: str
    summary: str
    names: list[str]
    places: list[PlaceView]
    notices: list[str]
    sources: list[str]
    profiles: Section
    history: HistoryView | None

    @property
    def galleries(self) -> list[Gallery]:
        """All of them, in the order of the page."""
        held = self.history.galleries if self.history else []
        return [*(g for view in self.places for g in view.galleries), *held]

    @property
    def tables(self) -> list[Table]:
        shown = [t for view in self.places for t in (view.answer, view.capacity, *view.tables)]
        return [*shown, *self.profiles.tables, *(self.history.said.tables if self.history else ())]


def build(
    collection: Collection, *, title: str, folder: Path | None, profile_files: Sequence[Path] = (),
    history: History | None = None,
) -> Report:  # fmt: skip
    """Analyse, write figures and tables into ``folder`` (none: only what is said), and collect what the page says."""
    names = sorted({c.record.backend for c in collection.cells} | set(history.backends if history else ()))
    labels = setting_labels(collection)
    all_pairs = analyse.pairs(collection)
    contests = analyse.contests(collection, all_pairs)
    letters = [a.symbol for a in curve_axes()]
    found = {axis: curves.curves(collection, axis) for axis in letters}
    repeated = analyse.repeats(collection, all_pairs)
    views: list[PlaceView] = []
    taken: set[str] = set()
    for i, place in enumerate(collection.places):
        material = figures.Material(
            place, [c for c in collection.current if c.place == place], [c for c in contests if c.place == place],
            [p for p in all_pairs if p.place == place],
            {axis: [c for c in drawn_from if c.place == place] for axis, drawn_from in found.items()}, labels, names,
            [r for r in repeated if r.place == place],
        )  # fmt: skip
        ceilings = {held.said() for c in material.cells if (held := collection.machines.get(machine_of(c.record)))}
        views.append(_view(material, f"m{i + 1}", folder, sorted(ceilings), taken))
    told = _history(history, names, folder) if history is not None else None
    sources = [*collection.sources, *(history.results.sources if history else ())]
    said = "; ".join([*([_summary(collection)] if collection.cells else []), *([told.said.summary] if told else [])])
    section = profiles.section(profile_files, folder, collection.machines)
    report = Report(title, said, names, views, _notices(collection), sources, section, told)
    if folder is not None:
        if collection.cells:
            to_frame(collection).to_csv(folder / "cells.csv", index=False)
            tables.pair_frame(all_pairs).to_csv(folder / "pairs.csv", index=False)
            _parquet(collection, folder / "cells.parquet")
        if history is not None:
            chronicle_tables.write(history, folder)
        _sweep_out(folder / "figures", {p.name for g in report.galleries for p in g.pictures})
    return report


def _history(history: History, names: Sequence[str], folder: Path | None) -> HistoryView:
    said = chronicle.chronicle(history, names)
    pictures = iter(_pictures(_distinct([d for page in said.pages for d in page.drawings], set()), folder))
    return HistoryView(said, [Gallery(p.title, p.note, list(islice(pictures, len(p.drawings)))) for p in said.pages])


def _parquet(collection: Collection, path: Path) -> None:
    """Parquet where pyarrow is installed; it is an extra."""
    try:
        import pyarrow  # noqa: F401
    except ModuleNotFoundError:
        return
    to_frame(collection).to_parquet(path, index=False)


def _sweep_out(drawn: Path, kept: set[str]) -> None:
    """Figures that an earlier call left in the folder, of records that are gone, would be taken for this report's."""
    for path in drawn.glob("*.[sp][vn]g"):
        name = path.stem.removesuffix("-dark")
        if name not in kept and name.split("-")[0] in figures.KINDS:
            path.unlink()


def _view(m: figures.Material, anchor: str, folder: Path | None, ceilings: Sequence[str], taken: set[str]) -> PlaceView:
    sheets = figures.sheets(m)
    pictures = iter(_pictures(_distinct([d for s in sheets for d in s.drawings], taken), folder))
    galleries = [Gallery(s.title, s.note, list(islice(pictures, len(s.drawings)))) for s in sheets]
    fitted = [f for axis in m.curves for c in m.curves[axis] for f in curves.fits(c)]
    crossed = [x for axis in m.curves for c in m.curves[axis] for x in curves.crossings(c, m.pairs)]
    limits = [x for c in m.curves["N"] for x in curves.capacities(c)]
    held = [
        _ratios(f"{anchor}-ratios", m.pairs, m.contests),
        *([tables.repeats(f"{anchor}-repeats", m.repeats)] if m.repeats else []),
        tables.exponents(f"{anchor}-exponents", fitted, m.labels),
        tables.crossings(f"{anchor}-crossovers", _first_resolved(crossed), m.labels),
        tables.starts(f"{anchor}-starts", m.cells),
        tables.memory(f"{anchor}-memory", m.cells),
        right.gates(f"{anchor}-gates", m.cells),
        tables.unavailable(f"{anchor}-unavailable", m.cells),
        tables.noise(f"{anchor}-noise", m.cells),
    ]
    regions = regions_of(m.contests)
    return PlaceView(
        m.place, anchor, answer.headline(m.place, m.contests, m.labels),
        summary.answer(f"{anchor}-answer", regions, m.labels, m.contests),
        summary.answer(f"{anchor}-brief", summary.telling(regions), m.labels, m.contests),
        summary.fit_matrix(f"{anchor}-fit", limits, m.labels, m.names),
        [*_sure(m), *ceilings], galleries, held, machine.facts(m.cells), _place_notices(m.cells, m.contests),
    )  # fmt: skip


def _distinct(drawings: Sequence[Drawing], taken: set[str]) -> list[Drawing]:
    """Names that are short enough for a file and that no other figure of the report has (two places may differ in what
    a file's name cannot say)."""
    out = []
    for d in drawings:
        stem = d.name[:LONGEST_NAME].rstrip("-")
        name = next(n for i in count(1) if (n := stem if i == 1 else f"{stem}-{i}") not in taken)
        taken.add(name)
        out.append(replace(d, name=name))
    return out


def _pictures(drawings: Sequence[Drawing], folder: Path | None) -> list[Picture]:
    if folder is None:
        return [Picture(d.name, d.title, d.alt, "") for d in drawings]
    (folder / "figures").mkdir(exist_ok=True)
    return [render(d, folder / "figures") for d in drawings]


def _first_resolved(found: Sequence[Crossing]) -> list[Crossing]:
    return sorted(found, key=lambda c: not c.resolved)


def _ratios(anchor: str, pairs: Sequence[Pair], contests: Sequence[Contest]) -> Table:
    """All pairs; beyond MANY_PAIRS those with the winner, the rest being in pairs.csv."""
    note = "Time of the slower over time of the faster, paired by block; Holm-adjusted over all pairs of this machine."
    kept = list(pairs)
    if len(kept) > MANY_PAIRS:
        best = {c.problem.key: c.winner.record.backend for c in contests if c.ranked}
        kept = [p for p in kept if best.get(p.problem.key) in (p.fast, p.slow)]
        note += f" Shown: {len(kept):,} with the fastest; pairs.csv has all {len(pairs):,}."
    kept.sort(key=lambda p: (analyse.problem_order(p.problem), p.fast, p.slow))
    table = tables.ratios(anchor, kept)
    return Table(table.anchor, table.title, table.columns, table.rows, note)


def _sure(m: figures.Material) -> list[str]:
    """How far the numbers of one place can be trusted, in sentences."""
    timings = [c.record.timing for c in m.cells if c.record.timing is not None]
    gated = [c.record.gate for c in m.cells if c.record.gate is not None]
    out = []
    if m.pairs:
        counts = Counter(p.verdict for p in m.pairs)
        parts = ", ".join(f"{counts[v]} {v}" for v in ("faster", "same", "unresolved") if counts[v])
        out.append(f"{len(m.pairs)} paired comparisons: {parts}, Holm-adjusted over all of them.")
    if timings:
        converged = sum(1 for t in timings if t.stop == "converged")
        widest = max((t.half_width for t in timings if t.half_width is not None), default=None)
        wide = f"; the widest interval is ±{words.percent(widest)}" if widest is not None else ""
        out.append(f"{converged} of {len(timings)} speeds reached the wanted interval, the rest their budget{wide}.")
    if m.bands.noise is not None:
        out.append(f"Noise: the same code against itself differed by up to {words.percent(m.bands.noise)}.")
    elif timings:
        out.append(
            f"{bold('No A/A pair is on record')}, so no noise floor is known and no ratio called faster or slower."
        )
    if gated:
        passed = sum(1 for g in gated if g.passed)
        out.append(
            f"Gate: {passed} of {len(gated)} checked cells agree with the float64 reference; only those have a speed."
        )
    if m.repeats:
        fewest = min(len(r.ratios) for r in m.repeats)
        widest = max(r.spread for r in m.repeats)
        out.append(f"{len(m.repeats)} pairs were measured in {fewest} runs or more: their ratios differ between runs "
                   f"by {words.percent(widest)} at most.")  # fmt: skip
    elif timings:
        out.append("No pair was measured in more than one run: what another process would show is not covered.")
    return out


def _place_notices(cells: Sequence[Cell], contests: Sequence[Contest]) -> list[str]:
    out = tables.rank_note(contests)[:6]
    codes = {c.record.provenance.code for c in cells}
    if len(codes) > 1:
        out.append(f"The cells were made by {len(codes)} different states of the code under one commit.")
    versions = [c.record.provenance.versions for c in cells]
    differing = sorted({k for v in versions for k in v if any(v[k] != o.get(k) for o in versions)})
    if differing:
        out.append(f"The cells were made with different versions of {', '.join(differing)}.")
    held_back = machine.throttling(cells)
    if held_back:
        out.append(f"The device held its clocks back at times ({', '.join(held_back)}); see the machine's section.")
    if any(c.record.provenance.dirty for c in cells):
        out.append("The working tree had uncommitted changes: the commit alone does not say what was measured.")
    return out


def _summary(c: Collection) -> str:
    status = Counter(x.status for x in c.current)
    parts = [
        f"{status[s]} {s}"
        for s in ("ok", "wrong", "oom", "unsupported", "timeout", "crashed", "impossible")
        if status[s]
    ]
    old = len(c.cells) - len(c.current)
    older = f"; {old} older ones are kept in cells.csv only" if old else ""
    return f"{len(c.current)} cells ({', '.join(parts)}){older}"


def _notices(c: Collection) -> list[str]:
    out = [f"Left out: {r.source}, line {r.line}: {r.why}." for r in c.rejected[:8]]
    if len(c.rejected) > 8:
        out.append(f"Left out: {len(c.rejected) - 8} more lines that are no records.")
    return out
