"""What commits did: every cell as a series over commits, its steps, and one machine against another.

Steps come from asv's own detection (a piecewise constant fit), so they are those of asv's pages. Machines are compared
at one commit by asv's two numbers alone: nothing about them is paired, and the interval says so by its width.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.asv.metrics import SHOWN_ONLY
from benchmarks.harness import levels
from benchmarks.harness.ruler.statistics import Ratio
from benchmarks.harness.schema.axes import AXES
from reports.read.asv_results import FAILED, NUMBER, STATUS, AsvResults, Commit
from reports.read.load import MODE_WORDS, SHORT_DTYPE

LATENCY, MEMORY = "latency", "peak_memory"
METRIC_WORDS = {LATENCY: "Time", MEMORY: "Memory"}
NEVER_JUDGED = frozenset({*SHOWN_ONLY, STATUS, "throttle"})  # larger is not worse there, or was seen once
STEP_SHARE = 0.05  # asv's own default: smaller steps are not told
COMPARED = ("backend", "kernel")  # the parameter that is compared within one problem
PLACE = "device"
KERNELS = "kernels"  # the level that is compiled, not run
SIZE = "n_atom"
PARAM_WORDS = {a.parameter: a.symbol for a in AXES}


@dataclass(frozen=True, order=True)
class Host:
    """Where numbers were made: one machine, one device of it, one environment."""

    machine: str
    device: str
    env: str
    hardware: str = field(compare=False)
    label: str = field(compare=False)


@dataclass(frozen=True)
class Problem:
    """What is measured, whoever measures it: a level and the parameters that are neither backend nor device."""

    level: str
    params: tuple[tuple[str, object], ...]

    @property
    def order(self) -> tuple[Any, ...]:
        """Levels as the model nests, then the parameters as numbers or as words."""
        values = [(k, 0, v, "") if isinstance(v, int | float) else (k, 1, 0, str(v)) for k, v in self.params]
        return levels.rank(self.level), self.level, values

    @property
    def setting(self) -> str:
        """``attention, forward, fp32``"""
        mode, dtype = (str(dict(self.params).get(name, "")) for name in ("mode", "dtype"))
        return ", ".join(x for x in (self.level, MODE_WORDS.get(mode, mode), SHORT_DTYPE.get(dtype, dtype)) if x)

    @property
    def sizes(self) -> str:
        held = [(PARAM_WORDS.get(k, k), v) for k, v in self.params if k not in ("mode", "dtype")]
        return ", ".join(f"{k} = {v:,}" if isinstance(v, int | float) else f"{k} = {v}" for k, v in held)

    @property
    def size(self) -> float:
        value = dict(self.params).get(SIZE)
        return float(value) if isinstance(value, int | float) else 0.0


@dataclass(frozen=True)
class Point:
    """One cell at one commit; ``value`` is None where there is no number, and ``status`` says why."""

    commit: Commit
    value: float | None
    low: float | None
    high: float | None
    status: str
    reason: str | None = None

    @property
    def weight(self) -> float | None:
        """As asv weighs it: the inverse of the interval's half-width."""
        if self.low is None or self.high is None or self.high <= self.low:
            return None
        return 2 / (self.high - self.low)


@dataclass(frozen=True)
class Segment:
    """A run of measured points that asv holds for one level; indices of points, the right one exclusive."""

    left: int
    right: int
    level: float
    error: float


@dataclass(frozen=True)
class Series:
    """One metric of one backend on one problem at one host, oldest commit first."""

    host: Host
    problem: Problem
    backend: str
    metric: str
    unit: str
    points: tuple[Point, ...]
    segments: tuple[Segment, ...]

    @property
    def measured(self) -> list[Point]:
        return [p for p in self.points if p.value is not None]

    @property
    def key(self) -> tuple[Problem, str, str]:
        return self.problem, self.metric, self.backend


@dataclass(frozen=True)
class Step:
    """A change of level: seen first at ``first``, not yet at ``last``, with ``before`` and ``after`` as levels."""

    series: Series
    last: Commit
    first: Commit
    before: float
    after: float
    n_before: int
    n_after: int

    @property
    def ratio(self) -> float:
        return self.after / self.before

    @property
    def worse(self) -> bool:
        return self.after > self.before

    @property
    def held(self) -> bool:
        """Seen at two commits or more on either side: one alone may be one noisy run."""
        return self.n_before > 1 and self.n_after > 1


@dataclass(frozen=True)
class StatusChange:
    """A status that became another one."""

    series: Series
    first: Commit
    before: str
    after: str


@dataclass(frozen=True)
class Against:
    """How many times as fast ``here`` is as ``there``: same problem, backend and commit, unpaired."""

    here: Host
    there: Host
    problem: Problem
    backend: str
    commit: Commit
    ratio: Ratio


@dataclass(frozen=True)
class History:
    results: AsvResults
    hosts: tuple[Host, ...]
    series: tuple[Series, ...]
    steps: tuple[Step, ...]
    changes: tuple[StatusChange, ...]
    against: tuple[Against, ...]

    @property
    def backends(self) -> list[str]:
        return sorted({s.backend for s in self.series if s.problem.level != KERNELS})

    @property
    def unpaired(self) -> str:
        """What the numbers of ``against`` are, and what they are not."""
        return (f"How many times as fast as {self.against[0].there.label}, at the newest commit that both have. "
                "Different machines cannot be interleaved: the interval is asv's two 99% intervals pushed apart, and "
                "what another run would have shown is not in it.")  # fmt: skip


def analyse(results: AsvResults) -> History:
    """Series, steps, changes of status and machine against machine, of everything that was read."""
    hosts = _hosts(results)
    series = tuple(_series(results, hosts))
    steps = tuple(step for s in series for step in _steps(s))
    changes = tuple(change for s in series for change in _changes(s))
    shown = tuple(h for h in dict.fromkeys(hosts.values()) if any(s.host == h and s.measured for s in series))
    return History(results, tuple(sorted(shown)), series, steps, changes, tuple(_against(series, shown)))


def _hosts(results: AsvResults) -> dict[tuple[str, str, str], Host]:
    """By machine, environment and device. What needs no device (compiled kernels) counts to the machine's first."""
    frame = results.frame
    devices = [d if isinstance(d, str) else "" for d in frame[PLACE]] if PLACE in frame else [""] * len(frame)
    asked = sorted(set(zip(frame["machine"], frame["env"], devices, frame["found"].eq(NUMBER), strict=True)))
    devices_of: dict[tuple[str, str], list[str]] = defaultdict(list)
    for machine, env, device, _ in sorted(asked, key=lambda entry: not entry[3]):  # where there are numbers first
        if device and device not in devices_of[machine, env]:
            devices_of[machine, env].append(device)
    out = {}
    for machine, env, device, _ in asked:
        held = device or next(iter(devices_of[machine, env]), "")
        facts = results.machines.get(machine, {})
        hardware = (facts.get("gpu") if held != "cpu" else None) or facts.get("cpu") or machine
        several = sum(1 for other, _ in devices_of if other == machine) > 1
        detail = ", ".join([machine, *([held] if held else []), *([env] if several else [])])
        out[machine, env, device] = Host(machine, held, env, hardware, f"{hardware} ({detail})")
    return out


def _series(results: AsvResults, hosts: Mapping[tuple[str, str, str], Host]) -> Iterator[Series]:
    commits = {c.hash: c for c in results.commits}
    compared = [p for p in results.parameters if p in COMPARED]
    fixed = [p for p in results.parameters if p not in (*COMPARED, PLACE)]
    cells: dict[tuple[object, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in results.frame.to_dict("records"):  # ordered by position within a cell
        cells[tuple(row[k] for k in ("machine", "env", "suite", "metric", "cell"))].append(dict(row))
    for rows in cells.values():
        first = {name: _plain(value) for name, value in rows[0].items()}
        if not first["cell"] and all(row["found"] == FAILED for row in rows):
            continue  # broke as a whole: there is no cell to draw
        backend = next((str(first[p]) for p in compared if first[p] is not None), first["suite"])
        params = tuple((p, first[p]) for p in fixed if first[p] is not None)
        problem = Problem(first["suite"].rpartition(".")[2].lower(), params)
        points = tuple(_point(row, commits) for row in rows)
        host = hosts[first["machine"], first["env"], first.get(PLACE) or ""]
        yield Series(host, problem, backend, first["metric"], first["unit"], points, _segments(points, first["metric"]))


def _plain(value: Any) -> Any:
    """A value as it was: gaps in a column are NaN and turn its whole numbers into floats."""
    if isinstance(value, float):
        return None if math.isnan(value) else int(value) if value.is_integer() else value
    return value


def _point(row: Mapping[str, object], commits: Mapping[str, Commit]) -> Point:
    def number(name: str) -> float | None:
        value = row[name]
        return float(value) if isinstance(value, int | float) and not math.isnan(value) else None

    status = row["status"] if isinstance(row["status"], str) else None
    kind, reason, value, low = str(row["found"]), row.get("reason"), number("value"), number("ci_low")
    if low is not None and low < 0 <= (value or 0):
        low = 0.0  # asv's interval of a few samples is symmetric; no time and no size is below 0
    return Point(commits[str(row["commit"])], value, low, number("ci_high"),
                 kind if kind == FAILED else status or ("ok" if kind == NUMBER else kind),
                 reason if isinstance(reason, str) else None)  # fmt: skip


def _segments(points: Sequence[Point], metric: str) -> tuple[Segment, ...]:
    from asv.step_detect import detect_steps

    if metric in NEVER_JUDGED or not any(p.value is not None for p in points):
        return ()
    steps = detect_steps([p.value for p in points], [p.weight for p in points])
    return tuple(Segment(left, right, level, error) for left, right, level, _, error in steps)


def _steps(series: Series) -> Iterator[Step]:
    """Neighbouring levels further apart than STEP_SHARE, than their scatter and than the intervals at the step."""
    for a, b in itertools.pairwise(series.segments):
        if a.level <= 0 or b.level <= 0 or abs(math.log(b.level / a.level)) < math.log1p(STEP_SHARE):
            continue
        if abs(b.level - a.level) <= a.error + b.error:
            continue
        before = [p for p in series.points[a.left : a.right] if p.value is not None]
        after = [p for p in series.points[b.left : b.right] if p.value is not None]
        if _overlap(before[-1], after[0]):
            continue
        yield Step(series, before[-1].commit, after[0].commit, a.level, b.level, len(before), len(after))


def _overlap(a: Point, b: Point) -> bool:
    """Whether asv's intervals of two points meet; without intervals (one exact number) they cannot."""
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return False
    return a.low <= b.high and b.low <= a.high


def _changes(series: Series) -> Iterator[StatusChange]:
    if series.metric == STATUS:
        for a, b in itertools.pairwise(series.points):
            if a.status != b.status:
                yield StatusChange(series, b.commit, a.status, b.status)


def _against(series: Sequence[Series], hosts: Sequence[Host]) -> Iterator[Against]:
    """Every host against the one that shares most cells with the others, at the newest commit that both have."""
    cells: dict[Host, dict[tuple[Problem, str], dict[str, Point]]] = {h: {} for h in hosts}
    for s in series:
        if s.metric == LATENCY and s.measured:
            cells[s.host][s.problem, s.backend] = {p.commit.hash: p for p in s.measured}
    timed = sorted(h for h in hosts if cells[h])
    if len(timed) < 2:
        return
    base = max(timed, key=lambda h: (sum(len(cells[h].keys() & cells[o].keys()) for o in timed if o != h),
                                     h.device == "cpu"))  # fmt: skip
    for host in timed:
        shared = {k: cells[host][k].keys() & cells[base][k].keys() for k in cells[host] if k in cells[base]}
        common = [cells[host][k][c].commit for k, both in shared.items() for c in both]
        if host == base or not common:
            continue
        commit = max(common, key=lambda c: c.position)
        for problem, backend in sorted(shared, key=lambda k: (k[0].order, k[1])):
            if commit.hash in shared[problem, backend]:
                here, there = (cells[h][problem, backend][commit.hash] for h in (host, base))
                yield Against(host, base, problem, backend, commit, _speed(here, there))


def _speed(here: Point, there: Point) -> Ratio:
    """How many times as fast: time there over time here.

    Its interval is asv's two 99% intervals pushed apart: both hold in 98% of cases or more, and so does this one.
    """
    low = high = None
    if here.low and here.high and there.low and there.high:  # from an interval that holds 0 no ratio follows
        low, high = there.low / here.high, there.high / here.low
    return Ratio((there.value or math.nan) / (here.value or math.nan), low, high, None, 1, "order")
