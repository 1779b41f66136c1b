"""``compare A B``: is A faster than B on this problem, by how much, and how sure is that?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..harness.cases import registry
from ..harness.cases.problems import BadAxis
from ..harness.schema.comparison import compared, noise_floors
from ..harness.schema.record import Record, read
from ..harness.schema.shown import shown_lines
from ..harness.sweep import sweep as harness
from ..harness.worker.host import Host
from ..harness.worker.options import Options
from . import console as show
from . import options as opt

WORDS = {
    "faster": "{a} is faster than {b}",
    "slower": "{a} is slower than {b}",
    "same": "{a} and {b} take the same time, within {margin:.0%}",
    "unresolved": "undecided: neither surely more than {margin:.0%} and the noise apart nor surely less",
}


@opt.reported
@opt.asks()
def compare(
    a: Annotated[str, typer.Argument(help="A backend's name, or a .py file.")],
    b: Annotated[str, typer.Argument(help="The backend to compare it with.")],
    records: Annotated[
        Path | None, typer.Option(help="Compare what this file holds instead of measuring.", rich_help_panel=opt.RUN)
    ] = None,
    *,
    asked: opt.Asked,
    group_budget_s: opt.GroupBudget = 20.0,
    as_json: opt.Json = False,
) -> None:
    """Is backend A faster than B? Measured in pairs, interleaved, with the interval and a verdict.

    'Faster' needs the whole interval beyond what matters (3% on a CPU, 1% on a GPU) and beyond the noise floor of the
    noisier of the two; 'the same time' needs it within what matters; all else is undecided.

    Examples:

      python -m benchmarks compare banded gather --n-atom 2048

      python -m benchmarks compare banded dense --records out/records.jsonl
    """
    if records is not None:
        if not records.is_file():
            raise BadAxis(f"--records: expected a file of records, {records} does not exist")
        found = list(read(records))
        names = [registry.name_of(a), registry.name_of(b)]
        known = {r.backend for r in found}
        for name in names:
            if name not in known:
                raise BadAxis(f"--records: {records} holds no {name}; it holds {', '.join(sorted(known))}")
    else:
        specs = registry.expand([a, b])
        if len(specs) != 2:
            raise BadAxis(f"A, B: expected two different backends, got {a} and {b}")
        with Host(threads=asked.threads) as host:
            wanted = asked.axes(opt.one_device(asked.device, host), default_workload=("gfp",))
            settings = harness.Settings(options=Options(budget_s=group_budget_s, memory=False), **asked.run)
            with show.Live(show.console(stderr=True)) as live:
                found = harness.Sweep(harness.plan(wanted, specs), settings, live, host).run().records
        names = [registry.name_of(spec) for spec in specs]
    results = pairs(found, names[0], names[1])
    if as_json:
        print(json.dumps(results))
    else:
        for result in results:
            print(shown_lines(sentence(result)))
    if not any("ratio" in result for result in results):
        print("error: no problem was measured with both", file=typer.get_text_stream("stderr"))
        raise typer.Exit(opt.FAILED)


def pairs(records: list[Record], a: str, b: str) -> list[dict[str, Any]]:
    """One comparison per group that held both; only cells of one group pair."""
    groups: dict[str, dict[str, Record]] = {}
    for record in records:
        groups.setdefault(record.group, {})[record.backend] = record
    return [_pair(cells, a, b) for cells in groups.values() if a in cells or b in cells]


def _pair(cells: dict[str, Record], a: str, b: str) -> dict[str, Any]:
    problem = next(iter(cells.values())).problem
    result: dict[str, Any] = {"problem": problem.model_dump(mode="json"), "title": show.title(problem), "a": a, "b": b}
    for name in (a, b):
        record = cells.get(name)
        if record is None or record.timing is None:
            why = "it was not measured in this group" if record is None else f"{record.status}: {record.reason}"
            return result | {"missing": f"{name} has no time: {why}"}
    first, second = cells[a].timing, cells[b].timing
    assert first is not None
    assert second is not None
    found = compared(cells[a], cells[b], noise_floors(cells.values()))
    return result | {
        "a_ms": first.median_ms,
        "b_ms": second.median_ms,
        "a_wall_ms": first.wall_ms,
        "b_wall_ms": second.wall_ms,
        "ratio": found.ratio.ratio,
        "low": found.ratio.low,
        "high": found.ratio.high,
        "blocks": found.ratio.n,
        "noise": found.noise,
        "margin": found.margin,
        "verdict": found.verdict(),
    }


def sentence(result: dict[str, Any]) -> str:
    """The comparison in plain words."""
    head = f"{result['title']}\n  "
    if "missing" in result:
        return head + result["missing"]
    times = f"{show.milliseconds(result['a_ms'])} against {show.milliseconds(result['b_ms'])}"
    if result["a_wall_ms"] is not None and result["b_wall_ms"] is not None:
        walls = f"{show.milliseconds(result['a_wall_ms'])} against {show.milliseconds(result['b_wall_ms'])}"
        times = f"{times} on the device, {walls} for an eager caller"
    if result["low"] is None:
        interval = "no interval from so few blocks"
    else:
        interval = f"95% interval {result['low']:.3g} … {result['high']:.3g}"
    noise = "unknown" if result["noise"] is None else f"{100 * result['noise']:.1f}%"
    said = WORDS[result["verdict"]].format(**result)
    factor = max(result["ratio"], 1 / result["ratio"])
    by = f", {factor:.3g} times" if result["verdict"] in ("faster", "slower") else ""
    return (
        f"{head}{said}{by}: {times}.\n"
        f"  Time of {result['a']} over {result['b']}: {result['ratio']:.3g} "
        f"({interval}, {result['blocks']} paired blocks; the same code against itself differed by up to {noise})."
    )
