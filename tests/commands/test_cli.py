"""The command line: help for a newcomer, one line for bad input, exit codes that mean something."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.commands import app, compare, console, pipeline, programmes
from benchmarks.harness.schema.profile import Profile, scan_profiles
from benchmarks.harness.schema.record import Record, append, read
from benchmarks.harness.worker import host
from tests import ROOT
from tests import records_factory as made

COMMANDS = ("doctor", "check", "sweep", "compare", "profile", "regress", "bench", "gpu", "inspect", "tune")
QUICK = ("-n", "64", "--window", "8", "--device", "cpu", "--threads", "1")


def group(*backends: str, n_atom: int = 2048) -> list[Record]:
    return made.group(made.CPU, made.problem(n_atom=n_atom), backends=backends)


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=2500, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], terminal_width=200)
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 8


def test_no_command_shows_all_of_them() -> None:
    result = CliRunner().invoke(app, [])
    assert all(command in result.output for command in COMMANDS)
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["sweep", "--workload", "nothing"], ["--workload", "ubiquitin", "'nothing'"]),
        (["sweep", "--backend", "nothing"], ["--backend", "gather", "'nothing'"]),
        (["sweep", "--backend", "./nothing.py"], ["--backend", "nothing.py", "does not exist"]),
        (["sweep", "--window", "0"], ["--window", "at least 1", "0"]),
        (["sweep", "--n-atom", "many"], ["--n-atom", "whole numbers", "'many'"]),
        (["sweep", "--heads", "3"], ["--heads", "divisor of c_atom = 128", "3"]),
        (["sweep", "--dtype", "int8"], ["--dtype", "float32", "'int8'"]),
        (["sweep", "--level", "galaxy"], ["--level", "attention", "'galaxy'"]),
        (["sweep", "--mode", "backwards"], ["--mode", "fwdbwd", "'backwards'"]),
        (["sweep", "--atoms", "heavy,all"], ["--atoms", "atom14", "'all'"]),
        (["sweep", "--window-style", "round"], ["--window-style", "blocks", "'round'"]),
        (["sweep", "--level", "encoder", "--k", "64"], ["--k", "encoder"]),
        (["sweep", "--device", "tpu"], ["--device", "cuda", "'tpu'"]),
        (["sweep", "--retry", "sad"], ["--retry", "crashed", "'sad'"]),
        (["sweep", "--structure", "/no/such/file.cif"], ["/no/such/file.cif"]),
        (["sweep", "--out", "tests"], ["--out", "tests", "folder"]),
        (["sweep", "--threads", "0"], ["--threads"]),
        (["compare", "gather", "gather"], ["two different backends"]),
        (["compare", "gather", "banded", "--records", "no-such-file"], ["--records", "no-such-file"]),
        (["check", "--k", "-4"], ["--k", "at least 1"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], names: list[str], monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    device = [] if "--device" in arguments or arguments[0] not in ("sweep", "check") else ["--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, *device], terminal_width=300)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert all(name in result.output for name in names), result.output


UNWRITABLE = {
    "below a file": "README.md/records",
    "a device": "/dev/full",
    "below a device": "/dev/null/records",
    "no folder of the kernel's": "/proc/records/records",
    "a name too long": "a" * 300,
    "a path too long": "a/" * 3000 + "b",
}


@pytest.mark.parametrize("out", UNWRITABLE.values(), ids=UNWRITABLE)
@pytest.mark.parametrize(
    "command",
    [
        ("sweep", "--device", "cpu", "--out"),
        ("profile", "gather", "--device", "cpu", "--out"),
        ("bench", "--out"),
        ("gpu", "--device", "cpu", "--out"),
        ("inspect", "--out"),
        ("regress", "HEAD", "--measure-same", "--out"),
        ("regress", "HEAD", "--markdown"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_written_is_refused_before_anything_is_measured(
    command: tuple[str, ...], out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*arguments: object, **options: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(host, "Worker", started)
    result = CliRunner().invoke(app, [*command, out], terminal_width=300)
    assert result.exit_code == 2, result.output
    assert len(result.output.strip().splitlines()) == 1
    assert f"{command[-1]}: expected a f" in result.output


def test_a_read_only_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere but there."""

    def read_only(path: Path, *arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "open", read_only)
    result = CliRunner().invoke(app, ["sweep", "--device", "cpu", "-n", "64", "--out", str(tmp_path / "r.jsonl")])
    assert result.exit_code == 2
    assert "Read-only file system" in result.output


def test_a_disk_that_fills_up_ends_a_sweep_in_one_line(tmp_path: Path) -> None:
    """As seen through a limit on the size of files, which comes on the way as a full disk does."""
    out = tmp_path / "r.jsonl"
    append(out, group("gather"))
    before = out.read_bytes()
    script = (
        "import resource, runpy, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)\n"
        "runpy.run_module('benchmarks', run_name='__main__', alter_sys=True)\n"
    )
    call = [sys.executable, "-c", script, str(len(before) + 1000), "sweep", *QUICK, "-b", "banded", "--out", str(out)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith(f"error: {out}: ")
    assert out.read_bytes() == before


def test_cuda_where_there_is_none_is_bad_input() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    result = run("sweep", "--device", "cuda")
    assert result.returncode == 2
    assert "--device: cuda was asked for" in result.stderr


def test_records_that_are_none_are_bad_input(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("this is no record\n")
    result = CliRunner().invoke(app, ["compare", "gather", "banded", "--records", str(path)])
    assert result.exit_code == 2
    assert "r.jsonl:1" in result.output


def test_plan_shows_what_would_run_and_runs_nothing(tmp_path: Path) -> None:
    result = run("sweep", *QUICK, "--plan", "-b", "gather,banded", "--out", str(tmp_path / "r.jsonl"))
    assert result.returncode == 0
    assert re.search(
        r"attention fwd fp32 cpu  synthetic atom14  N = 64  W = 8  K = \d+ \| gather, banded", result.stdout
    )
    assert not (tmp_path / "r.jsonl").exists()


def test_json_of_a_sweep_is_the_records_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    result = run("sweep", *QUICK, "-b", "gather,banded", "--group-budget-s", "0.2", "--out", str(out), "--json")
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed == [r.model_dump(mode="json") for r in read(out)]
    assert {r["backend"] for r in printed} == {"gather", "banded"}
    assert str(ROOT) not in out.read_text()
    assert "fastest" in result.stderr


def test_check_is_green_for_the_right_and_exit_code_1_for_the_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong_by_a_little.py"
    wrong.write_text(
        "import torch\n"
        "from pallatom.architecture.atom_transformers import AtomTransformerBlock\n"
        "from variants import Backend, Cost\n"
        "class Block(AtomTransformerBlock):\n"
        "    def _attend(self, *x):\n"
        "        return super()._attend(*x) * 1.001\n"
        "BACKEND = Backend(block=Block, summary='wrong', devices=('cpu',), dtypes=(torch.float32,),\n"
        "                  cost=lambda shape, mode: Cost(1, 1, 1))\n"
    )
    good = run("check", *QUICK, "-b", "gather,banded,dense", "--dtype", "float32")
    assert good.returncode == 0, good.stdout + good.stderr
    assert "Every gate is green" in good.stdout
    bad = run("check", *QUICK, "-b", f"banded,{wrong}", "--dtype", "float32", "--json")
    assert bad.returncode == 1
    statuses = {(r["backend"], r["problem"]["level"]): r["status"] for r in json.loads(bad.stdout)}
    assert statuses == {
        ("banded", "attention"): "ok",
        ("banded", "block"): "ok",
        ("wrong_by_a_little", "attention"): "wrong",
        ("wrong_by_a_little", "block"): "wrong",
    }


def test_doctor_tells_the_machine_and_every_reason() -> None:
    import variants

    result = run("doctor", "--device", "cpu", "--no-rates", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)["devices"]["cpu"]
    assert found["machine"]["cores"] >= 1
    assert set(found["backends"]) == set(variants.names())
    assert found["backends"]["gather"]["reasons"]["float32"] == {"fwd": [], "fwdbwd": []}
    fmha = found["backends"]["xformers_fmha"]["reasons"]["float32"]["fwd"]
    assert any("cuda is required, cpu was asked for" in reason for reason in fmha)


def test_compare_says_it_in_plain_words_with_its_interval() -> None:
    result = run("compare", "banded", "gather", *QUICK[:2], "--window", "32", *QUICK[4:], "--group-budget-s", "1")
    assert result.returncode == 0, result.stderr
    assert re.search(r"banded (is (faster|slower) than|and gather take)|undecided", result.stdout)
    assert re.search(
        r"Time of banded over gather: [\d.e+-]+ \(95% interval [\d.e+-]+ … [\d.e+-]+, \d+ paired", result.stdout
    )


def test_compare_pairs_within_a_group_only() -> None:
    first, second = group("gather", "banded"), group("gather", n_atom=4096)
    results = compare.pairs([*first, *second], "banded", "gather")
    assert [("ratio" in r) for r in results] == [True, False]
    assert 0.01 < results[0]["ratio"] < 0.1
    assert results[0]["verdict"] == "faster"
    assert re.search(r"banded is faster than gather, [\d.]+ times", compare.sentence(results[0]))
    assert "banded has no time" in compare.sentence(results[1])


FEW = """

_whole_programme = gpu_programme


def gpu_programme(device, compiling=frozenset()):
    whole = _whole_programme(device, compiling)
    return replace(whole, stages=[Stage(stage.kind, stage.groups[:1]) for stage in whole.stages])
"""


def test_the_gpu_run_does_its_whole_path_on_a_cpu_and_goes_on_where_it_ended(tmp_path: Path) -> None:
    """One problem of each stage, so that no budget ends it; what the second call lacks is what was taken away."""
    for name in ("pallatom", "variants", "benchmarks", "reports"):  # a copy: nobody edits it between the two calls
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "20*"))
    for name, text in (("programmes", FEW), ("pipeline", "\nPROFILE_S = 1000.0\n")):
        with open(tmp_path / "benchmarks" / "commands" / f"{name}.py", "a") as f:
            f.write(text)
    call = ("gpu", "--device", "cpu", "--out", "out", "--threads", "1", "--budget-s", "2000")
    first = run(*call, cwd=tmp_path)
    out = tmp_path / "out"
    assert (out / "doctor.json").exists(), first.stdout + first.stderr
    assert "Traceback" not in first.stderr
    assert "No time is left" not in first.stdout
    gate, swept = list(read(out / "gate.jsonl")), list(read(out / "records.jsonl"))
    assert gate
    assert all(r.timing is None for r in gate)
    assert any(r.timing is not None for r in swept)
    assert {r.problem.n_atom for r in swept} > {128}

    whole = {path: path.read_bytes().splitlines(keepends=True) for path in out.glob("*.jsonl")}
    assert {path.stem for path in whole} == {"gate", "records", "profiles"}
    for path, lines in whole.items():
        path.write_bytes(b"".join(lines[:-1]))
    second = run(*call, cwd=tmp_path)
    assert f"{len(gate) - 1} are on file already" in second.stdout
    for path, lines in whole.items():
        again = path.read_bytes().splitlines(keepends=True)
        assert again[: len(lines) - 1] == lines[:-1]
        assert len(again) == len(lines), path.stem
    for name, before in (("gate.jsonl", gate), ("records.jsonl", swept)):
        assert [record.key for record in read(out / name)] == [record.key for record in before]
    profiled = [found for found in scan_profiles(out / "profiles.jsonl") if isinstance(found, Profile)]
    assert len({one.key for one in profiled}) == len(profiled) == 2, "the second call repeats no profile"
    assert {one.problem.n_atom for one in profiled} == {128}
    assert (out / str(profiled[0].trace)).stat().st_size < 1_000_000
    assert "Where the time goes" in (out / "index.html").read_text(encoding="utf-8")


def test_the_programmes_cover_what_they_promise() -> None:
    on_gpu = programmes.gpu_programme("cuda")
    swept = [g.problem for g in on_gpu.groups("sweep")]
    assert {p.level for p in swept} >= {"attention", "block", "stack", "encoder"}
    assert {p.dtype for p in swept} == {"bfloat16", "float32", "float16"}
    assert {p.window for p in swept} >= {16, 32, 64, 128}
    assert max(p.n_atom for p in swept) == 1_000_000
    assert swept[0].dtype == "bfloat16"
    assert any(p.k_cap for p in swept)
    assert {(g.problem.level, g.problem.dtype) for g in on_gpu.groups("gate")} == {
        (level, dtype) for level in ("attention", "block") for dtype in ("bfloat16", "float32", "float16")
    }
    lean = programmes.gpu_programme("cuda", frozenset({"flex"}))
    cells = [(name, g.problem.key) for g in lean.groups("sweep") for name in g.backends]
    assert len(set(cells)) == len(cells)
    flex, gather = ({key for name, key in cells if name == wanted} for wanted in ("flex", "gather"))
    assert flex < gather
    assert [stage.kind for stage in lean.stages[:4]] == ["sweep", "profile", "sweep", "gate"]
    assert {g.problem.workload for g in lean.stages[2].groups[:5]} == {"ubiquitin", "gfp", "1bd2", "4jsv", "1aon"}
    pivot = {(16384, "fwd"), (16384, "fwdbwd")}
    for stage in lean.stages[:2]:
        assert {(g.problem.n_atom, g.problem.mode) for g in stage.groups} == pivot
    at_home = [g.problem for g in programmes.bench_programme("cpu").groups("sweep")]
    assert {"ubiquitin", "gfp", "1a28"} <= {p.workload for p in at_home}
    assert len({p.window for p in at_home}) > 1


def test_the_fastest_is_named_for_every_problem() -> None:
    said = pipeline.fastest([*group("gather", "banded"), *group("gather", n_atom=4096)])
    assert len(said) == 2
    assert "banded" in said[0]
    assert re.search(r"[\d.]+× faster than gather", said[0].plain)
    assert "gather" in said[1]


def test_a_table_has_a_row_per_problem_the_fastest_first() -> None:
    shown = console.table([*group("gather", "banded"), *group("gather", n_atom=4096)])
    assert shown.row_count == 2
    columns = {column.header: list(column.cells) for column in shown.columns}
    assert str(columns["1st"][0]).startswith("banded ")
    assert str(columns["1st"][1]).startswith("gather ")
    assert [str(cell) for cell in columns["2nd"]] == [f"gather {columns['gather'][0]}", ""]
