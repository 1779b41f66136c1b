"""Gradients that have no derivative of their own, and say so."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """For a Function's ``backward``: to differentiate what it returns is an error.

    torch's decorator of this name lets a gradient pass as a constant where the cotangents are, as those of a sum are:
    second derivatives then lack a part, without a word.
    """

    @functools.wraps(backward)
    def call(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            made = backward(ctx, *grads)
        made = made if isinstance(made, tuple) else (made,)
        if not torch.is_grad_enabled():
            return made
        said = b"cpu_fused: its gradients cannot be differentiated again (once_differentiable)"
        fail = torch._C._functions.DelayedError(said, len(made))  # pyright: ignore[reportAttributeAccessIssue]
        failing = fail(*(None if x is None else x.detach().requires_grad_() for x in made))
        return failing if isinstance(failing, tuple) else (failing,)

    return call
