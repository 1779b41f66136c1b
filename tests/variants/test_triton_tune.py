"""Tuning without a GPU: a bench that only pretends decides what is kept, and the file holds through rough handling."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("triton")

from benchmarks.commands import app
from benchmarks.harness.cases import problems
from benchmarks.harness.sweep import sweep as harness
from benchmarks.harness.worker.host import Host
from benchmarks.harness.worker.options import Options
from tests import ROOT
from tests.variants.seam import seam
from variants.triton import tune as tuning
from variants.triton import tuned as file
from variants.triton.config import Config, Sizes
from variants.triton.tuned import Kernel, TunedFileError

USUAL = Sizes(torch.bfloat16, torch.bfloat16, 4, 32, 16)
FORWARD = Kernel("forward", "band", USUAL, 90)
FAST, WRONG, SPILLS, FAILS = tuning.candidates(FORWARD)[1:5]


class Pretend:
    """Every configuration takes 1 ms, FAST 0.5; some are bad, each in its way and each the fastest if it were timed."""

    device = "no GPU"

    def __init__(self, kernel: Kernel = FORWARD, ms: dict[Config, float] | None = None) -> None:
        self.shipped = kernel.shipped()
        self.ms = {FAST: 0.5, WRONG: 0.1, SPILLS: 0.1, FAILS: 0.1} if ms is None else ms
        self.ran: list[Config] = []

    def run(self, config: Config) -> Sequence[torch.Tensor]:
        self.ran.append(config)
        if config == FAILS:
            raise RuntimeError("out of resource: shared memory")
        result = torch.arange(1.0, 7.0)
        return result * (1.1 if config == WRONG else 1.0), torch.zeros(3)

    def median_ms(self, config: Config) -> float:
        return self.ms.get(config, 1.0)

    def spills(self, config: Config) -> int:
        return 40 if config in (SPILLS, self.shipped) else 0


@pytest.fixture(autouse=True)
def nothing_in_force(monkeypatch, tmp_path: Path):
    """No file, no autotuning, a cache folder of this test's own, and a process that has tuned nothing yet."""
    for name in (file.TUNED_FILE, file.AUTOTUNE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "_process", tuning.Process())
    file.forget()
    file._warn_if_stale.cache_clear()
    yield
    file.forget()


def test_the_fastest_of_the_sound_ones_is_kept() -> None:
    bench = Pretend()
    done = tuning.tune_kernel(FORWARD, bench)
    assert done.best == FAST
    assert (done.shipped_ms, done.best_ms) == (1.0, 0.5)
    reasons = {t.config: t.reason for t in done.trials}
    assert reasons[WRONG] is not None
    assert reasons[WRONG].startswith("wrong: differs from the shipped default by 1.0e-01")
    assert reasons[SPILLS] == "spills: 40 loads and stores of local memory"
    assert reasons[FAILS] == "failed: RuntimeError: out of resource: shared memory"
    assert SPILLS not in bench.ran
    assert reasons[FAST] is None
    assert done.trials[0].config == FORWARD.shipped()  # measured even where it spills: it is what is run today


def test_a_lead_within_the_noise_leaves_the_default() -> None:
    assert tuning.tune_kernel(FORWARD, Pretend(ms={FAST: 0.985})).best == FORWARD.shipped()
    assert tuning.tune_kernel(FORWARD, Pretend(ms={FAST: 0.97})).best == FAST


def test_no_candidate_can_live_on_the_memory_of_a_right_one() -> None:
    """A kernel that writes nothing finds NaN, not what the candidate before it left."""
    shared = torch.arange(1.0, 7.0)

    class Lazy(Pretend):
        def run(self, config: Config) -> Sequence[torch.Tensor]:
            if config == self.shipped:
                return (torch.arange(1.0, 7.0),)
            return (shared,)

    done = tuning.tune_kernel(FORWARD, Lazy(ms={}))
    assert done.trials[1].reason is None
    assert all(t.reason is not None and t.reason.startswith(("wrong", "spills")) for t in done.trials[2:])


@pytest.mark.parametrize("how", ["fails", "nan"])
def test_a_default_that_does_not_run_is_said(how: str) -> None:
    class Broken(Pretend):
        def run(self, config: Config) -> Sequence[torch.Tensor]:
            if how == "fails":
                raise RuntimeError("no kernel image")
            return (torch.tensor([torch.nan]),)

    with pytest.raises(tuning.TuningError, match="no kernel image" if how == "fails" else "not finite"):
        tuning.tune_kernel(FORWARD, Broken())
    assert tuning.tunings() == ()


def test_time_spent_is_logged_apart() -> None:
    ticks = iter([100.0, 103.5, 200.0, 201.0])
    tuning.tune_kernel(FORWARD, Pretend(), clock=lambda: next(ticks))
    assert tuning.tuning_ms() == 3500.0
    tuning.tune_kernel(replace(FORWARD, mode="gather"), Pretend(), clock=lambda: next(ticks))
    assert tuning.tuning_ms() == 4500.0
    assert [t.kernel.mode for t in tuning.tunings()] == ["band", "gather"]


@pytest.mark.parametrize("mode", ["band", "holes", "gather"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_candidates_hold_the_default_and_no_two_the_same(direction, mode) -> None:
    kernel = Kernel(direction, mode, USUAL, 90)
    found = tuning.candidates(kernel)
    assert found[0] == kernel.shipped()
    assert 6 <= len(found) == len(set(found))


# -- the file ---------------------------------------------------------------------------------------------------


def test_what_was_tuned_is_found_again_and_only_by_its_kernel(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "tuned.json"
    (done,) = tuning.tune([FORWARD], path, bench=Pretend)
    monkeypatch.setenv(file.TUNED_FILE, str(path))
    assert file.config_for(FORWARD) == done.best == FAST
    others = [
        replace(FORWARD, direction="backward"), replace(FORWARD, mode="holes"), replace(FORWARD, arch=80),
        replace(FORWARD, sizes=replace(USUAL, heads=8)), replace(FORWARD, sizes=replace(USUAL, dtype=torch.float16)),
        replace(FORWARD, sizes=replace(USUAL, pair_dtype=torch.float32)),
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(file.config_for(other) == other.shipped() for other in others)
    (entry,) = json.loads(path.read_text())["entries"].values()
    assert (entry["ms"], entry["shipped_ms"], entry["device"]) == (0.5, 1.0, "no GPU")
    assert entry["tuning_ms"] > 0


def test_the_key_holds_no_number_of_atoms() -> None:
    name, triton_version, kernels = FORWARD.key.split(" | ")
    assert name == "forward band sm_90 bfloat16/bfloat16 H4 D32 C16"
    assert triton_version.startswith("triton ")
    assert len(kernels.removeprefix("kernels ")) == 16


def test_a_split_is_kept_and_one_that_no_kernel_has_is_refused(tmp_path: Path) -> None:
    path, backward = tmp_path / "tuned.json", replace(FORWARD, direction="backward")
    gathered = tuning.candidates(replace(backward, mode="gather"))
    assert {c.split_heads for c in gathered} == {None, 4}
    assert {c.split_heads for c in tuning.candidates(replace(FORWARD, mode="gather"))} == {None}
    apart = Config(16, 16, 4, 1, split_heads=4)
    assert apart in tuning.candidates(backward)
    assert all(c.split_heads in (None, 4) for c in tuning.candidates(backward))
    file.add_tuned(path, backward, apart)
    assert file.read_tuned(path) == {backward.key: apart}
    path.write_text(path.read_text().replace('"split_heads": 4', '"split_heads": 6'))
    with pytest.raises(TunedFileError, match="split_heads 6, not one of 4, 8, 16"):
        file.read_tuned(path)


@pytest.mark.parametrize("changed", ["source", "triton"])
def test_an_entry_of_other_kernels_is_not_used_and_that_is_said(changed: str, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "tuned.json"
    file.add_tuned(path, FORWARD, FAST)
    monkeypatch.setenv(file.TUNED_FILE, str(path))
    now = file.toolchain("forward")
    other = now[:-1] + "?" if changed == "source" else now.replace("triton ", "triton 9.")
    monkeypatch.setattr(file, "toolchain", lambda part: other)
    with pytest.warns(UserWarning, match=r"was tuned with triton .* this is triton .*not used, tune again"):
        assert file.config_for(FORWARD) == FORWARD.shipped()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        assert file.config_for(FORWARD) == FORWARD.shipped()


def test_the_hash_is_of_the_kernels_source(tmp_path: Path, monkeypatch) -> None:
    for name in ("common", "forward", "backward", "gather"):
        (tmp_path / f"{name}.py").write_text(name)
    monkeypatch.setattr(file, "__file__", str(tmp_path / "tuned.py"))
    made = file.toolchain.__wrapped__
    before = {part: made(part) for part in ("forward", "backward", "gather")}
    (tmp_path / "backward.py").write_text("backward, mended")
    assert {part for part in before if made(part) != before[part]} == {"backward"}
    (tmp_path / "common.py").write_text("common, mended")
    assert {part for part in before if made(part) != before[part]} == set(before)


GOOD = {"rows": 16, "cols": 16, "num_warps": 4, "num_stages": 2}
BAD_FILES = {
    "empty": "",
    "half written": '{"format": 2, "entries": {"forward band',
    "binary": "\x00\x01",
    "a list": "[]",
    "another format": json.dumps({"forward sm_90 bfloat16/bfloat16 H4 D32 C16": GOOD}),
    "no configuration": json.dumps({"format": 2, "entries": {"k": 3}}),
    "a missing field": json.dumps({"format": 2, "entries": {"k": {"config": {"rows": 16}}}}),
    "an unknown field": json.dumps({"format": 2, "entries": {"k": {"config": GOOD | {"colour": 1}}}}),
    "a word for a number": json.dumps({"format": 2, "entries": {"k": {"config": GOOD | {"rows": "16"}}}}),
    "true for a number": json.dumps({"format": 2, "entries": {"k": {"config": GOOD | {"rows": True}}}}),
    "zero warps": json.dumps({"format": 2, "entries": {"k": {"config": GOOD | {"num_warps": 0}}}}),
}


@pytest.mark.parametrize("text", BAD_FILES.values(), ids=BAD_FILES)
def test_a_spoilt_file_is_refused_by_name_and_left_as_it_is(text: str, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(text)
    monkeypatch.setenv(file.TUNED_FILE, str(path))
    with pytest.raises(TunedFileError, match=r"PALLATOM_TRITON_TUNED: .*tuned\.json: expected .*, got "):
        file.config_for(FORWARD)
    if "entries" not in text or text.endswith("band"):
        with pytest.raises(TunedFileError):
            file.add_tuned(path, FORWARD, FAST)
    assert path.read_text() == text


def test_a_named_file_must_be_there(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(file.TUNED_FILE, str(tmp_path / "none.json"))
    with pytest.raises(TunedFileError, match=r"PALLATOM_TRITON_TUNED: .*none\.json is not there"):
        file.config_for(FORWARD)
    monkeypatch.setenv(file.AUTOTUNE, "1")  # which would make it
    file.forget()
    assert file.config_for(FORWARD) == FORWARD.shipped()


def test_a_switch_that_is_no_switch_is_refused(monkeypatch) -> None:
    monkeypatch.setenv(file.AUTOTUNE, "yes")
    with pytest.raises(TunedFileError, match="PALLATOM_TRITON_AUTOTUNE: expected 0 or 1, got 'yes'"):
        file.autotune_asked()


def _add_many(path: str, worker: int) -> None:
    for i in range(20):
        file.add_tuned(Path(path), replace(FORWARD, sizes=replace(USUAL, heads=1 + worker, head_dim=1 + i)), FAST)


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_add_many, args=(str(path), w)) for w in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [w.exitcode for w in workers] == [0] * 4
    assert len(file.read_tuned(path)) == 80
    assert {f.name for f in tmp_path.iterdir()} == {"tuned.json", "tuned.json.lock"}


def test_a_killed_writer_leaves_a_whole_file_and_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    file.add_tuned(path, FORWARD, FAST)
    context = multiprocessing.get_context("fork")
    for patience in (0.01, 0.03, 0.05):
        worker = context.Process(target=_add_many, args=(str(path), 5))
        worker.start()
        time.sleep(patience)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        assert file.read_tuned(path)[FORWARD.key] == FAST
    file.add_tuned(path, replace(FORWARD, arch=80), FAST)


# -- at first use -----------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch) -> None:
    monkeypatch.setenv(file.AUTOTUNE, "1")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "device", lambda device: warnings.catch_warnings())


def test_first_use_tunes_once_and_the_next_process_reads(asked, monkeypatch) -> None:
    made = []

    def bench(kernel: Kernel) -> Pretend:
        made.append(kernel)
        return Pretend(kernel)

    for _ in range(3):
        assert tuning.tune_at_first_use(FORWARD, torch.device("cuda"), bench) == FAST
    assert made == [FORWARD]
    assert file.default_file().exists()
    monkeypatch.setattr(tuning, "_process", tuning.Process())
    monkeypatch.setattr(tuning, "tune_kernel", None)  # not called again
    assert tuning.choose("forward", "band", USUAL, torch.device("cuda"), 90) == FAST


def test_a_folder_that_cannot_be_written_costs_a_warning_only(asked, monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file where a folder should be")
    monkeypatch.setenv(file.TUNED_FILE, str(tmp_path / "blocked" / "tuned.json"))
    with pytest.warns(UserWarning, match="PALLATOM_TRITON_AUTOTUNE: forward band"):
        assert tuning.tune_at_first_use(FORWARD, torch.device("cuda"), Pretend) == FAST
    assert tuning.tune_at_first_use(FORWARD, torch.device("cuda"), Pretend) == FAST


def test_a_graph_under_capture_is_left_alone(asked, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert tuning.tune_at_first_use(FORWARD, torch.device("cuda"), Pretend) == FORWARD.shipped()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert tuning.tune_at_first_use(FORWARD, torch.device("cuda"), Pretend) == FAST


def test_nothing_is_tuned_unless_asked(monkeypatch) -> None:
    monkeypatch.setattr(tuning, "tune_at_first_use", None)
    assert tuning.choose("forward", "band", USUAL, torch.device("cuda"), 90) == FORWARD.shipped()
    assert not file.default_file().parent.exists()


INTERPRETED = """
import sys, warnings, torch, variants
from benchmarks.commands import app
from benchmarks.harness.sweep import sweep as harness
from benchmarks.harness.worker.host import Host
from benchmarks.harness.worker.options import Options
from benchmarks.harness.cases import problems
from tests.variants.seam import seam
from variants.triton import forward
made = seam(19, 12, heads=2, head_dim=16, channels=8)
launched = []
launch = forward.forward_band
class Spy:
    def __getitem__(self, grid):
        return lambda *a, **k: (launched.append((k["BM"], k["BN"])), launch[grid](*a, **k))
forward.forward_band = Spy()
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    variants.convert(made.block, "triton_fused")._attend(*made.inputs, made.neighbor_idx, made.valid_mask)
print(launched, [str(w.message) for w in said if "AUTOTUNE" in str(w.message)])
"""


def _interpreted(**environment: str) -> str:
    env = os.environ | {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"} | environment
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], cwd=ROOT, env=env, capture_output=True, text=True, timeout=2000
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_a_tuned_entry_is_what_is_launched(tmp_path: Path) -> None:
    made = seam(19, 12, heads=2, head_dim=16, channels=8)
    path = tmp_path / "tuned.json"
    sizes = Sizes(torch.float32, torch.float32, 2, 16, 8)
    assert made.valid_mask.dim() == 2
    file.add_tuned(path, Kernel("forward", "band", sizes, 0), Config(32, 16, 4, 1))
    assert _interpreted(PALLATOM_TRITON_TUNED=str(path)) == "[(32, 16)] []"


def test_the_interpreter_says_that_it_cannot_tune(tmp_path: Path) -> None:
    said = _interpreted(PALLATOM_TRITON_AUTOTUNE="1", XDG_CACHE_HOME=str(tmp_path))
    assert said.startswith("[(16, 16)] [")
    assert "PALLATOM_TRITON_AUTOTUNE: forward band sm_0 float32/float32" in said
    assert "a CUDA device is required to tune, cpu was found" in said


# -- the command ------------------------------------------------------------------------------------------------


def _command(*arguments: str):
    return CliRunner().invoke(app, ["tune", *arguments], terminal_width=160)


def test_the_command_needs_a_gpu_and_says_what_does_not(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = _command()
    assert done.exit_code == 2
    assert "a GPU is needed to time on" in done.output
    assert "--dry-run" in done.output


@pytest.mark.parametrize("option", ["--mode", "--dtype", "--direction"])
def test_the_command_names_what_it_does_not_know(option: str) -> None:
    done = _command(option, "sideways", "--dry-run")
    assert done.exit_code == 2
    assert re.search(rf"{option}: expected .*, got 'sideways'", done.output)


def test_the_command_writes_what_it_finds(monkeypatch, tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(tuning, "gpu_bench", Pretend)
    done = _command("--direction", "forward", "--mode", "band,holes", "--write", str(path), "--json")
    assert done.exit_code == 0, done.output
    band, _ = json.loads(done.stdout)
    assert band["kernel"] == FORWARD.name
    assert (band["best"], band["best_ms"], band["shipped_ms"]) == (
        "16 x 16, 2 warps, 3 stages, 168 registers",
        0.5,
        1.0,
    )
    assert {t["reason"].partition(":")[0] for t in band["trials"] if t["reason"]} == {"wrong", "spills", "failed"}
    assert set(file.read_tuned(path)) == {FORWARD.key, replace(FORWARD, mode="holes").key}
    shown = _command("--direction", "forward", "--write", str(path))
    assert f"export PALLATOM_TRITON_TUNED={path}" in shown.output
    path.write_text("{")
    spoilt = _command("--direction", "forward", "--write", str(path))
    assert spoilt.exit_code == 2
    assert "tuned.json: expected" in spoilt.output


def test_a_dry_run_names_the_candidates_that_spill(monkeypatch) -> None:
    """Compiled for sm_90, on no GPU."""
    tight = replace(FORWARD.shipped(), max_registers=64)
    monkeypatch.setattr(tuning, "candidates", lambda kernel: (kernel.shipped(), tight))
    done = _command("--dry-run", "--arch", "90", "--direction", "forward", "--json")
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    shipped, spilling = row["trials"]
    assert (shipped["reason"], shipped["spills"]) == (None, 0)
    assert spilling["registers"] <= 64
    assert spilling["reason"] == f"spills: {spilling['spills']} loads and stores of local memory"


# -- apart from the first call ----------------------------------------------------------------------------------

TUNES = """
import torch
from pallatom.architecture.atom_transformers import AtomTransformerBlock
from variants import Backend, Cost

spent = []

class Block(AtomTransformerBlock):
    def _attend(self, *x):
        if not spent:
            spent.append(1e9)  # as if: more than the call can have taken
        return super()._attend(*x)

BACKEND = Backend(block=Block, summary="tunes at its first call", devices=("cpu",), dtypes=(torch.float32,),
                  cost=lambda shape, mode: Cost(1, 1, 1000), tuning_ms=lambda: sum(spent))
"""


def test_the_harness_records_tuning_apart_from_the_first_call(tmp_path: Path) -> None:
    (tmp_path / "tunes.py").write_text(TUNES)
    axes = problems.grid(problems.Axes(), n_atom=(64,), window=(8,), mode=("fwd",))
    groups = harness.plan(axes, (str(tmp_path / "tunes.py"), "gather"))
    options = Options(budget_s=0.3, min_blocks=3, max_blocks=6)
    with Host(threads=1) as host:
        outcome = harness.Sweep(groups, harness.Settings(out=None, options=options), host=host).run()
    tunes, gather = (next(r for r in outcome.records if r.backend == name) for name in ("tunes", "gather"))
    assert (tunes.tuning_ms, tunes.first_call_ms) == (1e9, 0.0)
    assert gather.tuning_ms == 0.0
    assert gather.first_call_ms is not None
    assert gather.first_call_ms > 0.0
