"""Level ``decoder``: the skips and the trunk's features to updated positions and residues; builds its index."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._level import TOK_IDX, Amount, Operand
from ._trunk import ATOM, PAIR, TOKEN, TRUNK, Trunk

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..schema.problem import Problem


class Decoder(Trunk):
    about = "Index and stack of an atom decoder, from atoms, pairs and the trunk's features to moved positions."
    order = 4
    within_chains = False
    inputs = (
        Operand("q_skip", ATOM),
        Operand("p_skip", PAIR),
        Operand("c_skip", ATOM),
        Operand("c", ATOM, attended=True),
        Operand("s", TOKEN),
        Operand("z", TRUNK),
    )
    given = (TOK_IDX,)
    outputs = (Operand("q", ATOM), Operand("p", PAIR), Operand("r_update", "B N 3"), Operand("c_out", ATOM))

    def module(self, p: Problem) -> nn.Module:
        from pallatom.architecture.atom_transformers import AtomAttentionDecoder

        return AtomAttentionDecoder(p.c_token, p.c_pair, p.c_atom, p.c_atompair, p.n_blocks, p.heads, p.window)

    def reference(
        self, p: Problem, x: dict[str, Tensor], w: dict[str, Tensor], given: dict[str, Tensor]
    ) -> tuple[Tensor, ...]:
        from variants import _op

        return _op.decoder_reference(
            w, x["q_skip"], x["p_skip"], x["c_skip"], x["c"], x["s"], x["z"], given["tok_idx"], p.window, p.heads
        )

    def multiply_adds(self, p: Problem) -> int:
        residues = p.n_res * 2 * p.c_token * p.c_atom
        return super().multiply_adds(p) + p.batch * (p.n_atom * 3 * p.c_atom + residues)

    def weights(self, p: Problem) -> Amount:
        """And proj_s_q, proj_s_c, their norms; proj_r, norm_q_out."""
        rest = 2 * p.c_atom * p.c_token + 4 * p.c_token + 3 * p.c_atom + 2 * p.c_atom
        return super().weights(p) + Amount(rest, rest)


LEVEL = Decoder()
