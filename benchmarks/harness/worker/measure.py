"""One group, measured in this process: first call, gate, trial, plan, memory, interleaved timing, gate once more.

Timed calls take turns among two input sets. Of every sample one call, drawn at random, is compared with the reference
at a few rows; what the last timed call made is compared whole. Everything given, and the ruler, must stay as it was.

Runs in the worker. What it finds leaves as events (plain dictionaries) through ``emit``; what it is about to
run is written down with ``note`` first, so that a death has an author. A backend that fails is out, with its
status; the others go on. Cells with a speed leave together, at the end: only those are pairs.
"""

from __future__ import annotations

import gc
import secrets
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..cases import footprint, limits, registry
from ..cases.case import Case
from ..gate import audit, tampering
from ..gate.failures import DevicePoisoned, WrongResult, check_device, synchronize, text_of, verdict_on
from ..gate.input_sets import InputSets
from ..levels import level_of, pair_bytes
from ..ruler.ceilings import Ceilings, ceilings
from ..ruler.clock import make_clock
from ..ruler.interleave import Interleaved, interleave
from ..ruler.statistics import median_interval
from ..schema.problem import Problem
from ..schema.record import Gate, Limit, Memory, Timing
from . import supplements
from .options import Options

Emit = Callable[[dict[str, Any]], None]
Note = Callable[[str, str], None]
AA = "#again"  # marks the second arm of a backend, which is timed against itself


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
    path: str | None = None
    checked: int = 0  # timed calls whose results were compared
    apart: dict[str, Any] = field(default_factory=dict)


class Group:
    """One problem and its backends in this process."""

    def __init__(
        self, problem: Problem, source: str | None, options: Options, ceilings: dict | None, emit: Emit, note: Note
    ) -> None:
        self.problem, self.source, self.options = problem, source, options
        self.level = level_of(problem.level)
        self._ceilings, self._emit, self._note = ceilings, emit, note
        self._input_sets: InputSets | None = None

    def run(self, backends: tuple[str, ...]) -> None:
        """Bring every backend to one terminal status."""
        wanted = [name for name in backends if self._may_start(name)]
        if not wanted or not self._build(wanted):
            return
        if not self.options.speed:
            for name in wanted:
                if (arm := self._prepare(name)) is not None:
                    self._finish([arm], None, None)
            return
        ready = [arm for name in wanted if (arm := self._prepare(name)) is not None]
        timed, order_seed = self._time(ready)
        if timed is not None and self.problem.device == "cuda":
            for arm in ready:
                if timed.samples[arm.name][-1] < supplements.LIMIT_MS:
                    arm.apart = self._supplements(arm)
        self._finish(ready if timed is not None else [], timed, order_seed)

    # -- before anything is built ------------------------------------------------------------------

    def _may_start(self, name: str) -> bool:
        self._enter(name, "build")
        with self._guard(name):
            reasons = registry.unavailable(name, self.problem)
            if reasons:
                self._out(name, "unsupported", "; ".join(reasons))
                return False
            shortage = None if self.options.try_oversized else self._shortage(name)
            if shortage:
                self._out(name, "oom", shortage)
                return False
            tampering.require_unmoved()  # a user's file has been run
            return True
        return False

    def _shortage(self, name: str) -> str | None:
        """Why this cell is predicted not to fit; None if it fits."""
        from ..ruler.device import available_bytes

        needed = footprint.needed_bytes(self.problem, registry.seam_peak_bytes(name, self.problem))
        available = available_bytes(self.problem.device)
        if needed <= available:
            return None
        return f"oom (predicted): needs {needed / 2**30:.1f} GiB, {available / 2**30:.1f} GiB available"

    def _build(self, wanted: list[str]) -> bool:
        """Inputs and reference, shared by all; if they fail, so does every backend that waits for them."""
        self._enter("", "build")
        try:
            roomy = self._room_for_another(wanted)
            self._input_sets = InputSets(self.problem, self.source, self.options.gate_pairs, roomy=roomy)
        except Exception as e:
            status, reason = verdict_on(e)
            for name in wanted:
                self._out(name, status, f"while the inputs and their reference were built: {reason}", text_of(e))
            check_device(self.problem.device)
            return False
        return True

    def _room_for_another(self, wanted: list[str]) -> bool:
        """Whether a second set of inputs leaves room for what the hungriest backend allocates."""
        from ..ruler.device import available_bytes

        peak = max(self.level.peak_bytes(self.problem, registry.seam_peak_bytes(name, self.problem)) for name in wanted)
        needed = footprint.MARGIN * (self.level.input_bytes(self.problem) + peak)
        return needed <= available_bytes(self.problem.device)

    # -- one backend at a time ---------------------------------------------------------------------

    def _prepare(self, name: str) -> Arm | None:
        from ..gate import gate, trial

        assert self._input_sets is not None
        with self._guard(name), self._input_sets.untouched():
            self._enter(name, "first call")
            first, *others = self._input_sets.turns
            arm = Arm(name, Case(first, registry.converted(name, first.module), others))
            before = registry.tuning_ms(name)
            taken = self._milliseconds(arm.case)
            arm.tuning_ms = registry.tuning_ms(name) - before
            arm.first_call_ms = max(0.0, taken - arm.tuning_ms)
            self._enter(name, "gate")
            assert arm.case.last is not None
            audit.require_own(arm.case, arm.case.last)
            arm.gate = gate.check(arm.case, self._input_sets.expected[0])
            if not arm.gate.passed:
                self._out(name, "wrong", gate.why_red(arm.gate, self.problem), gate=arm.gate)
                return None
            if self.level.sole_backend is None:
                tried = trial.of(name, self.problem)
                arm.gate = arm.gate.model_copy(update={"trial": tried})
                if tried is not None and not tried.passed:
                    arm.gate = arm.gate.model_copy(update={"passed": False})
                    self._out(name, "wrong", trial.why_red(tried, self.problem), gate=arm.gate)
                    return None
            arm.path = registry.path(name, arm.case)
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
        from ..ruler.device import peak_memory

        case.release()
        peak, source = peak_memory(case, self.problem.device)
        assert case.last is not None
        made = audit.returned_bytes(case, case.last)
        case.release()
        if peak < made:
            raise WrongResult(f"its call returned {made:,} bytes and allocated {peak:,}: the result is from elsewhere")
        return Memory(
            peak_bytes=peak,
            model_bytes=registry.seam_peak_bytes(name, self.problem) if self.level.is_seam else None,
            input_bytes=self.level.input_bytes(self.problem),
            p_bytes=pair_bytes(self.problem),
            source=source,
        )

    # -- all backends together ---------------------------------------------------------------------

    def _time(self, ready: list[Arm]) -> tuple[Interleaved | None, int | None]:
        """Interleave what passed the gate; an arm that fails now is out, and the others start again."""
        sets = self._input_sets
        assert sets is not None
        while ready:
            calls: dict[str, Callable[[], object]] = {arm.name: arm.case for arm in ready}
            share_ms = 1e3 * self.options.budget_s / len(ready)
            again = [arm for arm in ready if 2 * self.options.min_blocks * arm.steady_ms <= share_ms]
            fastest = min(ready, key=lambda arm: arm.steady_ms)
            calls |= {arm.name + AA: arm.case for arm in {id(arm): arm for arm in (*again, fastest)}.values()}
            by_name = {name: arm for arm in ready for name in (arm.name, arm.name + AA)}
            running = ready[0].name

            def about_to_run(name: str) -> None:
                nonlocal running
                sets.require(whole=False)  # of the one that ran before, calibration included
                running = name.removesuffix(AA)
                self._note(running, "timing")
                for arm in ready:
                    arm.case.release()

            def sampled(name: str, closing: bool, by_name: dict[str, Arm] = by_name) -> None:
                self._look(by_name[name], closing)

            self._emit(self._phase(running, "timing", extra_s=self.options.budget_s))
            order_seed = secrets.randbits(31)
            try:
                timed = interleave(
                    calls,
                    clock=make_clock(self.problem.device),
                    budget_s=self.options.budget_s,
                    min_blocks=self.options.min_blocks,
                    max_blocks=self.options.max_blocks,
                    seed=order_seed,
                    on_block=self._exchange,
                    on_run=about_to_run,
                    on_sample=sampled,
                )
                sets.require(whole=False)
                return timed, order_seed
            except Exception as e:
                status, reason = verdict_on(e)
                guilty = self._guilty(ready)
                if guilty and running not in guilty:
                    status, reason = "wrong", f"it changes what it is given, which spoilt {running} ({reason})"
                for name in guilty or [running]:
                    self._out(name, status, f"while timed: {reason}", text_of(e), gate=by_name[name].gate)
                check_device(self.problem.device)
                ready[:] = [arm for arm in ready if arm.name not in (guilty or [running])]
        return None, None

    def _exchange(self, block: int) -> None:
        """Before the third block, and before about half of the later ones, the input sets are exchanged: never in step
        with the calls that take turns among them."""
        assert self._input_sets is not None
        if block == 3 or (block > 3 and secrets.randbits(1)):
            self._input_sets.swap()

    def _guilty(self, ready: list[Arm]) -> list[str]:
        assert self._input_sets is not None
        cases = self._input_sets.who_changed([arm.case for arm in ready])
        return [arm.name for arm in ready if arm.case in cases]

    def _look(self, arm: Arm, closing: bool) -> None:
        """Compare what a timed sample made."""
        assert self._input_sets is not None
        assert arm.gate is not None
        arm.gate = self._input_sets.look(arm.case, arm.gate, closing=closing)
        arm.checked += 1

    def _supplements(self, arm: Arm) -> dict[str, Any]:
        """What is measured of an arm by itself on CUDA; where it cannot be had, its reason: it costs no cell."""
        assert self._input_sets is not None
        found: dict[str, Any] = {}
        for phase, take in (("timing", supplements.hot), ("graph", supplements.replayed)):
            if phase == "graph" and not self.options.graphs:
                found["graph_reason"] = "switched off: a capture ended the process"
                continue
            self._enter(arm.name, phase)
            try:
                found |= take(arm.case, self._input_sets)
            except RuntimeError as e:
                found["graph_reason" if phase == "graph" else "hot_reason"] = verdict_on(e)[1]
                check_device(self.problem.device)
        return found

    def _finish(self, ready: list[Arm], timed: Interleaved | None, order_seed: int | None) -> None:
        """Send all good cells in one event."""
        cells = []
        for arm in ready:
            with self._guard(arm.name):
                cells.append(self._good(arm, timed, order_seed))
        self._emit({"event": "cells", "cells": cells})

    def _good(self, arm: Arm, timed: Interleaved | None, order_seed: int | None) -> dict[str, Any]:
        timing = None if timed is None else _timing(arm, timed, order_seed)
        limit = None if timing is None else self._limit(timing.median_ms)
        if limit is not None and (impossible := limits.beyond(limit)) is not None:
            raise WrongResult(impossible)
        return {
            "backend": arm.name,
            "status": "ok",
            "path": arm.path,
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
        known = Ceilings(**self._ceilings)
        found = limits.limit(self.problem, known, measured_ms)
        if limits.beyond(found) is None:
            return found
        # Before a backend is accused: something else may have run while the ceilings were measured.
        known = known.raised(ceilings(self.problem.device, self.problem.dtype))
        return limits.limit(self.problem, known, measured_ms)

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
            tampering.moved()
            status, reason = verdict_on(e)
            self._out(name, status, reason, text_of(e) if status != "unsupported" else None)
            del e
            gc.collect()
            check_device(self.problem.device)


def _timing(arm: Arm, timed: Interleaved, order_seed: int | None) -> Timing:
    samples = timed.samples[arm.name]
    interval = median_interval(samples)
    walls = timed.walls[arm.name] or None
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
        wall_samples_ms=walls,
        wall_ms=None if walls is None else statistics.median(walls),
        order_seed=order_seed,
        input_sets=len(arm.case.turns),
        calls_checked=arm.checked,
        **arm.apart,
    )


def _json(model: Any) -> Any:
    return None if model is None else model.model_dump(mode="json")
