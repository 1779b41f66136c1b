"""Fresh memory that shows when it was never written.

A kernel that skips a row leaves there what the allocator hands out, and that is often the right answer of
the run before. While poisoned, new memory holds bytes that no result survives.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from .memory import available_bytes

_M_PERTURB = -6  # mallopt(3): fill new memory with the complement of this byte, freed memory with the byte
# 0xFE repeated: NaN in float16; about −1.7e38 in bfloat16 and float32, −5e303 in float64. No byte that glibc can fill
# with is NaN in all four (0xFF would need a byte of 0, which turns it off).
_BYTE = 0x01
_NAN_BYTE = 0xFF  # NaN in every floating type
_SMALL_BLOCKS, _SMALL_BYTES = 64, 1 << 20
_MOST_BYTES = 8 << 30


@contextmanager
def poisoned(device: str) -> Iterator[None]:
    """Poison what is allocated inside: by the C library's own switch on CPU; on CUDA once, by filling what torch's
    allocator holds free."""
    if device == "cuda":
        _fill_cached()
        yield
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # not glibc
        yield
        return
    mallopt(_M_PERTURB, _BYTE)
    try:
        yield
    finally:
        mallopt(_M_PERTURB, 0)


def _fill_cached() -> None:
    """Take what torch's allocator holds free, hole by hole, and blocks as large as a run may want, fill them with NaN
    and hand them back to the cache: the allocator cuts the next tensors out of them. A hole between tensors that live,
    which no larger block fits, is where the answer of the call before lay."""
    import torch

    torch.cuda.empty_cache()
    holes = [b["size"] for s in torch.cuda.memory_snapshot() for b in s["blocks"] if b["state"] == "inactive"]
    large = min(available_bytes("cuda") // 2, _MOST_BYTES)
    sizes = [*sorted(holes, reverse=True), large, *[_SMALL_BYTES] * _SMALL_BLOCKS]
    blocks = [torch.empty(size, dtype=torch.uint8, device="cuda") for size in sizes]
    for block in blocks:
        block.fill_(_NAN_BYTE)
    torch.cuda.synchronize()
