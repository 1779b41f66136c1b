"""What the report says of history, in sentences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from reports import words
from reports.find.history import LATENCY, MEMORY, History, Host, Step
from reports.markup import bold, code
from reports.read.asv_results import FAILED, NUMBER

TOLD = 5  # steps named in the first sentences
MORE = {LATENCY: ("slower", "faster"), MEMORY: ("heavier", "lighter")}


def _plural(n: int, word: str) -> str:
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def summary(h: History) -> str:
    numbers = list(h.results.frame["found"]).count(NUMBER)
    levels = len({s.problem.level for s in h.series})
    return (f"{numbers:,} numbers of asv: {_plural(len({x.machine for x in h.hosts}), 'machine')}, "
            f"{_plural(len(h.results.commits), 'commit')}, {_plural(levels, 'level')}")  # fmt: skip


def headline(h: History) -> list[str]:
    commits = list(h.results.commits)
    known = "in git's order" if h.results.ordered_by == "git" else "by date, since no repository here knows them all"
    span = " to ".join(code(c.short) for c in dict.fromkeys((commits[0], commits[-1])))
    out = [f"{_plural(len(commits), 'commit')} ({span}, {known}) on {', '.join(host.label for host in h.hosts)}."]
    grouped = _grouped([s for s in h.steps if s.held])
    if not grouped and len(commits) > 1:
        out.append(f"{bold('No step')} of 5% or more that holds at two commits or more on either side.")
    out += [_told(steps) for steps in grouped[:TOLD]]
    if len(grouped) > TOLD:
        out.append(f"{len(grouped) - TOLD} more are in the table of steps.")
    single = [s for s in h.steps if not s.held]
    if single:
        out.append(f"{_plural(len(single), 'step')} with one commit alone on a side: one noisy run looks like that.")
    return out


def _grouped(steps: Sequence[Step]) -> list[list[Step]]:
    """Steps of one backend and metric at one commit of one machine: one change, however many problems show it."""
    groups: dict[tuple[object, ...], list[Step]] = defaultdict(list)
    for s in steps:
        groups[s.first.position, s.series.host, s.series.backend, s.series.metric, s.worse].append(s)
    return sorted(groups.values(), key=lambda g: (not g[0].worse, -max(abs(s.ratio - 1) for s in g)))


def _told(steps: Sequence[Step]) -> str:
    one = max(steps, key=lambda s: abs(s.ratio - 1))
    others = f" and {len(steps) - 1} more cells" if len(steps) > 2 else " and one more cell" if len(steps) > 1 else ""
    where = ", ".join(filter(None, (one.series.problem.setting, one.series.problem.sizes)))
    between = "" if one.first.position == one.last.position + 1 else f" (or after {code(one.last.short)})"
    return (f"{code(one.series.backend)} became {bold(_verdict(one))} with {code(one.first.short)}{between} on "
            f"{one.series.host.machine}: {where}{others}.")  # fmt: skip


def _verdict(s: Step) -> str:
    more, less = MORE.get(s.series.metric, (f"more {s.series.metric}", f"less {s.series.metric}"))
    return f"{words.times(s.ratio)} {more}" if s.worse else f"{words.times(1 / s.ratio)} {less}"


def notices(h: History) -> list[str]:
    out = [f"Left out: {r.source}{f', line {r.line}' if r.line else ''}: {r.why}." for r in h.results.rejected[:8]]
    if len(h.results.rejected) > 8:
        out.append(f"Left out: {len(h.results.rejected) - 8} more files or benchmarks that cannot be read.")
    frame = h.results.frame
    failed = [(c, m) for c, m, f in zip(frame["commit"], frame["machine"], frame["found"], strict=True) if f == FAILED]
    if failed:
        where = sorted({f"{c[:7]} on {m}" for c, m in failed})
        out.append(f"asv recorded {_plural(len(failed), 'failed look-up')} (null, not n/a) at {', '.join(where[:4])}"
                   f"{' and more' if len(where) > 4 else ''}: no number there, and none is drawn.")  # fmt: skip
    throttled = [s for s in h.series if s.metric == "throttle" and any((p.value or 0) > 0 for p in s.points)]
    if throttled:
        machines = ", ".join(sorted({s.host.machine for s in throttled}))
        out.append(f"A GPU held its clock back during {_plural(len(throttled), 'cell')} on {machines}: "
                   "a step there may be the clock's.")  # fmt: skip
    return out


def facts(h: History, host: Host) -> list[tuple[str, str]]:
    spelled = {"gpu": "GPU", "cpu": "CPU", "os": "system", "num_cpu": "cores", "ram": "memory"}
    held = h.results.machines.get(host.machine, {})
    commits = {p.commit.hash: p.commit for s in h.series if s.host == host for p in s.points}
    newest = max(commits.values(), key=lambda c: c.position)
    return [
        *((spelled.get(k, k.replace("_", " ")), _fact(k, v)) for k, v in held.items() if k != "version"),
        ("environment", host.env), ("commits", f"{len(commits):,}"),
        ("newest commit", f"{newest.short}, {newest.date:%Y-%m-%d}"),
    ]  # fmt: skip


def _fact(key: str, value: str) -> str:
    return words.size(float(value)) if key == "ram" and value.isdigit() and int(value) >= 2**20 else value
