"""The backends of one problem, each sampled whenever the parent says so: the worker's half of :mod:`.versus`.

Everything but the timing is :class:`~.measure.Group`'s: gate, first call, plan, memory. The samples come one by one,
so that the parent can take them in turn from two processes, of which one waits while the other runs.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import json
import secrets
import sys
from collections.abc import Callable, Iterator
from typing import Any

from ..cases.case import Case
from ..gate.failures import check_device
from ..ruler.clock import Clock, CpuClock, make_clock
from ..schema.problem import Problem
from .measure import Arm, Emit, Group, Note
from .options import Options
from .process import ROOT

SAMPLE_MS = 5.0  # shorter calls are batched: between two samples another process has had the caches
WARM_BELOW_MS = 50.0  # for the same reason, a call shorter than this runs once untimed before each sample
_REFERENCE = "variants._op"


def pin_reference() -> None:
    """Let every commit answer to today's definition of the operation, not to the one that it carries."""
    spec = importlib.util.spec_from_file_location(_REFERENCE, ROOT / "variants" / "_op.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_REFERENCE] = module
    spec.loader.exec_module(module)
    import variants

    setattr(variants, "_op", module)  # noqa: B010  a type checker knows it as a module of the package


def serve(
    lines: Iterator[str], emit: Emit, note: Note, *, problem: dict, source: str | None, options: dict[str, Any]
) -> None:
    """Answer requests about one problem's backends until ``leave``; each answer ends with ``done``."""
    steps = Steps(Problem.model_validate(problem), source, Options(**options), None, emit, note)
    answers: dict[str, Callable[..., None]] = {"open": steps.open, "sample": steps.sample, "close": steps.close}
    was_on = gc.isenabled()
    gc.disable()
    gc.collect()
    gc.freeze()  # libraries hold millions of objects that each collection between two samples would look through
    try:
        emit({"event": "done"})
        for line in lines:
            request = json.loads(line)
            what = request.pop("do")
            if what == "leave":
                return
            answers[what](**request)
            emit({"event": "done"})
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()


class Steps(Group):
    """A group whose backends are opened one by one and stay open, so that the parent may go round among them."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._arms: dict[str, Arm] = {}
        self._warm: set[str] = set()  # those that need a call before their sample
        self._looked: set[str] = set()  # those whose last sample was compared whole

    @functools.cached_property
    def _clock(self) -> Clock:
        if self.problem.device != "cpu":
            return make_clock(self.problem.device)
        import torch

        return CpuClock(target_ms=SAMPLE_MS, threads=torch.get_num_threads())

    def open(self, backend: str, known: dict[str, float] | None = None) -> None:
        """Gate, first call, memory and calibration; ``ready`` says how many calls make one sample and how many
        seconds that takes, or repeats what is ``known`` of both: on a CPU nothing else need be found out again."""
        self._arms.pop(backend, None)
        if not self._may_start(backend):
            return
        if self._input_sets is None and not self._build([backend]):
            return
        arm = self._prepare(backend)
        if arm is None:
            return
        self._enter(backend, "timing")
        with self._guard(backend):
            if known is None or self.problem.device != "cpu":
                calls, seconds = self._clock.calibrate(arm.case)
            else:
                calls, seconds = int(known["calls"]), known["seconds"]
            arm.case.release()
            if seconds * 1e3 / calls < WARM_BELOW_MS:
                self._warm.add(backend)
            self._arms[backend] = arm
            self._emit({"event": "ready", "calls": calls, "seconds": seconds, "cache": self._clock.cache})

    def _plan_ms(self, case: Case) -> tuple[float, float | None]:
        """Not asked here: a plan is made in the first call, and what it costs is another question."""
        return 0.0, None

    def sample(self, backend: str, calls: int, last: bool) -> None:
        """Milliseconds per call, once; what it made is compared, whole if this is the ``last`` sample."""
        self._note(backend, "timing")
        arm = self._arms[backend]
        assert self._input_sets is not None
        with self._guard(backend):
            if secrets.randbits(1):
                self._input_sets.swap()
            if backend in self._warm:
                arm.case()
            arm.case.release()
            gc.collect(1)
            ms = self._clock.sample(arm.case, calls)
            self._look(arm, closing=last)
            if last:
                self._looked.add(backend)
            self._emit({"event": "sample", "ms": ms})

    def close(self, backend: str) -> None:
        """The cell, without its samples, goes out; where the last sample was not known as such, after another call."""
        assert self._input_sets is not None
        arm = self._arms.pop(backend)
        with self._guard(backend), self._input_sets.untouched():
            self._enter(backend, "gate")
            if backend not in self._looked:
                arm.case()
                self._look(arm, closing=True)
            self._looked.discard(backend)
            self._emit({"event": "cells", "cells": [self._good(arm, None, None)]})
        del arm
        gc.collect()
        check_device(self.problem.device)
