"""Level ``stack``: blocks in turn, which share c, p and the index. q, c, p → q."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _level
from ._level import Amount, AsvGrid
from .block import Block

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..schema.problem import Problem


class Stack(Block):
    about = "Three blocks in turn, which share one index and so one plan."
    order, weight, error_factor = 2, 4.0, 4.0
    has_blocks = True
    asv = AsvGrid(
        {"window": [32], "k": ["all"]},
        {"cpu": ({"n_atom": 512},), "cuda": ({"n_atom": 16384, "dtype": "bfloat16"},)},
    )

    def module(self, p: Problem) -> nn.Module:
        from pallatom.architecture.atom_transformers import AtomTransformer

        return AtomTransformer(p.c_atom, p.c_atompair, p.n_blocks, p.heads, p.window)

    def reference(
        self, p: Problem, x: dict[str, Tensor], w: dict[str, Tensor], given: dict[str, Tensor]
    ) -> tuple[Tensor, ...]:
        from variants import _op

        index = (given["neighbor_idx"], given["valid_mask"])
        return (_op.stack_reference(w, x["q"], x["c"], x["p"], *index, p.heads),)

    def multiply_adds(self, p: Problem) -> int:
        return p.n_blocks * _level.block_multiply_adds(p)

    def weights(self, p: Problem) -> Amount:
        return sum((_level.block_weights(p) for _ in range(p.n_blocks)), Amount(0, 0))

    def peak_bytes(self, p: Problem, seam_peak: int) -> int:
        return _level.stack_bytes(p, seam_peak)


LEVEL = Stack()
