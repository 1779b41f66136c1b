"""The child process that measures: reads requests from stdin, answers with events on a pipe of its own.

Started by :class:`~.process.Worker`, never by hand. It asks the kernel to be killed first when memory
runs out (so that the sweep's parent lives on) and to be killed when its parent dies.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..schema.problem import Problem

if TYPE_CHECKING:
    from .measure import Group

POISONED_EXIT = 3
_PR_SET_PDEATHSIG = 1


class Channel:
    """Events out, the note of who is in flight."""

    def __init__(self, event_fd: int, note_path: str) -> None:
        os.set_inheritable(event_fd, False)
        self._events = os.fdopen(event_fd, "w", buffering=1)
        self._note = os.open(note_path, os.O_WRONLY)
        self._last = b""
        self._longest = 0

    def emit(self, event: dict[str, Any]) -> None:
        self._events.write(json.dumps(event) + "\n")
        self._events.flush()

    def note(self, backend: str, phase: str) -> None:
        """One small write into the page cache; read only by whoever finds this process dead. As long as the longest
        before it, so that nothing is left of that one."""
        text = json.dumps({"backend": backend, "phase": phase}).encode()
        if text != self._last:
            self._last, self._longest = text, max(self._longest, len(text))
            os.pwrite(self._note, text.ljust(self._longest), 0)


def main(event_fd: int, note_path: str, parent: int, threads: int | None) -> None:
    """Serve requests until stdin closes."""
    _die_first(parent)
    channel = Channel(event_fd, note_path)
    channel.note("", "start")
    from ..gate import tampering
    from ..ruler.device import code_origin, cpu_cores, pin_threads

    tampering.require_unmoved()  # imported here: the ruler as it is before any backend is loaded
    pin_threads(threads or cpu_cores())
    code_origin()  # raises unless what is measured is ours
    for line in sys.stdin:
        request = json.loads(line)
        _SERVE[request.pop("do")](channel, **request)
        channel.emit({"event": "done"})


def _die_first(parent: int) -> None:
    """Raise this process's OOM score, and tie its life to its parent's; both are Linux's, and only help."""
    if not sys.platform.startswith("linux"):
        return
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError as e:
        print(f"oom_score_adj stays as it is: {e}", file=sys.stderr)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call above
        os._exit(1)


def _group(
    channel: Channel, *, problem: dict, source: str | None, backends: list[str], options: dict, ceilings: dict | None
) -> None:
    from .measure import Group
    from .options import Options

    asked = Problem.model_validate(problem)
    _run(channel, asked, Group(asked, source, Options(**options), ceilings, channel.emit, channel.note), backends)


def _profile(
    channel: Channel, *, problem: dict, source: str | None, backends: list[str], options: dict, ceilings: dict | None,
    traces: dict[str, str],
) -> None:  # fmt: skip
    from .options import Options
    from .profiling import Profiling

    asked = Problem.model_validate(problem)
    group = Profiling(asked, source, Options(**options), ceilings, channel.emit, channel.note)
    group.traces = traces
    _run(channel, asked, group, backends)


def _run(channel: Channel, asked: Problem, group: Group, backends: list[str]) -> None:
    """Run a group of one kind or another on a tidy heap; a lost device ends the process."""
    from ..gate.failures import DevicePoisoned
    from ..ruler.device import state

    gc.collect()  # what the group before held
    gc.freeze()  # the libraries' own million objects, which each full collection from here on would walk again
    if asked.device == "cuda":
        import torch

        torch.cuda.empty_cache()
    before = state(asked.device)
    try:
        group.run(tuple(backends))
    except DevicePoisoned as e:
        print(f"the CUDA context no longer works, this process ends: {e}", file=sys.stderr, flush=True)
        os._exit(POISONED_EXIT)
    channel.emit({"event": "environment", "before": before, "after": state(asked.device)})


def _steps(channel: Channel, *, problem: dict, source: str | None, options: dict) -> None:
    """Another conversation until ``leave``: one backend at a time, sample by sample."""
    from .steps import pin_reference, serve

    pin_reference()
    serve(iter(sys.stdin), channel.emit, channel.note, problem=problem, source=source, options=options)


def _names(channel: Channel) -> None:
    """The backends of this code, and whether each runs a compiler; one that does not load is named all the same."""
    import variants

    compiles = {}
    for name in variants.names():
        try:
            compiles[name] = bool(getattr(variants.load(name), "compiles", False))
        except Exception as e:
            print(f"{name} does not load: {e}", file=sys.stderr)
            compiles[name] = False
    channel.emit({"event": "names", "compiles": compiles})


def _describe(channel: Channel, *, device: str) -> None:
    from ..ruler.device import describe

    channel.emit({"event": "described", "provenance": describe(device)})


def _devices(channel: Channel) -> None:
    """Which devices torch finds here."""
    import torch

    found = {"cpu": True, "cuda": torch.cuda.is_available()}
    channel.emit({"event": "devices", "torch": torch.__version__, **found})


def _ceilings(channel: Channel, *, device: str, dtype: str, known: dict | None) -> None:
    from ..ruler.device import Ceilings, ceilings

    channel.note("", "ceilings")
    found = ceilings(device, dtype, known=Ceilings(**known) if known else None)
    channel.emit({"event": "ceilings", "ceilings": asdict(found)})


def _availability(channel: Channel, *, device: str) -> None:
    """For every backend: what it is, and by dtype and mode every reason why it does not run on this device."""
    import variants

    backends = {}
    for name in variants.names():
        channel.note(name, "availability")
        reasons = {
            dtype: {
                mode: variants.why_unavailable(name, device=device, dtype=dtype, backward=mode != "fwd")
                for mode in ("fwd", "fwdbwd")
            }
            for dtype in ("float32", "bfloat16", "float16", "float64")
        }
        backend = variants.load(name)
        backends[name] = {"summary": backend.summary, "compiles": backend.compiles, "reasons": reasons}
    channel.emit({"event": "availability", "backends": backends})


def _kernel(channel: Channel, *, kernel: str, arch: int, dtype: str) -> None:
    from .kernels import inspect

    channel.note(kernel, "compile")
    channel.emit({"event": "kernel", "found": inspect(kernel, arch, dtype)})


_SERVE = {
    "availability": _availability,
    "group": _group,
    "profile": _profile,
    "ceilings": _ceilings,
    "describe": _describe,
    "devices": _devices,
    "names": _names,
    "steps": _steps,
    "kernel": _kernel,
}

if __name__ == "__main__":
    fd, note, parent_pid, *rest = sys.argv[1:]
    main(int(fd), note, int(parent_pid), int(rest[0]) if rest else None)
