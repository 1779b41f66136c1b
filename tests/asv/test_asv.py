"""asv's side of the bench: the grid, what of it is asked for, what a number is, and what its processes import."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

import variants
from benchmarks.asv import grid as asv_grid
from benchmarks.asv import metrics as asv_metrics
from benchmarks.asv.metrics import KERNEL_METRICS, METRICS, STATUS_CODES
from benchmarks.asv.suite import Suite
from benchmarks.harness.ruler import device
from benchmarks.harness.schema import kernels, record
from benchmarks.harness.schema.kernels import KernelRecord
from benchmarks.harness.schema.record import Record
from benchmarks.suites.block import Attention
from tests import ROOT, records_factory

LEVELS = [level for level in asv_grid.GRIDS if level != asv_grid.KERNELS]


def example(**changes: Any) -> Record:
    """A good cell on a machine without a GPU."""
    one = records_factory.cell(records_factory.CPU, "banded", records_factory.problem(), group="a")
    return one.model_copy(update=changes)


# -- the grid ----------------------------------------------------------------------------------------


def test_the_axis_of_backends_is_the_registry_of_this_working_tree() -> None:
    assert asv_grid.backends() == variants.names()


def test_what_a_backend_declares_is_read_without_importing_it() -> None:
    """asv's processes read declarations as text; what they find is what importing the backends would."""
    for flag in ("compiles", "everyday", "needs_band"):
        found = {name for name in variants.names() if flag in asv_grid.declared(name)}
        assert found == {name for name in variants.names() if getattr(variants.load(name), flag)}
        assert found


@pytest.mark.parametrize("on", asv_grid.DEVICES)
@pytest.mark.parametrize("level", asv_grid.GRIDS)
def test_the_default_subset_is_part_of_the_grid_and_always_the_same(level: str, on: str) -> None:
    chosen = asv_grid.default(level, [on])
    assert chosen
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(asv_grid.cells(level))
    assert chosen == asv_grid.default(level, [on])
    if level in LEVELS:
        assert {cell[0] for cell in chosen} == {on}


def test_the_default_subset_holds_what_it_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """A history is made of the same cells: whoever changes the draw changes this line, knowing it."""
    monkeypatch.setattr(asv_grid, "backends", lambda: ("banded",))
    problems = [cell[2:] for cell in asv_grid.default("attention", ["cpu"]) if cell[1] == "banded"]
    assert problems == [(512, 32, "all", "float32", "fwd"), (512, 16, "all", "float32", "fwdbwd")]


def test_every_cell_of_the_grid_is_a_problem_that_the_harness_takes() -> None:
    from benchmarks.asv.measure import planned
    from benchmarks.asv.trace import cell_of

    small = [(level, cell) for level in LEVELS for cell in asv_grid.cells(level) if cell[2] <= 2048]
    groups, cells = planned(small)
    assert len(cells) == len(small) == sum(len(group.backends) for group in groups)
    for group in groups[::7]:  # and back again, as a record tells its cell
        for backend in group.backends:
            one = example(problem=group.problem, backend=backend)
            assert (one.problem.level, cell_of(one)) == cells[group.problem.key, backend]


@pytest.mark.parametrize(
    ("text", "level", "count"),
    [
        ("all level=block backend=banded n_atom=512 device=cpu dtype=float32 mode=fwd", "block", 1),
        ("level=block backend=banded n_atom=512 device=cpu dtype=float32 mode=fwd", "stack", 0),
        ("backend=banded,dense device=cpu n_atom=512 window=32 k=64 dtype=float32 mode=fwd", "attention", 2),
        ("kernel=forward arch=90 dtype=bfloat16", "kernels", 1),
        ("kernel=forward arch=90 dtype=bfloat16", "attention", 0),
        ("default backend=banded", "stack", 1),
        ("all", "index", len(asv_grid.cells("index"))),
    ],
)
def test_cells_are_asked_for_in_words(text: str, level: str, count: int) -> None:
    assert len(asv_grid.wanted(level, text, ["cpu"])) == count


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sometimes", "default, all, or AXIS=VALUE"),
        ("default size=3", "n_atom"),
        ("all backend=bandid", "banded"),
        ("all n_atom=", "512"),
    ],
)
def test_words_that_cannot_be_read_are_refused(text: str, told: str) -> None:
    with pytest.raises(asv_grid.BadCells, match="BENCH_CELLS") as e:
        asv_grid.wanted("attention", text, ["cpu"])
    assert told in str(e.value)


def test_the_default_subset_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_DEVICE", "cuda")
    assert {cell[0] for cell in asv_grid.wanted("block")} == {"cuda"}
    monkeypatch.setenv("BENCH_DEVICE", "gpu")
    with pytest.raises(asv_grid.BadCells, match="BENCH_DEVICE: expected cpu or cuda, got 'gpu'"):
        asv_grid.wanted("block")


def test_a_gpu_is_found_by_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_DEVICE", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    tool = tmp_path / "nvidia-smi"
    there = any(Path("/dev").glob("nvidia[0-9]*"))
    for body, found in (("echo 'GPU 0: NVIDIA H200'", "cuda"), ("echo 'No devices were found'; exit 6", "cpu")):
        tool.write_text(f"#!/bin/sh\n{body}\n")
        tool.chmod(0o755)
        asv_grid._driver_answers.cache_clear()
        assert asv_grid.present() == ["cuda" if there else found]
    asv_grid._driver_answers.cache_clear()


# -- numbers -----------------------------------------------------------------------------------------


def test_a_status_is_its_place_among_the_statuses() -> None:
    assert tuple(STATUS_CODES) == get_args(record.Status)
    assert list(STATUS_CODES.values()) == list(range(len(STATUS_CODES)))


def test_numbers_are_those_of_the_record() -> None:
    one = example()
    numbers = asv_metrics.row(one, METRICS)
    assert one.timing is not None
    assert one.memory is not None
    assert one.limit is not None
    assert one.gate is not None
    assert numbers["latency"] == {"samples": [ms / 1e3 for ms in one.timing.samples_ms], "number": 1}
    assert numbers["wall"] is None
    eager = one.timing.model_copy(update={"wall_samples_ms": [2.0, 4.0], "wall_ms": 3.0})
    on_gpu = asv_metrics.row(one.model_copy(update={"timing": eager}), METRICS)
    assert on_gpu["wall"] == {"samples": [2e-3, 4e-3], "number": 1}
    assert numbers["peak_memory"] == one.memory.peak_bytes
    assert numbers["first_call"] == one.first_call_ms
    assert numbers["percent_of_limit"] == one.limit.percent
    assert numbers["gate_error"] == max(e for e in one.gate.errors.values() if e is not None)
    assert (numbers["status"], numbers["throttle"]) == (0, None)


def test_what_was_not_measured_is_no_number() -> None:
    one = example()
    lost = one.model_copy(
        update={"status": "oom", "reason": "no room", "gate": None, "timing": None, "memory": None, "limit": None}
        | {"first_call_ms": None}
    )
    numbers = asv_metrics.row(lost, METRICS)
    assert {name for name, value in numbers.items() if value is not None} == {"status"}
    assert numbers["status"] == 2


def test_a_throttled_gpu_is_told_by_reason() -> None:
    one = example()

    def throttled(before: list[str] | None, after: list[str] | None) -> Any:
        states = {"before": {"throttle": before}, "after": {"throttle": after}}
        where = one.provenance.model_copy(update={"environment": states})
        return asv_metrics.row(one.model_copy(update={"provenance": where}), METRICS)["throttle"]

    assert throttled(None, None) is None
    assert throttled([], ["idle"]) == 0
    assert throttled(["software power cap"], ["hardware thermal slowdown", "software power cap"]) == 9
    assert set(asv_metrics.THROTTLE_CODES) <= set(device.THROTTLE_BITS.values())


def test_a_look_up_gives_the_number_or_nan_and_a_cell_nobody_asked_for_is_skipped() -> None:
    suite, cell = Attention(), asv_grid.cells("attention")[0]
    cache: Any = {("attention", cell): {"latency": {"samples": [1.0], "number": 1}, "status": 3, "peak_memory": None}}
    suite.setup(cache, *cell)
    tracks: Any = suite
    assert tracks.track_latency(cache, *cell) == {"samples": [1.0], "number": 1}
    assert tracks.track_status(cache, *cell) == 3
    assert math.isnan(tracks.track_peak_memory(cache, *cell))
    with pytest.raises(NotImplementedError, match="BENCH_CELLS"):
        suite.setup(cache, *asv_grid.cells("attention")[1])


def test_a_kernel_record_has_figures_if_and_only_if_it_is_ok() -> None:
    where = example().provenance
    common: dict[str, Any] = {"run": "r", "kernel": "forward", "arch": 90, "dtype": "bfloat16", "provenance": where}
    one = KernelRecord(**common, status="ok", summary={"kernel": "forward_band", "registers": 200, "spills": 0})
    numbers = asv_metrics.row(one, KERNEL_METRICS)
    assert (numbers["registers"], numbers["spills"], numbers["occupancy"], numbers["status"]) == (200, 0, None, 0)
    with pytest.raises(ValueError, match="with summary"):
        KernelRecord(**common, status="ok")
    with pytest.raises(ValueError, match="needs a reason"):
        KernelRecord(**common, status="crashed")


def test_a_file_of_kernels_survives_a_kill_and_refuses_garbage(tmp_path: Path) -> None:
    where, path = example().provenance, tmp_path / "a.kernels.jsonl"
    common: dict[str, Any] = {"run": "r", "kernel": "forward", "arch": 90, "dtype": "bfloat16", "provenance": where}
    one = KernelRecord(**common, status="oom", reason="no room")
    line = one.model_dump_json()
    path.write_text(line[: len(line) // 2])  # killed while writing
    record.append(path, [one])
    assert list(kernels.read(path)) == [one]
    for garbage in ("no json", line.replace("oom", "fine"), '{"kernel_schema":2}'):
        path.write_text(garbage + "\n")
        with pytest.raises(record.MalformedRecord, match=r"a\.kernels\.jsonl:1"):
            list(kernels.read(path))


# -- what asv sees -----------------------------------------------------------------------------------

DISCOVER = """
import json, sys
class NoTorch:  # whoever imports it here fails
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ImportError("torch has no place in a process that asv forks")
sys.meta_path.insert(0, NoTorch())
from asv_runner.discovery import list_benchmarks
with open(sys.argv[2], "w") as out:
    list_benchmarks(sys.argv[1], out)
print(json.dumps(sorted({m.split(".")[0] for m in sys.modules} & {"pallatom", "variants", "triton", "xformers"})))
"""


@pytest.fixture(scope="module")
def discovered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The benchmarks as asv finds them: by its own importer, in a process where torch cannot be imported."""
    folder = tmp_path_factory.mktemp("discovery")
    command = [sys.executable, "-P", "-c", DISCOVER, str(ROOT / "benchmarks" / "suites"), str(folder / "found.json")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
    return {one["name"]: one for one in json.loads((folder / "found.json").read_text())}


def test_asv_collects_the_suites_and_nothing_else(discovered: dict[str, dict[str, Any]]) -> None:
    suites = {
        "block.Attention": METRICS,
        "block.Block": METRICS,
        "stack.Stack": METRICS,
        "encoder.Encoder": METRICS,
        "index.Index": METRICS,
        "kernels.Kernels": KERNEL_METRICS,
    }
    assert set(discovered) == {f"{suite}.track_{name}" for suite, metrics in suites.items() for name in metrics}


def test_no_cell_is_timed_by_asv_itself(discovered: dict[str, dict[str, Any]]) -> None:
    assert {one["type"] for one in discovered.values()} == {"track"}
    assert len({one["setup_cache_key"] for one in discovered.values()}) == 1  # one process measures them all
    keys = {one["setup_cache_key"].split(":")[0] for one in discovered.values()}
    assert keys == {Suite.__module__.removeprefix("benchmarks.")}


def test_every_benchmark_says_its_unit_version_time_and_title(discovered: dict[str, dict[str, Any]]) -> None:
    for name, one in discovered.items():
        assert one["unit"] != "unit", name
        assert one["version"] == Suite.version, name
        assert one["timeout"] == Suite.timeout, name
        assert one["pretty_name"].startswith(name.split(".")[1] + ": "), name
    titles = [one["pretty_name"] for one in discovered.values()]
    assert len(set(titles)) == len(titles)


def test_parameters_are_the_grid(discovered: dict[str, dict[str, Any]]) -> None:
    for name, one in discovered.items():
        level = name.split(".")[1].lower()
        assert one["params"] == [[repr(v) for v in values] for values in asv_grid.params(level)]
        assert one["param_names"] == list(asv_grid.GRIDS[level])


# -- the plugin, in asv's own process ----------------------------------------------------------------


@pytest.fixture(scope="module")
def plugin() -> Any:
    pytest.importorskip("asv", reason="asv is an optional extra")
    sys.path.insert(0, str(ROOT))
    try:
        import asv_plugin
    finally:
        sys.path.remove(str(ROOT))
    return asv_plugin


def _selection(plugin: Any, discovered: dict[str, dict[str, Any]], *regexes: str) -> dict[str, list[int]]:
    from asv.benchmarks import Benchmarks
    from asv.config import Config

    found = Benchmarks(Config(), list(discovered.values()), regex=list(regexes))
    return plugin.narrow(found, list(regexes))


def test_without_a_pattern_asv_starts_the_default_subset(
    plugin: Any, discovered: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_DEVICE", "cpu")
    monkeypatch.delenv("BENCH_CELLS", raising=False)
    chosen = _selection(plugin, discovered)
    for level in asv_grid.GRIDS:
        cells = asv_grid.cells(level)
        assert [cells[i] for i in chosen[level]] == sorted(asv_grid.default(level, ["cpu"]), key=cells.index)


def test_a_pattern_of_names_narrows_the_subset_and_one_of_parameters_reaches_beyond_it(
    plugin: Any, discovered: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_DEVICE", "cpu")
    monkeypatch.delenv("BENCH_CELLS", raising=False)
    chosen = _selection(plugin, discovered, "Stack.track_latency")
    assert set(chosen) == {"stack"}
    assert len(chosen["stack"]) == len(asv_grid.default("stack", ["cpu"]))
    cell = ("cuda", "dense", 16384, 32, "all", "bfloat16", "fwdbwd")
    pattern = r"Block\.track_\w+\('cuda', 'dense', 16384, 32, 'all', 'bfloat16', 'fwdbwd'\)"
    assert _selection(plugin, discovered, pattern) == {"block": [asv_grid.cells("block").index(cell)]}


def test_the_measuring_process_takes_what_the_plugin_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(asv_grid.SELECTED, json.dumps({"block": [3, 5]}))
    assert asv_grid.selected("block") == [asv_grid.cells("block")[i] for i in (3, 5)]
    assert asv_grid.selected("stack") == []


def test_a_machine_names_its_gpu(plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from asv.machine import Machine, MachineCollection

    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 570.86.15, 1980 MHz, 3201 MHz, 143771 MiB'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("BENCH_MACHINE", raising=False)
    there = str(tmp_path / "machines.json")
    machine = plugin._with_gpu(Machine.load).__func__(Machine, interactive=True, _path=there)
    kept = MachineCollection.load(machine.machine, _path=there)
    assert (kept["gpu"], kept["driver"], kept["gpu_max_sm_mhz"]) == ("NVIDIA H200", "570.86.15", "1980 MHz")
    assert os.environ["BENCH_MACHINE"] == machine.machine
    monkeypatch.delenv("BENCH_MACHINE")
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert plugin.gpu_facts() == {}


def test_asv_judges_only_what_is_better_when_it_is_less(plugin: Any) -> None:
    from asv.commands.compare import unroll_result

    judged = plugin._judged(getattr(unroll_result, "__wrapped__", unroll_result))
    params = [["'a'", "'b'", "'c'"]]
    found = list(judged("block.Block.track_latency", params, [1.0, math.nan, None], None, None))
    assert [cell[0] for cell in found] == ["block.Block.track_latency('a')", "block.Block.track_latency('c')"]
    assert list(judged("block.Block.track_percent_of_limit", params, [1.0, 2.0, 3.0], None, None)) == []
    judgements = {m for m in itertools.chain(METRICS, KERNEL_METRICS) if m not in asv_metrics.SHOWN_ONLY}
    assert {"latency", "peak_memory", "status", "spills", "registers"} <= judgements


def test_both_configurations_differ_in_the_environment_alone() -> None:
    from asv.util import load_json

    thin, hermetic = (
        load_json(str(ROOT / name), js_comments=True) for name in ("asv.conf.json", "asv.hermetic.conf.json")
    )
    assert (thin["environment_type"], hermetic["environment_type"]) == ("thin", "virtualenv")
    differ = {key for key in thin.keys() | hermetic.keys() if thin.get(key) != hermetic.get(key)}
    assert differ <= {"environment_type", "install_command", "install_timeout"}
