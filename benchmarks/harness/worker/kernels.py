"""What the compiler makes of one GPU kernel of the measured code, read offline."""

from __future__ import annotations

import importlib
import os
import traceback
from typing import Any

_INSPECTORS = ("variants.triton.inspect", "variants._triton_inspect")  # the measured commit may be an older one


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
