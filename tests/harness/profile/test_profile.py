"""Where the time goes: read from traces whose answer is known, a GPU's among them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import ValidationError

from benchmarks.harness.cases.problems import Group
from benchmarks.harness.profile import counters
from benchmarks.harness.profile.profiles import best_and_worst, trace_name
from benchmarks.harness.ruler.clock import CudaClock
from benchmarks.harness.schema.profile import Breakdown, Counters, Profile, Row, scan_profiles
from benchmarks.harness.schema.record import append
from benchmarks.harness.worker import profiling, trace
from benchmarks.harness.worker.kernel_names import IDLE, LONGEST, OUTSIDE, kind, shorten
from benchmarks.harness.worker.measure import Arm
from benchmarks.harness.worker.options import Options
from benchmarks.harness.worker.profiling import slim
from tests import records_factory as made

ADD = ("void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add<c10::BFloat16>, "
       "std::array<char*, 3ul> >(int, at::native::CUDAFunctor_add<c10::BFloat16>, std::array<char*, 3ul>)")  # fmt: skip
COPY = ("void at::native::elementwise_kernel<128, 4, at::native::gpu_kernel_impl_nocast<at::native::"
        "direct_copy_kernel_cuda(at::TensorIteratorBase&)::{lambda()#3}::operator()() const> >(int)")  # fmt: skip
INDEX = ("void at::native::index_elementwise_kernel<128, 4, at::native::gpu_index_kernel<at::native::index_kernel_impl"
         "<at::native::OpaqueType<2> >(at::TensorIteratorBase&)::{lambda(char*)#1}> >(long)")  # fmt: skip
MEAN = ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::MeanOps<float, float, float, "
        "float>, unsigned int, float, 4, 4> >(at::native::ReduceOp<float>)")  # fmt: skip
GEMM = "void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x1_tn_align8>(Params)"


@pytest.mark.parametrize(
    ("name", "short", "what"),
    [
        ("forward_band", "forward_band", "fused kernel"),
        ("backward_gather", "backward_gather", "fused kernel"),
        ("BmmBackward0", "BmmBackward0", "matrix products"),
        ("nvjet_hsh_128x64_64x8_1x2_h_bz_coopA_NNT", "nvjet_hsh_128x64_64x8_1x2_h_bz_coopA_NNT", "matrix products"),
        ("triton_poi_fused_add_3", "triton_poi_fused_add_3", "compiled code"),
        ("triton_tem_fused_flex_attention_0", "triton_tem_fused_flex_attention_0", "attention library"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80(AttentionKernel<x>::Params)",
         "fmha_cutlassF_bf16_aligned_64x64_rf_sm80", "attention library"),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float>(int, float)",
         "vectorized_layer_norm_kernel", "normalisation"),
        ("void (anonymous namespace)::softmax_warp_forward<float, float, float, 9>(float*)", "softmax_warp_forward",
         "softmax"),
        (ADD, "vectorized_elementwise: add", "elementwise"),
        (COPY, "elementwise: direct_copy", "copies and fills"),
        (INDEX, "index_elementwise: index", "gather and scatter"),
        (MEAN, "reduce: Mean", "reductions"),
        (GEMM, "cutlass_80_wmma_tensorop_bf16_s1616…_128x1_tn_align8", "matrix products"),
        ("Memcpy DtoD (Device -> Device)", "Memcpy DtoD", "copies and fills"),
        ("aten::native_layer_norm", "native_layer_norm", "normalisation"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu",
         "attention library"),
        ("aten::mm", "mm", "matrix products"),
        ("aten::index", "index", "gather and scatter"),
        ("aten::view", "view", "other"),
    ],
)  # fmt: skip
def test_names_are_short_and_sorted_by_kind(name: str, short: str, what: str) -> None:
    assert shorten(name) == short
    assert kind(name) == what
    assert len(short) <= LONGEST


class Tracer:
    """Writes the events of a Chrome trace as Kineto does: times in µs, kernels tied to launches by correlation."""

    def __init__(self) -> None:
        self.events: list[trace.Event] = [{"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "python"}}]
        self._id = 0

    def add(self, cat: str, name: str, ts: float, dur: float, tid: object = 7, **args: object) -> int:
        self._id += 1
        known = {"External id": self._id} | args
        self.events.append(
            {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": tid, "ts": ts, "dur": dur, "args": known}
        )
        return self._id

    def call(self, ts: float, dur: float) -> None:
        self.add("user_annotation", trace.MARKER, ts, dur)

    def launch(self, name: str, host: float, device: float, dur: float, *, op: str | None = None, stream: int = 7,
               cat: str = "kernel") -> None:  # fmt: skip
        link = self.add("cpu_op", op, host - 1, 8) if op else 0
        self._id += 1
        tied = {"correlation": self._id, "External id": link}
        self.add("cuda_runtime", "cudaLaunchKernel", host, 5, **tied)
        self.add(cat, name, device, dur, tid=stream, **tied)

    def memory(self, ts: float, size: int, *, device: int = 1) -> None:
        self.events.append({"ph": "i", "cat": "cpu_instant_event", "name": "[memory]", "pid": 1, "tid": 7, "ts": ts,
                            "args": {"Bytes": size, "Device Type": device, "Total Allocated": 0}})  # fmt: skip


def test_an_autograd_function_of_a_backend_is_its_own_code() -> None:
    assert kind("_FusedAttention", operator=True) == "own code"
    assert kind("_BandedAttentionBackward", operator=True) == "own code"
    assert kind("TBackward0", operator=True) == "other"
    assert kind("pallatom::attend", operator=True) == "own code"
    assert kind("aten::mm", operator=True) == "matrix products"


def two_calls_on_a_gpu() -> Tracer:
    """Each call of 100 µs: 60 the fused kernel, 10 a copy, then 5 of a sum beside 10 of another stream; 20 idle."""
    t = Tracer()
    t.launch("stray_kernel_before", -50, -40, 10)
    for at in (0.0, 100.0):
        t.call(at, 30)
        t.launch("forward_band", at + 1, at + 10, 60)
        t.launch(COPY, at + 8, at + 75, 10, op="aten::copy_")
        t.launch(MEAN, at + 16, at + 90, 5, op="aten::mean")
        t.launch("Memset (Device)", at + 22, at + 90, 10, stream=9, cat="gpu_memset")
        t.add("cuda_runtime", "cudaStreamSynchronize", at + 28, 1)
    t.add("cuda_runtime", "cudaDeviceSynchronize", 150, 60)
    return t


def test_a_gpu_trace_is_broken_down_by_kernel() -> None:
    found = trace.analyse(two_calls_on_a_gpu().events, "cuda")
    assert found.calls == 2
    assert found.wall_ms == pytest.approx(0.1)
    assert found.busy_ms == pytest.approx(0.08)
    assert found.launches == 4
    assert found.launch_ms == pytest.approx(0.02)
    assert found.syncs == 1, "the wait at the profile's own end is none of the call's"
    assert [(i.short, i.launches, round(i.ms, 6), i.op) for i in found.items] == [
        ("forward_band", 1, 0.06, None),
        ("elementwise: direct_copy", 1, 0.01, "aten::copy_"),
        ("Memset", 1, 0.01, None),
        ("reduce: Mean", 1, 0.005, "aten::mean"),
    ]


@pytest.mark.parametrize(
    ("call_ms", "idle"),
    [(0.1, 0.2), (0.16, 0.5), (0.05, 0.0), (None, 0.2)],
    ids=["as profiled", "slower", "a clock that says less than the kernels took", "unknown"],
)
def test_what_no_kernel_fills_of_the_unprofiled_call_is_idle(call_ms: float | None, idle: float) -> None:
    found = trace.analyse(two_calls_on_a_gpu().events, "cuda")
    shares = trace.shares(found, "cuda", call_ms)
    assert shares.idle == pytest.approx(idle)
    assert shares.kinds[IDLE] == pytest.approx(idle)
    assert sum(shares.kinds.values()) == pytest.approx(1), "streams side by side are not counted twice"


def test_the_summary_says_it_in_words() -> None:
    found = trace.analyse(two_calls_on_a_gpu().events, "cuda")
    said = trace.summary(trace.shares(found, "cuda", 0.1).kinds, found.items)
    assert said.startswith("56% of the call is the fused kernel (most: forward_band); 20% is idle between launches; ")
    assert trace.summary({"other": 0.004, IDLE: 0.996}, []) == "100% of the call is idle between launches."


def test_a_cpu_trace_charges_each_operator_its_own_time() -> None:
    t = Tracer()
    for at in (0.0, 200.0):
        t.call(at, 100)
        t.add("cpu_op", "aten::matmul", at + 10, 50)
        t.add("cpu_op", "aten::mm", at + 15, 40)
        t.add("cpu_op", "aten::softmax", at + 70, 20)
        t.add("cpu_op", "aten::elsewhere", at + 10, 90, tid=8)
    found = trace.analyse(t.events, "cpu")
    assert {i.short: i.ms for i in found.items} == pytest.approx({"mm": 0.04, "softmax": 0.02, "matmul": 0.01})
    shares = trace.shares(found, "cpu", 0.07)
    assert shares.call_ms == pytest.approx(0.1), "the profiler slows all operators down: they are shares of its time"
    assert shares.kinds == pytest.approx({"matrix products": 0.5, "softmax": 0.2, OUTSIDE: 0.3})


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_trace_without_calls_or_kernels_says_so(device: str) -> None:
    with pytest.raises(trace.NothingRecorded, match="no annotation"):
        trace.analyse([], device)
    t = Tracer()
    t.call(0, 10)
    if device == "cuda":
        with pytest.raises(trace.NothingRecorded, match="no kernel"):
            trace.analyse(t.events, device)
    else:
        assert trace.shares(trace.analyse(t.events, device), device, None).kinds == {OUTSIDE: 1.0}


def test_the_highest_memory_is_charged_to_the_operator_that_asks_for_it() -> None:
    t = Tracer()
    t.add("cpu_op", "aten::bmm", 10, 20)
    t.add("cpu_op", "aten::empty", 12, 2)
    t.add("cpu_op", "aten::mul", 40, 20)
    for ts, size in ((5, 100), (13, 500), (35, -500), (45, 300)):
        t.memory(ts, size)
    t.memory(13, 10_000, device=0)
    assert trace.peak(t.events, "cuda") == trace.Peak(600, "bmm")
    assert trace.peak(t.events, "cpu") == trace.Peak(10_000, "bmm")
    assert trace.peak([], "cuda") is None


def test_a_written_trace_is_one_call_with_its_late_kernels_and_names_no_machine() -> None:
    chrome = {"schemaVersion": 1, "traceEvents": two_calls_on_a_gpu().events, "host_name": "secret",
              "traceName": "/home/me/t.json"}  # fmt: skip
    kept = slim(chrome, 1)
    assert "secret" not in json.dumps(kept)
    assert "/home/me" not in json.dumps(kept)
    again = trace.analyse(kept["traceEvents"], "cuda")
    assert again.calls == 1
    assert {i.short: i.launches for i in again.items} == {
        "forward_band": 1, "elementwise: direct_copy": 1, "Memset": 1, "reduce: Mean": 1,
    }  # fmt: skip


NCU = """==PROF== Connected to process 4242 (/usr/bin/python3.12)
==PROF== Profiling "backward_band" - 0: 0%....50%....100% - 9 passes
==PROF== Disconnected from process 4242
"ID","Process ID","Kernel Name","Block Size","dram__throughput.avg.pct_of_peak_sustained_elapsed","gpu__time_duration.sum","launch__registers_per_thread","sm__throughput.avg.pct_of_peak_sustained_elapsed","sm__warps_active.avg.pct_of_peak_sustained_active","smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio","smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio","smsp__average_warps_issue_stalled_wait_per_issue_active.ratio"
"","","","","%","usecond","register/thread","%","%","inst","inst","inst"
"0","4242","backward_prepare","(128, 1, 1)","12.5","4.10","32","9.1","55.0","0.10","5.0","1.0"
"1","4242","backward_band","(64, 1, 1)","31.25","1,318.40","250","60.5","12.4","2.10","1.75","0.00"
"""  # noqa: E501


def test_ncu_tells_of_the_heaviest_kernel() -> None:
    found = counters.parse(NCU)
    assert found == Counters(
        kernel="backward_band", duration_us=1318.4, dram_percent=31.25, sm_percent=60.5, occupancy_percent=12.4,
        registers=250, stalls={"barrier": 2.1, "long scoreboard": 1.75},
    )  # fmt: skip
    assert list(found.stalls) == ["barrier", "long scoreboard"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no table"),
        ("==ERROR== No kernels were profiled.\n", "No kernels were profiled"),
        ('"ID","Kernel Name"\n"0","k"\n', "no table"),
        ("\n".join(NCU.splitlines()[:5]) + "\n", "saw no kernel"),
        (NCU.replace("1,318.40", "n/a").replace("4.10", ""), None),
        ("\x00\xff garbage \n,,,\n\"", "no table"),
    ],
)  # fmt: skip
def test_ncu_that_says_nothing_is_a_reason(text: str, why: str | None) -> None:
    found = counters.parse(text)
    assert (found.reason is None) == (why is None)
    assert why is None or why in (found.reason or "")


def test_counters_that_cannot_be_had_say_why(monkeypatch) -> None:
    on_gpu = Group(made.problem(device="cuda"), ("gather",))
    assert "the CPU" in str(counters.count(Group(made.problem(), ("gather",)), "gather").reason)
    monkeypatch.setattr(counters.shutil, "which", lambda name: None)
    assert "not on PATH" in str(counters.count(on_gpu, "gather").reason)
    monkeypatch.setattr(counters.shutil, "which", lambda name: "/opt/ncu")

    def run(command, *, out: str = "", error: Exception | None = None, **options):
        assert command[:5] == ["/opt/ncu", "--csv", "--page", "raw", "--clock-control"]
        assert options["timeout"] > 0
        if error:
            raise error
        return subprocess.CompletedProcess(command, 0, stdout=out, stderr="")

    def answer(**how) -> str:
        return str(counters.count(on_gpu, "gather", run=lambda c, **o: run(c, **how, **o)).reason)

    assert "longer than" in answer(error=subprocess.TimeoutExpired("ncu", 1))
    assert "did not start" in answer(error=OSError(13, "Permission denied"))
    assert "may not read" in answer(out="==ERROR== ERR_NVGPUCTRPERM - The user does not have permission")
    assert counters.count(on_gpu, "gather", run=lambda c, **o: run(c, out=NCU, **o)).kernel == "backward_band"


def a_profile(
    backend: str = "banded", *, passed: bool = True, status: str = "ok", utc: str = "2026-11-22T20:00:00Z",
    machine: made.Machine = made.CUDA, reason: str | None = None, idle: float = 0.25, **axes,
) -> Profile:  # fmt: skip
    """A made-up profile that obeys the schema."""
    p = made.problem(device=machine.device, **axes)
    row = Row(name="forward_band", short="forward_band", kind="fused kernel", launches=1, ms=0.09, share=1 - idle,
              floors=1.4)  # fmt: skip
    broken = Breakdown(
        calls=4, call_ms=0.12, wall_ms=0.15, busy_ms=0.09, whole_ms=0.12, kinds={"fused kernel": 1 - idle, IDLE: idle},
        idle_share=idle, rows=[row], launches=1, launch_ms=0.01, enqueue_ms=0.03, peak_bytes=1 << 20, peak_op="bmm",
    )  # fmt: skip
    good = status == "ok"
    return Profile(
        run="run", backend=backend, problem=p, status=status, reason=reason,  # type: ignore[arg-type]
        gate=made.gate(p, passed=passed) if good else None, breakdown=broken if good else None,
        summary="75% of the call is the fused kernel; 25% is idle between launches." if good else "",
        provenance=made.provenance(machine, utc=utc),
    )  # fmt: skip


def test_no_profile_beside_a_red_gate() -> None:
    with pytest.raises(ValidationError, match="green gate"):
        a_profile(passed=False)
    with pytest.raises(ValidationError, match="needs a reason"):
        a_profile(status="crashed")
    with pytest.raises(ValidationError, match="sum of 1"):
        Breakdown.model_validate(a_profile().breakdown.model_dump() | {"kinds": {IDLE: 0.3}})  # type: ignore[union-attr]
    with pytest.raises(ValidationError, match="either a kernel or a reason"):
        Counters()


def test_a_file_of_profiles_survives_kills_and_garbage(tmp_path: Path) -> None:
    path = tmp_path / "profiles.jsonl"
    append(path, [a_profile()])
    with open(path, "a") as f:
        f.write(a_profile("gather").model_dump_json()[:200])  # a kill
    append(path, [a_profile("dense")])
    with open(path, "a") as f:
        f.write("garbage\n[]\n{}\n\n" + made.group(made.CPU, made.problem())[0].model_dump_json() + "\n")
    found = list(scan_profiles(path))
    assert [one.backend for one in found if isinstance(one, Profile)] == ["banded", "dense"]
    said = [one for one in found if isinstance(one, str)]
    assert len(said) == 4
    assert said[0].startswith("profiles.jsonl:4: not JSON")


def test_the_best_and_the_worst_are_chosen_from_what_was_measured() -> None:
    near, far = made.problem(n_atom=2048), made.problem(n_atom=4096)
    records = [*made.group(made.CPU, near, backends=("gather", "banded", "dense")),
               *made.group(made.CPU, far, backends=("gather",))]  # fmt: skip
    wanted = [Group(p, ("gather", "./mine/dense.py", "banded", "flex")) for p in (near, far, made.problem(n_atom=512))]
    chosen = best_and_worst(records, wanted)
    assert [(g.problem, g.backends) for g in chosen] == [(near, ("banded", "gather")), (far, ("gather",))]
    assert len({trace_name(p, b) for p in (near, far) for b in ("gather", "banded")}) == 4


class GpuClock(CudaClock):
    """Says that a call takes 0.1 ms, and its launch 0.04."""

    def __init__(self) -> None:
        self.target_ms, self.max_calls = 0.2, 4

    def calibrate(self, fn):
        return 2, 1e-3

    def sample(self, fn, calls: int = 1) -> float:
        return 0.1

    def enqueue_ms(self, fn) -> float:
        return 0.04


class Recorder:
    """Stands in for ``torch.profiler.profile``: knows what it was asked for, writes a trace that was made up."""

    asked: ClassVar[list[tuple[list[str], bool]]] = []
    events: ClassVar[list[trace.Event]] = []

    def __init__(self, *, activities, profile_memory: bool) -> None:
        self.asked.append((sorted(str(a).rpartition(".")[2] for a in activities), profile_memory))

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def export_chrome_trace(self, path: str) -> None:
        Path(path).write_text(json.dumps({"schemaVersion": 1, "traceEvents": self.events, "traceName": path}))


@pytest.fixture
def on_a_gpu(monkeypatch, tmp_path: Path) -> tuple[profiling.Profiling, Arm]:
    """What the worker holds after a green gate on a GPU, with that GPU and its profiler made up."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.profiler, "profile", Recorder)
    monkeypatch.setattr(profiling, "make_clock", lambda device, *, cache: GpuClock())
    monkeypatch.setattr(profiling, "synchronize", lambda device: None)
    Recorder.asked.clear()
    p = made.problem(device="cuda", dtype="bfloat16", n_atom=16384)
    rates = {"bandwidth_bytes_per_s": 4.2e12, "rate_flops_per_s": 7e14, "source": "made up"}
    group = profiling.Profiling(
        p, None, Options(speed=False), rates, lambda event: None, lambda backend, phase: None
    )  # fmt: skip
    group.traces = {"triton_fused": str(tmp_path / "t.json.gz")}

    class Case:
        def __call__(self) -> None: ...

        def release(self) -> None: ...

    return group, Arm("triton_fused", Case(), gate=made.gate(p))  # type: ignore[arg-type]


def test_a_gpus_profile_goes_from_the_worker_into_a_record(on_a_gpu, monkeypatch, tmp_path: Path) -> None:
    group, arm = on_a_gpu
    t = two_calls_on_a_gpu()
    t.memory(5, 4096)
    monkeypatch.setattr(Recorder, "events", t.events)
    event = json.loads(json.dumps(group._profile(arm)))  # as it crosses the pipe
    assert Recorder.asked == [(["CPU", "CUDA"], False), (["CPU"], True)]
    one = Profile(run="r", backend="triton_fused", problem=group.problem, status="ok",
                  provenance=made.provenance(made.CUDA), **event)  # fmt: skip
    b = one.breakdown
    assert b is not None
    assert (b.call_ms, b.enqueue_ms, b.launches, b.syncs, b.peak_bytes) == (0.1, 0.04, 4, 1, 4096)
    assert b.idle_share == pytest.approx(0.2)
    assert one.limit is not None
    assert b.rows[0].floors == pytest.approx(0.06 / one.limit.floor_ms)
    assert one.trace == "t.json.gz"
    assert (tmp_path / "t.json.gz").stat().st_size > 100


def test_a_gpu_whose_profiler_sees_no_kernel_is_unsupported_with_the_reason(on_a_gpu, monkeypatch) -> None:
    from variants import UnsupportedError

    group, arm = on_a_gpu
    t = Tracer()
    t.call(0, 10)
    monkeypatch.setattr(Recorder, "events", t.events)
    with pytest.raises(UnsupportedError, match="recorded no kernel"):
        group._profile(arm)


def test_a_trace_that_is_too_large_is_left_out(on_a_gpu, monkeypatch) -> None:
    group, arm = on_a_gpu
    monkeypatch.setattr(Recorder, "events", two_calls_on_a_gpu().events)
    monkeypatch.setattr(profiling, "MOST_TRACE_BYTES", 50)
    assert group._profile(arm)["trace"] is None
