"""The attention seam by itself, as a larger level uses it.

A block adds attention to a residual and a stack to many; a small error of the seam drowns there. So each block's
``_attend`` is watched during the gate's run, and what it returned is compared with the reference on what it was given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from pallatom.architecture.atom_transformers import AtomTransformerBlock

    from .case import Case


@dataclass
class Call:
    """One call of the seam: the block, its arguments (Q, K, V, p, index, mask) and its output."""

    block: AtomTransformerBlock
    arguments: tuple[Tensor, ...]
    output: Tensor


@contextmanager
def watched(case: Case) -> Iterator[list[Call]]:
    """Collect the seam's calls of a case; at level attention there is nothing beside it, and none are kept."""
    from pallatom.architecture.atom_transformers import AtomTransformerBlock

    calls: list[Call] = []
    blocks = [m for m in case.module.modules() if isinstance(m, AtomTransformerBlock)]
    if case.inputs.problem.level == "attention":
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


def errors(calls: list[Call], rows: Tensor) -> dict[str, float | None]:
    """The worst errors of the watched calls at ``rows``; nothing if the backend fuses more and never calls the seam."""
    from .gate import SEAM, Reference, error_norms

    worst: dict[str, float | None] = {}
    for call in calls:
        found = error_norms(Reference(_expected(call, rows), rows, by_row=True), call.output, alone=False)
        for suffix, error in found.items():
            name = SEAM + suffix
            known = worst.get(name, 0.0)
            worst[name] = None if error is None or known is None else max(known, error)
    return worst


def _expected(call: Call, rows: Tensor) -> Tensor:
    import torch

    from variants import _op

    q, k, v, p, idx, valid = call.arguments
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
