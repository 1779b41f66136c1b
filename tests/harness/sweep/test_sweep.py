"""A sweep survives what it measures: crashes, hangs, lost memory, kills; and goes on where it was."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.harness.cases import problems
from benchmarks.harness.ruler import sources
from benchmarks.harness.schema.record import Record, append, read
from benchmarks.harness.sweep import sweep as harness
from benchmarks.harness.worker import host as hosts
from benchmarks.harness.worker import process
from benchmarks.harness.worker.host import Host
from benchmarks.harness.worker.options import Options
from tests import ROOT
from tests import records_factory as made

QUICK = Options(budget_s=0.3, min_blocks=3, max_blocks=6)
PLANTED = """
import ctypes, os, signal
import torch
from pallatom.architecture.atom_transformers import AtomTransformerBlock
from variants import Backend, Cost, UnsupportedError

calls = 0

class Block(AtomTransformerBlock):
    def _attend(self, *x):
        global calls
        calls += 1
        {body}
        return super()._attend(*x)

BACKEND = Backend(block=Block, summary="planted by a test", devices=("cpu",), dtypes=(torch.float32,),
                  cost=lambda shape, mode: Cost(1, 1, {peak}))
"""
BODIES = {
    "segfault": "ctypes.string_at(0)",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "hangs": "open(__file__ + '.hangs', 'w').write(str(os.getpid())); signal.pause()",
    "memory": "raise MemoryError('no room for 7 bytes')",
    "torch_memory": "raise torch.OutOfMemoryError('no room on the device')",
    "huge": "torch.empty(1 << 60)",
    "bug": "raise ZeroDivisionError('a bug of ours')",
    # what an illegal access does to a CUDA context: nothing in this process works any more
    "poisons": "from benchmarks.harness.gate.failures import DevicePoisoned; raise DevicePoisoned('illegal access')",
    "refuses": "raise UnsupportedError(['one reason', 'another reason'])",
    "wrong": "return super()._attend(*x) * 1.01",
    "dies_late": "calls > 8 and ctypes.string_at(0)",
    "raises_late": "assert calls < 9, 'late'",
}


def plant(folder: Path, name: str, body: str, peak: int = 1000) -> str:
    path = folder / f"{name}.py"
    path.write_text(PLANTED.format(body=body, peak=peak))
    return str(path)


def groups_of(backends: tuple[str, ...], **axes) -> list[harness.Group]:
    asked = {"n_atom": (64,), "window": (8,), "mode": ("fwd",)} | axes
    return harness.plan(problems.grid(problems.Axes(), **asked), backends)


class Watch:
    """The parent's watch: an hour passes at every look while something hangs, and else as much as a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, hangs: Path) -> None:
        self.hangs = hangs.with_suffix(".py.hangs")
        self.now = 0.0
        for module in (harness, hosts, process):
            monkeypatch.setattr(module, "time", self)

    def monotonic(self) -> float:
        pid = self.hangs.read_text() if self.hangs.exists() else ""
        self.now += 3600.0 * (pid != "" and Path(f"/proc/{pid}").exists())
        return self.now


@pytest.fixture(scope="module")
def host():
    with Host(threads=1) as shared:
        yield shared


ENDS = {
    "segfault": ("crashed", "SIGSEGV"),
    "killed": ("crashed", "SIGKILL"),
    "hangs": ("timeout", "first call took longer than 300 s"),
    "memory": ("oom", "no room for 7 bytes"),
    "torch_memory": ("oom", "no room on the device"),
    "huge": ("oom", "can't allocate memory"),
    "bug": ("crashed", "a bug of ours"),
    "poisons": ("crashed", "exit code 3"),
    "refuses": ("unsupported", "one reason; another reason"),
    "wrong": ("wrong", "beyond tolerance"),
    "dies_late": ("crashed", "in phase: timing"),
    "raises_late": ("crashed", "while timed"),
    "too_large": ("oom", "oom (predicted): needs"),
    "gather": ("ok", ""),
    "banded": ("ok", ""),
}


def test_one_bad_cell_never_costs_the_others(tmp_path: Path, host: Host, monkeypatch) -> None:
    """One problem, all that can go wrong with it, and two good backends around: each cell ends in its own status."""
    Watch(monkeypatch, tmp_path / "hangs.py")
    planted = tuple(plant(tmp_path, name, body) for name, body in BODIES.items())
    too_large = plant(tmp_path, "too_large", "pass", peak=1 << 50)
    settings = harness.Settings(out=tmp_path / "records.jsonl", options=QUICK)
    groups = groups_of(("gather", *planted, too_large, "banded"))
    outcome = harness.Sweep(groups, settings, host=host).run()

    records = {record.backend: record for record in outcome.records}
    assert outcome.unfinished == 0
    assert {name: record.status for name, record in records.items()} == {n: status for n, (status, _) in ENDS.items()}
    for name, (status, reason) in ENDS.items():
        assert reason in (records[name].reason or ""), name
        assert (records[name].timing is not None) == (status == "ok"), name
    check_errors_are_whole_and_portable(records)
    check_survivors_are_pairs([records["gather"], records["banded"]])
    assert {r.key: r for r in read(tmp_path / "records.jsonl")} == {r.key: r for r in records.values()}


def check_errors_are_whole_and_portable(records: dict[str, Record]) -> None:
    assert "Traceback" in (records["bug"].error or "")
    assert "ZeroDivisionError: a bug of ours" in (records["bug"].error or "")
    assert "illegal access" in (records["poisons"].error or "")
    assert "Segmentation fault" in (records["segfault"].error or "")
    assert not any(str(ROOT) in (record.error or "") for record in records.values())


def check_survivors_are_pairs(good: list[Record]) -> None:
    assert len({record.group for record in good}) == 1
    timings = [record.timing for record in good if record.timing is not None]
    assert sum(timing.aa_samples_ms is not None for timing in timings) >= 1  # the fastest, and who has time for it
    for record in good:
        assert record.gate is not None
        assert record.gate.errors_after
        assert record.limit is not None
        assert record.limit.percent is not None
        assert record.limit.percent > 0
        assert record.memory is not None
        assert record.memory.peak_bytes


def test_a_death_while_a_graph_is_captured_costs_the_graphs_and_no_cell() -> None:
    group = groups_of(("banded", "dense"))[0]
    notices: list[str] = []
    observer = harness.Observer()
    observer.notice = notices.append
    sweep = harness.Sweep([group], harness.Settings(out=None), observer)
    pending = harness.Pending(group, ["banded", "dense"], "group")
    assert sweep._options().graphs
    sweep._blame(pending, ("banded", "graph"), "crashed", "the worker was ended by SIGSEGV", "")
    assert pending.cells == {}
    assert not sweep._options().graphs
    assert "no more CUDA graphs" in notices[0]
    sweep._blame(pending, ("banded", "timing"), "crashed", "the worker was ended by SIGSEGV", "tail")
    assert {name: cell["status"] for name, cell in pending.cells.items()} == {"banded": "crashed"}


def test_an_oversized_cell_is_tried_when_told_to(tmp_path: Path, host: Host) -> None:
    backend = plant(tmp_path, "claims_much", "pass", peak=1 << 50)
    options = Options(budget_s=0.2, min_blocks=3, max_blocks=3, try_oversized=True)
    outcome = harness.Sweep(groups_of((backend,)), harness.Settings(out=None, options=options), host=host).run()
    assert [r.status for r in outcome.records] == ["ok"]


def test_a_problem_whose_inputs_alone_do_not_fit_is_never_built(host: Host) -> None:
    groups = groups_of(("banded",), n_atom=(1_000_000,), window=(512,))
    outcome = harness.Sweep(groups, harness.Settings(out=None, options=QUICK), host=host).run()
    assert outcome.records[0].status == "oom"
    assert "predicted" in outcome.records[0].reason


def test_a_second_run_measures_only_what_is_new(tmp_path: Path, host: Host) -> None:
    settings = harness.Settings(out=tmp_path / "r.jsonl", options=QUICK)
    first = harness.Sweep(groups_of(("banded",)), settings, host=host).run()
    second = harness.Sweep(groups_of(("banded",), n_atom=(64, 96)), settings, host=host).run()
    assert len(first.made) == len(second.made) == 1
    assert {r.problem.n_atom for r in second.records} == {64, 96}
    again = harness.Settings(out=settings.out, options=QUICK, fresh=True)
    assert len(harness.Sweep(groups_of(("banded",)), again, host=host).run().made) == 1


@pytest.fixture(scope="module")
def on_file(host: Host, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    """One cell, measured, and the file that holds it."""
    out = tmp_path_factory.mktemp("on_file") / "r.jsonl"
    (cell,) = harness.Sweep(groups_of(("banded",)), harness.Settings(out=out, options=QUICK), host=host).run().made
    return out, cell


def waiting(out: Path, host: Host, options: Options = QUICK, backend: str = "banded") -> int:
    """How many of the cells a sweep would measure, with this file before it."""
    sweep = harness.Sweep(groups_of((backend,)), harness.Settings(out=out, options=options), host=host)
    return len(sweep.groups) - len(sweep._on_file())


class Elsewhere(Host):
    """The same machine, but for what it says of itself."""

    def __init__(self, host: Host, **said: object) -> None:
        super().__init__()
        self._described = {"cpu": host.describe("cpu") | said}


def test_what_a_record_says_of_itself_is_all_that_a_number_hangs_on(on_file, host: Host) -> None:
    out, cell = on_file
    where = cell.provenance
    assert where.ruler == sources.ruler_hash()
    assert where.tuned is None
    assert where.options is not None
    assert where.options | {"budget_s": 0.3, "min_blocks": 3, "max_blocks": 6} == where.options
    assert "limits_s" not in where.options
    assert waiting(out, host) == 0, "nothing has changed"
    assert waiting(out, host, replace(QUICK, limits_s={"gate": 1.0})) == 0, "a limit changes no number"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("commit", "f" * 40),
        ("code", "0" * 16),
        ("ruler", "0" * 16),
        ("tuned", "0" * 16),
        ("machine", "another"),
        ("cpu", "another"),
        ("driver", "580.1"),
        ("dirty", "flipped"),
    ],
)
def test_a_cell_from_another_place_is_measured_again(on_file, host: Host, name: str, value: str) -> None:
    out, cell = on_file
    said = not cell.provenance.dirty if value == "flipped" else value
    assert waiting(out, Elsewhere(host, **{name: said})) == 1


@pytest.mark.parametrize("library", ["torch", "triton", "numpy", "python"])
def test_another_version_of_a_library_is_another_place(on_file, host: Host, library: str) -> None:
    versions = host.describe("cpu")["versions"]
    assert waiting(on_file[0], Elsewhere(host, versions=versions | {library: "0.0.1"})) == 1
    assert waiting(on_file[0], Elsewhere(host, versions=versions | {library: None})) == 1


@pytest.mark.parametrize("change", [{"budget_s": 0.4}, {"gate_pairs": 64}, {"try_oversized": True}, {"speed": False}])
def test_what_was_asked_for_otherwise_is_measured_again(on_file, host: Host, change: dict) -> None:
    assert waiting(on_file[0], host, replace(QUICK, **change)) == 1


def test_other_threads_and_another_tuned_file_are_measured_again(
    on_file, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told by real processes: nothing is faked here."""
    tuned = tmp_path / "tuned.json"
    tuned.write_text('{"format": 2, "entries": {}}')
    with Host(threads=2) as two:
        assert waiting(on_file[0], two) == 1
    monkeypatch.setenv("PALLATOM_TRITON_TUNED", str(tuned))
    out = tmp_path / "r.jsonl"
    settings = harness.Settings(out=out, options=QUICK)
    with Host(threads=1) as one:
        assert waiting(on_file[0], one) == 1
        harness.Sweep(groups_of(("banded",)), settings, host=one).run()
        assert waiting(out, one) == 0
    tuned.write_text('{"format": 2, "entries": {} }')
    with Host(threads=1) as edited:
        assert waiting(out, edited) == 1


def test_a_backend_of_the_users_own_that_was_edited_is_measured_again(tmp_path: Path, host: Host) -> None:
    out, mine = tmp_path / "r.jsonl", plant(tmp_path, "mine", "pass")
    settings = harness.Settings(out=out, options=QUICK)
    harness.Sweep(groups_of((mine,)), settings, host=host).run()
    assert waiting(out, host, backend=mine) == 0
    plant(tmp_path, "mine", "pass  # another text of the same file")
    assert waiting(out, host, backend=mine) == 1


def test_a_record_that_does_not_say_is_not_the_same(on_file, host: Host, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    for lacking in ("ruler", "options"):
        append(out, [with_provenance(on_file[1], **{lacking: None})])
    assert waiting(out, host) == 1
    append(out, [on_file[1]])
    assert waiting(out, host) == 0


def test_a_record_of_another_device_costs_a_sweep_nothing(on_file, tmp_path: Path) -> None:
    """A GPU's records, on a machine that has none, between and after what is on file here."""
    out = tmp_path / "r.jsonl"
    there = made.group(made.CUDA, made.problem(device="cuda", dtype="bfloat16"), backends=["gather", "banded"])
    append(out, [*there, on_file[1], *there])
    with Host(threads=1) as host:
        outcome = harness.Sweep(groups_of(("banded",)), harness.Settings(out=out, options=QUICK), host=host).run()
    assert (len(outcome.made), len(outcome.records)) == (0, 1)
    assert len(list(read(out))) == 5


def test_a_status_of_another_machine_takes_nothing_from_what_is_on_file(on_file, host: Host, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    crashed = {"status": "crashed", "reason": "there", "gate": None, "timing": None, "memory": None, "limit": None}
    elsewhere = with_provenance(on_file[1], machine="another")
    append(out, [on_file[1], Record.model_validate(elsewhere.model_dump() | crashed)])
    settings = harness.Settings(out=out, options=QUICK, retry=frozenset({"crashed"}))
    assert len(harness.Sweep(groups_of(("banded",)), settings, host=host)._on_file()) == 1
    append(out, [Record.model_validate(on_file[1].model_dump() | crashed)])
    assert harness.Sweep(groups_of(("banded",)), settings, host=host)._on_file() == {}


def with_provenance(record: Record, **changes: object) -> Record:
    return record.model_copy(update={"provenance": record.provenance.model_copy(update=changes)})


def test_a_budget_ends_in_time_with_complete_cells(tmp_path: Path, host: Host, monkeypatch) -> None:
    """Six problems of 6 s each by the parent's watch, of which the third hangs: two are done, nobody is blamed."""
    body = f"if x[0].shape[1] == 96: {BODIES['hangs']}"
    hangs = plant(tmp_path, "hangs", body)
    watch = Watch(monkeypatch, Path(hangs))
    observer = harness.Observer()

    def recorded(records: list[Record]) -> None:
        watch.now += 6.0 * bool(records)

    monkeypatch.setattr(observer, "recorded", recorded)
    groups = groups_of(("banded", hangs), n_atom=(64, 80, 96, 112, 128, 144))
    settings = harness.Settings(out=tmp_path / "r.jsonl", options=QUICK, budget_s=15)
    outcome = harness.Sweep(groups, settings, observer, host).run()
    on_file = list(read(tmp_path / "r.jsonl"))
    assert [(r.problem.n_atom, r.status) for r in on_file] == [(n, "ok") for n in (64, 64, 80, 80)]
    assert (len(outcome.made), outcome.unfinished) == (4, 8)
    assert outcome.seconds >= 12.0 + 3600.0


@pytest.mark.parametrize("killer", [0, 2])
def test_the_one_in_flight_is_blamed_however_long_its_path_is(tmp_path: Path, host: Host, killer: int) -> None:
    """A note is overwritten by the next: of a longer one nothing may be left, nor may it be cut."""
    deep = tmp_path.joinpath(*["a folder with a long name, größer als 64 Zeichen" * 3] * 8)
    deep.mkdir(parents=True)
    planted = [plant(deep, "honest", "pass"), plant(deep, "too", "pass"), plant(tmp_path, "near", "pass")]
    planted.insert(killer, plant(deep if killer == 0 else tmp_path, "killer", BODIES["killed"]))
    assert len(planted[0]) > 1000
    outcome = harness.Sweep(groups_of((*planted, "banded")), harness.Settings(out=None, options=QUICK), host=host).run()
    ends = {record.backend: record.status for record in outcome.records}
    assert ends == {"killer": "crashed"} | dict.fromkeys(("honest", "too", "near", "banded"), "ok")
    (dead,) = (record for record in outcome.records if record.status == "crashed")
    assert dead.reason is not None
    assert "in phase: first call" in dead.reason


def test_planning_needs_no_torch() -> None:
    script = (
        "import sys; from benchmarks.harness.sweep import sweep; "
        "from benchmarks.harness.cases import problems as p; "
        "import benchmarks.commands; sweep.plan([p.Axes(n_atom=1000)], ('gather',)); "
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_a_plan_has_no_problem_twice_and_begins_with_the_smallest() -> None:
    groups = groups_of(("gather",), n_atom=(512, 64, 512), window=(16, 4))
    assert len(groups) == 4
    assert [harness.work(g.problem) for g in groups] == sorted(harness.work(g.problem) for g in groups)
    index = groups_of(("gather", "banded"), level=("index",), mode=("fwd", "fwdbwd"))
    assert [g.backends for g in index] == [("build_sparse_pairs",)]
