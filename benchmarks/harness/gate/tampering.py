"""The ruler as it was before any backend was loaded: whoever moves a part of it is found out, and all is put back.

A part is whatever a module holds under a name: functions with their code and defaults, classes with their members,
constants and tables with their content, and what one module imported from another. The modules are all those of the
rooms that decide a number or a verdict, however many there come to be.
"""

from __future__ import annotations

import copy
import importlib
import pkgutil
import time
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .failures import WrongResult

ROOMS = ("ruler", "reference", "levels", "cases", "gate")
_TIMERS = ("perf_counter", "perf_counter_ns", "monotonic", "process_time")
_CONTAINERS = (dict, list, set)
_HARNESS = __name__.rsplit(".", 2)[0] + "."


@dataclass(frozen=True)
class _Part:
    owner: Any
    name: str
    value: Any
    code: tuple[Any, ...]  # of a function
    content: Any  # of a container, or of an object of ours

    @property
    def place(self) -> str:
        return f"{getattr(self.owner, '__qualname__', getattr(self.owner, '__name__', self.owner))}.{self.name}"

    def is_moved(self) -> bool:
        if vars(self.owner).get(self.name) is not self.value or _code(self.value) != self.code:
            return True
        return _content(self.value) != self.content

    def put_back(self) -> None:
        if self.code:
            function = _function(self.value)
            function.__code__, function.__defaults__, function.__kwdefaults__ = self.code
        if self.content is not None:
            held = self.value if isinstance(self.value, _CONTAINERS) else vars(self.value)
            held.clear()
            (held.extend if isinstance(held, list) else held.update)(self.content)
        if vars(self.owner).get(self.name) is not self.value:
            setattr(self.owner, self.name, self.value)


def _function(value: Any) -> Any:
    """The plain function of a member of a class or module; None of anything else."""
    if isinstance(value, property):
        value = value.fget
    elif isinstance(value, staticmethod | classmethod):
        value = value.__func__
    return value if isinstance(value, types.FunctionType) else None


def _code(value: Any) -> tuple[Any, ...]:
    function = _function(value)
    return () if function is None else (function.__code__, function.__defaults__, function.__kwdefaults__)


def _content(value: Any) -> Any:
    """A copy of what a container holds, or an object of one of our classes; None of anything else."""
    if isinstance(value, _CONTAINERS):
        return copy.copy(value)
    if type(value).__module__.startswith(_HARNESS) and hasattr(value, "__dict__") and not isinstance(value, type):
        return dict(vars(value))
    return None


def _modules() -> Iterator[types.ModuleType]:
    for room in ROOMS:
        package = importlib.import_module(_HARNESS + room)
        yield package
        for found in pkgutil.iter_modules(package.__path__):
            yield importlib.import_module(f"{_HARNESS}{room}.{found.name}")


def _members(owner: Any) -> Iterator[_Part]:
    for name, value in list(vars(owner).items()):
        own = _function(value) is not None
        if isinstance(value, types.ModuleType) or (name.startswith("__") and not own) or name.startswith("_abc"):
            continue
        yield _Part(owner, name, value, _code(value), _content(value))


def _parts() -> Iterator[_Part]:
    for module in _modules():
        if module.__name__ == __name__:
            continue  # half made while this runs
        for part in _members(module):
            yield part
            if isinstance(part.value, type) and part.value.__module__ == module.__name__:
                yield from _members(part.value)
    for name in _TIMERS:
        yield _Part(time, name, getattr(time, name), (), None)


_RULER = tuple(_parts())


def moved() -> list[str]:
    """The parts of the ruler that are not what they were; all are put back."""
    found = [part for part in _RULER if part.is_moved()]
    for part in found:
        part.put_back()
    return [part.place for part in found]


def require_unmoved() -> None:
    """Raise :class:`WrongResult` if a part of the ruler was replaced."""
    if parts := moved():
        raise WrongResult(f"it replaced parts of what measures it: {', '.join(parts[:8])}")
