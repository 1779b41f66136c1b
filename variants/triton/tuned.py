"""The file of tuned configurations: read at every launch, extended by tuning.

``PALLATOM_TRITON_TUNED`` names it; where that is not set and ``PALLATOM_TRITON_AUTOTUNE=1`` is, it is
``pallatom-bench/triton_tuned.json`` in the user's cache folder; else there is none and shipped defaults serve. JSON::

    {"format": 2, "entries": {"<kernel> | triton 3.7.1 | kernels 0f3a…": {"config": {…}, "ms": …, "shipped_ms": …, …}}}

The key says what was tuned (direction, mode, architecture, dtypes, sizes; never the number of atoms or slots: what was
tuned at one size serves all) and with what: the version of triton, and the kernels' source. An entry of other kernels
or another triton is not used, and a warning says so. Any number of processes may add to one file at once: each change
is made under a lock and arrives whole.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from .config import SPLITS, Config, Sizes, backward_config, forward_config, gather_config

TUNED_FILE, AUTOTUNE = "PALLATOM_TRITON_TUNED", "PALLATOM_TRITON_AUTOTUNE"
FORMAT = 2

Direction = Literal["forward", "backward"]
Mode = Literal["band", "holes", "gather"]


class TunedFileError(ValueError):
    """The file of tuned configurations is not one."""


@dataclass(frozen=True)
class Kernel:
    """What one configuration serves. ``holes``: a band whose mask is read; ``arch`` as in ``sm_90``, 0 interpreted."""

    direction: Direction
    mode: Mode
    sizes: Sizes
    arch: int

    def shipped(self) -> Config:
        """The shipped default configuration."""
        if self.mode == "gather":
            return gather_config(self.direction, self.sizes, self.arch)
        return (forward_config if self.direction == "forward" else backward_config)(self.sizes, self.arch)

    @property
    def name(self) -> str:
        """E.g. ``forward band sm_90 bfloat16/bfloat16 H4 D32 C16``: dtypes of Q and of p."""
        dtypes = "/".join(str(t).removeprefix("torch.") for t in (self.sizes.dtype, self.sizes.pair_dtype))
        sizes = f"H{self.sizes.heads} D{self.sizes.head_dim} C{self.sizes.channels}"
        return f"{self.direction} {self.mode} sm_{self.arch} {dtypes} {sizes}"

    @property
    def key(self) -> str:
        """The name, the triton version and the hash of the kernel's sources."""
        part = "gather" if self.mode == "gather" else self.direction
        return f"{self.name} | {toolchain(part)}"


@functools.cache
def toolchain(part: str) -> str:
    """``triton <version> | kernels <hash>`` of the kernels in ``<part>.py``."""
    import triton

    here = Path(__file__).parent
    sources = [here / f"{name}.py" for name in ("common", part)]
    digest = hashlib.sha256(b"\0".join(file.read_bytes() for file in sources)).hexdigest()
    return f"triton {triton.__version__} | kernels {digest[:16]}"


def config_for(kernel: Kernel) -> Config:
    """What the kernel is to be launched with: tuned, or else the shipped default."""
    return tuned(kernel) or kernel.shipped()


def tuned(kernel: Kernel) -> Config | None:
    """The kernel's entry in the file that applies, if there is one."""
    path = tuned_file()
    if path is None:
        return None
    found = _entries(path).get(kernel.key)
    if found is None:
        _warn_if_stale(path, kernel)
    return found


def autotune_asked() -> bool:
    """Whether ``PALLATOM_TRITON_AUTOTUNE`` asks to tune what has no entry yet, at its first use."""
    value = os.environ.get(AUTOTUNE, "")
    if value not in ("", "0", "1"):
        raise TunedFileError(f"{AUTOTUNE}: expected 0 or 1, got {value!r}")
    return value == "1"


def tuned_file() -> Path | None:
    """The file that applies, whether it exists yet or not; None if none does."""
    named = os.environ.get(TUNED_FILE)
    if named:
        return Path(named)
    return default_file() if autotune_asked() else None


def default_file() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "pallatom-bench" / "triton_tuned.json"


@functools.cache
def _entries(path: Path) -> Mapping[str, Config]:
    """The file's configurations, read once; a file that is named must be there, unless tuning is to make it."""
    if path.exists():
        return read_tuned(path)
    if not autotune_asked():
        raise TunedFileError(f"{TUNED_FILE}: expected a file of tuned configurations, {path} is not there")
    return {}


@functools.cache
def _warn_if_stale(path: Path, kernel: Kernel) -> None:
    """Warn, once per kernel, if its entry was made with other sources or another triton."""
    stale = [key for key in _entries(path) if key.startswith(f"{kernel.name} | ")]
    if stale:
        made = stale[0].partition(" | ")[2]
        what = f"{path}: {kernel.name} was tuned with {made}, this is {kernel.key.partition(' | ')[2]}"
        warnings.warn(f"{TUNED_FILE}: {what}; the entry is not used, tune again", stacklevel=3)


def forget() -> None:
    """Drop what was read of files, so that the next look-up reads them again."""
    _entries.cache_clear()


def read_tuned(path: Path) -> dict[str, Config]:
    """Every entry's configuration by key. A :class:`TunedFileError` names the file and what is wrong in it."""
    return {key: _config(path, key, entry) for key, entry in _read(path).items()}


def add_tuned(path: Path, kernel: Kernel, config: Config, **figures: Any) -> None:
    """Put one entry into the file, made if it is not there; ``figures`` are kept beside its configuration."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        entries = _read(path) if path.exists() else {}
        entries[kernel.key] = {"config": asdict(config)} | figures
        text = json.dumps({"format": FORMAT, "entries": entries}, indent=1, sort_keys=True) + "\n"
        _replace(path, text)
    forget()


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise _malformed(path, f"{type(e).__name__}: {e}") from None
    if not isinstance(found, dict):
        raise _malformed(path, f"a {type(found).__name__}")
    if found.get("format") != FORMAT or not isinstance(found.get("entries"), dict):
        raise _malformed(path, f"format {found.get('format')!r} and {sorted(found)[:5]}")
    return found["entries"]


def _config(path: Path, key: str, entry: Any) -> Config:
    """The entry's configuration: whole numbers of at least 1; null where it stands for no limit, no split."""
    given = entry.get("config") if isinstance(entry, dict) else None
    known = {field.name for field in fields(Config)}
    if not isinstance(given, dict) or not {"rows", "cols", "num_warps", "num_stages"} <= set(given) <= known:
        raise _malformed(path, f"for {key!r}: {given!r}, not a configuration of {', '.join(sorted(known))}")
    for name, value in given.items():
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not whole and not (name in ("max_registers", "split_heads") and value is None):
            raise _malformed(path, f"for {key!r}: {name} {value!r}, not a whole number of at least 1")
    split = given.get("split_heads")
    if split is not None and split not in SPLITS:
        raise _malformed(path, f"for {key!r}: split_heads {split!r}, not one of {', '.join(map(str, SPLITS))}")
    return Config(**given)


def _malformed(path: Path, found: str) -> TunedFileError:
    expected = f'expected {{"format": {FORMAT}, "entries": {{...}}}} of tuned configurations'
    return TunedFileError(f"{TUNED_FILE}: {path}: {expected}, got {found}; mend it, or delete it and tune again")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes with its process, however that ends."""
    import fcntl

    with path.with_name(f"{path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _replace(path: Path, text: str) -> None:
    """Readers see the old file or the new one, never a part of either."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
