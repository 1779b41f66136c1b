"""A file of JSON lines, one model each, that a kill, a full disk or a stranger's line cannot spoil. Free of torch."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ValidationError

_HALF_A_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")  # perhaps: an escape of JSON that alone is no character

Line = TypeVar("Line", bound=BaseModel)


class CannotRecord(RuntimeError):
    """A file of records cannot be added to: says which, and why. What it held before is intact."""


class MalformedRecord(ValueError):
    """A line of a record file that is not a record: says which file, which line, and why."""


@dataclass(frozen=True)
class BadLine:
    """A line that holds no record. ``unfinished``: the beginning of one, cut off by a kill, which is
    no fault; ``garbage``: not JSON; ``schema``: JSON that is no record of this schema."""

    number: int
    kind: Literal["unfinished", "garbage", "schema"]
    why: str


def append(path: Path, records: Iterable[BaseModel]) -> None:
    """Append records to ``path`` under a lock, in one write, and sync it.

    A kill leaves all of them or the first few and at most one unfinished line, which :func:`read`
    passes over and the next append starts after. Two processes may append to one file.

    Raises
    ------
    CannotRecord
        The disk is full, or this is no place for a file.
    """
    data = "".join(r.model_dump_json() + "\n" for r in records).encode()
    if not data:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+", buffering=0) as f:
            _lock(f)
            _add(f, data)
    except OSError as e:
        raise CannotRecord(f"{path}: {e.strerror or e}; what it held before is intact") from e


def _add(f: FileIO, data: bytes) -> None:
    """All of it on a line of its own, or nothing."""
    end = f.seek(0, os.SEEK_END)
    if end and _last_byte(f) != b"\n":
        data = b"\n" + data
    view = memoryview(data)
    try:
        while view:
            view = view[f.write(view) :]
        os.fsync(f.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            f.truncate(end)
        raise


def _last_byte(f: FileIO) -> bytes:
    f.seek(-1, os.SEEK_END)
    return f.read(1)


def _lock(f: FileIO) -> None:
    """Hold the file to ourselves until it is closed, where the system has such locks."""
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(f, fcntl.LOCK_EX)


def scan_lines(path: Path, kind: type[Line]) -> Iterator[Line | BadLine]:
    """The same for a file of lines of another kind, whose first field is a schema's version."""
    with open(path, "rb") as f:
        for number, line in enumerate(f, 1):
            if line.strip():
                yield _parse(number, line, kind)


def _parse(number: int, line: bytes, kind: type[Line]) -> Line | BadLine:
    version = next(iter(kind.model_fields))
    start = f'{{"{version}":'.encode()  # how every line begins
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as e:  # not JSON, not UTF-8, digits or brackets without end
        cut = isinstance(e, json.JSONDecodeError | UnicodeDecodeError)
        if cut and (line.startswith(start) or start.startswith(line.rstrip(b"\n"))):
            return BadLine(number, "unfinished", f"a record cut off after {len(line)} bytes")
        return BadLine(number, "garbage", f"not JSON: {e}; it begins {line[:40]!r}")
    if _HALF_A_PAIR.search(line):
        try:
            json.dumps(fields, ensure_ascii=False).encode()
        except UnicodeEncodeError as e:
            return BadLine(number, "schema", f"not text: {e.reason}")
    try:
        return kind.model_validate(fields)
    except ValidationError as e:
        expected = kind.model_fields[version].default
        found = fields.get(version) if isinstance(fields, dict) else None
        if found not in (None, expected):
            return BadLine(number, "schema", f"schema version {found!r:.40}, expected {expected}")
        return BadLine(number, "schema", f"no {kind.__name__.lower()} of schema {expected}: {_first(e)}")


def _first(error: ValidationError) -> str:
    """The first of what is wrong, and how much more is."""
    first = error.errors(include_url=False)[0]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{'.'.join(map(str, first['loc'])) or 'record'}: {first['msg']}{more}"
