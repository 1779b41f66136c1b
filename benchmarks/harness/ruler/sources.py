"""Hashes of what decides a number and is not measured code: the sources that measure, the tuned file, users' files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

_HARNESS = Path(__file__).parents[1]


_NO_RULER = {".md", ".pyc"}


# The documented names and place of variants.triton.tuned, which a process that measures older code need not have.
_TUNED_FILE, _AUTOTUNE = "PALLATOM_TRITON_TUNED", "PALLATOM_TRITON_AUTOTUNE"


def ruler_hash() -> str:
    """One hash over all that measures: the harness's sources and its data, whatever comes to be among them."""
    files = sorted(
        p for p in _HARNESS.rglob("*") if p.is_file() and p.suffix not in _NO_RULER and not p.name.startswith(".")
    )
    return _hash({p.relative_to(_HARNESS).as_posix(): p.read_bytes() for p in files})


def tuned_hash() -> str | None:
    """The hash of the file of tuned configurations in force as this process begins; None where there is none."""
    named = os.environ.get(_TUNED_FILE)
    if not named and os.environ.get(_AUTOTUNE) == "1":
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        named = Path(cache) / "pallatom-bench" / "triton_tuned.json"
    return file_hash(Path(named)) if named else None


def file_hash(path: Path) -> str | None:
    """The hash of a file's content; None where it cannot be read."""
    try:
        return _hash({"": path.read_bytes()})
    except OSError:
        return None


def _hash(contents: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in contents.items():
        digest.update(name.encode() + b"\0" + content + b"\0")
    return digest.hexdigest()[:16]
