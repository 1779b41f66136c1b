"""What a report says, before it is a page: one view per place, figures and tables written beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from benchmarks.harness.schema.axes import curve_axes
from reports import words
from reports.draw import figures, history_figures, theme
from reports.draw.figure import Drawing, Gallery, render
from reports.draw.figures import PlaceResults
from reports.find import analyse, curves
from reports.find.analyse import Contest
from reports.find.history import History, Host
from reports.find.regions import regions as regions_of
from reports.markup import bold
from reports.read.limits import machine_of
from reports.read.load import Cell, Collection, Place, setting_labels
from reports.say import answer, machine
from reports.say import history as said_of_history
from reports.tables import evidence, files, gates, profiles, summary
from reports.tables import history as history_tables
from reports.tables.profiles import Section
from reports.tables.table import Table

LONGEST_NAME = 180  # of a figure's file, without what is put behind it


@dataclass(frozen=True)
class PlaceView:
    """Everything said about one place."""

    place: Place
    anchor: str
    headline: list[str]
    answer: Table
    brief: Table  # the rows of the answer that say most
    capacity: Table
    sure: list[str]
    galleries: list[Gallery]
    tables: list[Table]
    facts: list[tuple[str, str]]
    notices: list[str]


@dataclass(frozen=True)
class HistoryView:
    """Everything said about what commits did."""

    headline: list[str]
    notices: list[str]
    galleries: list[Gallery]
    tables: list[Table]
    facts: list[tuple[Host, list[tuple[str, str]]]]


@dataclass(frozen=True)
class Report:
    title: str
    summary: str
    slots: dict[str, int]  # of every backend: its colour and marker
    places: list[PlaceView]
    notices: list[str]
    sources: list[str]
    profiles: Section
    history: HistoryView | None

    @property
    def names(self) -> list[str]:
        return sorted(self.slots)

    @property
    def galleries(self) -> list[Gallery]:
        """All of them, in the order of the page."""
        held = self.history.galleries if self.history else []
        return [*(g for view in self.places for g in view.galleries), *held]

    @property
    def tables(self) -> list[Table]:
        shown = [t for view in self.places for t in (view.answer, view.capacity, *view.tables)]
        return [*shown, *self.profiles.tables, *(self.history.tables if self.history else ())]


class _Figures:
    """Writes figures into a folder (none: only what is said of them), no two under one name."""

    def __init__(self, folder: Path | None, slots: dict[str, int]) -> None:
        self.folder, self.slots = folder and folder / "figures", slots
        self.taken: set[str] = set()

    def write(self, galleries: Sequence[Gallery]) -> list[Gallery]:
        return [replace(g, drawings=[self._write(d) for d in g.drawings]) for g in galleries]

    def _write(self, drawing: Drawing) -> Drawing:
        """Under a name that is short enough for a file and that no other figure of the report has (two places may
        differ in what a file's name cannot say)."""
        stem = drawing.name[:LONGEST_NAME].rstrip("-")
        name = next(n for i in count(1) if (n := stem if i == 1 else f"{stem}-{i}") not in self.taken)
        self.taken.add(name)
        if self.folder is None:
            return replace(drawing, name=name)
        self.folder.mkdir(exist_ok=True)
        return render(replace(drawing, name=name), self.folder, self.slots)

    def remove_others(self) -> None:
        """Figures that an earlier call left in the folder would be taken for this report's."""
        for path in self.folder.glob("*.[sp][vn]g") if self.folder else ():
            name = path.stem.removesuffix("-dark")
            if name not in self.taken and name.split("-")[0] in figures.KINDS:
                path.unlink()


def build(
    collection: Collection, *, title: str, folder: Path | None, profile_files: Sequence[Path] = (),
    history: History | None = None,
) -> Report:  # fmt: skip
    """Analyse, write figures and tables into ``folder`` (none: only what is said), and collect what the page says."""
    slots = theme.slots({c.record.backend for c in collection.cells} | set(history.backends if history else ()))
    drawn = _Figures(folder, slots)
    pairs = analyse.pairs(collection)
    places = [
        _view(m, f"m{i}", drawn, collection) for i, m in enumerate(_results(collection, pairs), 1)
    ]  # fmt: skip
    history_view = _history_view(history, drawn) if history is not None else None
    sources = [*collection.sources, *(history.results.sources if history else ())]
    summaries = [*([_summary(collection)] if collection.cells else []),
                 *([said_of_history.summary(history)] if history else [])]  # fmt: skip
    section = profiles.section(profile_files, folder, collection.machines)
    if folder is not None:
        if collection.cells:
            files.write(collection, pairs, folder)
        if history is not None:
            files.write_history(history, folder)
        drawn.remove_others()
    return Report(title, "; ".join(summaries), slots, places, _notices(collection), sources, section, history_view)


def _results(collection: Collection, pairs: Sequence[analyse.Pair]) -> list[PlaceResults]:
    """What was found out, by place."""
    labels = setting_labels(collection)
    contests = analyse.contests(collection, pairs)
    along = {a.symbol: curves.curves(collection, a.symbol) for a in curve_axes()}
    repeats = analyse.repeats(collection, pairs)
    return [
        PlaceResults(
            place, [c for c in collection.current if c.place == place], [c for c in contests if c.place == place],
            [p for p in pairs if p.place == place],
            {axis: [c for c in held if c.place == place] for axis, held in along.items()}, labels,
            [r for r in repeats if r.place == place],
        )
        for place in collection.places
    ]  # fmt: skip


def _history_view(h: History, drawn: _Figures) -> HistoryView:
    return HistoryView(
        said_of_history.headline(h), said_of_history.notices(h), drawn.write(history_figures.galleries(h)),
        history_tables.tables(h), [(host, said_of_history.facts(h, host)) for host in h.hosts],
    )  # fmt: skip


def _view(m: PlaceResults, anchor: str, drawn: _Figures, collection: Collection) -> PlaceView:
    every = [c for along in m.curves.values() for c in along]
    ceilings = {held.said() for c in m.cells if (held := collection.machines.get(machine_of(c.record)))}
    tables = [
        evidence.ratios(f"{anchor}-ratios", m.pairs, m.contests),
        *([evidence.repeats(f"{anchor}-repeats", m.repeats)] if m.repeats else []),
        evidence.exponents(f"{anchor}-exponents", [f for c in every for f in curves.fits(c)], m.labels),
        evidence.crossings(f"{anchor}-crossovers", [x for c in every for x in curves.crossings(c, m.pairs)], m.labels),
        evidence.phases(f"{anchor}-starts", m.cells),
        evidence.memory(f"{anchor}-memory", m.cells),
        gates.gates(f"{anchor}-gates", m.cells),
        evidence.unavailable(f"{anchor}-unavailable", m.cells),
        evidence.noise(f"{anchor}-noise", m.cells),
    ]
    regions, capacities = regions_of(m.contests), [x for c in m.curves["N"] for x in curves.capacities(c)]
    return PlaceView(
        m.place, anchor, answer.headline(m.place, m.contests, m.labels),
        summary.answer(f"{anchor}-answer", regions, m.labels, m.contests),
        summary.answer(f"{anchor}-brief", summary.most_informative(regions), m.labels, m.contests),
        summary.capacity(f"{anchor}-fit", capacities, m.labels, sorted(drawn.slots)),
        [*_sure(m), *sorted(ceilings)], drawn.write(figures.galleries(m)), tables, machine.facts(m.cells),
        _place_notices(m.cells, m.contests),
    )  # fmt: skip


def _sure(m: PlaceResults) -> list[str]:
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
    out = evidence.rank_note(contests)[:6]
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
