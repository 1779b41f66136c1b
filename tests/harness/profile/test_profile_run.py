"""Profiles are made in a worker that may die, once per commit and machine, and cost the sweep nothing."""

from __future__ import annotations

import gzip
import io
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from benchmarks.commands import app, pipeline
from benchmarks.harness.profile.profiles import Profiles, settings
from benchmarks.harness.schema.profile import PROFILES, Profile, scan_profiles
from benchmarks.harness.schema.record import Record
from benchmarks.harness.sweep import sweep as harness
from benchmarks.harness.worker import trace
from benchmarks.harness.worker.host import Host
from benchmarks.harness.worker.kernel_names import OUTSIDE
from benchmarks.harness.worker.options import Options
from tests import records_factory as made
from tests.harness.profile.test_profile import a_profile
from tests.harness.sweep.test_sweep import groups_of, plant

ENDS = {
    "gather": ("ok", None),
    "wrong": ("wrong", "beyond tolerance"),
    "segfault": ("crashed", "SIGSEGV"),
    "refuses": ("unsupported", "one reason; another reason"),
    "bug": ("crashed", "a bug of ours"),
    "too_large": ("oom", "oom (predicted)"),
    "banded": ("ok", None),
}


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host(threads=1) as shared:
        yield shared


class Told(harness.Observer):
    def __init__(self) -> None:
        self.names: list[str] = []

    def recorded(self, records: list) -> None:
        self.names += [one.backend for one in records]


@pytest.fixture(scope="module")
def ran(host: Host, tmp_path_factory) -> tuple[Path, harness.Group, list[Profile]]:
    """Two good backends among all that can go wrong, profiled into a folder."""
    from tests.harness.sweep.test_sweep import BODIES

    folder = tmp_path_factory.mktemp("profiles")
    specs = [
        plant(folder, name, BODIES.get(name, "pass"), peak=1 << 50 if name == "too_large" else 1000)
        if name not in ("gather", "banded") else name
        for name in ENDS
    ]  # fmt: skip
    group = groups_of(tuple(specs), mode=("fwdbwd",))[0]
    told = Told()
    found = Profiles([group], settings(folder / "out"), told, host).run().records
    assert sorted(told.names) == sorted(ENDS)
    return folder / "out", group, found


def test_one_bad_backend_costs_no_profile_of_another(ran) -> None:
    folder, _, found = ran
    assert {one.backend: one.status for one in found} == {name: status for name, (status, _) in ENDS.items()}
    for one in found:
        assert (one.breakdown is not None) == (one.status == "ok")
        assert (ENDS[one.backend][1] or "") in (one.reason or "")
    assert {one.key: one for one in scan_profiles(folder / PROFILES) if isinstance(one, Profile)} == {
        one.key: one for one in found
    }


def test_a_profile_tells_time_memory_and_limit(ran) -> None:
    one = next(one for one in ran[2] if one.backend == "gather")
    b = one.breakdown
    assert b is not None
    assert sum(b.kinds.values()) == pytest.approx(1, abs=0.01)
    assert b.calls >= 2
    assert {"bmm", "index"} <= {row.short for row in b.rows}
    assert [row.ms for row in b.rows] == sorted((row.ms for row in b.rows), reverse=True)
    assert b.peak_bytes
    assert b.peak_op
    assert one.limit is not None
    assert one.limit.percent is not None
    assert b.rows[0].floors == pytest.approx(b.rows[0].ms / one.limit.floor_ms)
    assert "% of the call" in one.summary


def test_the_trace_opens_and_agrees(ran) -> None:
    folder, _, found = ran
    one = next(one for one in found if one.backend == "banded")
    assert one.trace is not None
    packed = (folder / one.trace).read_bytes()
    assert len(packed) < 1_000_000
    text = gzip.decompress(packed).decode()
    assert str(Path.home()) + "/" not in text
    again = trace.analyse(json.loads(text)["traceEvents"], "cpu")
    assert OUTSIDE in trace.shares(again, "cpu", None).kinds
    assert {row.name for row in one.breakdown.rows[:3]} <= {item.name for item in again.items}  # type: ignore[union-attr]


def test_what_is_on_file_is_not_profiled_again_but_a_crash_is(ran, host: Host, monkeypatch) -> None:
    folder, group, found = ran
    asked: list[list[str]] = []
    ask = host.ask

    def listening(what: str, **arguments):
        if what == "profile":
            asked.append([Path(spec).stem for spec in arguments["backends"]])
        return ask(what, **arguments)

    monkeypatch.setattr(host, "ask", listening)
    again = Profiles([group], settings(folder), Told(), host).run().records
    assert set(asked[0]) == {name for name, (status, _) in ENDS.items() if status not in ("ok", "unsupported")}
    assert len(again) == len(found)

    moved = {"commit": "another", **{k: v for k, v in host.describe("cpu").items() if k != "commit"}}
    monkeypatch.setattr(host, "describe", lambda device: moved)
    asked.clear()
    only = replace(group, backends=("gather",))
    Profiles([only], settings(folder), Told(), host).run()
    assert asked == [["gather"]], "another commit's profile does not count"


def test_a_profile_that_never_ends_costs_its_time_only(host: Host, tmp_path: Path) -> None:
    hangs = plant(tmp_path, "hangs", "while True: pass")
    groups = groups_of((hangs, "gather"))
    for seconds in (4, -1):
        asked = settings(tmp_path / "out", until=time.monotonic() + seconds)
        outcome = Profiles(groups, asked, Told(), host).run()
        assert (outcome.records, outcome.unfinished) == ([], 2)
    assert not (tmp_path / "out" / PROFILES).exists()


def test_the_command_prints_json_and_nothing_else(tmp_path: Path) -> None:
    call = ["profile", "banded", "-n", "64", "--window", "8", "--device", "cpu", "--threads", "1"]
    result = CliRunner().invoke(app, [*call, "--json", "--counters", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    on_file = list(scan_profiles(tmp_path / PROFILES))
    assert printed == [one.model_dump(mode="json") for one in on_file if isinstance(one, Profile)]
    assert printed[0]["counters"]["reason"] == "counters are a GPU's; this is the CPU"
    assert "× floor" in result.stderr
    assert "outside torch's operators" in result.stderr


@pytest.mark.parametrize(("status", "code"), [("wrong", 1), ("crashed", 1), ("timeout", 1), ("unsupported", 0)])
def test_the_exit_code_says_whether_something_failed(monkeypatch, status: str, code: int) -> None:
    failed = a_profile(status=status, reason="for a reason")

    def run(self) -> harness.Outcome[Profile]:
        self.observer.recorded([failed])
        return harness.Outcome([failed], [failed], 0, 1.0)

    monkeypatch.setattr(pipeline.profiles.Profiles, "run", run)
    result = CliRunner().invoke(app, ["profile", "banded", "-n", "64", "--device", "cpu"])
    assert result.exit_code == code
    assert f"{status} for a reason" in result.output
    assert "of the call" not in result.output


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["profile"], ["Missing argument"]),
        (["profile", "nothing"], ["--backend", "'nothing'"]),
        (["profile", "gather", "--out", __file__], ["--out", "expected a folder"]),
        (["profile", "gather", "--mode", "backwards", "--device", "cpu"], ["--mode", "'backwards'"]),
    ],
)
def test_bad_input_is_told_with_exit_code_2(arguments: list[str], names: list[str]) -> None:
    result = CliRunner().invoke(app, arguments, terminal_width=300)
    assert result.exit_code == 2, result.output
    assert all(name in result.output for name in names), result.output
    assert "Traceback" not in result.output


class World:
    """A GPU that is not here: sweeps that use up their budget, profiles that are made up, a clock that runs on."""

    def __init__(self, monkeypatch, tmp_path: Path) -> None:
        self.now, self.steps, self.out = 1000.0, [], tmp_path
        self.reported: float | None = None
        monkeypatch.setattr(pipeline.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(pipeline.opt, "one_device", lambda asked, host: "cuda")
        monkeypatch.setattr(pipeline.doctor, "examine", self.examine)
        monkeypatch.setattr(pipeline.doctor, "render", lambda found, console: None)
        monkeypatch.setattr(pipeline.harness, "Sweep", self.sweep)
        monkeypatch.setattr(pipeline.profiles, "Profiles", self.profiles)
        monkeypatch.setattr(pipeline, "_report", self.report)

    @staticmethod
    def examine(host, devices, *, rates):
        facts = {"backends": {name: {"compiles": name == "flex"} for name in ("flex", "gather")}}
        return {"devices": dict.fromkeys(devices, facts)}

    def sweep(self, groups, settings, observer, host):
        world = self

        class Swept:
            def run(self) -> harness.Outcome:
                world.now += settings.budget_s
                kind = "sweep" if settings.options.speed else "gate"
                world.steps.append((kind, groups[0].problem.device, settings.budget_s, settings.out.name))
                records: list[Record] = []
                for group in groups if kind == "sweep" else []:
                    machine = made.CUDA if group.problem.device == "cuda" else made.CPU
                    records += made.group(machine, group.problem, backends=("gather", "banded", "dense"))
                return harness.Outcome(records, records, 0, settings.budget_s)

        return Swept()

    def profiles(self, groups, settings, observer, host):
        world = self

        class Profiled:
            def run(self) -> harness.Outcome[Profile]:
                left = settings.budget_s
                world.steps.append(("profile", groups[0].problem.device, left, [g.backends for g in groups]))
                if world.broken is not None:
                    raise world.broken
                world.now += min(left, 20.0)
                found = [a_profile(name) for g in groups for name in g.backends]
                observer.recorded(found)
                return harness.Outcome(found, found, 0, 20.0)

        return Profiled()

    broken: Exception | None = None

    def report(self, console, out, ends) -> None:
        self.reported = ends - self.now


@pytest.mark.parametrize("broken", [None, RuntimeError("the profiler broke")])
def test_bench_with_a_gpu_measures_both_devices_and_leaves_time_for_the_page(monkeypatch, tmp_path, broken) -> None:
    world = World(monkeypatch, tmp_path)
    world.broken = broken
    result = CliRunner().invoke(app, ["bench", "--out", str(tmp_path), "--budget-s", "285"])
    assert result.exit_code == 0, result.output
    done = [(kind, device) for kind, device, *_ in world.steps]
    assert done[:3] == [("sweep", "cuda"), ("profile", "cuda"), ("sweep", "cuda")]
    assert done[-2:] == [("gate", "cpu"), ("sweep", "cpu")]
    profiled = next(step for step in world.steps if step[0] == "profile")
    assert profiled[2] == pytest.approx(min(pipeline.PROFILE_S, pipeline.PROFILE_SHARE * 285))
    assert [set(pair) for pair in profiled[3]] == [{"banded", "dense"}] * 2
    on_gpu = sum(step[2] for step in world.steps if step[1] == "cuda" and step[0] != "profile")
    assert on_gpu + (20 if broken is None else 0) == pytest.approx(0.6 * (285 - pipeline.REPORT_S))
    assert world.reported is not None
    assert world.reported >= pipeline.REPORT_S - 1e-6
    assert ("The profiles stopped" in result.output) == (broken is not None)
    assert {step[3] for step in world.steps if step[0] != "profile"} == {"gate.jsonl", "records.jsonl"}


@pytest.mark.parametrize("budget_s", [60, 120, 540])
def test_the_gpu_run_reaches_its_profiles_whatever_the_sweep_takes(monkeypatch, tmp_path, budget_s: int) -> None:
    world = World(monkeypatch, tmp_path)
    result = CliRunner().invoke(app, ["gpu", "--out", str(tmp_path), "--budget-s", str(budget_s)])
    assert result.exit_code == 0, result.output
    assert [step[0] for step in world.steps[:2]] == ["sweep", "profile"]
    assert world.steps[1][2] == pytest.approx(min(pipeline.PROFILE_S, pipeline.PROFILE_SHARE * budget_s))
    assert world.now <= 1000 + budget_s
    assert "No time is left" in result.output, "the later stages say so"


def test_nothing_measured_means_nothing_profiled(monkeypatch) -> None:
    said = io.StringIO()
    groups = groups_of(("gather",))
    monkeypatch.setattr(pipeline.profiles, "Profiles", None)
    pipeline._profiles(Console(file=said), groups, Options(), [], Path("unused"), 0.0, Host())
    assert "none of its problems has a time yet" in said.getvalue()
