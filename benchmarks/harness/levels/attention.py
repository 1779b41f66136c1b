"""Level ``attention``: the seam, all that a backend replaces. Q, K, V, p → O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from . import _level
from ._level import INDEX, SCORE_STD, Amount, AsvGrid, Level, Operand

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..schema.problem import Problem

_SEAM = "B N H D"


class Attention(Level):
    about = "The seam: where backends differ most, so a change of one shows here first."
    order, weight, error_factor = 0, 1.0, 1.0
    is_seam, has_relu = True, False
    trained = ("norm_pair.", "pair_bias.")
    inputs = (
        Operand("Q", _SEAM, std=SCORE_STD**0.5, attended=True),
        Operand("K", _SEAM, std=SCORE_STD**0.5, attended=True, keys=True),
        Operand("V", _SEAM, attended=True, keys=True),
        Operand("p", "B N K c_atompair"),
    )
    given = INDEX
    outputs = (Operand("output", _SEAM, attended=True),)
    asv = AsvGrid(
        pivots={
            "cpu": ({"n_atom": 512},),
            "cuda": (
                {"n_atom": 16384, "dtype": "bfloat16"},
                {"n_atom": 16384, "dtype": "bfloat16", "mode": "fwdbwd"},
            ),
        },
        drawn={"cpu": 1, "cuda": 4},
        every_backend=True,
    )

    def module(self, p: Problem) -> nn.Module:
        from pallatom.architecture.atom_transformers import AtomTransformerBlock

        return AtomTransformerBlock(p.c_atom, p.c_atompair, p.heads, p.window)

    def forward(self, p: Problem, module: nn.Module, tensors: dict[str, Tensor]) -> Callable[..., tuple[Tensor, ...]]:
        attend: Any = module._attend
        q, k, v, pairs = (tensors[o.name] for o in self.inputs)
        return lambda neighbor_idx, valid_mask: (attend(q, k, v, pairs, neighbor_idx, valid_mask),)

    def seam_call(self, module: nn.Module, x: Mapping[str, Tensor]) -> tuple[Any, ...]:
        return module, *(x[o.name].detach() for o in (*self.inputs, *self.given))

    def reference(
        self, p: Problem, x: dict[str, Tensor], w: dict[str, Tensor], given: dict[str, Tensor]
    ) -> tuple[Tensor, ...]:
        from variants import _op

        pair = (w["norm_pair.weight"], w["norm_pair.bias"], w["pair_bias.weight"])
        index = (given["neighbor_idx"], given["valid_mask"])
        return (_op.attention_reference(x["Q"], x["K"], x["V"], x["p"], *pair, *index),)

    def multiply_adds(self, p: Problem) -> int:
        return _level.seam_multiply_adds(p)

    def weights(self, p: Problem) -> Amount:
        return _level.seam_weights(p)

    def peak_bytes(self, p: Problem, seam_peak: int) -> int:
        return seam_peak


LEVEL = Attention()
