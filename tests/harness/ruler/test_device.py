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

from benchmarks.harness.ruler import ceilings as ceilings_module
from benchmarks.harness.ruler import device, memory
from benchmarks.harness.schema.record import Provenance
from tests import ROOT

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


def test_what_an_earlier_recording_saw_allocated_lowers_nothing_either() -> None:
    kept: list[torch.Tensor] = []
    peak(lambda: kept.append(torch.empty(4 * BYTES, dtype=torch.uint8)))

    def swap() -> torch.Tensor:
        kept.clear()
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


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Working sets that take no time: 64 and 128 KiB in cache, 512 KiB for main memory; products of side 512."""
    monkeypatch.setattr(ceilings_module, "_CPU_BYTES", 1 << 19)
    monkeypatch.setattr(ceilings_module, "_CACHED_BYTES", (1 << 16, 1 << 17))
    monkeypatch.setattr(ceilings_module, "last_cache_bytes", lambda: 1 << 17)
    monkeypatch.setattr(ceilings_module, "_main_bytes", lambda device: 1 << 19)
    monkeypatch.setattr(ceilings_module, "_ROUND_S", 0.0)
    monkeypatch.setattr(ceilings_module, "_LONG_ENOUGH_S", 0.0)


class Stopwatch:
    """Every call takes 0.1 s, but for one in ``slow``, which takes 0.2."""

    def __init__(self, slow: int) -> None:
        self.slow, self.calls = slow, 0

    def __call__(self, fn) -> float:
        fn()
        self.calls += 1
        return 0.2 if self.calls % self.slow == 0 else 0.1


@pytest.mark.usefixtures("small")
def test_ceilings_are_measured_and_say_how() -> None:
    threads = torch.get_num_threads()
    found = ceilings_module.ceilings("cpu", "float32")
    assert torch.get_num_threads() == threads
    rates = (found.read_bytes_per_s, found.copy_bytes_per_s, found.rate_flops_per_s, found.rate_exponentials_per_s)
    assert all(rate is not None and rate > 0 for rate in rates)
    assert found.bandwidth_bytes_per_s == max(found.read_bytes_per_s or 0, found.copy_bytes_per_s or 0)
    spreads = (found.bandwidth_spread, found.flops_spread, found.exponentials_spread)
    assert all(spread is not None and spread >= 0 for spread in spreads)
    assert [one.working_set_bytes for one in found.cached] == [1 << 16, 1 << 17]
    assert found.source.startswith("float32 matmul of side 512 (highest precision); reading and copying 0 MiB")
    assert found.source.endswith(f"5 rounds, {threads} threads")


@pytest.mark.usefixtures("small")
def test_a_ceiling_is_work_over_the_best_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all threads take as long as one, one times their number counts in what the last cache holds."""
    monkeypatch.setattr(ceilings_module, "_cpu_seconds", Stopwatch(slow=7))
    threads = torch.get_num_threads()
    found = ceilings_module.ceilings("cpu", "bfloat16")
    assert found.read_bytes_per_s == found.copy_bytes_per_s == pytest.approx((1 << 19) / 0.1)
    assert [one.bytes_per_s for one in found.cached] == pytest.approx([threads * (1 << n) / 0.1 for n in (16, 17)])
    assert found.rate_flops_per_s == pytest.approx(threads * 2 * 512**3 / 0.1)
    assert found.rate_exponentials_per_s == pytest.approx(threads * ceilings_module._EXPONENTIALS / 0.1)


@pytest.mark.usefixtures("small")
def test_what_differs_from_round_to_round_is_the_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    reached = ceilings_module._reach
    taken = iter([0.4, 0.2, 0.1, 0.25, 0.2])
    (one,) = reached([ceilings_module.Probe(10, lambda: None)], lambda call: next(taken))
    assert (one.per_s, one.spread) == (pytest.approx(100), pytest.approx(1.0))
    monkeypatch.setattr(ceilings_module, "_ROUND_S", 0.35)
    taken = iter([0.2, 0.1, 0.2] * 5)
    (one,) = reached([ceilings_module.Probe(10, lambda: None)], lambda call: next(taken))
    assert (one.per_s, one.spread, next(taken, None)) == (pytest.approx(100), 0, None)


@pytest.mark.usefixtures("small")
def test_what_does_not_depend_on_the_dtype_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ceilings_module.ceilings("cpu", "float32")
    monkeypatch.setattr(ceilings_module, "_moves", None)
    monkeypatch.setattr(ceilings_module, "_exponentials", None)
    second = ceilings_module.ceilings("cpu", "float64", known=first)
    assert (second.cached, second.rate_exponentials_per_s) == (first.cached, first.rate_exponentials_per_s)
    assert second.rate_flops_per_s != first.rate_flops_per_s
    assert second.source.startswith("float64 matmul")
    assert second.source.endswith(first.shared_source)


@pytest.mark.usefixtures("small")
def test_half_precision_may_be_multiplied_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"float16": 1e9, "float32": 1e11}

    def product(device, dtype, seconds, generator):
        return ceilings_module._Product(dtype, ceilings_module._Reached(rates[dtype], rates[dtype]))

    monkeypatch.setattr(ceilings_module, "_product", product)
    found = ceilings_module.ceilings("cpu", "float16")
    assert found.rate_flops_per_s == 1e11
    assert found.source.startswith("float32; ")


@pytest.mark.usefixtures("small")
def test_on_a_gpu_float32_may_be_three_products_of_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    known = ceilings_module.Ceilings(1e12, 1.0, "", shared_source="made up")
    asked = []

    def product(device, dtype, seconds, generator, passes=1):
        asked.append((dtype, passes, torch.get_float32_matmul_precision()))
        return ceilings_module._Product(f"{passes}", ceilings_module._Reached(5e13 * passes, 5e13 * passes))

    monkeypatch.setattr(ceilings_module, "_product", product)
    monkeypatch.setattr(torch, "Generator", lambda device: torch._C.Generator("cpu"))
    found = ceilings_module.ceilings("cuda", "float32", known=known)
    assert asked == [("float32", 1, "highest"), ("float32", 3, "high")]
    assert torch.get_float32_matmul_precision() == "highest"
    assert (found.rate_flops_per_s, found.source) == (1.5e14, "3; made up")


@pytest.mark.usefixtures("small")
def test_a_product_of_several_passes_counts_once() -> None:
    stopwatch, generator = Stopwatch(slow=10**9), torch.Generator()
    made = ceilings_module._product("cpu", "float32", stopwatch, generator, passes=3)
    assert made.words == "float32 matmul of side 512 (highest precision) in 3 passes"
    assert made.reached.per_s == pytest.approx(torch.get_num_threads() * 2 * 512**3 / 3 / 0.1)


def test_a_device_without_a_run_time_compiler_has_no_rate_of_exponentials(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str) -> None:
        raise RuntimeError("no\n  NVRTC here")

    monkeypatch.setattr(torch, "rand", lambda n, device: torch.zeros(n))
    monkeypatch.setattr(torch.cuda.jiterator, "_create_jit_fn", refuse)
    found, how = ceilings_module._exponentials("cuda", Stopwatch(slow=2))
    assert (found, how) == (None, "exponentials not measured (RuntimeError: no NVRTC here)")


def test_a_kernel_that_makes_no_numbers_is_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda n, device: torch.zeros(n))
    monkeypatch.setattr(torch.cuda.jiterator, "_create_jit_fn", lambda source: lambda x: x / 0)
    found, how = ceilings_module._exponentials("cuda", Stopwatch(slow=2))
    assert found is None
    assert "not finite" in how


def test_every_exponential_of_the_kernel_is_one() -> None:
    """Its multiply-adds, done here: 2^-x to a few units of the last place of a half; and its text parses."""
    from torch.cuda.jiterator import _CodeParser

    for source in ceilings_module.exponential_kernels():
        assert _CodeParser(source).function_name == "exponentials"
        assert source.count("ex2.approx") + source.count("__uint_as_float") == ceilings_module._CHAINS
    x = torch.linspace(0, 20, 1001)
    shifted = 12582912.0 - x
    f = (12582912.0 - shifted) - x
    y = ((0.0558 * f + 0.2402) * f + 0.6931) * f + 1.0
    found = (y.view(torch.int32) + (shifted.view(torch.int32) << 23)).view(torch.float32)
    assert torch.allclose(found, torch.exp2(-x), rtol=1e-3)


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
    assert found.rate_exponentials_per_s is not None, found.source
    assert found.rate_exponentials_per_s > 1e11
    assert found.cached == ()
