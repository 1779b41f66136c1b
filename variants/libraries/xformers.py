"""Loads xformers, and says why it or its compiled extension does not load.

The one release that fits is pinned: older ones do not know this torch, newer ones have no kernels of their own left.
Its extension is linked against ``libcudart.so.12``. A torch built for CUDA 13 brings another, so that one is loaded
first, from the package ``nvidia-cuda-runtime-cu12`` or from the system; this must come before xformers' own import.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path

import torch

VERSION = "0.0.35"
_CUDART = "libcudart.so.12"


@functools.lru_cache(maxsize=1)
def library_reasons() -> tuple[str, ...]:
    """Import xformers, after the CUDA runtime that it needs; the reason if that fails, else nothing."""
    try:
        found = importlib.metadata.version("xformers")
    except importlib.metadata.PackageNotFoundError:
        return (f"module: xformers {VERSION} is required, it is not installed",)
    if found != VERSION:
        return (f"module: xformers {VERSION} is required, {found} was found",)
    if "xformers" not in sys.modules and (torch.version.cuda or "12.").partition(".")[0] != "12":
        _preload_cudart()
    try:
        importlib.import_module("xformers.sparse")
        importlib.import_module("xformers.ops.fmha")
    except (ImportError, OSError) as e:
        return (f"module: xformers {VERSION} is required, it does not load ({type(e).__name__}: {e})",)
    return ()


def _preload_cudart() -> None:
    """Make ``libcudart.so.12`` known to the loader; where none is found, the extension's own import says so."""
    for path in (*_packaged(_CUDART), _CUDART):
        try:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return


def _packaged(name: str) -> list[Path]:
    """Where NVIDIA's runtime package holds the library, if it is installed."""
    try:
        spec = importlib.util.find_spec("nvidia.cuda_runtime")
    except ModuleNotFoundError:
        return []
    folders = (spec.submodule_search_locations if spec else None) or ()
    return [path for folder in folders if (path := Path(folder) / "lib" / name).exists()]


def extension_reasons() -> list[str]:
    """Why xformers' compiled extension is not there; call after :func:`library_reasons` came back empty."""
    from xformers import _cpp_lib

    failure: BaseException | None = _cpp_lib._cpp_library_load_exception
    if failure is None:
        return []
    while deeper := failure.__cause__ or failure.__context__:
        failure = deeper
    cause = str(failure).splitlines()[0]
    hint = f"; {_CUDART} is in package nvidia-cuda-runtime-cu12" if _CUDART in cause else ""
    return [f"shared library: xformers' extension _C.so is required, it does not load ({cause}){hint}"]
