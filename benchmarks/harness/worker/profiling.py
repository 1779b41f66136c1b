"""Profile backends on one problem, in the worker: gate first, then a few steady calls under ``torch.profiler``.

Runs like a group of a sweep, with the same events on the way; what passes the gate leaves as a cell with a breakdown.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..gate.failures import synchronize
from ..ruler.clock import CudaClock, make_clock
from ..ruler.scratch import Scratch
from . import trace
from .measure import Arm, Group

MOST_ROWS = 24
MOST_TRACE_BYTES = 900_000
_FEWEST, _MOST_CALLS = 2, 8
_WANTED_S = 0.8  # of profiled calls
_SLOW_CALL_S = 4.0  # one more profiled call for its memory costs too much from here on
_SAMPLES, _SAMPLES_S = 9, 1.5
_KEPT = ("user_annotation", "cpu_op", *trace.DEVICE_WORK, *trace.RUNTIME, "ac2g")


class Profiling(Group):
    """Backends of one problem, each by itself: a profile needs no pairs."""

    traces: dict[str, str]  # where each backend's trace is to be written

    def run(self, backends: tuple[str, ...]) -> None:
        """Bring every backend to a cell: its profile, or why there is none."""
        wanted = [name for name in backends if self._may_start(name)]
        if not wanted or not self._build(wanted):
            return
        for name in wanted:
            arm = self._prepare(name)  # these options time nothing: it ends with the gate
            if arm is None:
                continue
            with self._guard(name):
                self._enter(name, "profile")
                self._emit({"event": "cells", "cells": [{"backend": name, "status": "ok"} | self._profile(arm)]})
                arm.case.release()

    def _profile(self, arm: Arm) -> dict[str, Any]:
        device = self.problem.device
        call_ms, enqueue_ms = _unprofiled(arm.case, device)
        calls = int(np.clip(_WANTED_S * 1e3 / max(call_ms, 1e-3), _FEWEST, _MOST_CALLS))
        with Scratch("atom-bench-") as folder:
            chrome = _recorded(arm.case, device, calls, folder)
            found = self._analysed(chrome["traceEvents"])
            most = None
            if call_ms < _SLOW_CALL_S * 1e3:
                arm.case.release()
                memory = _recorded(arm.case, device, 1, folder, memory=True)
                most = trace.peak(memory["traceEvents"], device)
        shares = trace.shares(found, device, call_ms)
        limit = self._limit(call_ms)
        rows = [_row(item, shares.call_ms, limit.floor_ms if limit else None) for item in found.items]
        return {
            "gate": arm.gate.model_dump(mode="json") if arm.gate else None,
            "limit": limit.model_dump(mode="json") if limit else None,
            "summary": trace.summary(shares.kinds, found.items),
            "trace": _write(chrome, self.traces.get(arm.name)),
            "breakdown": {
                "calls": found.calls,
                "call_ms": call_ms,
                "wall_ms": found.wall_ms,
                "busy_ms": found.busy_ms,
                "whole_ms": shares.call_ms,
                "kinds": shares.kinds,
                "idle_share": shares.idle,
                "rows": rows[:MOST_ROWS],
                "rows_left_out": max(len(rows) - MOST_ROWS, 0),
                "launches": found.launches,
                "launch_ms": found.launch_ms,
                "syncs": found.syncs,
                "enqueue_ms": enqueue_ms,
                "peak_bytes": most.peak_bytes if most else None,
                "peak_op": most.op if most else None,
            },
        }

    def _analysed(self, events: list[trace.Event]) -> trace.Breakdown:
        from variants import UnsupportedError

        try:
            return trace.analyse(events, self.problem.device)
        except trace.NothingRecorded as e:
            raise UnsupportedError([f"torch.profiler: {e}"]) from e


def _row(item: trace.Item, whole_ms: float, floor_ms: float | None) -> dict[str, Any]:
    return asdict(item) | {"share": min(item.ms / whole_ms, 1.0), "floors": item.ms / floor_ms if floor_ms else None}


def _unprofiled(case: Callable[[], object], device: str) -> tuple[float, float | None]:
    """Median ms of a call in a row of calls (caches warm, launch gaps included), and ms that its launch takes."""
    clock = make_clock(device, cache="hot")
    calls, seconds = clock.calibrate(case)
    until = time.monotonic() + _SAMPLES_S
    taken = [clock.sample(case, calls)]
    while len(taken) < _SAMPLES and time.monotonic() + seconds < until:
        taken.append(clock.sample(case, calls))
    enqueue = clock.enqueue_ms(case) if isinstance(clock, CudaClock) else None
    return float(np.median(taken)), enqueue


def _recorded(
    case: Callable[[], object], device: str, calls: int, folder: Path, *, memory: bool = False
) -> dict[str, Any]:
    """The Chrome trace of so many calls in a row."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when the profiler first starts; it is chatty on stderr
    from torch.profiler import ProfilerActivity, profile, record_function

    activities = [ProfilerActivity.CPU]
    if device == "cuda" and not memory:
        activities.append(ProfilerActivity.CUDA)
    synchronize(device)
    with profile(activities=activities, profile_memory=memory) as recorded:
        for _ in range(calls):
            with record_function(trace.MARKER):
                case()
        synchronize(device)
    path = folder / "trace.json"
    recorded.export_chrome_trace(str(path))
    chrome = json.loads(path.read_text(encoding="utf-8", errors="replace"), strict=False)  # names are any library's
    path.unlink()
    return chrome


def slim(chrome: dict[str, Any], calls: int) -> dict[str, Any]:
    """The trace of its first ``calls`` marked calls, without this machine's name and folders."""
    events = chrome["traceEvents"]
    marks = sorted(
        (e for e in events if e.get("cat") == "user_annotation" and e.get("name") == trace.MARKER),
        key=lambda e: e["ts"],
    )[:calls]
    until = max((e["ts"] + e["dur"] for e in marks), default=float("inf"))
    inside = [e for e in events if e.get("cat") in _KEPT and e.get("ts", 0) <= until]
    launched = {_link(e) for e in inside if e.get("cat") in trace.RUNTIME}
    kept = [e for e in inside if e["cat"] not in trace.DEVICE_WORK or _link(e) in launched]
    late = [  # a stream runs ahead: the last kernels of these calls come after the host has left them
        e for e in events
        if e.get("cat") in trace.DEVICE_WORK and e["ts"] > until and _link(e) in launched
    ]  # fmt: skip
    about = [e for e in events if e.get("ph") == "M" and str(e.get("name", "")).endswith(("_name", "_sort_index"))]
    facts = {name: chrome[name] for name in ("schemaVersion", "deviceProperties", "displayTimeUnit") if name in chrome}
    return facts | {"traceEvents": about + kept + late}


def _link(event: trace.Event) -> object:
    """What ties a kernel to its launch."""
    return event.get("args", {}).get("correlation")


def _write(chrome: dict[str, Any], path: str | None) -> str | None:
    """The trace gzipped, of as few calls as keep it small; its name, or None where even one call is too large."""
    if path is None:
        return None
    for calls in (3, 1):
        packed = gzip.compress(json.dumps(slim(chrome, calls), separators=(",", ":")).encode(), 9, mtime=0)
        if len(packed) <= MOST_TRACE_BYTES:
            with contextlib.suppress(OSError):
                Path(path).write_bytes(packed)
                return Path(path).name
    return None
