"""torch.compile for backends: one compiled program per kind of call, never a silent return to eager.

Dynamo keeps its compiled programs on a function's code object and gives up after a few of them. A sweep over shapes
would hit that limit; so each kind of call (shapes, strides, dtypes, devices, what needs a gradient, autocast) gets a
code object of its own. ``fullgraph=True`` makes whatever cannot be compiled an error instead of an eager fallback.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import sysconfig
import types
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def nan_where_squares_overflow(p: Tensor) -> Tensor:
    """p, and NaN in every row [C] whose squares are more than float32 holds.

    The layer's norm gives NaN there. Inductor's has a variance of infinity, and so a bias of 0: a finite wrong number.
    """
    squares = p.detach().float().square().sum(-1, keepdim=True)
    return torch.where(squares.isinf(), torch.nan, p)


def compiled(function: Callable[..., Any], *tensors: Tensor | None, static: Hashable = ()) -> Callable[..., Any]:
    """``function`` compiled for calls like this one: the program made at the first such call.

    ``tensors`` are all that the call reads, parameters too; ``static`` is whatever else the program depends on.
    """
    kind = tensors[0].device.type if tensors[0] is not None else "cpu"
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    modes = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast)
    return _program(function, (modes, static, tuple(map(_signature, tensors))))


def _signature(tensor: Tensor | None) -> Hashable:
    if tensor is None:
        return None
    return (tensor.device, tensor.dtype, tensor.shape, tensor.stride(), tensor.requires_grad, tensor.is_inference())


@functools.lru_cache(maxsize=256)
def _program(function: Callable[..., Any], key: Hashable) -> Callable[..., Any]:
    """A copy of ``function`` with its own code object, compiled; ``key`` is the cache's."""
    code = function.__code__.replace(co_name=f"{function.__name__}_{hash(key) & 0xFFFFFF:06x}")
    copy = types.FunctionType(code, function.__globals__, code.co_name, function.__defaults__, function.__closure__)
    return torch.compile(copy, fullgraph=True, dynamic=False)


def compiler_reasons(device: str) -> list[str]:
    """Why torch.compile cannot make programs for ``device`` here; empty if all that it needs is found."""
    reasons = []
    if not torch._dynamo.is_dynamo_supported():
        reasons.append(f"torch.compile: a Python that Dynamo supports is required, {sys.version.split()[0]} was found")
    folders = (sysconfig.get_path("include"), sysconfig.get_path("include", "posix_prefix"))
    if not any((Path(folder) / "Python.h").exists() for folder in folders):
        reasons.append("torch.compile: Python's C headers are required, Python.h was not found in its include folder")
    return reasons + (_triton_reasons() if device.partition(":")[0] == "cuda" else _cpp_reasons())


def _cpp_reasons() -> list[str]:
    """Inductor's CPU programs are C++: a compiler is needed at run time."""
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        return ["torch.compile: a C++ compiler (g++ or clang++, or CXX) is required at run time, none was found"]
    return []


def _triton_reasons() -> list[str]:
    """Inductor's CUDA programs are Triton: the package, and a C compiler for its launchers."""
    reasons = []
    try:
        import triton  # noqa: F401
    except (ImportError, OSError) as e:
        reasons.append(f"torch.compile: triton is required for CUDA, it does not import ({type(e).__name__}: {e})")
    named = os.environ.get("CC")
    if not (shutil.which(named) if named else any(map(shutil.which, ("gcc", "clang")))):
        reasons.append(
            f"torch.compile: a C compiler for Triton's launchers is required, {named or 'gcc'} was not found"
        )
    return reasons
