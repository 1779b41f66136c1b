"""Builds a problem: seeded inputs and weights, shared by all of its backends.

Inputs are drawn so that mistakes show. Scores have a standard deviation of about 1.5 (queries and
keys 0.8, pair bias 1.25), so that of 434 neighbours some 45 carry a row's softmax: peaked enough that
a shifted neighbour or a lost bias moves every output, flat enough that many rows of V take part.
LayerNorm's affine weights are drawn around 1 and 0, so that leaving them out shows. The padding slots
of p hold NaN: whoever reads them is found out. The cotangents are fixed random tensors; a sum would
have the gradient of a constant, which hides errors that cancel.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from ..schema.problem import Problem
from ..workload.problems import workload_of
from ..workload.workloads import Workload, attention_index
from .footprint import ELEMENTS

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SCORE_STD, BIAS_STD = 0.8, 1.25
# Atomic numbers of the one-hot element features; the last column takes every other element.
ELEMENT_COLUMNS = (0, 6, 7, 8, 16)
RESIDUE_SPACING_SCALE = 16.0


@dataclass
class Inputs:
    """One problem, built: what every backend is given.

    ``tensors`` are the arguments that may take a gradient, by name; ``fixed`` those that may not.
    ``module`` is the plain layer; ``weights`` those of its parameters that the level uses, by name.
    ``cotangents`` are the fixed output gradients, by output name.
    """

    problem: Problem
    workload: Workload
    module: nn.Module
    tensors: dict[str, Tensor]
    fixed: dict[str, Tensor]
    weights: dict[str, Tensor]
    outputs: tuple[str, ...]
    cotangents: dict[str, Tensor] = field(default_factory=dict)

    @property
    def leaves(self) -> dict[str, Tensor]:
        """Everything that gets a gradient: inputs and weights."""
        return self.tensors | {f"weight:{name}": w for name, w in self.weights.items()}


def build(problem: Problem, source: str | None) -> Inputs:
    """Draw everything on the CPU's generator for weights and the device's own for the large tensors."""
    import torch

    work = workload_of(source, problem.n_atom if source is None else None, problem.atoms, problem.seed)
    draw = _Draw(problem)
    tensors, fixed = _arguments(problem, work, draw)
    module = _module(problem)
    seed_parameters(module, problem)
    module.to(device=problem.device, dtype=draw.dtype)
    weights: dict[str, Tensor] = dict(module.named_parameters())
    if problem.level == "attention":
        weights = {name: w for name, w in weights.items() if name.startswith(("norm_pair.", "pair_bias."))}
    inputs = Inputs(problem, work, module, tensors, fixed, weights, OUTPUTS[problem.level])
    backward = problem.mode != "fwd"
    for tensor in inputs.leaves.values():
        tensor.requires_grad_(backward)
    if backward:
        with torch.no_grad():
            inputs.cotangents = {name: draw.normal(*s) for name, s in _output_shapes(problem).items()}
    return inputs


def another(first: Inputs, *, share_largest: bool = False) -> Inputs:
    """The same problem with other numbers, to take turns with ``first``: its tensors with the sign changed, its index
    mirrored where the index is what is built. Module, weights, cotangents and a given index are the same; with
    ``share_largest`` so is the largest tensor, where there is no room for a second.
    """
    problem = first.problem
    if problem.level == "index":
        tok_idx = first.workload.tok_idx
        mirrored = replace(first.workload, tok_idx=(tok_idx.max() - tok_idx)[::-1].copy())
        return replace(first, workload=mirrored, fixed=_arguments(problem, mirrored, _Draw(problem))[1])
    largest = max(first.tensors, key=lambda name: first.tensors[name].numel())
    tensors = {
        name: tensor
        if share_largest and name == largest
        else tensor.detach().neg().requires_grad_(tensor.requires_grad)
        for name, tensor in first.tensors.items()
    }
    return replace(first, tensors=tensors)


OUTPUTS: dict[str, tuple[str, ...]] = {
    "attention": ("output",),
    "block": ("output",),
    "stack": ("output",),
    "encoder": ("s_i", "q_skip", "c_skip", "p_skip", "c_l"),
    "decoder": ("q", "p", "r_update", "c_out"),
    "index": ("neighbor_idx", "valid_mask"),
}


def _output_shapes(problem: Problem) -> dict[str, tuple[int, ...]]:
    b, n, k = problem.batch, problem.n_atom, problem.n_neighbor
    atom, pair = (b, n, problem.c_atom), (b, n, k, problem.c_atompair)
    match problem.level:
        case "attention":
            return {"output": (b, n, problem.heads, problem.head_dim)}
        case "encoder":
            token = (b, problem.n_res, problem.c_token)
            return {"s_i": token, "q_skip": atom, "c_skip": atom, "p_skip": pair, "c_l": atom}
        case "decoder":
            return {"q": atom, "p": pair, "r_update": (b, n, 3), "c_out": atom}
    return {"output": atom}


class _Draw:
    """Seeded normal tensors of the problem's dtype on its device."""

    def __init__(self, problem: Problem) -> None:
        import torch

        self.device = torch.device(problem.device)
        self.dtype: torch.dtype = getattr(torch, problem.dtype)
        self.generator = torch.Generator(device=self.device).manual_seed(problem.seed + 1)

    def normal(self, *shape: int, std: float = 1.0) -> Tensor:
        import torch

        return torch.randn(shape, generator=self.generator, device=self.device, dtype=self.dtype).mul_(std)

    def array(self, values: np.ndarray) -> Tensor:
        import torch

        return torch.tensor(values).to(device=self.device, dtype=self.dtype)


def _arguments(problem: Problem, work: Workload, draw: _Draw) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    import torch

    b, n, k, r = problem.batch, problem.n_atom, problem.n_neighbor, problem.n_res
    atom = (b, n, problem.c_atom)
    if problem.level == "index":
        return {}, {"tok_idx": torch.tensor(work.tok_idx, device=draw.device)}
    if problem.level == "encoder":
        return _encoder_arguments(problem, work, draw)
    if problem.level == "decoder":
        tensors = {
            "q_skip": draw.normal(*atom),
            "p_skip": draw.normal(b, n, k, problem.c_atompair),
            "c_skip": draw.normal(*atom),
            "c": draw.normal(*atom),
            "s": draw.normal(b, r, problem.c_token),
            "z": draw.normal(b, r, r, problem.c_pair),
        }
        return tensors, {"tok_idx": torch.tensor(work.tok_idx, device=draw.device)}
    idx, valid = attention_index(
        work, problem.window, k_cap=problem.k_cap, style=problem.window_style, device=problem.device
    )
    _check_sizes(problem, idx, valid)
    p = draw.normal(b, n, k, problem.c_atompair)
    p.masked_fill_(~valid.reshape(*valid.shape[-2:], 1), torch.nan)
    fixed = {"neighbor_idx": idx, "valid_mask": valid}
    if problem.level == "attention":
        seam = (b, n, problem.heads, problem.head_dim)
        std = SCORE_STD**0.5
        return {
            "Q": draw.normal(*seam, std=std),
            "K": draw.normal(*seam, std=std),
            "V": draw.normal(*seam),
            "p": p,
        }, fixed
    return {"q": draw.normal(*atom), "c": draw.normal(*atom), "p": p}, fixed


def _check_sizes(problem: Problem, idx: Tensor, valid: Tensor) -> None:
    """The plan counted this index without building it; the two must agree, or the record would lie."""
    found = (tuple(idx.shape), int(valid.sum()) * problem.batch)
    planned = ((problem.n_atom, problem.n_neighbor), problem.live_pairs)
    if found != planned:
        raise RuntimeError(f"the index has shape and live pairs {found}, the plan counted {planned}")


def _encoder_arguments(problem: Problem, work: Workload, draw: _Draw) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Real reference conformers, each residue's about its own centre as models give them (far off it, all atoms look
    alike to LayerNorm, and a lost neighbour moves nothing); elements, chains, residues; trunk features are drawn."""
    import torch

    b, r = problem.batch, problem.n_res
    columns = np.full(work.n_atom, len(ELEMENT_COLUMNS))
    for column, element in enumerate(ELEMENT_COLUMNS):
        columns[work.element == element] = column
    one_hot = np.eye(ELEMENTS, dtype=np.float32)[columns]
    known = work.positions
    if known is None:
        noisy = draw.normal(b, work.n_atom, 3)
    else:
        noisy = draw.array((known - known.mean(0)) / RESIDUE_SPACING_SCALE).expand(b, -1, -1).clone()
    tensors = {
        "ref_pos": draw.array(_centred(work)).expand(b, -1, -1).clone(),
        "ref_element": draw.array(one_hot).expand(b, -1, -1).clone(),
        "s_input": draw.normal(b, r, problem.c_token),
        "z_input": draw.normal(b, r, r, problem.c_pair),
        "r_scaled": noisy,
    }
    fixed = {
        "ref_space_uid": torch.tensor(work.chain, device=draw.device),
        "tok_idx": torch.tensor(work.tok_idx, device=draw.device),
    }
    return tensors, fixed


def _centred(work: Workload) -> np.ndarray:
    """Reference positions less the mean of their residue, float32 [N, 3]."""
    count = np.bincount(work.tok_idx, minlength=work.n_res)[:, None]
    total = np.zeros((work.n_res, 3))
    np.add.at(total, work.tok_idx, work.ref_pos)
    return (work.ref_pos - (total / np.maximum(count, 1))[work.tok_idx]).astype(np.float32)


def _module(problem: Problem) -> nn.Module:
    from torch import nn

    from pallatom.architecture import atom_transformers as at

    p = problem
    match p.level:
        case "attention" | "block":
            return at.AtomTransformerBlock(p.c_atom, p.c_atompair, p.heads, p.window)
        case "stack":
            return at.AtomTransformer(p.c_atom, p.c_atompair, p.n_blocks, p.heads, p.window)
        case "encoder":
            return _encoder(p)
        case "decoder":
            return at.AtomAttentionDecoder(p.c_token, p.c_pair, p.c_atom, p.c_atompair, p.n_blocks, p.heads, p.window)
        case "index":
            return nn.Identity()


def _encoder(p: Problem) -> nn.Module:
    """The encoder with atoms of ``c_atom`` and residues of ``c_token`` channels; in code from before the API's widths
    were mended, ``c`` was the atoms' and ``m`` the residues'."""
    from pallatom.architecture.atom_transformers import AtomFeatureEncoder

    sizes = (p.n_blocks, p.heads, p.window)
    with contextlib.suppress(ValueError):  # such code may find that heads do not divide what it takes for atoms
        encoder = AtomFeatureEncoder(3 + ELEMENTS, p.c_token, p.c_pair, p.c_token, p.c_atompair, p.c_atom, *sizes)
        if encoder.proj_r_scaled.out_features == p.c_atom:
            return encoder
    return AtomFeatureEncoder(3 + ELEMENTS, p.c_token, p.c_pair, p.c_atom, p.c_atompair, p.c_token, *sizes)


def seed_parameters(module: nn.Module, problem: Problem) -> None:
    """Redraw every weight from the problem's seed, scaled as the module docstring says."""
    import torch

    generator = torch.Generator().manual_seed(problem.seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                centre = 1.0 if name.endswith("weight") else 0.0
                weight.copy_(centre + 0.2 * drawn)
                continue
            std = {"pair_bias": BIAS_STD, "to_q": SCORE_STD**0.5, "to_k": SCORE_STD**0.5}.get(name.split(".")[-2], 1.0)
            weight.copy_(drawn * std / weight.shape[-1] ** 0.5)
