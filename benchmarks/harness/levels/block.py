"""Level ``block``: attention with its norms and projections, and the feed-forward. q, c, p → q."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import _level
from ._level import INDEX, Amount, AsvGrid, Level, Operand

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..schema.problem import Problem


class Block(Level):
    about = "Attention with its norms and projections, and the feed-forward layer."
    order, weight, error_factor = 1, 1.3, 2.0
    inputs = (
        Operand("q", "B N c_atom"),
        Operand("c", "B N c_atom", keys=True, attended=True),
        Operand("p", "B N K c_atompair"),
    )
    given = INDEX
    outputs = (Operand("output", "B N c_atom"),)
    asv = AsvGrid(
        {"window": [32], "k": ["all"]},
        {"cpu": ({"n_atom": 512},), "cuda": ({"n_atom": 16384, "dtype": "bfloat16"},)},
        {"cuda": 1},
    )

    def module(self, p: Problem) -> nn.Module:
        from pallatom.architecture.atom_transformers import AtomTransformerBlock

        return AtomTransformerBlock(p.c_atom, p.c_atompair, p.heads, p.window)

    def seam_call(self, module: nn.Module, x: Mapping[str, Tensor]) -> tuple[Any, ...]:
        from pallatom.architecture.atom_transformers import AtomTransformerBlock

        block = next(m for m in module.modules() if isinstance(m, AtomTransformerBlock))
        heads = x["q"].detach().unflatten(-1, (block.n_heads, block.head_dim))
        return block, heads, heads, heads, x["p"].detach(), *(x[o.name] for o in self.given)

    def reference(
        self, p: Problem, x: dict[str, Tensor], w: dict[str, Tensor], given: dict[str, Tensor]
    ) -> tuple[Tensor, ...]:
        from variants import _op

        index = (given["neighbor_idx"], given["valid_mask"])
        return (_op.block_reference(w, x["q"], x["c"], x["p"], *index, p.heads),)

    def multiply_adds(self, p: Problem) -> int:
        return _level.block_multiply_adds(p)

    def weights(self, p: Problem) -> Amount:
        return _level.block_weights(p)

    def peak_bytes(self, p: Problem, seam_peak: int) -> int:
        return _level.block_bytes(p, seam_peak)


LEVEL = Block()
