"""Records survive a kill at any byte, and nothing that is no record passes for one."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from benchmarks.harness.schema.problem import Problem
from benchmarks.harness.schema.record import (
    BadLine,
    CannotRecord,
    Gate,
    Limit,
    MalformedRecord,
    Provenance,
    Record,
    Timing,
    append,
    read,
    scan,
)
from tests import ROOT

PROBLEM = Problem(
    level="attention", mode="fwd", device="cpu", dtype="float32", workload="ubiquitin", atoms="heavy",
    n_atom=602, n_res=76, window=32, n_neighbor=270, live_pairs=150_000,
)  # fmt: skip
PROVENANCE = Provenance(
    commit="0" * 40, dirty=False, utc="2026-11-22T00:00:00+00:00", machine="m", cpu="Größe", cores=2,
    memory_bytes=1 << 34, gpu=None, driver=None, versions={"torch": "2.13.0", "xformers": None}, code="c",
    argv=["sweep"], seed=0, environment={"threads": 2},
)  # fmt: skip
GATE = Gate(
    passed=True, tolerance=1e-5, gradient_tolerance=None, errors={"output": 1e-7}, rows_checked=602,
    rows_total=602, negative_control=1.0,
)  # fmt: skip
TIMING = Timing(
    samples_ms=[1.0, 1.1, 0.9], calls_per_sample=1, median_ms=1.0, ci_low_ms=0.9, ci_high_ms=1.1,
    half_width=0.1, stop="budget", cache="unspecified",
)  # fmt: skip


def make(backend: str = "gather", **fields: object) -> Record:
    given = {"status": "ok", "gate": GATE, "timing": TIMING} | fields
    return Record(run="r", group="g", backend=backend, problem=PROBLEM, provenance=PROVENANCE, **given)  # type: ignore[arg-type]


RECORDS = [make(), make("dense", reason="größer"), make("banded", status="oom", reason="no", gate=None, timing=None)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "records.jsonl"


def test_what_is_written_is_what_is_read(path: Path) -> None:
    append(path, RECORDS[:2])
    append(path, [])
    append(path, RECORDS[2:])
    assert list(read(path)) == RECORDS


def test_a_file_cut_at_any_byte_keeps_its_whole_records_and_can_be_continued(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # thousands of files: what it is for is not in question here
    append(path, RECORDS[:2])
    whole = path.read_bytes()
    ends = [i for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        expected = RECORDS[: sum(end <= cut for end in ends)]  # a record is whole without its newline too
        assert list(read(path)) == expected, cut
        append(path, RECORDS[2:])
        assert list(read(path)) == [*expected, RECORDS[2]], cut


def test_a_writer_that_is_killed_leaves_a_good_file(path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from tests.harness.schema.test_record import RECORDS\n"
        "from benchmarks.harness.schema.record import append\n"
        "print('go', flush=True)\n"
        "while True: append(Path(sys.argv[2]), RECORDS)\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(ROOT), str(path)], stdout=subprocess.PIPE) for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.readline()
    while path.read_bytes().count(b"\n") < 100:
        time.sleep(0.01)
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    found = list(scan(path))
    assert len(found) > 10
    assert all(isinstance(line, Record) or line.kind == "unfinished" for line in found)
    assert sum(isinstance(line, BadLine) for line in found) <= 2
    append(path, RECORDS[:1])
    assert list(read(path))[-1] == RECORDS[0]


def test_garbage_is_told_from_an_unfinished_line(path: Path) -> None:
    append(path, RECORDS[:1])
    with path.open("ab") as f:
        f.write(b"Traceback (most recent call last):\n\n" + path.read_bytes()[:60] + b"\n\xff\xfe\n{}\n[]\n7\n")
    append(path, RECORDS[1:2])
    found = list(scan(path))
    bad = [(line.number, line.kind) for line in found if isinstance(line, BadLine)]
    assert bad == [
        (2, "garbage"), (4, "unfinished"), (5, "garbage"), (6, "schema"), (7, "schema"), (8, "schema")
    ]  # fmt: skip
    assert [line for line in found if isinstance(line, Record)] == RECORDS[:2]
    with pytest.raises(MalformedRecord, match=r"records\.jsonl:2: not JSON.*Traceback"):
        list(read(path))


def test_another_schema_version_is_named(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(make().model_dump_json().replace('"schema_version":1', '"schema_version":2') + "\n")
    with pytest.raises(MalformedRecord, match=r":1: schema version 2, expected 1"):
        list(read(path))


def test_the_key_names_the_cell_and_nothing_else() -> None:
    assert make().key == make(timing=None, status="wrong", reason="x").key
    assert make().key != make("dense").key
    assert PROBLEM.key == Problem.model_validate_json(PROBLEM.model_dump_json()).key
    assert len({PROBLEM.model_copy(update={"window": w}).key for w in range(1, 50)}) == 49


@pytest.mark.parametrize("target", ["/dev/full", "a file/below", "a" * 300])
def test_what_cannot_be_added_leaves_all_as_it_was(path: Path, target: str) -> None:
    path.parent.mkdir()
    (path.parent / "a file").write_text("kept")
    with pytest.raises(CannotRecord, match="what it held before is intact"):
        append(path.parent / target, RECORDS)  # an absolute target stands for itself
    assert (path.parent / "a file").read_text() == "kept"


def test_a_disk_that_fills_up_within_a_write_costs_that_write_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(path, RECORDS[:2])
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CannotRecord, match=r"records\.jsonl: No space left on device"):
            append(path, RECORDS[2:])
    assert path.read_bytes() == before
    append(path, RECORDS[2:])
    assert list(read(path)) == RECORDS


HUGE = 10**400


@pytest.mark.parametrize(
    "change",
    [
        {"memory": {"peak_bytes": HUGE, "model_bytes": 1, "input_bytes": 1, "p_bytes": 1, "source": "s"}},
        {"first_call_ms": 1e300},
        {"problem": PROBLEM.model_dump() | {"seed": HUGE}},
        {"problem": PROBLEM.model_dump() | {"live_pairs": HUGE}},
        {"timing": TIMING.model_dump() | {"order_seed": -HUGE}},
        {"timing": TIMING.model_dump() | {"calls_per_sample": HUGE}},
        *(
            {"provenance": PROVENANCE.model_dump() | wrong}
            for wrong in (
                {"seed": HUGE},
                {"cores": HUGE},
                {"utc": "yesterday"},
                {"utc": "9" * 400},
                {"environment": {"l2_bytes": HUGE}},
                {"environment": {"start": {"load_1min": float("nan")}}},
                {"environment": {"throttle": [float("inf")]}},
                {"options": {"budget_s": float("nan")}},
                {"options": {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": 1}}}}}}}}}},
            )
        ),
    ],
    ids=lambda change: str(change)[:60],
)
def test_what_no_table_or_page_can_hold_is_no_record(path: Path, change: dict) -> None:
    fields = make().model_dump(mode="json") | change
    with pytest.raises(ValidationError):
        Record.model_validate(fields)
    path.parent.mkdir()
    path.write_text(json.dumps(fields) + "\n" + make().model_dump_json() + "\n")
    found = list(scan(path))
    assert [line.kind for line in found if isinstance(line, BadLine)] == ["schema"]
    assert len(found) == 2


def test_half_a_pair_is_no_text_and_a_whole_one_is(path: Path) -> None:
    path.parent.mkdir()
    line = make(reason="REASON").model_dump_json()
    path.write_text("".join(line.replace("REASON", reason) + "\n" for reason in (r"\ud83d", r"\ud83d\ude00", "Größe")))
    bad, *good = scan(path)
    assert isinstance(bad, BadLine)
    assert (bad.kind, bad.number) == ("schema", 1)
    assert [one.reason for one in good if isinstance(one, Record)] == ["\N{GRINNING FACE}", "Größe"]


@pytest.mark.parametrize(
    "line",
    [
        '{"schema_version":1,"plan_ms":1' + "0" * 5000 + "}",
        '{"schema_version":' + "[" * 100_000,
        "[" * 100_000,
    ],
    ids=["digits", "brackets of a record", "brackets"],
)
def test_digits_and_brackets_without_end_are_garbage_and_break_nothing(path: Path, line: str) -> None:
    path.parent.mkdir()
    path.write_text(line + "\n" + make().model_dump_json() + "\n")
    bad, good = scan(path)
    assert isinstance(bad, BadLine)
    assert bad.kind == "garbage"
    assert good == make()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"status": "oom", "reason": None, "gate": None, "timing": None}, "needs a reason"),
        ({"status": "wrong", "reason": "x"}, "a timing needs status ok"),
        ({"gate": None, "timing": None}, "needs a green gate"),
        ({"gate": GATE.model_copy(update={"passed": False})}, "a timing needs status ok and a green gate"),
        ({"plan_ms": float("nan")}, "plan_ms"),
        ({"first_call_ms": -1.0}, "first_call_ms"),
        ({"status": "fine"}, "status"),
        ({"speed": 3}, "speed"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make(**fields)


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        (TIMING, {"samples_ms": []}, "samples_ms"),
        (TIMING, {"samples_ms": [1.0, 0.0]}, "samples_ms"),
        (TIMING, {"ci_low_ms": 1.05}, "outside its interval"),
        (GATE, {"errors": {"output": None}}, "finite errors"),
        (GATE, {"errors_after": {"output": None}}, "finite errors"),
        (GATE, {"errors": {}}, "finite errors"),
        (GATE, {"negative_control": 1e-6}, "negative control would pass"),
    ],
)
def test_parts_that_contradict_themselves_are_refused(model: Timing | Gate, fields: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        type(model).model_validate(model.model_dump() | fields)


def test_a_red_gate_may_hold_what_is_not_finite() -> None:
    assert Gate.model_validate(GATE.model_dump() | {"passed": False, "errors": {"output": None}}).errors == {
        "output": None
    }


def test_a_limit_needs_rates_above_zero() -> None:
    with pytest.raises(ValidationError, match="bandwidth"):
        Limit(
            floor_bytes=1, floor_flops=1, bandwidth_bytes_per_s=0, rate_flops_per_s=1, floor_ms=1, bound="bytes",
            percent=None,
        )  # fmt: skip


def test_records_are_read_without_torch(path: Path) -> None:
    append(path, RECORDS)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from benchmarks.harness.ruler import statistics\n"
        "from benchmarks.harness.schema import record\n"
        "assert len(list(record.read(Path(sys.argv[2])))) == 3\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(ROOT), str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
