"""A worker process, seen from its parent: requests go down, events come back, and it may die.

What is measured can crash: a kernel reads out of bounds, the kernel's OOM killer strikes, a loop
never ends. So it runs in a child that is started afresh (never forked: CUDA does not survive a fork)
and talks over a pipe of its own, since stdout belongs to whatever library likes to print. The child's
*note* is a small file that it overwrites before each run; after a death it says who was in flight,
at no cost to the runs themselves: nobody wakes up to read it.

This module is free of torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..ruler.scratch import Scratch

ROOT = Path(__file__).resolve().parents[3]
STDERR_TAIL_BYTES = 20_000
_TICK_S = 0.25

Event = dict[str, Any]


class WorkerDied(RuntimeError):
    """The worker ended without being asked to: how, who was in flight, and the tail of its stderr."""

    def __init__(self, how: str, in_flight: tuple[str, str] | None, stderr: str) -> None:
        super().__init__(how)
        self.how, self.in_flight, self.stderr = how, in_flight, stderr


class WorkerTimeout(RuntimeError):
    """A phase took longer than its limit; the worker has been killed."""

    def __init__(self, phase: str, limit_s: float, in_flight: tuple[str, str] | None, stderr: str) -> None:
        super().__init__(f"{phase} took longer than {limit_s:g} s")
        self.phase, self.limit_s, self.in_flight, self.stderr = phase, limit_s, in_flight, stderr


# An editable install looks up the modules of its packages itself: what the measured code lacks would come from there.
_FORGET_EDITABLE = (
    "sys.meta_path[:] = [f for f in sys.meta_path "
    "if 'variants' not in getattr(sys.modules.get(getattr(f, '__module__', None)), 'MAPPING', ())]; "
)


def _bootstrap(code: Path | None) -> str:
    """The child sees the very modules that the parent sees, wherever either was started; ``code`` is a folder that
    comes before them all, and the only one that its packages come from.

    The root is appended, not prepended: an installed wheel of another commit (asv) stays ahead of
    the working tree that holds this harness.
    """
    path = [os.path.abspath(entry) for entry in ((code, *sys.path) if code else sys.path)]
    return (
        f"import sys; {_FORGET_EDITABLE if code else ''}sys.path[:] = {path!r} + [{str(ROOT)!r}]; "
        "import runpy; runpy.run_module('benchmarks.harness.worker', run_name='__main__', alter_sys=True)"
    )


class Worker:
    """One child process; :meth:`close` ends it. ``code``: the folder of the packages that it measures, where those
    are not the parent's own."""

    def __init__(
        self, *, threads: int | None = None, extra_env: dict[str, str] | None = None, code: Path | None = None
    ) -> None:
        self._scratch = Scratch("atom-bench-")
        self.note_path = self._scratch.path / "note"
        self.note_path.touch()
        self._stderr_path = self._scratch.path / "stderr"
        read_fd, write_fd = os.pipe()
        # A thread that waits by spinning takes the core from the one it waits for wherever anything else runs: in a
        # backend of many short operations that cost 3 to 30 times the work itself.
        # Backends leave differently shaped holes in CUDA's cached memory: without segments that grow, a tensor of a
        # tenth of the device did not fit although three quarters were free.
        env = {"OMP_WAIT_POLICY": "PASSIVE", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"} | os.environ
        env |= {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"} | (extra_env or {})
        if threads is not None:
            env |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        command = [sys.executable, "-P", "-c", _bootstrap(code), str(write_fd), str(self.note_path), str(os.getpid())]
        with open(self._stderr_path, "wb") as stderr:
            self._process = subprocess.Popen(
                command + ([str(threads)] if threads is not None else []),
                stdin=subprocess.PIPE,
                stdout=stderr,
                stderr=stderr,
                pass_fds=(write_fd,),
                env=env,
                start_new_session=True,  # Ctrl-C at the terminal is the parent's to handle
            )
        os.close(write_fd)
        self._read_fd = read_fd
        self._buffer = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(read_fd, selectors.EVENT_READ)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def request(self, what: str, **arguments: object) -> None:
        """Ask for something; its events then come from :meth:`events`."""
        line = json.dumps({"do": what, **arguments}) + "\n"
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None

    def events(self, *, limit_s: float, until: float | None = None) -> Iterator[Event]:
        """The events of one request, up to and without its ``done``.

        ``limit_s`` bounds the time to the next event; an event that carries ``limit_s`` sets it for
        what follows (the phases of a group have limits of their own). ``until`` (of ``time.monotonic``)
        bounds them all.

        Raises
        ------
        WorkerDied, WorkerTimeout
        """
        phase, deadline = "start", time.monotonic() + limit_s
        while True:
            line = self._line(deadline if until is None else min(deadline, until))
            if line is None:
                in_flight = self.in_flight()
                self.kill()
                raise WorkerTimeout(phase, limit_s, in_flight, self.stderr_tail())
            event: Event = json.loads(line)
            if event["event"] == "done":
                return
            phase = str(event.get("phase", phase))
            limit_s = float(str(event.get("limit_s", limit_s)))
            deadline = time.monotonic() + limit_s
            yield event

    def _line(self, deadline: float) -> bytes | None:
        """The next line of the pipe; None once the deadline has passed.

        The process is polled too: a grandchild (a compiler) may hold the pipe open after a death.
        """
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            ready = self._selector.select(min(_TICK_S, left))
            chunk = os.read(self._read_fd, 1 << 16) if ready else b""
            self._buffer += chunk
            if (ready and not chunk) or (not ready and not self.alive):
                raise self._died()
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _died(self) -> WorkerDied:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.kill()
            code = self._process.returncode
        return WorkerDied(_how(code), self.in_flight(), self.stderr_tail())

    def in_flight(self) -> tuple[str, str] | None:
        """(backend, phase) of the child's note, None if it has not got that far."""
        try:
            noted = json.loads(self.note_path.read_bytes())
        except ValueError:
            return None
        return noted["backend"], noted["phase"]

    def stderr_tail(self) -> str:
        with open(self._stderr_path, "rb") as f:
            f.seek(max(0, os.fstat(f.fileno()).st_size - STDERR_TAIL_BYTES))
            return f.read().decode(errors="replace").strip()

    def kill(self) -> None:
        """End the child and all that it started (its session is its own)."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """End it and give back what it held."""
        self.kill()
        for stream in (self._process.stdin, self._selector):
            with contextlib.suppress(BrokenPipeError):
                if stream is not None:
                    stream.close()
        os.close(self._read_fd)
        self._scratch.close()


def _how(code: int) -> str:
    if code >= 0:
        return f"the worker ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (the kernel's out-of-memory killer, or a kill by hand)" if name == "SIGKILL" else ""
    return f"the worker was ended by {name}{hint}"
