"""Reads a user's file into memory, whatever it is, and says what is wrong with it if it cannot be used."""

from __future__ import annotations

import codecs
import os
import stat
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .atoms import WorkloadError

KINDS = {
    ".fasta": "fasta",
    ".fa": "fasta",
    ".faa": "fasta",
    ".fas": "fasta",
    ".pdb": "pdb",
    ".ent": "pdb",
    ".cif": "mmcif",
    ".mmcif": "mmcif",
    ".bcif": "bcif",
}
FORMATS = (
    ", ".join(
        f"{word} ({', '.join(suffix for suffix, kind in KINDS.items() if kind == key)})"
        for word, key in (("mmCIF", "mmcif"), ("BinaryCIF", "bcif"), ("PDB", "pdb"), ("FASTA", "fasta"))
    )
    + "; each may be gzipped"
)
GZIP_MAGIC = b"\x1f\x8b"
MAX_BYTES = 2**30  # unpacked; the largest entry of the PDB has 0.4 GB of mmCIF


@dataclass(frozen=True)
class Content:
    """A file's bytes, unpacked: ``kind`` is fasta, pdb, mmcif or bcif; ``origin`` the path as it was given."""

    name: str
    origin: str
    kind: str
    data: bytes

    @property
    def plain(self) -> bytes:
        """The bytes of a text, whose lines end with a line feed alone."""
        if b"\0" in self.data:
            raise WorkloadError(f"{self.origin}: expected text, got binary data")
        data = self.data.removeprefix(codecs.BOM_UTF8)
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in data else data

    @property
    def text(self) -> str:
        try:
            return self.plain.decode()
        except UnicodeDecodeError:
            return self.plain.decode("latin-1")  # names of authors in old files; every byte is a letter there


def looks_like_path(name: str) -> bool:
    """Whether somebody who typed this meant a file."""
    return bool(os.path.dirname(name)) or kind_of(name) is not None or os.path.exists(name.replace("\0", ""))


def split(value: str) -> list[str]:
    """The paths in a list: a comma separates them only behind a suffix that is read, and not in the name of a file that
    is there."""
    if os.path.exists(value.replace("\0", "")):
        return [value]
    paths, path = [], ""
    for piece in value.split(","):
        path += piece
        if kind_of(path.strip()) is not None:
            paths.append(path.strip())
            path = ""
        elif path:
            path += ","
    return [*paths, path.removesuffix(",").strip()] if path.strip(" ,") else paths


def names(paths: Iterable[str]) -> dict[str, str]:
    """What to call each of these files: its base name, behind as many of its folders as tell it from the others."""
    parts = {path: Path(os.path.abspath(path)).parts for path in paths}
    named = {}
    for path, own in parts.items():
        others = [other for other in parts.values() if other != own]
        length = next(n for n in range(1, len(own) + 1) if all(other[-n:] != own[-n:] for other in others))
        named[path] = "/".join(own[-length:])
    return named


def bears(path: str, name: str) -> bool:
    """Whether a record's name of a file, with or without folders, may be this file's."""
    parts = Path(name).parts
    return Path(os.path.abspath(path)).parts[-len(parts) :] == parts


def kind_of(name: str) -> str | None:
    """The format that a file name's suffix tells."""
    path = Path(name.lower())
    return KINDS.get(Path(path.stem).suffix if path.suffix == ".gz" else path.suffix)


def read(path: str | os.PathLike[str]) -> Content:
    """The content of a regular file, unpacked if it is gzipped (by its first bytes, not by its name).

    Raises
    ------
    WorkloadError
        Naming the file and the cause.
    """
    origin = os.fspath(path)
    data = _bytes(origin)
    kind = kind_of(origin)
    if kind is None:
        raise WorkloadError(f"{origin}: expected a name that ends in {', '.join(KINDS)}, with or without .gz")
    if data.startswith(GZIP_MAGIC):
        data = _unpacked(data, origin)
    if not data.strip():
        raise WorkloadError(f"{origin}: empty file")
    return Content(Path(origin).name, origin, kind, data)


def _bytes(origin: str) -> bytes:
    try:
        status = os.stat(origin)
        if stat.S_ISDIR(status.st_mode):
            raise WorkloadError(f"{origin}: expected a file, got a directory")
        if not stat.S_ISREG(status.st_mode):
            raise WorkloadError(f"{origin}: expected a regular file, got a pipe, socket or device")
        if status.st_size > MAX_BYTES:
            raise WorkloadError(f"{origin}: expected at most {MAX_BYTES:,} bytes, got {status.st_size:,}")
        return Path(origin).read_bytes()
    except OSError as error:
        raise WorkloadError(f"{origin!r}: {error.strerror or error}") from error
    except ValueError as error:
        if isinstance(error, WorkloadError):
            raise
        raise WorkloadError(f"{origin!r}: {error}") from error  # a null byte in the name


def _unpacked(data: bytes, origin: str) -> bytes:
    """All members of a gzip file, with a limit, since a few kilobytes can unpack to terabytes."""
    parts: list[bytes] = []
    room = MAX_BYTES
    while data.startswith(GZIP_MAGIC):
        member = zlib.decompressobj(wbits=31)
        try:
            parts.append(member.decompress(data, room))
        except zlib.error as error:
            raise WorkloadError(f"{origin}: garbled gzip data ({error})") from error
        room -= len(parts[-1])
        if member.unconsumed_tail or room <= 0:
            raise WorkloadError(f"{origin}: unpacks to more than {MAX_BYTES:,} bytes")
        if not member.eof:
            raise WorkloadError(f"{origin}: gzip data ends too early, the file is cut off")
        data = member.unused_data.lstrip(b"\0")
    if data:
        raise WorkloadError(f"{origin}: garbled gzip data ({len(data):,} bytes of something else at the end)")
    return b"".join(parts)
