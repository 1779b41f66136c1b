"""One group, measured in this process: gate, first call, plan, memory, interleaved timing, gate again.

Runs in the worker. What it finds leaves as events (plain dictionaries) through ``emit``; what it is about to
run is written down with ``note`` first, so that a death has an author. A backend that fails is out, with its
status; the others go on. Cells with a speed leave together, at the end: only those are pairs.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import arms, footprint
from .case import Case
from .clock import Interleaved, graphed, interleave, make_clock
from .failures import DevicePoisoned, check_device, synchronize, text_of, verdict_on
from .record import Gate, Limit, Memory, Problem, Timing
from .statistics import median_interval

if TYPE_CHECKING:
    from .expectation import Expected
    from .inputs import Inputs

Emit = Callable[[dict[str, Any]], None]
Note = Callable[[str, str], None]
AA = "#again"  # marks the second arm of the backend that is timed against itself
APART_BLOCKS = 10  # samples of an arm by itself, beside the interleaved ones
# A slower call has no launch gaps worth knowing: with 200 here, 5 to 16 s of a group's 15 to 50 went into these extras
# (one H200), and 3 into the timing that they supplement.
APART_LIMIT_MS = 20.0


@dataclass(frozen=True)
class Options:
    """How a group is measured; everything here may differ between two runs of one problem."""

    budget_s: float = 10.0
    min_blocks: int = 20
    max_blocks: int = 200
    gate_pairs: int = 1 << 18
    try_oversized: bool = False
    speed: bool = True  # False: the gate alone
    memory: bool = True
    graphs: bool = True
    limits_s: dict[str, float] = field(default_factory=lambda: dict(PHASE_LIMITS_S))


# The longest that a phase may take for one backend; the timing gets its budget on top.
PHASE_LIMITS_S = {
    "build": 300.0,
    "first call": 300.0,
    "gate": 300.0,
    "plan": 120.0,
    "memory": 120.0,
    "timing": 120.0,
    "graph": 120.0,
    "profile": 120.0,
}


@dataclass
class Arm:
    """A backend on its way through the phases."""

    name: str
    case: Case
    gate: Gate | None = None
    first_call_ms: float | None = None  # without tuning
    tuning_ms: float | None = None
    plan_ms: float | None = None
    steady_ms: float = 0.0  # one warm call, to know the fastest beforehand
    memory: Memory | None = None
    apart: dict[str, list[float]] = field(default_factory=dict)


class Group:
    """One problem and its backends in this process."""

    def __init__(
        self,
        problem: Problem,
        source: str | None,
        options: Options,
        ceilings: dict[str, Any] | None,
        emit: Emit,
        note: Note,
    ) -> None:
        self.problem, self.source, self.options = problem, source, options
        self._ceilings, self._emit, self._note = ceilings, emit, note
        self._inputs: Inputs | None = None
        self._expected: Expected | None = None

    def run(self, backends: tuple[str, ...]) -> None:
        """Bring every backend to one terminal status."""
        wanted = [name for name in backends if self._may_start(name)]
        if not wanted or not self._build(wanted):
            return
        if not self.options.speed:
            for name in wanted:
                if (arm := self._prepare(name)) is not None:
                    self._finish([arm], None)
            return
        ready = [arm for name in wanted if (arm := self._prepare(name)) is not None]
        timed = self._time(ready)
        if timed is not None and self.problem.device == "cuda":
            for arm in ready:
                if arm.name in timed.samples and timed.samples[arm.name][-1] < APART_LIMIT_MS:
                    try:
                        arm.apart = self._apart(arm)
                    except RuntimeError:  # a supplement that does not fit or capture costs no cell
                        check_device(self.problem.device)
        self._finish([arm for arm in ready if timed is not None and arm.name in timed.samples], timed)

    # -- before anything is built ------------------------------------------------------------------

    def _may_start(self, name: str) -> bool:
        self._enter(name, "build")
        with self._guard(name):
            reasons = arms.unavailable(name, self.problem)
            if reasons:
                self._out(name, "unsupported", "; ".join(reasons))
                return False
            shortage = None if self.options.try_oversized else self._shortage(name)
            if shortage:
                self._out(name, "oom", shortage)
                return False
            return True
        return False

    def _shortage(self, name: str) -> str | None:
        """Why this cell is predicted not to fit; None if it fits."""
        from .device import available_bytes

        needed = footprint.needed_bytes(self.problem, arms.seam_peak_bytes(name, self.problem))
        available = available_bytes(self.problem.device)
        if needed <= available:
            return None
        return f"oom (predicted): needs {needed / 2**30:.1f} GiB, {available / 2**30:.1f} GiB available"

    def _build(self, wanted: list[str]) -> bool:
        """Inputs and reference, shared by all; if they fail, so does every backend that waits for them."""
        from . import expectation, inputs

        self._enter("", "build")
        try:
            self._inputs = inputs.build(self.problem, self.source)
            self._expected = expectation.expect(self._inputs, max_pairs=self.options.gate_pairs)
        except Exception as e:
            status, reason = verdict_on(e)
            for name in wanted:
                self._out(name, status, f"while the inputs and their reference were built: {reason}", text_of(e))
            check_device(self.problem.device)
            return False
        return True

    # -- one backend at a time ---------------------------------------------------------------------

    def _prepare(self, name: str) -> Arm | None:
        from . import gate

        assert self._inputs is not None
        assert self._expected is not None
        with self._guard(name):
            self._enter(name, "first call")
            arm = Arm(name, Case(self._inputs, arms.converted(name, self._inputs.module)))
            before = arms.tuning_ms(name)
            taken = self._milliseconds(arm.case)
            arm.tuning_ms = arms.tuning_ms(name) - before
            arm.first_call_ms = max(0.0, taken - arm.tuning_ms)
            self._enter(name, "gate")
            arm.gate = gate.check(arm.case, self._expected)
            if not arm.gate.passed:
                self._out(name, "wrong", gate.why_red(arm.gate, self.problem), gate=arm.gate)
                return None
            if self.options.speed:
                self._enter(name, "plan")
                arm.steady_ms, arm.plan_ms = self._plan_ms(arm.case)
                if self.options.memory:
                    self._enter(name, "memory")
                    arm.memory = self._memory(name, arm.case)
            return arm
        return None

    def _milliseconds(self, call: Callable[[], object]) -> float:
        synchronize(self.problem.device)
        start = time.perf_counter()
        call()
        synchronize(self.problem.device)
        return (time.perf_counter() - start) * 1e3

    def _plan_ms(self, case: Case) -> tuple[float, float | None]:
        """One warm call, and what an index never seen before costs above that; None where the level builds its index
        in every call, or where a second index does not fit."""
        import torch

        steady = self._milliseconds(case)
        case.release()
        if "neighbor_idx" not in case.inputs.fixed:
            return steady, None
        try:
            fixed = case.fresh_index()
            fresh = self._milliseconds(lambda: case.run_on(fixed))
        except (torch.OutOfMemoryError, MemoryError):
            return steady, None
        finally:
            case.release()
        return steady, max(fresh - steady, 0.0)

    def _memory(self, name: str, case: Case) -> Memory:
        from .device import peak_memory

        case.release()
        peak, source = peak_memory(case, self.problem.device)
        case.release()
        at_seam = self.problem.level == "attention"
        return Memory(
            peak_bytes=peak,
            model_bytes=arms.seam_peak_bytes(name, self.problem) if at_seam else None,
            input_bytes=footprint.input_bytes(self.problem),
            p_bytes=footprint.pair_bytes(self.problem),
            source=source,
        )

    # -- all backends together ---------------------------------------------------------------------

    def _time(self, ready: list[Arm]) -> Interleaved | None:
        """Interleave what passed the gate; an arm that fails now is out, and the others start again."""
        while ready:
            calls: dict[str, Callable[[], object]] = {arm.name: arm.case for arm in ready}
            fastest = min(ready, key=lambda arm: arm.steady_ms)
            calls[fastest.name + AA] = fastest.case
            running = ready[0].name

            def about_to_run(name: str) -> None:
                nonlocal running
                running = name.removesuffix(AA)
                self._note(running, "timing")
                for arm in ready:
                    arm.case.release()

            self._emit(self._phase(running, "timing", extra_s=self.options.budget_s))
            try:
                return interleave(
                    calls,
                    clock=make_clock(self.problem.device),
                    budget_s=self.options.budget_s,
                    min_blocks=self.options.min_blocks,
                    max_blocks=self.options.max_blocks,
                    seed=self.problem.seed,
                    on_run=about_to_run,
                )
            except Exception as e:
                status, reason = verdict_on(e)
                self._out(running, status, f"while timed: {reason}", text_of(e))
                check_device(self.problem.device)
                ready[:] = [arm for arm in ready if arm.name != running]
        return None

    def _apart(self, arm: Arm) -> dict[str, list[float]]:
        """On CUDA: samples with a warm cache and, of a forward, replays of its CUDA graph; not interleaved."""
        import torch

        found: dict[str, list[float]] = {}
        self._enter(arm.name, "timing")
        hot, cold = make_clock("cuda", cache="hot"), make_clock("cuda")
        calls, _ = hot.calibrate(arm.case)
        found["hot_samples_ms"] = [hot.sample(arm.case, calls) for _ in range(APART_BLOCKS)]
        replay = None
        if self.options.graphs and self.problem.mode == "fwd":
            self._enter(arm.name, "graph")
            replay = graphed(arm.case)
        if callable(replay):
            calls, _ = cold.calibrate(replay)
            found["graph_samples_ms"] = [cold.sample(replay, calls) for _ in range(APART_BLOCKS)]
        del replay
        arm.case.release()
        torch.cuda.empty_cache()
        return found

    def _finish(self, ready: list[Arm], timed: Interleaved | None) -> None:
        """Look at what the last timed call of each made, then send all good cells in one event."""
        from . import gate

        assert self._expected is not None
        cells = []
        for arm in ready:
            assert arm.gate is not None
            with self._guard(arm.name):
                if timed is not None:
                    self._enter(arm.name, "gate")
                    arm.case.release()
                    arm.case()
                    arm.gate = gate.check_again(arm.case, self._expected, arm.gate)
                    arm.case.release()
                if not arm.gate.passed:
                    self._out(arm.name, "wrong", "after timing, " + gate.why_red(arm.gate, self.problem), gate=arm.gate)
                    continue
                cells.append(self._good(arm, timed))
        self._emit({"event": "cells", "cells": cells})

    def _good(self, arm: Arm, timed: Interleaved | None) -> dict[str, Any]:
        timing = None if timed is None else _timing(arm, timed)
        limit = None if timing is None else self._limit(timing.median_ms)
        return {
            "backend": arm.name,
            "status": "ok",
            "gate": _json(arm.gate),
            "plan_ms": arm.plan_ms,
            "first_call_ms": arm.first_call_ms,
            "tuning_ms": arm.tuning_ms,
            "timing": _json(timing),
            "memory": _json(arm.memory),
            "limit": _json(limit),
        }

    def _limit(self, measured_ms: float) -> Limit | None:
        """How near the operation's floor this is; None without the device's ceilings."""
        if self._ceilings is None:
            return None
        from .ceilings import Ceilings
        from .cost import limit

        return limit(self.problem, Ceilings(**self._ceilings), measured_ms)

    # -- the ways out ------------------------------------------------------------------------------

    def _enter(self, name: str, phase: str) -> None:
        self._note(name, phase)
        self._emit(self._phase(name, phase))

    def _phase(self, name: str, phase: str, extra_s: float = 0.0) -> dict[str, Any]:
        limit_s = self.options.limits_s[phase] + extra_s
        return {"event": "phase", "backend": name, "phase": phase, "limit_s": limit_s}

    def _out(self, name: str, status: str, reason: str, error: str | None = None, gate: Gate | None = None) -> None:
        cell = {"backend": name, "status": status, "reason": reason, "error": error, "gate": _json(gate)}
        self._emit({"event": "cells", "cells": [cell]})

    @contextmanager
    def _guard(self, name: str):
        """Turn an exception of one backend into its status; make sure that the device survived it."""
        try:
            yield
        except DevicePoisoned:
            raise
        except Exception as e:
            status, reason = verdict_on(e)
            self._out(name, status, reason, text_of(e) if status != "unsupported" else None)
            del e
            gc.collect()
            check_device(self.problem.device)


def _timing(arm: Arm, timed: Interleaved) -> Timing:
    samples = timed.samples[arm.name]
    interval = median_interval(samples)
    return Timing(
        samples_ms=samples,
        calls_per_sample=timed.calls_per_sample[arm.name],
        median_ms=interval.median,
        ci_low_ms=interval.median if interval.low is None else interval.low,
        ci_high_ms=interval.median if interval.high is None else interval.high,
        half_width=timed.half_widths[arm.name],
        stop=timed.stop[arm.name],
        cache=timed.cache,
        aa_samples_ms=timed.samples.get(arm.name + AA),
        **arm.apart,
    )


def _json(model: Any) -> Any:
    return None if model is None else model.model_dump(mode="json")
