"""Where the time of one call goes: the page's section made from ``profiles.jsonl``, which lies beside the records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness.schema.place import Place, place_of, told_apart
from benchmarks.harness.schema.problem import Problem
from benchmarks.harness.schema.profile import PROFILES, Breakdown, Counters, Profile, scan_profiles
from benchmarks.harness.schema.shown import shown
from reports import words
from reports.markup import code
from reports.read import limits
from reports.read.load import MODE_WORDS, SHORT_DTYPE, cleaned
from reports.tables.table import Column, Table, num, tabulate, text

# A colour of the page's palette for each kind of work; what is not named has the first. Idle time is hatched instead.
_COLOURS = {
    "fused kernel": 5, "own code": 5, "attention library": 3, "compiled code": 4, "matrix products": 2,
    "normalisation": 8, "softmax": 6, "gather and scatter": 1, "copies and fills": 7, "reductions": 10,
    "elementwise": 12,
}  # fmt: skip
_OTHER = 0
_IDLE = ("idle", "outside torch's operators")
_LABELLED, _NAMED = 0.07, 0.2  # a narrower segment has no room for its percentage, or for its name
_SMALL = 0.01
_DISTORTED = 1.5  # on a CPU


@dataclass(frozen=True)
class Segment:
    """A piece of a bar; ``colour`` None is time in which nothing of torch's ran."""

    kind: str
    percent: float
    colour: int | None
    label: str
    name: str


@dataclass(frozen=True)
class Bar:
    """One backend on one problem: its call cut into segments, in words, and its kernels."""

    backend: str
    call: str
    says: str
    facts: str
    segments: list[Segment]
    table: Table
    trace: str | None


@dataclass(frozen=True)
class Chart:
    """One problem on one place, the fastest backend first; ``failed`` says who has no profile and why."""

    title: str
    bars: list[Bar]
    failed: list[str]


@dataclass(frozen=True)
class Section:
    """All charts by place, the kinds of work that occur, and lines that were no profiles."""

    charts: list[tuple[Place, list[Chart]]] = field(default_factory=list)
    kinds: list[Segment] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @property
    def tables(self) -> list[Table]:
        return [bar.table for _, charts in self.charts for chart in charts for bar in chart.bars]


def split(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """(paths of records, files of profiles): those named, and those beside the named files or in the named folders."""
    files: dict[Path, None] = {}
    records = []
    for path in paths:
        if path.name == PROFILES and path.is_file():
            files.setdefault(path.resolve())
            continue
        records.append(path)
        beside = sorted(path.rglob(PROFILES)) if path.is_dir() else [path.parent / PROFILES]
        for file in beside:
            if file.is_file():
                files.setdefault(file.resolve())
    return records, list(files)


def section(
    files: Sequence[Path], out: Path | None, machines: dict[limits.Machine, limits.Recorded] | None = None
) -> Section:
    """What the page shows of these files: the newest profile of each backend, problem and place; shares of the limit
    by the ceilings of ``machines``, or of the profile's own run."""
    newest: dict[tuple[Place, str], tuple[Profile, Path]] = {}
    notices = []
    for path in files:
        for one in scan_profiles(path):
            if isinstance(one, str):
                notices.append(f"Left out: {shown(one)}.")
                continue
            one = Profile.model_validate(cleaned(one.model_dump()))
            key = (place_of(one.provenance, one.problem.device), one.key)
            if key not in newest or one.provenance.utc >= newest[key][0].provenance.utc:
                newest[key] = (one, path.parent)
    places: dict[Place, list[tuple[Profile, Path]]] = {}
    for (place, _), (profile, folder) in newest.items():
        places.setdefault(place, []).append((limits.profiled(profile, machines or {}), folder))
    ordered = sorted(places, key=lambda p: max(one.provenance.utc for one, _ in places[p]), reverse=True)
    numbers = iter(range(1, len(newest) + 1))
    distinct = told_apart(places)
    charts = [(distinct[place], _charts(places[place], out, numbers)) for place in ordered]
    return Section(charts, _kinds([one for one, _ in newest.values()]), notices)


def _charts(profiles: list[tuple[Profile, Path]], out: Path | None, numbers: Iterator[int]) -> list[Chart]:
    problems: dict[str, list[tuple[Profile, Path]]] = {}
    for one in sorted(profiles, key=lambda pair: _order(pair[0].problem)):
        problems.setdefault(one[0].problem.key, []).append(one)
    charts = []
    for group in problems.values():
        timed = sorted(
            ((b, one, folder) for one, folder in group if (b := one.breakdown) is not None),
            key=lambda item: item[0].call_ms,
        )
        bars = [_bar(b, one, _link(one, folder, out), next(numbers)) for b, one, folder in timed]
        failed = [f"{code(one.backend)} has no profile: {one.status}, {one.reason}"
                  for one, _ in group if not one.breakdown]  # fmt: skip
        p = group[0][0].problem
        title = f"{p.level}, {MODE_WORDS[p.mode]}, {SHORT_DTYPE[p.dtype]}, {words.all_sizes(p)}"
        charts.append(Chart(title, bars, failed))
    return charts


def _order(p: Problem) -> tuple[str, str, int, str]:
    return p.level, p.dtype, p.n_atom, p.mode


def _link(one: Profile, folder: Path, out: Path | None) -> str | None:
    """The trace, if it lies in the page's own folder."""
    if one.trace is None or out is None or folder.resolve() != out.resolve() or not (out / one.trace).is_file():
        return None
    return one.trace


def _bar(b: Breakdown, one: Profile, trace: str | None, number: int) -> Bar:
    return Bar(
        one.backend, words.time(b.call_ms), one.summary, _facts(b, one), _segments(b), _table(b, one, number), trace
    )


def _segments(b: Breakdown) -> list[Segment]:
    """The kinds of work, the largest first; the small ones together; idle time last."""
    work = {kind: share for kind, share in b.kinds.items() if kind not in _IDLE}
    shown = {kind: share for kind, share in work.items() if share >= _SMALL and kind != "other"}
    rest = sum(work.values()) - sum(shown.values())
    if rest >= 0.001:
        shown["other"] = rest
    shown |= {kind: share for kind, share in b.kinds.items() if kind in _IDLE and share >= 0.001}
    return [_segment(kind, share) for kind, share in shown.items()]


def _segment(kind: str, share: float) -> Segment:
    label = f"{100 * share:.0f}%" if share >= _LABELLED else ""
    colour = None if kind in _IDLE else _COLOURS.get(kind, _OTHER)
    return Segment(kind, round(100 * share, 2), colour, label, kind if share >= _NAMED else "")


def _kinds(profiles: Sequence[Profile]) -> list[Segment]:
    """The legend: every kind that a bar shows, in one order."""
    present = {s.kind for one in profiles if one.breakdown for s in _segments(one.breakdown)}
    order = [*_COLOURS, "other", *_IDLE]
    return [_segment(kind, 0.0) for kind in sorted(present, key=lambda k: order.index(k) if k in order else len(order))]


def _facts(b: Breakdown, one: Profile) -> str:
    """Limit, launches, memory and counters in a line."""
    said = []
    if one.limit is not None and one.limit.percent is not None:
        said.append(f"{words.of_hundred(one.limit.percent)} of the limit")
    if b.wall_ms > _DISTORTED * b.call_ms and not b.launches:
        said.append(f"the profiler made it {b.wall_ms / b.call_ms:.1f}× slower, so short operators show too large")
    if b.launches:
        said.append("1 launch" if b.launches == 1 else f"{b.launches:.3g} launches")
    if b.enqueue_ms is not None:
        said.append(f"{words.time(b.enqueue_ms)} of the host to launch a call")
    if b.syncs:
        said.append(f"the host waits {b.syncs:.3g} times")
    if b.peak_bytes is not None:
        said.append(f"memory is highest (+{words.size(b.peak_bytes)}) in {b.peak_op or 'no operator of torch'}")
    if one.counters is not None:
        said.append(_counted(one.counters))
    return "; ".join(said)


def _counted(c: Counters) -> str:
    if c.kernel is None:
        return f"no counters: {c.reason}"
    parts = [
        f"{value:.0f}% {word}"
        for value, word in ((c.dram_percent, "DRAM"), (c.sm_percent, "SM"), (c.occupancy_percent, "occupancy"))
        if value is not None
    ]
    stalls = [f"{name} {cycles:.1f}" for name, cycles in list(c.stalls.items())[:3]]
    waits = [f"stalls {', '.join(stalls)}"] if stalls else []
    return f"counters of {c.kernel}: {', '.join(parts + waits)}"


def _table(b: Breakdown, one: Profile, number: int) -> Table:
    columns = [
        Column("kernel or operator", lambda r: text(r.short, r.name if r.name != r.short else None)),
        Column("kind", lambda r: text(r.kind, r.op)),
        Column("per call", lambda r: num(r.launches, "{:.3g}".format), True, "launches"),
        Column("time", lambda r: num(r.ms, words.time), True),
        Column("share", lambda r: num(r.share, words.percent), True),
        Column("× floor", lambda r: num(r.floors, words.two_digits, "the machine's limits were not measured"), True,
               "its time over the whole operation's floor"),
    ]  # fmt: skip
    more = f" {b.rows_left_out} shorter ones are left out." if b.rows_left_out else ""
    note = f"Mean of {b.calls} calls; {words.time(b.wall_ms)} a call under the profiler.{more}"
    return tabulate(f"profile-{number}", f"{one.backend}: kernels and operators", columns, b.rows, note)
