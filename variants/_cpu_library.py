"""The fused CPU kernels: C++ compiled for this processor at first use, kept on disk, called through ctypes.

The library is found again by what it was made from (sources, flags, the compiler's own account of itself and of its
target), so that neither an upgrade nor a cache shared between machines can bring up the wrong one.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

_FOLDER = Path(__file__).parent
_SOURCE = _FOLDER / "_cpu_fused.cpp"
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
_COMPILERS = ("g++", "clang++")

_SIZES = ("batch", "atoms", "slots", "heads", "dim", "channels", "threads", "mask_items")
_POINTERS = (
    *("q", "k", "v", "p", "weight", "base", "start", "stop", "mask", "out", "lse"),
    *("grad", "dq", "dk", "dv", "moment", "dp", "work"),
)


class Call(ctypes.Structure):
    """``struct Call`` of ``_cpu_tiles.h``: what one call reads and writes."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("eps", ctypes.c_float),
        ("pair_is_bfloat16", ctypes.c_int32),
    )


def compiler() -> str | None:
    """The C++ compiler that will be used: CXX if set, else the first of g++ and clang++ on the path."""
    named = os.environ.get("CXX")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, _COMPILERS)), None)


def compiler_reasons() -> list[str]:
    """Why the kernels cannot be compiled here; empty if a compiler is found or they were compiled before."""
    if compiler():
        return []
    wanted = os.environ.get("CXX") or " or ".join(_COMPILERS)
    return [f"C++ compiler: {wanted} (or CXX) is required at run time, none was found"]


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded kernels; the first call on a machine compiles them, which takes seconds."""
    path = _built(_cache_folder())
    loaded = ctypes.CDLL(str(path))
    loaded.work_floats.restype = ctypes.c_int64
    loaded.work_floats.argtypes = (ctypes.POINTER(Call), ctypes.c_int32)
    for run in (loaded.run_forward, loaded.run_backward):
        run.restype, run.argtypes = None, (ctypes.POINTER(Call),)
    return loaded


def _built(folder: Path) -> Path:
    """The library in ``folder``, compiled unless it is there; whole or not at all, whoever else builds meanwhile."""
    command = [compiler() or "g++", *_FLAGS]
    path = folder / f"cpu_fused-{_key(command)}.so"
    if path.exists():
        return path
    with tempfile.TemporaryDirectory(dir=folder) as unfinished:
        made = Path(unfinished) / path.name
        done = subprocess.run([*command, str(_SOURCE), "-o", str(made)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} could not compile {_SOURCE.name}:\n{done.stderr[-4000:]}")
        made.replace(path)
    return path


def _key(command: list[str]) -> str:
    """What the library depends on: sources, command, and every macro of the compiler (its version and target)."""
    macros = subprocess.run([*command, "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, check=True).stdout
    digest = hashlib.sha256(" ".join(command).encode() + macros)
    for file in (_SOURCE, *sorted(_FOLDER.glob("_cpu_*.h"))):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _cache_folder() -> Path:
    """Our folder in the user's cache, for the user alone; where that cannot be written, one for this process."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pallatom-bench"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp())
    return folder if os.access(folder, os.W_OK | os.X_OK) else Path(tempfile.mkdtemp())
