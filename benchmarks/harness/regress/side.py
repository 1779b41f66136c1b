"""One state of the code and the process that runs it, replaced as often as it dies or a round begins. Free of torch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..schema.problem import Problem
from ..worker.host import START_LIMIT_S
from ..worker.options import Options
from ..worker.process import Event, Worker, WorkerDied, WorkerTimeout
from .commits import Code


class Side:
    """One state of the code and the process that runs it now."""

    def __init__(self, name: str, code: Code, folder: Path, threads: int | None) -> None:
        self.name, self.code, self.folder, self.threads = name, code, folder, threads
        self.provenance: dict[str, Any] | None = None
        self._worker: Worker | None = None
        self._inside: str | None = None  # the problem whose steps the process is in
        self._starting = False
        self._open: set[str] = set()

    def start(self) -> None:
        """Begin a fresh process; it imports while others work."""
        self.stop()
        environment = {"BENCH_COMMIT": self.code.commit}
        self._worker = Worker(threads=self.threads, extra_env=environment, code=self.folder)
        self._worker.request("devices")
        self._starting = True

    def stop(self) -> None:
        """End the process; the next request starts another."""
        if self._worker is not None:
            self._worker.close()
            self._worker = self._inside = None
            self._open.clear()

    def ask(
        self, what: str, *, limit_s: float = START_LIMIT_S, until: float | None = None, **arguments: Any
    ) -> list[Event]:
        """All events of one request; the process is started where there is none, and gone after an error."""
        try:
            if self._worker is None or not self._worker.alive:
                self.start()
            assert self._worker is not None
            if self._starting:
                list(self._worker.events(limit_s=START_LIMIT_S, until=until))
                self._starting = False
            self._worker.request(what, **arguments)
            events = list(self._worker.events(limit_s=limit_s, until=until))
        except (WorkerDied, WorkerTimeout):
            self.stop()
            raise
        if any(event["event"] == "ready" for event in events):
            self._open.add(arguments["backend"])
        elif what == "close":
            self._open.discard(arguments["backend"])
        return events

    def has(self, backend: str) -> bool:
        """Whether the process of now holds this backend open."""
        return backend in self._open

    def enter(self, problem: Problem, source: str | None, options: Options, until: float | None) -> None:
        """Be in the steps of this problem."""
        if self._worker is not None and self._worker.alive and self._inside == problem.key:
            return
        self.leave()
        asked = problem.model_dump(mode="json")
        self.ask("steps", problem=asked, source=source, options=asdict(options), until=until)
        self._inside = problem.key

    def leave(self) -> None:
        """Be in no problem's steps."""
        if self._inside is not None:
            self._inside = None
            self._open.clear()
            self.ask("leave")

    def describe(self, device: str) -> dict[str, Any]:
        """The machine and the code, as this side's records tell them."""
        if self.provenance is None:
            self.leave()
            event = next(e for e in self.ask("describe", device=device) if e["event"] == "described")
            self.provenance = {**event["provenance"], "commit": self.code.commit, "dirty": self.code.dirty}
        return self.provenance

    def backends(self) -> dict[str, bool]:
        """The backends of this code; whether each runs a compiler.

        Raises
        ------
        WorkerDied, WorkerTimeout
            This code cannot even be listed.
        """
        return next(e for e in self.ask("names") if e["event"] == "names")["compiles"]
