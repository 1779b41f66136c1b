"""What comes from outside is shown as it is: no markup, nothing that a terminal obeys, in every command."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.commands import app, check, console, doctor, inspect, pipeline, profile, regress, regress_table, tune
from benchmarks.harness.cases import problems
from benchmarks.harness.regress import regression
from benchmarks.harness.schema.profile import Profile
from benchmarks.harness.schema.record import Record
from tests import records_factory as made

# Closes what it did not open, looks like markup, an emoji, a link; sets a title, a colour; turns the line round.
HOSTILE = (
    "[/red] [enforce fail at alloc_cpu.cpp:117] :warning: [link=x]"
    "\x1b]0;owned\x07\x1b[31m\x9b1m\N{RIGHT-TO-LEFT OVERRIDE}\\"
)
SEEN = ("[/red]", "[enforce fail at", ":warning:", "[link=x]")


def hostile_records() -> list[Record]:
    """A good cell and a failed one of every kind, all that is text in them from outside."""
    problem = made.problem(workload=HOSTILE)
    good = [cell.model_copy(update={"backend": f"{cell.backend}{HOSTILE}"}) for cell in made.group(made.CPU, problem)]
    failed = [
        made.cell(made.CPU, "gather", problem, group=good[0].group, status=status, reason=HOSTILE)
        for status in ("wrong", "crashed", "timeout", "oom", "unsupported")
    ]
    return [*good, *(cell.model_copy(update={"backend": f"x{i}{HOSTILE}"}) for i, cell in enumerate(failed))]


def hostile_profile(status: str) -> Profile:
    where, problem = made.provenance(), made.problem(workload=HOSTILE)
    common = {"run": "r", "backend": HOSTILE, "problem": problem, "status": status, "provenance": where}
    if status != "ok":
        return Profile(**common, reason=HOSTILE)
    row = {"name": HOSTILE, "short": HOSTILE, "kind": HOSTILE, "launches": 1, "ms": 1.0, "share": 1.0}
    breakdown = {
        "calls": 1, "call_ms": 1.0, "wall_ms": 1.0, "busy_ms": 1.0, "whole_ms": 1.0, "kinds": {HOSTILE: 1.0},
        "idle_share": 0.0, "rows": [row], "peak_bytes": 1, "peak_op": HOSTILE,
    }  # fmt: skip
    counters = {"reason": HOSTILE}
    return Profile(**common, gate=made.gate(problem), breakdown=breakdown, counters=counters, summary=HOSTILE)


def hostile_doctor() -> dict:
    machine = {
        "gpu": None, "cpu": HOSTILE, "cores": 2, "memory_bytes": 1, "versions": {"torch": HOSTILE, HOSTILE: "1"},
        "commit": HOSTILE, "dirty": False, "code": HOSTILE,
    }  # fmt: skip
    backend = {"summary": HOSTILE, "reasons": {"float32": {"fwd": [HOSTILE], "fwdbwd": [HOSTILE]}}}
    rates = ("bandwidth_bytes_per_s", "read_bytes_per_s", "copy_bytes_per_s", "rate_flops_per_s")
    ceilings = {"float32": dict.fromkeys(rates, 1.0) | {"rate_exponentials_per_s": None, "source": HOSTILE}}
    return {"devices": {"cpu": {"machine": machine, "backends": {HOSTILE: backend}, "ceilings": ceilings}}}


def hostile_account() -> regress_table.Account:
    problem = made.problem(workload=HOSTILE)
    broken = regression.Finding(HOSTILE, problem, "broken", HOSTILE, None, None, "unresolved", None, None, "unresolved")
    return regress_table.Account({"a": HOSTILE, "b": HOSTILE}, [broken])


def show_sweep(out: console.Console) -> None:
    records = hostile_records()
    with console.Live(out) as live:
        live.phase(problems.Group(records[0].problem, (HOSTILE,)), HOSTILE, HOSTILE)
        live.recorded(records)
        live.notice(HOSTILE)
    out.print(console.table(records))
    for text in pipeline.fastest(records):
        out.print(text)


def show_check(out: console.Console) -> None:
    out.print(check.table(hostile_records()))


def show_profiles(out: console.Console) -> None:
    for status in ("ok", "crashed"):
        profile.render(hostile_profile(status), out)


def show_doctor(out: console.Console) -> None:
    doctor.render(hostile_doctor(), out)


def show_regress(out: console.Console) -> None:
    regress._tell(hostile_account(), None, as_json=False)


def show_inspect(out: console.Console) -> None:
    labels = {"kernel": HOSTILE, "arch": HOSTILE, "dtype": "bfloat16", "size": HOSTILE}
    inspect._render([labels | {"error": HOSTILE}])


def show_tune(out: console.Console) -> None:
    trials = [{"config": HOSTILE, "ms": None, "reason": HOSTILE}]
    tune._render({"kernel": HOSTILE, "best_ms": None, "trials": trials})


@pytest.mark.parametrize(
    "show", [show_sweep, show_check, show_profiles, show_doctor, show_regress, show_inspect, show_tune]
)
def test_nothing_from_outside_is_markup_or_reaches_the_terminal(
    show: Callable[[console.Console], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "4000")
    monkeypatch.setattr(console, "WIDTH", 4000)
    show(console.console())
    said = capsys.readouterr().out
    assert all(text in said for text in SEEN), said
    assert {c for c in said if unicodedata.category(c) in ("Cc", "Cf")} <= {"\n"}


def test_colours_are_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, what is left after our own colours holds no escape."""
    text = io.StringIO()
    out = console.Plain(file=text, force_terminal=True, color_system="standard", width=4000, markup=False, emoji=False)
    show_check(out)
    said = text.getvalue()
    assert "\x1b[" in said
    assert "\x1b" not in re.sub(r"\x1b\[[\d;]*m", "", said)
    assert "\x1b[31m\N{REPLACEMENT CHARACTER}" not in said
    assert "owned" in said


def test_an_error_is_cleaned_too(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(HOSTILE + "\n")
    for arguments in (["compare", "gather", "banded", "--records", str(path)], ["sweep", "-w", HOSTILE]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2
        assert {c for c in result.output if unicodedata.category(c) in ("Cc", "Cf")} <= {"\n"}


def test_a_comment_on_a_pull_request_is_cleaned_too() -> None:
    said = regress_table.markdown(hostile_account())
    assert "[enforce fail at" in said
    assert {c for c in said if unicodedata.category(c) in ("Cc", "Cf")} <= {"\n"}


def test_a_line_says_what_an_eager_caller_waits_where_that_is_another_time() -> None:
    record = next(r for r in made.cpu_sweep() if r.timing is not None)
    assert record.timing is not None
    assert "wall" not in console.line(record, [record]).plain
    busy = record.timing.median_ms
    for wall_ms, words in ((1.5 * busy, "wall"), (3 * busy, "host-bound")):
        timing = record.timing.model_copy(update={"wall_samples_ms": [wall_ms], "wall_ms": wall_ms})
        told = console.line(record.model_copy(update={"timing": timing}), [record]).plain
        assert f"wall {console.milliseconds(wall_ms)}" in told
        assert words in told
        assert ("host-bound" in told) == (words == "host-bound")
