"""The attention seam by itself, as a larger level uses it.

A block adds attention to a residual and a stack to many; a small error of the seam drowns there. So each block's
``_attend`` is watched during the gate's run, and what it returned is compared with the reference on what it was given.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..levels import level_of
from ..reference.expected import Reference
from .errors import SEAM, TOLERANCE, Control, control_of, error_norms, slope_of

if TYPE_CHECKING:
    from torch import Tensor

    from pallatom.architecture.atom_transformers import AtomTransformerBlock

    from ..cases.case import Case
    from ..reference.expected import Spoil


@dataclass
class Call:
    """One call of the seam: the block, its arguments (Q, K, V, p, index, mask) and its output."""

    block: AtomTransformerBlock
    arguments: tuple[Tensor, ...]
    output: Tensor


@contextmanager
def watched(case: Case) -> Iterator[list[Call]]:
    """Collect the seam's calls of a case; a level that is the seam has nothing beside it, and none are kept."""
    from pallatom.architecture.atom_transformers import AtomTransformerBlock

    calls: list[Call] = []
    blocks = [m for m in case.module.modules() if isinstance(m, AtomTransformerBlock)]
    if level_of(case.inputs.problem.level).is_seam:
        yield calls
        return
    for block in blocks:
        vars(block)["_attend"] = _keeping(block, calls)  # on the instance, ahead of the class's own
    try:
        yield calls
    finally:
        for block in blocks:
            del vars(block)["_attend"]


def _keeping(block: AtomTransformerBlock, calls: list[Call]):
    attend = type(block)._attend

    def keep(*arguments: Tensor) -> Tensor:
        output = attend(block, *arguments)
        calls.append(Call(block, tuple(a.detach() for a in arguments), output.detach()))
        return output

    return keep


@dataclass(frozen=True)
class Compared:
    """The worst of the watched calls, under the names of a gate; nothing if the backend fuses more than the seam."""

    errors: dict[str, float | None]
    slopes: dict[str, float | None]
    control: Control


def compared(calls: list[Call], rows: Tensor) -> Compared:
    """Hold the watched calls against the reference at ``rows``, and the first of them against the negative control."""
    errors: dict[str, float | None] = {}
    slopes: dict[str, float | None] = {}
    control = Control(None, 0.0)
    for i, call in enumerate(calls):
        expected = _expected(call, rows, call.arguments[5])
        reference = Reference(expected, rows, by_row=True)
        for suffix, error in error_norms(reference, call.output, alone=False).items():
            name = SEAM + suffix
            errors[name] = _worse(errors.get(name, 0.0), error)
        slopes[SEAM] = _worse(slopes.get(SEAM, 0.0), slope_of(reference, call.output))
        if i == 0:
            dtype = str(call.output.dtype).removeprefix("torch.")
            control = control_of(functools.partial(_error_without, call, rows, expected), TOLERANCE[dtype])
    return Compared(errors, slopes, control)


def _error_without(call: Call, rows: Tensor, expected: Tensor, spoilt: Spoil) -> float | None:
    """The error of what was found less what the left-out neighbours brought."""
    share = expected - _expected(call, rows, spoilt(call.arguments[5]))
    return error_norms(Reference(expected), call.output.index_select(1, rows).to(share) - share, alone=False)[""]


def _worse(known: float | None, other: float | None) -> float | None:
    """The one further from 0; None, which is not finite, beats all."""
    return None if known is None or other is None else max(known, other, key=abs)


def _expected(call: Call, rows: Tensor, valid: Tensor) -> Tensor:
    import torch

    from variants import _op

    q, k, v, p, idx, _ = call.arguments
    part = _op.restrict(idx, valid, rows)
    block = call.block
    with torch.no_grad():
        return _op.attention_reference(
            q.index_select(1, rows),
            k.index_select(1, part.keys),
            v.index_select(1, part.keys),
            p.index_select(1, rows),
            block.norm_pair.weight,
            block.norm_pair.bias,
            block.pair_bias.weight,
            part.neighbor_idx,
            part.valid_mask,
        )
