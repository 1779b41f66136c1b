"""The clock on a machine of our own making: time passes only where an arm says so, so every case is exact."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.harness.ruler import clock as clock_module
from benchmarks.harness.ruler import statistics as st
from benchmarks.harness.ruler.clock import CpuClock, CudaClock, graphed, make_clock
from benchmarks.harness.ruler.interleave import WALL_CALLS, half_widths, interleave


@pytest.fixture(autouse=True)
def frozen_heap() -> Iterator[None]:
    """What is alive now is left out of collections, which many short runs would otherwise spend their time in."""
    gc.freeze()
    yield
    gc.unfreeze()


class Machine:
    """A host whose time is moved by what runs on it."""

    def __init__(self, seed: int = 0, noise: float = 0.0, drift: float = 0.0) -> None:
        self.seconds = 0.0
        self.rng = np.random.default_rng(seed)
        self.noise, self.drift, self.level = noise, drift, 0.0
        self.calls: Counter[str] = Counter()

    def timer(self) -> float:
        return self.seconds

    def arm(self, name: str, ms: float) -> Callable[[], None]:
        def call() -> None:
            self.calls[name] += 1
            self.level += self.rng.normal(0, self.drift) if self.drift else 0.0
            jitter = self.rng.normal(0, self.noise) if self.noise else 0.0
            self.seconds += ms * 1e-3 * float(np.exp(self.level + jitter))

        return call

    def clock(self, **options: float) -> CpuClock:
        return CpuClock(timer=self.timer, **options)  # type: ignore[arg-type]


def run(machine: Machine, arms: dict[str, float], **options):
    named = {name: machine.arm(name, ms) for name, ms in arms.items()}
    return interleave(named, clock=machine.clock(), **({"budget_s": 1e9} | options))


def test_every_block_runs_every_arm_once_in_an_order_of_its_own() -> None:
    result = run(Machine(), {"a": 5, "b": 7, "c": 9}, max_blocks=40, target_half_width=-1.0)
    assert [sorted(block) for block in result.order] == [["a", "b", "c"]] * 40
    assert {name: len(taken) for name, taken in result.samples.items()} == {"a": 40, "b": 40, "c": 40}
    first = Counter(block[0] for block in result.order)
    assert min(first.values()) >= 5  # a third of 40 each, give or take
    assert len({tuple(block) for block in result.order}) == 6
    assert result.samples["b"] == pytest.approx([7.0] * 40)


def test_the_order_follows_the_seed() -> None:
    arms = {"a": 5, "b": 7, "c": 9}
    orders = [run(Machine(), arms, seed=seed).order for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_it_stops_as_soon_as_the_ratios_are_known_well_enough() -> None:
    steady = run(Machine(), {"a": 5, "b": 7})
    assert len(steady.order) == 20
    assert set(steady.stop.values()) == {"converged"}
    noisy = run(Machine(noise=0.1), {"a": 5, "b": 7}, max_blocks=500)
    assert 20 < len(noisy.order) < 500
    assert noisy.stop["b"] == "converged"
    assert noisy.half_widths["b"] is not None
    without_closing = half_widths({name: taken[:-1] for name, taken in noisy.samples.items()})["b"]
    assert without_closing is not None
    assert without_closing <= CpuClock.target_half_width


def test_the_closing_block_is_told_to_the_harness_alone_and_counts() -> None:
    told: list[tuple[str, bool]] = []
    machine = Machine()
    result = run(machine, {"slow": 1000, "a": 10, "b": 11}, budget_s=6.0, on_sample=lambda *x: told.append(x))
    assert [name for name, closing in told if closing].count("slow") == 1
    assert Counter(name for name, closing in told if closing) == {"slow": 1, "a": 1, "b": 1}
    assert Counter(name for name, _ in told) == {name: len(taken) for name, taken in result.samples.items()}
    for name in result.samples:
        assert [closing for one, closing in told if one == name][-1]


def test_more_threads_than_were_given_are_charged() -> None:
    host = {"s": 0.0, "cpu": 0.0}

    def call() -> None:
        host["s"] += 1e-3
        host["cpu"] += 3e-3

    def sample(threads: int | None) -> float:
        return CpuClock(timer=lambda: host["s"], processor_timer=lambda: host["cpu"], threads=threads).sample(call)

    assert sample(None) == pytest.approx(1.0)
    assert sample(4) == pytest.approx(1.0)
    assert sample(2) == pytest.approx(1.5)
    assert sample(1) == pytest.approx(3.0)


def test_drift_that_all_arms_share_does_not_keep_it_running() -> None:
    result = run(Machine(drift=0.03), {"a": 50, "b": 70}, max_blocks=500)
    own = result.half_widths["a"]
    assert own is not None
    assert own > CpuClock.target_half_width
    assert len(result.order) < 200
    assert result.stop == {"a": "converged", "b": "converged"}


def test_at_the_maximum_it_says_so() -> None:
    result = run(Machine(noise=0.5), {"a": 5, "b": 7}, max_blocks=25)
    assert (len(result.order), result.stop["b"]) == (25, "maximum")


def test_the_budget_ends_it() -> None:
    machine = Machine(noise=0.5)
    result = run(machine, {"a": 10, "b": 20}, budget_s=2.0)
    assert result.stop["b"] == "budget"
    assert 1.8 < result.seconds <= 2.0 + 0.1
    assert len(result.samples["a"]) == len(result.samples["b"])


def test_a_slow_arm_leaves_early_and_the_others_go_on() -> None:
    machine = Machine(noise=0.02)
    result = run(machine, {"slow": 1000, "a": 10, "b": 11}, budget_s=6.0)
    assert 3 <= len(result.samples["slow"]) <= 6
    assert result.stop["slow"] == "budget"
    assert len(result.samples["a"]) == len(result.samples["b"]) >= 20
    assert result.stop["b"] == "converged"
    assert result.seconds <= 6.0
    early = len(result.samples["slow"])
    assert all("slow" in block for block in result.order[:early])
    assert not any("slow" in block for block in result.order[early:])
    verdict = st.verdict(st.paired_ratio(result.samples["slow"], result.samples["a"]), margin=0.03)
    assert verdict == "slower"


def test_an_arm_beyond_the_whole_budget_runs_the_fewest_blocks_and_costs_nobody_theirs() -> None:
    machine = Machine()
    result = run(machine, {"slow": 60_000, "a": 10, "b": 11}, budget_s=5.0)
    assert len(result.samples["slow"]) == 3
    assert len(result.samples["a"]) == 20
    assert machine.calls["slow"] == 4  # once to calibrate


def test_a_budget_too_short_for_anything_still_gives_the_fewest_blocks() -> None:
    result = run(Machine(), {"a": 1000, "b": 1000}, budget_s=0.0)
    assert [len(taken) for taken in result.samples.values()] == [3, 3]
    assert set(result.stop.values()) == {"budget"}


def test_short_calls_are_batched_and_long_ones_are_not() -> None:
    machine = Machine()
    result = run(machine, {"short": 0.004, "long": 3.0})
    assert result.calls_per_sample["long"] == 1
    assert result.calls_per_sample["short"] == 300
    assert result.samples["short"] == pytest.approx([0.004] * 20)


def test_a_first_call_that_warms_up_does_not_set_the_batch() -> None:
    machine = Machine()
    cost = iter([2.0**-8])

    def call() -> None:
        machine.seconds += next(cost, 2.0**-17)

    calls, seconds = machine.clock().calibrate(call)
    assert calls == 158
    assert seconds == pytest.approx(158 * 2.0**-17)


def test_a_timer_too_coarse_to_see_a_call_gets_as_many_as_allowed() -> None:
    calls, _ = CpuClock(timer=lambda: 0.0, max_calls=64).calibrate(lambda: None)
    assert calls == 64


def test_one_callable_under_two_names_is_calibrated_once() -> None:
    machine = Machine(noise=0.3)
    arm = machine.arm("a", 0.3)
    result = interleave({"a": arm, "again": arm}, clock=machine.clock(), budget_s=1e9, max_blocks=30)
    assert result.calls_per_sample["a"] == result.calls_per_sample["again"]


def test_each_run_is_announced_outside_the_timed_region() -> None:
    machine = Machine()
    told: list[str] = []

    def on_run(name: str) -> None:
        told.append(name)
        machine.seconds += 1.0

    result = run(machine, {"a": 5, "b": 7}, on_run=on_run)
    assert told[:2] == ["a", "b"]  # calibration
    assert told[2:] == [name for block in result.order for name in block]
    assert result.samples["a"] == pytest.approx([5.0] * 20)


def test_a_failing_arm_is_the_one_last_announced() -> None:
    told: list[str] = []
    machine = Machine()

    def fail() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        interleave({"a": machine.arm("a", 5), "bad": fail}, clock=machine.clock(), budget_s=1, on_run=told.append)
    assert told[-1] == "bad"
    assert gc.isenabled()


def test_the_collector_rests_while_a_call_is_timed() -> None:
    seen: set[bool] = set()
    interleave({"a": lambda: seen.add(gc.isenabled())}, clock=CpuClock(max_calls=2), budget_s=0.1)
    assert seen == {False}
    assert gc.isenabled()


@pytest.mark.parametrize("arguments", [{"min_blocks": 2}, {"max_blocks": 5}, {"floor_blocks": 0}])
def test_impossible_block_counts_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="floor_blocks"):
        run(Machine(), {"a": 1.0}, **arguments)
    with pytest.raises(ValueError, match="arms"):
        run(Machine(), {})


def test_half_widths_are_of_ratios_to_the_fastest() -> None:
    drift = np.exp(np.linspace(0, 1, 30))
    widths = half_widths({"a": list(5 * drift), "b": list(7 * drift)})
    assert widths["b"] == pytest.approx(0, abs=1e-9)
    assert widths["a"] is not None
    assert widths["a"] > 0.1


def test_stopping_when_the_interval_is_narrow_spoils_neither_cover_nor_false_alarms() -> None:
    trials, alarms, covered = 60, 0, 0
    for seed in range(trials):
        machine = Machine(seed, noise=0.08, drift=0.02)
        arm = machine.arm("a", 5)
        result = interleave(
            {"a": arm, "b": arm, "aa": arm}, clock=machine.clock(), budget_s=1e9, max_blocks=120, seed=seed
        )
        noise = st.noise_floor(result.samples["a"], result.samples["aa"])
        ratio = st.paired_ratio(result.samples["a"], result.samples["b"])
        alarms += st.verdict(ratio, margin=0.03, noise=noise) in ("faster", "slower")
        assert ratio.low is not None
        assert ratio.high is not None
        covered += ratio.low <= 1 <= ratio.high
    assert alarms / trials <= 0.10
    assert covered / trials >= 0.95 - 3 * (0.95 * 0.05 / trials) ** 0.5


class FakeCuda:
    """Stands in for torch.cuda: a device whose time moves by what is launched, and a log of what happened."""

    def __init__(self) -> None:
        self.ms = 0.0
        self.log: list[str] = []

    def event(self, enable_timing: bool = False) -> SimpleNamespace:
        assert enable_timing
        event = SimpleNamespace(at=None)

        def record() -> None:
            event.at = self.ms
            self.log.append("event")

        event.record = record
        event.synchronize = lambda: None
        event.elapsed_time = lambda end: end.at - event.at
        return event

    def launch(self, name: str, ms: float) -> Callable[[], None]:
        def call() -> None:
            self.log.append(name)
            self.ms += ms

        return call


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(torch.cuda, "Event", fake.event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: fake.log.append("sync"))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(clock_module, "_l2_flush", lambda device: fake.launch("flush", 0.05))
    return fake


def test_cold_samples_flush_before_each_call_and_outside_its_events(cuda: FakeCuda) -> None:
    clock = CudaClock(cache="cold")
    assert clock.cache == "cold"
    assert clock.sample(cuda.launch("op", 3.0), calls=2) == pytest.approx(3.0)
    assert cuda.log == ["flush", "event", "op", "event", "sync"] * 2


def test_the_device_is_kept_busy_for_as_long_as_the_host_takes_to_launch(cuda: FakeCuda) -> None:
    host = {"s": 0.0}
    clock = CudaClock(cache="cold", timer=lambda: host["s"])

    def slow_to_launch() -> None:
        host["s"] += 0.11e-3  # 2 x 0.11 + 0.3 ms are eleven flushes of 0.05 ms; one more empties the cache
        cuda.ms += 3.0

    clock.calibrate(slow_to_launch)
    cuda.log.clear()
    assert clock.sample(slow_to_launch) == pytest.approx(3.0)
    assert cuda.log.count("flush") == 12


def test_work_left_on_another_stream_is_counted(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    host = {"s": 0.0}
    left = {"ms": 0.0}

    def synchronize(device=None) -> None:
        host["s"] += 1e-3 * left["ms"]
        left["ms"] = 0.0

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    clock = CudaClock(cache="cold", timer=lambda: host["s"])

    def leaves_work_behind() -> None:
        cuda.ms += 1.0
        left["ms"] = 5.0

    assert clock.sample(leaves_work_behind) == pytest.approx(6.0)
    assert clock.sample(cuda.launch("op", 1.0)) == pytest.approx(1.0)


def test_wall_time_is_of_one_call_on_an_idle_device_with_a_flushed_cache(cuda: FakeCuda) -> None:
    host = {"s": 0.0}
    clock = CudaClock(cache="cold", timer=lambda: host["s"])

    def call() -> None:
        cuda.log.append("op")
        host["s"] += 0.13e-3

    assert clock.wall(call) == pytest.approx(0.13)
    assert cuda.log == ["flush", "sync", "op", "sync"]
    result = interleave({"a": cuda.launch("a", 0.01)}, clock=CudaClock(cache="cold"), budget_s=60, max_blocks=25)
    assert len(result.walls["a"]) == WALL_CALLS < len(result.samples["a"])
    assert run(Machine(), {"a": 5.0}).walls == {"a": []}


def test_hot_samples_warm_up_once_and_do_not_flush(cuda: FakeCuda) -> None:
    clock = CudaClock(cache="hot")
    assert clock.sample(cuda.launch("op", 3.0), calls=2) == pytest.approx(3.0)
    assert cuda.log == ["op", "event", "op", "op", "event", "sync"]


def test_the_cuda_clock_interleaves_to_its_own_precision(cuda: FakeCuda) -> None:
    clock = CudaClock(cache="cold")
    result = interleave({"a": cuda.launch("a", 0.01), "b": cuda.launch("b", 1.0)}, clock=clock, budget_s=60)
    assert result.cache == "cold"
    assert result.calls_per_sample == {"a": 24, "b": 1}
    assert result.samples["a"] == pytest.approx([0.01] * 20)
    assert clock.target_half_width == 0.01


def test_the_device_decides_which_clock() -> None:
    assert isinstance(make_clock("cpu"), CpuClock)
    assert make_clock("cpu").cache == "unspecified"


def fake_capture(monkeypatch: pytest.MonkeyPatch, error: str | None) -> list[str]:
    log: list[str] = []
    stream = SimpleNamespace(wait_stream=lambda other: None)

    class Capture:
        def __enter__(self) -> None:
            log.append("capture")

        def __exit__(self, *exception: object) -> None:
            if error:
                raise RuntimeError(error)

    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda s: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: log.append("replay")))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: Capture())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *device: log.append("sync"))
    return log


def test_a_graph_is_captured_after_warming_up_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    log = fake_capture(monkeypatch, None)
    replay = graphed(lambda: log.append("op"))
    assert callable(replay)
    assert log == ["op", "op", "op", "capture", "op"]
    replay()
    assert log[-1] == "replay"


def test_what_cannot_be_captured_gives_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    log = fake_capture(monkeypatch, "operation not permitted when stream is capturing\nand more")
    assert graphed(lambda: None) == "no CUDA graph: operation not permitted when stream is capturing"
    assert log[-1] == "sync"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_real_device_both_caches_are_timed_and_a_graph_replays() -> None:
    x = torch.randn(1 << 20, device="cuda")
    y = torch.empty_like(x)
    cold, hot = (CudaClock(cache=cache) for cache in ("cold", "hot"))
    medians = [np.median([c.sample(lambda: torch.add(x, 1.0, out=y), 5) for _ in range(20)]) for c in (cold, hot)]
    assert all(0 < median < 1e3 for median in medians)  # a short call's launch gaps may exceed what a warm cache saves
    replay = graphed(lambda: torch.add(x, 1.0, out=y))
    assert callable(replay)
    y.zero_()
    replay()
    assert torch.equal(y, x + 1.0)
    assert "no CUDA graph" in str(graphed(lambda: x.sum().item()))
