"""The fused CPU kernels: C++ compiled for this processor at first use, kept on disk, called through ctypes.

The library is a program that runs as the user, so it is taken only from a folder that no other user may write, and only
whole. Its name ``cpu_fused-<sources>-<compiler>-<content>.so`` holds three hashes: of sources, flags and processor, by
which it is found where there is no compiler any more; of the compiler's version and target; and of the file's own
bytes. So neither an upgrade, nor a cache shared between machines, nor a full disk makes the wrong one load.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FOLDER = Path(__file__).parent
_SOURCE = _FOLDER / "fused.cpp"
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
_COMPILERS = ("g++", "clang++")
_UNFINISHED = "unfinished-"  # folders in which a library is being made
_TRIAL = '#include <cmath>\n#include <omp.h>\nextern "C" double trial(double x) { return std::exp(x); }\n'

_SIZES = (
    *("entries", "samples", "keys", "pair_items", "mask_items"),
    *("atoms", "slots", "heads", "dim", "channels", "threads"),
)
_POINTERS = (
    *("q", "k", "v", "p", "weight", "base", "start", "stop", "mask", "own_mask", "out", "lse"),
    *("grad", "dq", "dk", "dv", "moment", "dp", "work"),
)

_PAIR_SIZES = ("batch", "atoms", "slots", "residues", "width", "channels", "padded", "threads", "mask_items")
_PAIR_POINTERS = (
    *("index", "residue", "mask", "band", "weights", "transposed", "position", "own", "other", "geometry"),
    *("skip", "out", "grad_skip", "grad", "order", "rank", "first"),
    *("d_band", "d_position", "d_own", "d_other", "d_weights", "d_geometry", "d_skip", "work"),
)


class Call(ctypes.Structure):
    """``struct Call`` of ``tiles.h``: what one call reads and writes."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("eps", ctypes.c_float),
        ("pair_is_bfloat16", ctypes.c_int32),
        ("adds_dp", ctypes.c_int32),
    )


class Pairs(ctypes.Structure):
    """``struct Pairs`` of ``make_pairs.h``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _PAIR_SIZES),
        *((name, ctypes.c_void_p) for name in _PAIR_POINTERS),
        ("is_bfloat16", ctypes.c_int32),
        ("is_encoder", ctypes.c_int32),
    )


class LibraryError(RuntimeError):
    """The kernels can be neither found nor made here; the message says what is required and what was found."""


def library_reasons() -> list[str]:
    """Why the kernels can be neither loaded nor compiled here; empty where they can.

    If they were compiled before, they are loaded. Else the compiler is tried on a small library, because the kernels,
    which take seconds, are compiled at the first call.
    """
    try:
        folder = _cache_folder()
        if (path := _cached(folder)) is None:
            _try_compiler(folder)
        else:
            _loaded(path)
    except LibraryError as e:
        return [str(e)]
    return []


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded kernels; the first call on a machine compiles them, which takes seconds."""
    folder = _cache_folder()
    loaded = _loaded(_cached(folder) or _built(folder))
    loaded.work_floats.restype = ctypes.c_int64
    loaded.work_floats.argtypes = (ctypes.POINTER(Call), ctypes.c_int32)
    for run in (loaded.run_forward, loaded.run_backward):
        run.restype, run.argtypes = None, (ctypes.POINTER(Call),)
    loaded.pairs_work_floats.restype = ctypes.c_int64
    loaded.run_pairs.restype = None
    for function in (loaded.pairs_work_floats, loaded.run_pairs):
        function.argtypes = (ctypes.POINTER(Pairs), ctypes.c_int32)
    return loaded


def _loaded(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as e:
        raise LibraryError(
            f"shared library: a cache folder whose files may be executed is required, one in {path.parent} does not "
            f"load ({e}); XDG_CACHE_HOME names another place"
        ) from e


def _cached(folder: Path) -> Path | None:
    """The library in ``folder``: this compiler's, or any compiler's if none works here; None if there is none."""
    try:
        by = _compiler_hash(_command())
    except LibraryError:
        by = "*"
    return next(filter(_is_intact, sorted(folder.glob(f"cpu_fused-{_source_hash()}-{by}-*.so"))), None)


def _is_intact(path: Path) -> bool:
    """Whether the file is this user's alone and holds what its name says."""
    try:
        status = path.lstat()
        content = path.read_bytes()
    except OSError:
        return False
    ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022
    return ours and path.stem.rpartition("-")[2] == _digest(content)


def _built(folder: Path) -> Path:
    """Compile the library into ``folder``, once, whoever else asks meanwhile; whole or not at all."""
    with _locked(folder):
        if (path := _cached(folder)) is not None:
            return path
        command = _command()
        with _unfinished(folder) as unfinished:
            made = unfinished / "library.so"
            done = _compile(command, _SOURCE, made)
            if done.returncode:
                raise RuntimeError(f"{shlex.join(command)} could not compile {_SOURCE.name}:\n{done.stderr[-4000:]}")
            made.chmod(0o700)
            path = folder / f"cpu_fused-{_source_hash()}-{_compiler_hash(command)}-{_digest(made.read_bytes())}.so"
            made.replace(path)
    return path


def _try_compiler(folder: Path) -> None:
    """Raise ``LibraryError`` unless the compiler makes a small library, with our flags, that loads from there."""
    command = _command()
    with _locked(folder), _unfinished(folder) as unfinished:
        source, made = unfinished / "trial.cpp", unfinished / "trial.so"
        source.write_text(_TRIAL)
        done = _compile(command, source, made)
        if done.returncode or not made.exists():
            found = f"{shlex.join(command)} ended with {done.returncode} ({_first_line(done.stderr)})"
            raise LibraryError(f"C++ compiler: one that compiles with OpenMP is required at run time, {found}")
        _loaded(made)


@contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """A folder to compile in. The caller holds the lock, so any other such folder was left by a killed process."""
    for left in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=_UNFINISHED) as made:
        yield Path(made)


def _compile(command: list[str], source: Path, made: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, str(source), "-o", str(made)], capture_output=True, text=True)


def _command() -> list[str]:
    """The compiler and its flags: ``CXX`` if set, which may hold several words, else the first that is on the path."""
    named = shlex.split(os.environ.get("CXX", ""))
    for words in [named] if named else [[name] for name in _COMPILERS]:
        if (program := shutil.which(words[0])) is not None:
            return [program, *words[1:], *_FLAGS]
    wanted = shlex.join(named) or " or ".join(_COMPILERS)
    raise LibraryError(f"C++ compiler: {wanted} (or CXX) is required at run time, none was found")


def _compiler_hash(command: list[str]) -> str:
    """A hash of the command, and of every macro of the compiler: its version and its target."""
    asked = [*command, "-dM", "-E", "-x", "c++", os.devnull]
    try:
        macros = subprocess.run(asked, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as e:
        said = _first_line(getattr(e, "stderr", b"") or b"") or str(e)
        raise LibraryError(f"C++ compiler: one that runs is required, {command[0]} was found ({said})") from e
    if b"__cplusplus" not in macros:
        raise LibraryError(f"C++ compiler: one is required, {command[0]} was found, which is none")
    return _digest(shlex.join(command).encode(), macros)


def _source_hash() -> str:
    """A hash of sources, flags and the processor that ``-march=native`` stands for."""
    files = (_SOURCE, *sorted(_FOLDER.glob("*.h")))
    return _digest(" ".join(_FLAGS).encode(), _processor(), *(file.read_bytes() for file in files))


@functools.cache
def _processor() -> bytes:
    try:
        lines = Path("/proc/cpuinfo").read_bytes().split(b"\n\n")[0].splitlines()
    except OSError:
        lines = []
    named = [x for x in lines if x.startswith((b"model", b"vendor", b"cpu family", b"flags", b"Features", b"CPU "))]
    return b"\n".join([platform.machine().encode(), platform.processor().encode(), *named])


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _first_line(text: str | bytes) -> str:
    lines = (text.decode(errors="replace") if isinstance(text, bytes) else text).strip().splitlines()
    return lines[0][:200] if lines else ""


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One thread of one process at a time; the lock goes with its process, however that ends."""
    import fcntl

    with (folder / "cpu_fused.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _cache_folder() -> Path:
    """Our folder in the user's cache; where others may write there, or nobody can, one for this process alone."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve()
    except RuntimeError:
        return _private_folder("no home folder and no XDG_CACHE_HOME was found")
    folder = cache / "pallatom-bench"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as e:
        return _private_folder(f"{folder} cannot be made ({e.strerror})")
    why = _exposed(folder)
    return _private_folder(why) if why else folder


def _exposed(folder: Path) -> str | None:
    """Why what lies in ``folder`` might not be this user's; None if it is. Who may write a parent may replace it."""
    for path in (folder, *folder.parents):
        status = path.lstat()
        owners = (os.geteuid(),) if path == folder else (os.geteuid(), 0)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid not in owners:
            return f"{path} is another user's"
        sticky = path != folder and status.st_mode & stat.S_ISVTX
        if status.st_mode & 0o022 and not sticky:
            return f"{path} may be written by other users (mode {stat.S_IMODE(status.st_mode):o})"
    return None if os.access(folder, os.W_OK | os.X_OK) else f"{folder} cannot be written"


@functools.cache
def _private_folder(why: str) -> Path:
    """A folder for this process alone, gone with it."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="pallatom-bench-"))
    except OSError as e:
        raise LibraryError(f"cache folder: one that only this user may write is required, {why}, {e}") from e
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    warnings.warn(f"cpu_fused: {why}: its kernels are compiled for this process alone", stacklevel=2)
    return folder
