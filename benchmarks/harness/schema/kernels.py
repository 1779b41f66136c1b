"""One GPU kernel as the compiler left it: one JSON line per kernel, architecture and dtype.

A commit that makes a kernel spill or lose occupancy is seen on a machine without a GPU, before anyone has timed it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from .record import MalformedRecord, Provenance, Status, scan_lines


class KernelRecord(BaseModel):
    """One kernel as the compiler left it; ``summary`` holds its figures by name, null unless the status is ok."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kernel_schema: Literal[1] = 1
    run: str
    kernel: str
    arch: int
    dtype: str
    status: Status
    reason: str | None = None
    error: str | None = None
    summary: dict[str, float | int | str] | None = None
    provenance: Provenance

    @model_validator(mode="after")
    def _figures_if_and_only_if_ok(self) -> KernelRecord:
        if (self.status == "ok") != (self.summary is not None):
            raise ValueError(f"status {self.status!r} with summary {self.summary}")
        if self.status != "ok" and not self.reason:
            raise ValueError(f"status {self.status!r} needs a reason")
        return self

    @property
    def key(self) -> str:
        return f"{self.kernel}@sm_{self.arch}-{self.dtype}"


def read(path: Path) -> Iterator[KernelRecord]:
    """The kernels' records of one file, in order; a line that a kill cut off is passed over.

    Raises
    ------
    MalformedRecord
    """
    for found in scan_lines(path, KernelRecord):
        if isinstance(found, KernelRecord):
            yield found
        elif found.kind != "unfinished":
            raise MalformedRecord(f"{path}:{found.number}: no record of a kernel: {found.why}")
