"""What the compiler makes of the GPU kernels, read offline: one JSON line per kernel, architecture and dtype.

A commit that makes a kernel spill or lose occupancy is seen on a machine without a GPU, before anyone has timed it.
"""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from .record import MalformedRecord, Provenance, Status, scan_lines

_INSPECTORS = ("variants.triton.inspect", "variants._triton_inspect")  # the measured commit may be an older one


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


def inspect(kernel: str, arch: int, dtype: str) -> dict[str, Any]:
    """Status, reason and figures of one kernel of the installed ``variants``, whichever commit that is of."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return _out("unsupported", "TRITON_INTERPRET=1 is set: compiling needs a process without the interpreter")
    try:
        inspect_shipped = _inspector().inspect_shipped
    except ModuleNotFoundError as e:
        return _out("unsupported", f"module: {e.name} is required to compile kernels offline, it was not found")
    except (ImportError, AttributeError) as e:
        return _out("unsupported", f"this code has no offline inspection of its kernels: {e}")
    try:
        return {"status": "ok", "summary": inspect_shipped(kernel, arch=arch, dtype=dtype).summary()}
    except ModuleNotFoundError as e:
        return _out("unsupported", f"module: {e.name} is required to compile kernels offline, it was not found")
    except Exception as e:
        return _out("crashed", f"{type(e).__name__}: {e}".splitlines()[0], traceback.format_exc())


def _inspector() -> Any:
    """The measured code's inspection of its kernels, wherever that commit has it: the present name, then older ones.

    Raises
    ------
    ModuleNotFoundError
        Naming the present module, if there is none; or a foreign module that it imports.
    """
    for name in _INSPECTORS:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as e:
            if e.name is None or not f"{name}.".startswith(f"{e.name}."):
                raise
    raise ModuleNotFoundError(f"No module named {_INSPECTORS[0]!r}", name=_INSPECTORS[0])


def _out(status: str, reason: str, error: str | None = None) -> dict[str, Any]:
    return {"status": status, "reason": reason, "error": error}
