"""Inputs that are awkward on purpose, and the comparison with the float64 reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pallatom.architecture.atom_transformers import (
    AtomAttentionDecoder,
    AtomFeatureEncoder,
    AtomTransformer,
    build_sparse_pairs,
)

C_ATOM, C_PAIR_OF_ATOMS, HEADS, C_TOKEN, C_PAIR, C_RESIDUE, ELEMENTS, WINDOW = 24, 6, 4, 20, 14, 11, 5, 8
N_RES = 13
JUNK = (-1, 10**9, -(10**12), 2**62)

# Relative error of outputs: a few roundings of the dtype. Gradients get ten times as much, because a ReLU that rounding
# flips, or a sum that cancels, costs percents in 16 bits; a lost term costs 100%.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 3e-6, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}
GRADIENT_FACTOR = 10


def tokens(order: str = "sorted") -> Tensor:
    """1 to 9 atoms per residue; residues 4 and the last hold none. `order`: sorted or shuffled."""
    size = torch.tensor([3, 1, 9, 2, 0, 7, 5, 1, 4, 8, 2, 6, 0])
    tok = torch.arange(N_RES).repeat_interleave(size)
    if order == "shuffled":
        tok = tok[torch.randperm(len(tok), generator=torch.Generator().manual_seed(3))]
    return tok


def chains(tok: Tensor) -> Tensor:
    """Two chains: residues below 6 and the others."""
    return (tok >= 6).long()


@dataclass
class BlockInputs:
    """The arguments of a block's forward, by name."""

    q: Tensor
    c: Tensor
    p: Tensor
    neighbor_idx: Tensor
    valid_mask: Tensor

    def all(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.q, self.c, self.p, self.neighbor_idx, self.valid_mask


def block_inputs(
    order: str = "sorted",
    mask: str = "shared",
    *,
    batch: int = 2,
    window: int = WINDOW,
    junk: bool = True,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> BlockInputs:
    """Two chains, dead rows, and junk (NaN and inf in p, wild indices) in every padding slot.

    `mask`: shared [N, K], or per item [B, N, K] with random holes; then the index is junk where no item sees it.
    """
    rng = torch.Generator().manual_seed(seed)
    tok = tokens(order)
    idx, live = build_sparse_pairs(tok, window)
    chain = chains(tok)
    live = live & (chain[:, None] == chain[idx])
    live[7] = False
    live[-1] = False
    if mask == "per item":
        live = live & (torch.rand(batch, *live.shape, generator=rng) > 0.3)
    n_atom, n_slot = idx.shape
    q, c = (torch.randn(batch, n_atom, C_ATOM, generator=rng, dtype=torch.float64) for _ in range(2))
    p = 2 * torch.randn(batch, n_atom, n_slot, C_PAIR_OF_ATOMS, generator=rng, dtype=torch.float64) + 0.5
    if junk:
        dead = ~(live.any(0) if live.ndim == 3 else live)
        idx[dead] = torch.tensor(JUNK)[torch.arange(int(dead.sum())) % len(JUNK)]
        poison = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=torch.float64)
        gaps = ~live.expand(batch, -1, -1)
        p[gaps] = poison[torch.arange(int(gaps.sum())) % 3][:, None]
    return BlockInputs(q.to(dtype), c.to(dtype), p.to(dtype), idx, live)


def randomised(module: nn.Module, seed: int = 1) -> nn.Module:
    """Every parameter far from its initial value, so that no norm's weight is 1 and no norm's bias is 0."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter.shape[-1] if parameter.ndim == 2 else 1
            parameter.copy_(torch.randn(parameter.shape, generator=rng, dtype=torch.float64) * fan_in**-0.5)
    return module


def stack(n_blocks: int = 2, dtype: torch.dtype = torch.float64) -> AtomTransformer:
    module = AtomTransformer(C_ATOM, C_PAIR_OF_ATOMS, n_blocks, HEADS, WINDOW).to(dtype)
    randomised(module)
    return module


def encoder(dtype: torch.dtype = torch.float64, window: int = WINDOW) -> AtomFeatureEncoder:
    module = AtomFeatureEncoder(
        3 + ELEMENTS, C_TOKEN, C_PAIR, C_RESIDUE, C_PAIR_OF_ATOMS, C_ATOM, n_blocks=2, n_heads=HEADS, window_size=window
    ).to(dtype)
    randomised(module)
    return module


def decoder(dtype: torch.dtype = torch.float64, window: int = WINDOW) -> AtomAttentionDecoder:
    module = AtomAttentionDecoder(
        C_TOKEN, C_PAIR, C_ATOM, C_PAIR_OF_ATOMS, n_blocks=2, n_heads=HEADS, window_size=window
    ).to(dtype)
    randomised(module)
    return module


def encoder_inputs(
    order: str = "sorted", *, batch: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0
) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=rng, dtype=torch.float64).to(dtype)

    tok = tokens(order)
    n_atom = len(tok)
    return {
        "ref_pos": 3 * normal(n_atom, 3),
        "ref_element": normal(n_atom, ELEMENTS),
        "ref_space_uid": chains(tok),
        "s_input": normal(N_RES, C_TOKEN),
        "z_input": normal(N_RES, N_RES, C_PAIR),
        "r_scaled": normal(n_atom, 3),
        "tok_idx": tok,
    }


def decoder_inputs(
    order: str = "sorted", *, batch: int = 2, dtype: torch.dtype = torch.float64, window: int = WINDOW, seed: int = 0
) -> dict[str, Tensor]:
    """p_skip holds NaN in every padding slot."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=rng, dtype=torch.float64).to(dtype)

    tok = tokens(order)
    n_atom = len(tok)
    live = build_sparse_pairs(tok, window)[1]
    return {
        "q_skip": normal(n_atom, C_ATOM),
        "p_skip": normal(n_atom, live.shape[1], C_PAIR_OF_ATOMS).masked_fill(~live[..., None], torch.nan),
        "c_skip": normal(n_atom, C_ATOM),
        "c": normal(n_atom, C_ATOM),
        "s": normal(N_RES, C_TOKEN),
        "z": normal(N_RES, N_RES, C_PAIR),
        "tok_idx": tok,
    }


def with_gradients(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fresh leaves: floating tensors require gradients."""
    return {k: t.detach().clone().requires_grad_(t.dtype.is_floating_point) for k, t in tensors.items()}


def pull_back(outputs: Sequence[Tensor], leaves: Mapping[str, Tensor], seed: int = 9) -> dict[str, Tensor]:
    """Gradient at every floating leaf of the outputs times fixed random cotangents; a missing one is an error."""
    rng = torch.Generator().manual_seed(seed)
    total = sum((o.double() * torch.randn(o.shape, generator=rng, dtype=torch.float64)).sum() for o in outputs)
    assert isinstance(total, Tensor)
    names = [name for name, leaf in leaves.items() if leaf.requires_grad]
    return dict(zip(names, torch.autograd.grad(total, [leaves[n] for n in names]), strict=True))


def error(got: Tensor, want: Tensor) -> float:
    """|got − want| / |want|; inf where `got` is not finite or has another shape."""
    if got.shape != want.shape or not got.isfinite().all():
        return float("inf")
    got, want = got.detach().double(), want.detach().double()
    return float((got - want).norm() / want.norm().clamp(min=1e-300)) if want.numel() else 0.0


def assert_agree(got: Mapping[str, Tensor], want: Mapping[str, Tensor], tolerance: float) -> None:
    """Relative error norm of each entry below `tolerance`.

    norm_pair's bias moves all scores of a row alike, which a softmax ignores: its gradient is 0, and what rounding
    leaves of it is held against the gradient of norm_pair's weight.
    """
    assert got.keys() == want.keys()
    for name in want:
        reference = want[name].detach()
        if name.endswith("norm_pair.bias"):
            scale = float(want[name.removesuffix("bias") + "weight"].norm())
            assert scale > 0
            assert float(got[name].norm()) <= tolerance * scale, name
            assert float(reference.norm()) <= 1e-9 * scale, name
        else:
            assert float(reference.norm()) > 0, f"{name}: the reference is all zero, so this compares nothing"
            assert error(got[name], want[name]) < tolerance, f"{name}: {error(got[name], want[name]):.2e}"
