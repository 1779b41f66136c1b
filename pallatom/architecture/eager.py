"""Keep torch.compile out of a function, at no cost to those who compile nothing."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TypeVar

import torch

Function = TypeVar("Function", bound=Callable)


def eager(function: Function) -> Function:
    """``torch.compiler.disable(function)``, which imports all of Dynamo, from the first call that might be compiled on.

    That import takes longer than torch's own. Where nothing has imported Dynamo nothing is being compiled, and the
    function is called as it is. A caller that is compiled breaks its graph here, in both.
    """
    if "torch._dynamo" in sys.modules:
        return torch.compiler.disable(function)  # pyright: ignore[reportReturnType]
    disabled: list[Callable] = []  # once made; no cache of functools, which Dynamo warns of

    @functools.wraps(function)
    def call(*args, **kwargs):
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    return call  # pyright: ignore[reportReturnType]
