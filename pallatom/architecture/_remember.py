"""Remembers what was made from tensors for as long as they live and hold what they held.

One contract, for the index of a model, for its check and for every plan that a backend makes of it:

- **On the CPU by value.** At every call the tensors are compared with copies, byte by byte: any edit is seen, also one
  that torch does not count (through NumPy, ``.data``, under inference mode).
- **On a GPU by identity and version.** Comparing values would synchronise at every call. torch counts its in-place
  operations, and these are seen; an edit through ``.data``, DLPack or a kernel of one's own is **not**: follow it with
  an operation that is counted (``mask.logical_or_(False)``), or hand over a new tensor.
- Tensors that were made under inference mode count nothing: on a GPU these are compared by value, which waits for the
  device at every call. ``build_sparse_pairs`` makes tensors that count wherever it is called.
- While a CUDA graph is captured, what was remembered serves, and nothing new can be made: call once before.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import weakref
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Made = TypeVar("Made")

_MOST = 4  # entries of one first object, such as one index under several masks
_compare_bytes = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None).memcmp
_compare_bytes.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def remembered(make: Callable[..., Made]) -> Callable[..., Made]:
    """Call ``make(first, *rest)`` once per ``first``, a tensor or another object, while no tensor among them changes.

    Numbers and None in ``rest`` are compared by value, tensors by the contract above. Nothing is kept alive: an entry
    leaves with the first of its tensors to go, so ``make`` must return nothing that holds one. ``make`` runs without
    gradients and outside inference mode, so that what it made serves every later call. Callers keep torch.compile out.
    """
    entries: dict[int, tuple[_Entry, ...]] = {}

    @functools.wraps(make)
    def recall(first: object, *rest: object) -> Made:
        key = id(first)
        known = entries.get(key, ())
        for entry in known:
            if entry.serves(first, rest):
                return entry.made
        device = _gpu_of(first)
        if device is not None and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"{make.__name__.strip('_')}: a call with this very index before the capture of a CUDA graph is "
                "required, as no values can be looked at during one; there was none"
            )
        with torch.inference_mode(False), torch.no_grad():
            made = make(first, *rest)
            token = object()
            entry = _Entry(token, made, first, rest, lambda _: _drop(entries, key, token))
        if device is not None:
            torch.cuda.current_stream(device).synchronize()  # whichever stream asks next finds it done
        entries[key] = (entry, *entries.get(key, ())[: _MOST - 1])
        return made

    return cast("Callable[..., Made]", recall)


def _drop(entries: dict[int, tuple[_Entry, ...]], key: int, token: object) -> None:
    kept = tuple(entry for entry in entries.get(key, ()) if entry.token is not token)
    if kept:
        entries[key] = kept
    else:
        entries.pop(key, None)


def _gpu_of(first: object) -> torch.device | None:
    device = getattr(first, "device", None)
    return device if isinstance(device, torch.device) and device.type == "cuda" else None


class _Entry:
    """What was made, and of what; ``gone`` is called when the first of its tensors goes."""

    def __init__(self, token: object, made: Any, first: object, rest: tuple[object, ...], gone: Callable) -> None:
        self.token, self.made = token, made
        self._first, *self._ties = (weakref.ref(x, gone) for x in (first, *(x for x in rest if isinstance(x, Tensor))))
        self._state = _state(first) if isinstance(first, Tensor) else None
        self._rest = tuple(_state(x) if isinstance(x, Tensor) else x for x in rest)

    def serves(self, first: object, rest: tuple[object, ...]) -> bool:
        if self._first() is not first or len(rest) != len(self._rest):
            return False
        if self._state is not None and not self._state.holds(first):  # pyright: ignore[reportArgumentType]
            return False
        for x, known in zip(rest, self._rest):
            if not isinstance(x, Tensor):
                if x != known:
                    return False
            elif not isinstance(known, _State) or not known.holds(x):
                return False
        return True


class _State:
    """What a tensor was when something was made of it."""

    def holds(self, x: Tensor) -> bool:
        raise NotImplementedError


def _state(x: Tensor) -> _State:
    if x.is_cpu:
        return _Bytes(x)
    return _Values(x) if x.is_inference() else _Version(x)


class _Bytes(_State):
    """A tensor on the CPU, by its bytes."""

    def __init__(self, x: Tensor) -> None:
        self._copy = copy = x.detach().clone(memory_format=torch.contiguous_format)
        self._shape, self._dtype, self._pointer, self._size = copy.shape, copy.dtype, copy.data_ptr(), copy.nbytes

    def holds(self, x: Tensor) -> bool:
        if x.shape != self._shape or x.dtype is not self._dtype or not x.is_cpu:
            return False
        if x.is_contiguous():
            return _compare_bytes(x.data_ptr(), self._pointer, self._size) == 0
        return torch.equal(x, self._copy)


class _Version(_State):
    """A tensor on another device, by its identity and the number of its edits."""

    def __init__(self, x: Tensor) -> None:
        self._ref, self._version = weakref.ref(x), x._version

    def holds(self, x: Tensor) -> bool:
        return self._ref() is x and x._version == self._version


class _Values(_State):
    """A tensor on another device that counts no edits, by its values; during a capture by identity."""

    def __init__(self, x: Tensor) -> None:
        self._ref, self._copy = weakref.ref(x), x.detach().clone()

    def holds(self, x: Tensor) -> bool:
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            return self._ref() is x
        known = self._copy
        return (x.device, x.dtype, x.shape) == (known.device, known.dtype, known.shape) and torch.equal(x, known)
