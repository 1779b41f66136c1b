"""The API as it was first written down: names, defaults, weights and outputs, every width another number.

Widths: f_ref_dim 8, c_token 12, c_pair 10; atoms 24, pairs 6 (of the encoder: m and d), residues returned 16 (c).
"""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor, nn

from pallatom.architecture import atom_transformers as api

F_REF, C_TOKEN, C_PAIR, C, D, M, HEADS = 8, 12, 10, 16, 6, 24, 3
BATCH, N_RES = 2, 5
TOK_IDX = torch.tensor([0, 0, 1, 1, 1, 2, 4])
N_ATOM = len(TOK_IDX)

SIGNATURES = {
    "build_sparse_pairs": "tok_idx window_size=32",
    "LinearNoBias": "in_features out_features",
    "AtomTransformerBlock": "c_atom c_atompair n_heads window_size=32",
    "AtomTransformer": "c_atom c_atompair n_blocks=3 n_heads=4 window_size=32",
    "AtomFeatureEncoder": "f_ref_dim c_token c_pair c d m n_blocks n_heads window_size=32",
    "AtomAttentionDecoder": "c_token c_pair c_atom c_atompair n_blocks=3 n_heads=4 window_size=32",
    "AtomTransformerBlock.forward": "self q c p neighbor_idx valid_mask",
    "AtomTransformer.forward": "self q c p neighbor_idx valid_mask",
    "AtomFeatureEncoder.forward": "self ref_pos ref_element ref_space_uid s_input z_input r_scaled tok_idx",
    "AtomAttentionDecoder.forward": "self q_skip p_skip c_skip c s z tok_idx",
}

# Linear layers as [in, out]; norms as the width that they norm.
BLOCK = {
    **dict.fromkeys(("to_q", "to_k", "to_v", "to_out"), (M, M)),
    "pair_bias": (D, HEADS),
    "ff1": (M, 4 * M),
    "ff2": (4 * M, M),
    **dict.fromkeys(("norm_q", "norm_c", "norm_ff"), M),
    "norm_pair": D,
}
STACK = {f"blocks.{i}.{name}": size for i in range(2) for name, size in BLOCK.items()}
PAIR_MLP = {f"mlp_p.{i}": (D, D) for i in (0, 2, 4, 6)}
WITHIN = {f"transformer.{name}": size for name, size in STACK.items()} | PAIR_MLP
LAYERS = {
    "block": BLOCK,
    "stack": STACK,
    "encoder": WITHIN
    | {
        "proj_fref_c": (F_REF, M),
        "proj_d_vec": (3, D),
        "proj_inv_sq": (1, D),
        "proj_v": (1, D),
        "proj_cl_pair": (M, D),
        "proj_cm_pair": (M, D),
        "proj_r_scaled": (3, M),
        "norm_s_init": C_TOKEN,
        "proj_s_init": (C_TOKEN, M),
        "norm_z_init": C_PAIR,
        "proj_z_init": (C_PAIR, D),
        "proj_agg": (M, C),
    },
    "decoder": WITHIN
    | {
        "norm_s_q": C_TOKEN,
        "proj_s_q": (C_TOKEN, M),
        "norm_z": C_PAIR,
        "proj_z": (C_PAIR, D),
        "norm_q_out": M,
        "proj_r": (M, 3),
        "norm_s_c": C_TOKEN,
        "proj_s_c": (C_TOKEN, M),
    },
}


def made() -> dict[str, nn.Module]:
    return {
        "block": api.AtomTransformerBlock(M, D, HEADS),
        "stack": api.AtomTransformer(M, D, 2, HEADS),
        "encoder": api.AtomFeatureEncoder(F_REF, C_TOKEN, C_PAIR, C, D, M, 2, HEADS),
        "decoder": api.AtomAttentionDecoder(C_TOKEN, C_PAIR, M, D, 2, HEADS),
    }


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name: str) -> None:
    found: object = api
    for part in name.split("."):
        found = getattr(found, part)
    parameters = inspect.signature(found).parameters.values()  # type: ignore[arg-type]
    told = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters]
    assert " ".join(told) == SIGNATURES[name]


@pytest.mark.parametrize("part", LAYERS)
def test_every_weight_has_its_shape(part: str) -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for name, size in LAYERS[part].items():
        if isinstance(size, int):
            expected |= {f"{name}.weight": (size,), f"{name}.bias": (size,)}
        else:
            expected[f"{name}.weight"] = size[::-1]  # torch stores [out, in]
    assert {name: tuple(w.shape) for name, w in made()[part].state_dict().items()} == expected


def test_attributes() -> None:
    parts = made()
    assert api.WINDOW_SIZE == 32
    assert all(module.window_size == 32 for module in parts.values())
    assert (parts["block"].n_heads, parts["block"].head_dim) == (HEADS, M // HEADS)
    assert parts["encoder"].m == M
    assert issubclass(api.LinearNoBias, nn.Linear)
    assert api.LinearNoBias(3, 2).bias is None


def drawn(*shape: int) -> Tensor:
    return torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(0))


def test_every_output_has_its_shape() -> None:
    parts = made()
    idx, valid = api.build_sparse_pairs(TOK_IDX)
    k = idx.shape[1]
    atoms, pairs = (BATCH, N_ATOM, M), (BATCH, N_ATOM, k, D)
    q, c, p = drawn(N_ATOM, M), drawn(N_ATOM, M), drawn(N_ATOM, k, D)
    assert (idx.shape, valid.shape) == ((N_ATOM, k), (N_ATOM, k))
    assert parts["block"](q, c, p, idx, valid).shape == atoms
    assert parts["stack"](q, c, p, idx, valid).shape == atoms
    s, z = drawn(N_RES, C_TOKEN), drawn(N_RES, N_RES, C_PAIR)
    ref_pos, ref_element, uid = (
        drawn(N_ATOM, 3),
        drawn(N_ATOM, F_REF - 3),
        torch.zeros(BATCH, N_ATOM, dtype=torch.int64),
    )
    tok_idx = TOK_IDX.expand(BATCH, -1)
    s_i, q_skip, c_skip, p_skip, c_l = parts["encoder"](ref_pos, ref_element, uid, s, z, drawn(N_ATOM, 3), tok_idx)
    assert s_i.shape == (BATCH, N_RES, C)
    assert (q_skip.shape, c_skip.shape, c_l.shape) == (atoms, atoms, atoms)
    assert p_skip.shape == pairs
    q, p, r_update, c_out = parts["decoder"](q_skip, p_skip, c_skip, c_l, s, z, tok_idx)
    assert (q.shape, p.shape, r_update.shape, c_out.shape) == (atoms, pairs, (BATCH, N_ATOM, 3), atoms)
