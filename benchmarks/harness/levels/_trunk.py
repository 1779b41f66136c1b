"""What encoder and decoder share: a stack whose index they build themselves, and pairs to which the trunk adds z."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _level
from ._level import Amount, Level, Operand

if TYPE_CHECKING:
    from ..schema.problem import Problem

MLP_LAYERS = 4
_CHUNK_PAIRS = {"cpu": 2**15, "cuda": 2**22}  # that the layer makes at once without gradients
ATOM, TOKEN, PAIR, TRUNK = "B N c_atom", "B R c_token", "B N K c_atompair", "B R R c_pair"


class Trunk(Level):
    """A stack of blocks over pairs that pass through z's projection and the pair MLP, four C x C."""

    weight, error_factor, slope_factor = 6.0, 4.0, 4.0
    has_blocks = builds_index = True

    def multiply_adds(self, p: Problem) -> int:
        pairs = p.live_pairs * MLP_LAYERS * p.c_atompair**2 + self.residue_pairs(p) * p.c_pair * p.c_atompair
        return p.n_blocks * _level.block_multiply_adds(p) + pairs

    def weights(self, p: Problem) -> Amount:
        """The blocks'; mlp_p, z's projection and its norm."""
        blocks = sum((_level.block_weights(p) for _ in range(p.n_blocks)), Amount(0, 0))
        return blocks + _level.of_pairs(p, MLP_LAYERS * p.c_atompair**2 + p.c_pair * p.c_atompair + 2 * p.c_pair)

    def peak_bytes(self, p: Problem, seam_peak: int) -> int:
        """Of z's size there is its gradient alone: what a window sees of z is taken out as a band and projected."""
        pairs, z, stack = _level.pair_bytes(p), Operand("z", TRUNK).bytes(p), _level.stack_bytes(p, seam_peak)
        band = z * min(p.n_res, max(1, 2 * (p.window // 2) - 1)) // p.n_res
        if p.mode == "fwd":  # p_skip and p, and a chunk of pairs on its way
            chunk = _CHUNK_PAIRS[p.device] * p.c_atompair * p.itemsize
            return _level.index_bytes(p) + 3 * pairs + 4 * min(pairs, chunk) + 3 * band + stack
        # The pair MLP keeps its input and three ReLUs beside p_skip and p; when dz is made, only two of these are left.
        return _level.index_bytes(p) + 5 * band + max(6 * pairs + stack, z + 2 * pairs)
