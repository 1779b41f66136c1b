"""Level ``index``: building the neighbour index from the atoms' residues. No backend takes part; integers only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from . import _level
from ._level import INDEX, TOK_IDX, Amount, AsvGrid, Level, Work

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..reference.expected import Expected
    from ..reference.inputs import Inputs
    from ..schema.problem import Problem


class Index(Level):
    about = "Building the neighbour index, which has no backend."
    order, weight, error_factor = 5, 0.2, 0.0  # it must agree exactly
    builds_index = True
    within_chains = differentiable = has_relu = False
    sole_backend = "build_sparse_pairs"  # the layer's own
    inputs = ()
    given = (TOK_IDX,)
    outputs = INDEX
    asv = AsvGrid(
        {
            "backend": [sole_backend],
            "n_atom": [2048, 16384, 65536],
            "k": ["all"],
            "dtype": ["float32"],
            "mode": ["fwd"],
        },
        {"cpu": ({"n_atom": 16384},), "cuda": ({"n_atom": 16384},)},
        every_backend=True,
    )

    def module(self, p: Problem) -> nn.Module:
        from torch import nn

        return nn.Identity()

    def forward(self, p: Problem, module: nn.Module, tensors: dict[str, Tensor]) -> Callable[..., tuple[Tensor, ...]]:
        from pallatom.architecture.atom_transformers import build_sparse_pairs

        return lambda tok_idx: tuple(t[None] for t in build_sparse_pairs(tok_idx, p.window))

    def reference(
        self, p: Problem, x: dict[str, Tensor], w: dict[str, Tensor], given: dict[str, Tensor]
    ) -> tuple[Tensor, ...]:
        from variants import _op

        return _op.index_reference(given["tok_idx"], p.window)

    def expected(self, built: Inputs, *, max_pairs: int) -> Expected:
        """From the runs of atoms that the workload module finds by itself: comparing all pairs takes O(N²)."""
        from ..reference import rows

        return rows.expect_index(built, max_pairs=max_pairs)

    def multiply_adds(self, p: Problem) -> int:
        return 0

    def weights(self, p: Problem) -> Amount:
        return Amount(0, 0)

    def floor(self, p: Problem) -> Work:
        return Work(0, TOK_IDX.bytes(p) + _level.index_bytes(p))

    def peak_bytes(self, p: Problem, seam_peak: int) -> int:
        return 2 * _level.index_bytes(p)


LEVEL = Index()
