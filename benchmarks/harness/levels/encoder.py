"""Level ``encoder``: reference conformers and the trunk's features to atoms, pairs and residues; builds its index."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ._level import REF_SPACE_UID, TOK_IDX, Amount, AsvGrid, Operand, of_pairs
from ._trunk import ATOM, PAIR, TOKEN, TRUNK, Trunk

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from ..reference.inputs import Draw
    from ..schema.problem import Problem
    from ..workload.workloads import Workload

# Atomic numbers of the one-hot element features; the last column takes every other element.
ELEMENT_COLUMNS = (0, 6, 7, 8, 16)
ELEMENTS = len(ELEMENT_COLUMNS) + 1
RESIDUE_SPACING_SCALE = 16.0


class Encoder(Trunk):
    about = "Features, index and stack of an atom encoder, from positions to residues."
    order = 3
    inputs = (
        Operand("ref_pos", "B N 3"),
        Operand("ref_element", f"B N {ELEMENTS}"),
        Operand("s_input", TOKEN),
        Operand("z_input", TRUNK),
        Operand("r_scaled", "B N 3"),
    )
    given = (REF_SPACE_UID, TOK_IDX)
    outputs = (
        Operand("s_i", TOKEN),
        Operand("q_skip", ATOM),
        Operand("c_skip", ATOM),
        Operand("p_skip", PAIR),
        Operand("c_l", ATOM),
    )
    asv = AsvGrid(
        {"window": [32], "k": ["all"]},
        {"cpu": ({"n_atom": 512},), "cuda": ({"n_atom": 2048, "dtype": "bfloat16"},)},
    )

    def module(self, p: Problem) -> nn.Module:
        """Atoms of ``c_atom`` and residues of ``c_token`` channels; in code from before the API's widths were mended,
        ``c`` was the atoms' and ``m`` the residues'."""
        from pallatom.architecture.atom_transformers import AtomFeatureEncoder

        sizes = (p.n_blocks, p.heads, p.window)
        with contextlib.suppress(ValueError):  # such code may find that heads do not divide what it takes for atoms
            encoder = AtomFeatureEncoder(3 + ELEMENTS, p.c_token, p.c_pair, p.c_token, p.c_atompair, p.c_atom, *sizes)
            if encoder.proj_r_scaled.out_features == p.c_atom:
                return encoder
        return AtomFeatureEncoder(3 + ELEMENTS, p.c_token, p.c_pair, p.c_atom, p.c_atompair, p.c_token, *sizes)

    def tensors(self, p: Problem, work: Workload, draw: Draw) -> dict[str, Tensor]:
        """Real reference conformers, each residue's about its own centre as models give them (far off it, all atoms
        look alike to LayerNorm, and a lost neighbour moves nothing); elements; trunk features are drawn."""
        import numpy as np

        columns = np.full(work.n_atom, len(ELEMENT_COLUMNS))
        for column, element in enumerate(ELEMENT_COLUMNS):
            columns[work.element == element] = column
        one_hot = np.eye(ELEMENTS, dtype=np.float32)[columns]
        known = work.positions
        if known is None:
            noisy = draw.normal(p.batch, work.n_atom, 3)
        else:
            noisy = draw.array((known - known.mean(0)) / RESIDUE_SPACING_SCALE, p.batch)
        s_input, z_input = (draw.normal(*o.sizes(p)) for o in self.inputs[2:4])
        made = (draw.array(_centred(work), p.batch), draw.array(one_hot, p.batch), s_input, z_input, noisy)
        return {o.name: tensor for o, tensor in zip(self.inputs, made, strict=True)}

    def reference(
        self, p: Problem, x: dict[str, Tensor], w: dict[str, Tensor], given: dict[str, Tensor]
    ) -> tuple[Tensor, ...]:
        from variants import _op

        return _op.encoder_reference(
            w, x["ref_pos"], x["ref_element"], given["ref_space_uid"], x["s_input"], x["z_input"], x["r_scaled"],
            given["tok_idx"], p.window, p.heads,
        )  # fmt: skip

    def multiply_adds(self, p: Problem) -> int:
        to_pairs = 2 * p.c_atom * p.c_atompair if p.live_pairs else 0
        per_atom = (3 + ELEMENTS + 3) * p.c_atom + to_pairs + p.c_atom * p.c_token
        per_pair = 4 * p.c_atompair  # proj_d_vec, proj_inv_sq; proj_v of a 0 or 1 is a choice
        residues = p.n_res * p.c_token * p.c_atom
        return super().multiply_adds(p) + p.batch * (p.n_atom * per_atom + residues) + p.live_pairs * per_pair

    def weights(self, p: Problem) -> Amount:
        """And proj_d_vec, proj_inv_sq, proj_v, proj_cl_pair, proj_cm_pair; proj_fref_c, proj_r_scaled; s in and out."""
        pairs = of_pairs(p, 5 * p.c_atompair + 2 * p.c_atom * p.c_atompair)
        rest = (3 + ELEMENTS + 3) * p.c_atom + 2 * p.c_atom * p.c_token + 2 * p.c_token
        return super().weights(p) + pairs + Amount(rest, rest)


def _centred(work: Workload) -> np.ndarray:
    """Reference positions less the mean of their residue, float32 [N, 3]."""
    import numpy as np

    count = np.bincount(work.tok_idx, minlength=work.n_res)[:, None]
    total = np.zeros((work.n_res, 3))
    np.add.at(total, work.tok_idx, work.ref_pos)
    return (work.ref_pos - (total / np.maximum(count, 1))[work.tok_idx]).astype(np.float32)


LEVEL = Encoder()
