"""Remembers what was made from objects for as long as those objects live."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import TypeVar, cast

import torch
from torch import Tensor

Made = TypeVar("Made")


def remembered(make: Callable[..., Made]) -> Callable[..., Made]:
    """Call ``make(*objects)`` once per identity of its objects (and version, of tensors), outside any tracing.

    Neither the objects nor, after them, what was made is kept alive: an entry leaves with the first of its objects, so
    what ``make`` returns must not hold them. Inference tensors have no version and are never remembered.
    """
    entries: dict[tuple[int, ...], tuple[list[weakref.ref], tuple[int, ...], Made]] = {}

    @functools.wraps(make)
    @torch.compiler.disable
    def recall(*objects: object) -> Made:
        if any(isinstance(o, Tensor) and o.is_inference() for o in objects):
            return make(*objects)
        key = tuple(map(id, objects))
        versions = tuple(o._version for o in objects if isinstance(o, Tensor))
        entry = entries.get(key)
        if entry is not None and entry[1] == versions and all(r() is o for r, o in zip(entry[0], objects)):
            return entry[2]
        made = make(*objects)
        entries[key] = ([weakref.ref(o, lambda _: entries.pop(key, None)) for o in objects], versions, made)
        return made

    return cast("Callable[..., Made]", recall)
