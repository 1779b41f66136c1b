"""Facts about the machine: known allocations are seen to the byte, unknown facts are None, foreign code is refused."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.harness import ceilings as ceilings_module
from benchmarks.harness import device, memory
from benchmarks.harness.record import Provenance

ROOT = Path(__file__).resolve().parents[1]
FLOATS = 1 << 18
BYTES = 4 * FLOATS


def peak(fn) -> int:
    return memory.peak_memory(fn, "cpu")[0]


def test_a_known_allocation_is_seen_to_the_byte_with_its_result() -> None:
    assert peak(lambda: torch.empty(BYTES, dtype=torch.uint8)) == BYTES
    assert peak(lambda: None) == 0


def test_the_peak_is_of_what_lives_at_once() -> None:
    def one_after_the_other() -> None:
        for _ in range(3):
            torch.empty(BYTES, dtype=torch.uint8)

    def together() -> None:
        kept = [torch.empty(BYTES, dtype=torch.uint8) for _ in range(3)]
        del kept

    assert peak(one_after_the_other) == BYTES
    assert peak(together) == 3 * BYTES


def test_freeing_what_was_there_before_lowers_nothing() -> None:
    old = [torch.empty(4 * BYTES, dtype=torch.uint8)]

    def swap() -> torch.Tensor:
        old.clear()
        return torch.empty(BYTES, dtype=torch.uint8)

    assert peak(swap) == BYTES


def test_autograd_keeps_what_it_saves() -> None:
    x = torch.randn(FLOATS, requires_grad=True)

    def step() -> None:
        x.grad = None
        x.exp().sum().backward()  # exp's output is saved, and the gradient stands beside it

    step()
    x.grad = None
    assert 2 * BYTES <= peak(step) <= 2 * BYTES + 4096


def test_temporaries_inside_an_op_written_in_cpp_are_seen() -> None:
    x = torch.randn(64, FLOATS // 64)
    result = x.logsumexp(1)
    assert peak(lambda: x.logsumexp(1)) >= BYTES > 100 * result.numel() * 4


@torch.jit.script
def _in_other_threads(x: torch.Tensor):
    first = torch.jit.fork(torch.exp, x)
    second = torch.jit.fork(torch.sin, x)
    return torch.jit.wait(first), torch.jit.wait(second)


def test_what_torchs_own_threads_allocate_is_seen() -> None:
    x = torch.randn(FLOATS)
    assert peak(lambda: _in_other_threads(x)) == 2 * BYTES


def test_the_source_says_what_it_does_not_see() -> None:
    def in_a_python_thread() -> None:
        thread = threading.Thread(target=lambda: torch.empty(BYTES, dtype=torch.uint8))
        thread.start()
        thread.join()

    seen, source = memory.peak_memory(in_a_python_thread, "cpu")
    assert seen == 0
    assert "this thread and torch's own" in source


def test_cuda_peaks_are_above_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda d: log.append("sync"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda d: log.append("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda d: 1000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda d: 5096)
    seen, source = memory.peak_memory(lambda: log.append("run"), "cuda")
    assert (seen, log) == (4096, ["sync", "reset", "run", "sync"])
    assert "max_memory_allocated" in source


def test_cuda_memory_counts_the_unused_part_of_torchs_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda d: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda d: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda d: 20)
    assert memory.available_bytes("cuda") == 130


def test_the_machines_memory_is_not_made_up() -> None:
    assert 0 < memory.available_bytes("cpu") <= memory.total_bytes()


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        (
            "0::/a/b\n",
            {"a/b/memory.max": "1000", "a/b/memory.current": "700", "a/b/memory.stat": "file 9\ninactive_file 200",
             "a/memory.max": "max", "a/memory.current": "1"},
            [(1000, 500)],
        ),
        (
            "5:cpu:/x\n4:memory:/a\n",
            {"memory/a/memory.limit_in_bytes": "9223372036854771712", "memory/a/memory.usage_in_bytes": "1",
             "memory/memory.limit_in_bytes": "500", "memory/memory.usage_in_bytes": "600"},
            [(500, 600)],
        ),
        ("0::/host/path\n", {"memory.max": "800", "memory.current": "100"}, [(800, 100)]),
        ("", {}, []),
    ],
)  # fmt: skip
def test_control_groups_of_both_kinds_are_read(tmp_path: Path, membership: str, files: dict, expected: list) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "cgroup").write_text(membership)
    assert memory._cgroup_limits(tmp_path, tmp_path / "cgroup") == expected


def test_the_least_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_cgroup_limits", lambda: [(1000, 400), (5000, 5100)])
    assert (memory.available_bytes("cpu"), memory.total_bytes()) == (0, 1000)


def test_a_description_completes_a_provenance() -> None:
    made = Provenance(**device.describe("cpu"), argv=["sweep"], seed=0)
    assert made.cores >= 1
    assert made.memory_bytes > 1 << 30
    assert made.gpu is None
    assert made.versions["torch"] == torch.__version__
    assert made.environment["threads"] == torch.get_num_threads()
    assert json.loads(made.model_dump_json())["environment"]["start"]["load_1min"] >= 0


def test_a_machine_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_MACHINE", "desk")
    assert device.describe("cpu")["machine"] == "desk"


def test_threads_are_pinned_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    for name in device.THREAD_VARIABLES:
        monkeypatch.setenv(name, "7")
    try:
        told = device.pin_threads(1)
        assert (torch.get_num_threads(), told["threads"], os.environ["OMP_NUM_THREADS"]) == (1, 1, "1")
        with pytest.raises(ValueError, match="count"):
            device.pin_threads(0)
    finally:
        torch.set_num_threads(before)


def test_what_is_measured_is_ours() -> None:
    assert device.code_origin() == ROOT


def foreign(monkeypatch: pytest.MonkeyPatch, **folders: Path | None) -> None:
    def find(name: str) -> importlib.machinery.ModuleSpec | None:
        folder = folders[name]
        if folder is None:
            return None
        spec = importlib.machinery.ModuleSpec(name, None, origin=str(folder / "__init__.py"))
        return spec

    monkeypatch.setattr(importlib.util, "find_spec", find)


def test_another_package_of_that_name_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    foreign(monkeypatch, pallatom=ROOT / "pallatom", variants=tmp_path / "variants")
    with pytest.raises(device.ForeignPackage, match="found another one"):
        device.code_origin()
    foreign(monkeypatch, pallatom=tmp_path / "pallatom", variants=ROOT / "variants")
    with pytest.raises(device.ForeignPackage, match="side by side"):
        device.code_origin()
    foreign(monkeypatch, pallatom=None, variants=ROOT / "variants")
    with pytest.raises(device.ForeignPackage, match=r"pallatom.*found none"):
        device.code_origin()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in device.MEASURED:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("x = 1\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *command], check=True)
    return tmp_path


def test_a_clean_checkout_has_a_commit_and_a_changed_one_is_dirty(checkout: Path) -> None:
    commit, dirty = device.git_state(checkout)
    assert commit is not None
    assert len(commit) == 40
    assert dirty is False
    (checkout / "notes.txt").write_text("no code")
    assert device.git_state(checkout) == (commit, False)
    (checkout / "variants" / "new.py").write_text("")
    assert device.git_state(checkout) == (commit, True)
    assert device.git_state(checkout / "variants") == (None, None)  # installed code inside some checkout


def test_an_exported_tree_says_its_commit_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_COMMIT", "c0ffee")
    assert device.git_state(tmp_path) == ("c0ffee", None)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)  # a repository without a commit knows none either
    assert device.git_state(tmp_path) == ("c0ffee", None)


def test_the_hash_follows_the_sources_and_not_their_place(checkout: Path, tmp_path_factory) -> None:
    first = device.code_hash(checkout)
    elsewhere = tmp_path_factory.mktemp("site-packages")
    for name in device.MEASURED:
        (elsewhere / name).mkdir()
        (elsewhere / name / "__init__.py").write_text("x = 1\n")
    assert device.code_hash(elsewhere) == first
    (elsewhere / "variants" / "__init__.py").write_text("x = 2\n")
    assert device.code_hash(elsewhere) != first


class FakeNvml:
    """A driver that answers some questions, refuses one and is too old for another."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.open = 0

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        assert uuid == "GPU-1234"
        return "handle"

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"580.1"

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return {1: 1980, 2: 2619}[kind]

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return 55

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        raise self.NVMLError

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:
        return 0x4 | 0x20


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    facts = SimpleNamespace(
        name="NVIDIA Test", uuid="1234", major=9, minor=0, multi_processor_count=132, total_memory=1 << 36,
        L2_cache_size=50 << 20,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda d: facts)
    return fake


def test_gpu_facts_come_from_the_driver_and_what_it_refuses_is_none(gpu: FakeNvml) -> None:
    made = device.describe("cuda")
    assert (made["gpu"], made["driver"]) == ("NVIDIA Test", "580.1")
    facts = made["environment"]
    assert (facts["l2_bytes"], facts["multiprocessors"], facts["capability"]) == (50 << 20, 132, "9.0")
    now = facts["start"]
    assert (now["sm_mhz"], now["memory_mhz"], now["temperature_c"], now["power_mw"]) == (1980, 2619, 55, None)
    assert now["power_limit_mw"] is None
    assert now["throttle"] == ["software power cap", "software thermal slowdown"]
    assert gpu.open == 0
    Provenance(**made, argv=[], seed=0)


def test_without_a_driver_library_gpu_facts_are_none(gpu: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # type: ignore[arg-type]
    made = device.describe("cuda")
    assert (made["gpu"], made["driver"]) == ("NVIDIA Test", None)
    assert made["environment"]["start"]["throttle"] is None


def test_ceilings_are_measured_and_say_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings_module, "_CPU_COPY_BYTES", 1 << 22)
    monkeypatch.setattr(ceilings_module, "last_cache_bytes", lambda: None)
    monkeypatch.setattr(ceilings_module, "_LONG_ENOUGH_S", 1e-6)
    found = ceilings_module.ceilings("cpu", "float32")
    assert found.bandwidth_bytes_per_s > 1e8
    assert found.rate_flops_per_s > 1e8
    assert found.source.startswith("copy of 4 MiB, float32 matmul of side 512 (highest precision)")


def test_a_ceiling_is_work_over_the_best_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings_module, "_CPU_COPY_BYTES", 1 << 20)
    monkeypatch.setattr(ceilings_module, "last_cache_bytes", lambda: None)
    taken: list[float] = []

    def seconds(fn) -> float:
        fn()
        taken.append(0.1 if len(taken) % 2 else 0.2)
        return taken[-1]

    monkeypatch.setattr(ceilings_module, "_cpu_seconds", seconds)
    found = ceilings_module.ceilings("cpu", "bfloat16")
    assert found.bandwidth_bytes_per_s == pytest.approx(2 * (1 << 20) / 0.1)
    assert found.rate_flops_per_s == pytest.approx(2 * 512**3 / 0.1)


def test_half_precision_may_be_multiplied_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings_module, "_CPU_COPY_BYTES", 1 << 20)
    rates = {torch.float16: (1e9, 512), torch.float32: (1e11, 1024)}
    monkeypatch.setattr(ceilings_module, "_matrix_rate", lambda d, dtype, s, g: rates[dtype])
    found = ceilings_module.ceilings("cpu", "float16")
    assert found.rate_flops_per_s == 1e11
    assert "float32 matmul of side 1024" in found.source


def test_cache_sizes_are_read_with_their_units(tmp_path: Path) -> None:
    for i, text in enumerate(("48K", "2048K", "32M\n")):
        (tmp_path / f"index{i}").mkdir()
        (tmp_path / f"index{i}" / "size").write_text(text)
    assert ceilings_module.last_cache_bytes(tmp_path) == 32 << 20
    assert ceilings_module.last_cache_bytes(tmp_path / "none") is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_real_device_facts_peaks_and_ceilings_are_plausible() -> None:
    Provenance(**device.describe("cuda"), argv=[], seed=0)
    assert memory.peak_memory(lambda: torch.empty(1 << 20, dtype=torch.uint8, device="cuda"), "cuda")[0] == 1 << 20
    found = ceilings_module.ceilings("cuda", "bfloat16")
    assert found.bandwidth_bytes_per_s > 1e11
    assert found.rate_flops_per_s > 1e12
