"""What an exception means for a cell, and whether the device survived it."""

from __future__ import annotations

import traceback


class DevicePoisoned(RuntimeError):
    """The CUDA context no longer works: the process must be replaced."""


class WrongResult(RuntimeError):
    """What a backend did is not what it was asked for: a number that it made is worth nothing."""


def verdict_on(e: Exception) -> tuple[str, str]:
    """(status, reason) of an exception that a backend raised."""
    import torch

    from variants import UnsupportedError

    if isinstance(e, UnsupportedError):
        return "unsupported", "; ".join(e.reasons)
    if isinstance(e, WrongResult):
        return "wrong", str(e)
    first = (str(e).strip() or type(e).__name__).splitlines()[0]
    if isinstance(e, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(e):
        return "oom", f"oom: {first}"
    return "crashed", f"{type(e).__name__}: {first}"


def text_of(e: Exception) -> str:
    """The whole traceback."""
    return "".join(traceback.format_exception(e))


def synchronize(device: str) -> None:
    """Wait for the device; raises what went wrong on it."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def check_device(device: str) -> None:
    """Raise :class:`DevicePoisoned` if CUDA no longer answers; else hand its cached memory back."""
    if device != "cuda":
        return
    import torch

    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as e:
        raise DevicePoisoned(str(e)) from e
