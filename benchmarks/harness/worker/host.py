"""One worker after another, as one: whoever asks gets a live one, and what it said of the machine is kept.

This module is free of torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from .process import Event, Worker, WorkerDied, WorkerTimeout

START_LIMIT_S = 180.0  # a worker's first answer: it imports torch
CEILINGS_LIMIT_S = 180.0


class Host:
    """The machine as its workers see it. Use as a context manager."""

    def __init__(self, *, threads: int | None = None) -> None:
        self.threads = threads
        self._worker: Worker | None = None
        self._devices: dict[str, Any] | None = None
        self._described: dict[str, dict[str, Any]] = {}
        self._ceilings: dict[tuple[str, str], dict[str, Any]] = {}

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *exc: object) -> None:
        self.replace()

    @property
    def pid(self) -> int | None:
        """Of the worker that is alive now."""
        return self._worker.pid if self._worker is not None and self._worker.alive else None

    def ask(
        self, what: str, *, limit_s: float = START_LIMIT_S, until: float | None = None, **arguments: object
    ) -> Iterator[Event]:
        """The events of one request, in a worker that is started if there is none.

        Raises
        ------
        WorkerDied, WorkerTimeout
            The next request gets a fresh worker.
        """
        if self._worker is None or not self._worker.alive:
            self.replace()
            self._worker = Worker(threads=self.threads)
        try:
            self._worker.request(what, **arguments)
            yield from self._worker.events(limit_s=limit_s, until=until)
        except (WorkerDied, WorkerTimeout):
            self.replace()
            raise

    def replace(self) -> None:
        """End the worker; the next request starts another."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def one(self, what: str, answer: str, **arguments: Any) -> Event:
        """The one event of a request that has one."""
        events = list(self.ask(what, **arguments))
        return next(event for event in events if event["event"] == answer)

    def devices(self) -> dict[str, Any]:
        """Which devices torch finds here, and torch's version."""
        if self._devices is None:
            self._devices = dict(self.one("devices", "devices"))
        return self._devices

    def describe(self, device: str) -> dict[str, Any]:
        """The machine, as a record's provenance tells it."""
        if device not in self._described:
            event = self.one("describe", "described", device=device)
            self._described[device] = dict(event["provenance"])  # type: ignore[arg-type]
        return self._described[device]

    def ceilings(self, device: str, dtype: str) -> dict[str, Any]:
        """The measured ceilings: the matrix rate once per device and dtype, all else once per device."""
        key = (device, dtype)
        if key not in self._ceilings:
            known = next((found for (where, _), found in self._ceilings.items() if where == device), None)
            asked = {"device": device, "dtype": dtype, "known": known}
            event = self.one("ceilings", "ceilings", limit_s=CEILINGS_LIMIT_S, **asked)
            self._ceilings[key] = dict(event["ceilings"])  # type: ignore[arg-type]
        return self._ceilings[key]


def seconds_left(deadline: float | None) -> float:
    """Until a deadline of ``time.monotonic``; without end if there is none."""
    return float("inf") if deadline is None else deadline - time.monotonic()
