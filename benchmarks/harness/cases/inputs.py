"""Builds a problem: seeded inputs and weights, shared by all of its backends.

Inputs are drawn so that mistakes show. Scores have a standard deviation of about 1.5 (queries and
keys 0.8, pair bias 1.25), so that of 434 neighbours some 45 carry a row's softmax: peaked enough that
a shifted neighbour or a lost bias moves every output, flat enough that many rows of V take part.
LayerNorm's affine weights are drawn around 1 and 0, so that leaving them out shows. The padding slots
of p hold NaN: whoever reads them is found out. The cotangents are fixed random tensors; a sum would
have the gradient of a constant, which hides errors that cancel.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..levels import SCORE_STD, Level, level_of
from ..reference.inputs import Draw, Inputs
from ..schema.problem import Problem
from ..workload.workloads import Workload, attention_index
from .problems import workload_of

if TYPE_CHECKING:
    from torch import Tensor, nn

BIAS_STD = 1.25


def build(problem: Problem, source: str | None) -> Inputs:
    """Draw everything on the CPU's generator for weights and the device's own for the large tensors."""
    import torch

    level = level_of(problem.level)
    work = workload_of(source, problem.n_atom if source is None else None, problem.atoms, problem.seed)
    draw = Draw(problem)
    given = _given(level, problem, work)
    tensors = level.tensors(problem, work, draw)
    if "valid_mask" in given:
        unseen = ~given["valid_mask"][..., None]
        for operand in level.inputs:
            if "K" in operand.axes:
                tensors[operand.name].masked_fill_(unseen, torch.nan)
    module = level.module(problem)
    seed_parameters(module, problem)
    module.to(device=problem.device, dtype=draw.dtype)
    weights: dict[str, Tensor] = {n: w for n, w in module.named_parameters() if n.startswith(level.trained)}
    axes = {o.name: o.axes for o in (*level.inputs, *level.outputs)}
    inputs = Inputs(problem, work, module, tensors, given, weights, tuple(o.name for o in level.outputs), axes)
    backward = problem.mode != "fwd"
    for tensor in inputs.leaves.values():
        tensor.requires_grad_(backward)
    if backward:
        with torch.no_grad():
            inputs.cotangents = {o.name: draw.normal(*o.sizes(problem)) for o in level.outputs}
    return inputs


def another(first: Inputs, *, share_largest: bool = False) -> Inputs:
    """The same problem with other numbers, to take turns with ``first``: its tensors with the sign changed; where there
    are none, its residues mirrored. Module, weights, cotangents and a given index are the same; with ``share_largest``
    so is the largest tensor, where there is no room for a second.
    """
    problem = first.problem
    if not first.tensors:
        tok_idx = first.workload.tok_idx
        mirrored = replace(first.workload, tok_idx=(tok_idx.max() - tok_idx)[::-1].copy())
        return replace(first, workload=mirrored, fixed=_given(level_of(problem.level), problem, mirrored))
    largest = max(first.tensors, key=lambda name: first.tensors[name].numel())
    tensors = {
        name: tensor
        if share_largest and name == largest
        else tensor.detach().neg().requires_grad_(tensor.requires_grad)
        for name, tensor in first.tensors.items()
    }
    return replace(first, tensors=tensors)


def _given(level: Level, problem: Problem, work: Workload) -> dict[str, Tensor]:
    """What a level is given that follows from its atoms: the index with its mask, residues, chains."""
    import torch

    makers = {"tok_idx": work.tok_idx, "ref_space_uid": work.chain}
    names = [o.name for o in level.given]
    if "neighbor_idx" not in names:
        return {name: torch.tensor(makers[name], device=problem.device) for name in names}
    idx, valid = attention_index(
        work, problem.window, k_cap=problem.k_cap, style=problem.window_style, device=problem.device
    )
    _check_sizes(problem, idx, valid)
    return {"neighbor_idx": idx, "valid_mask": valid}


def _check_sizes(problem: Problem, idx: Tensor, valid: Tensor) -> None:
    """The plan counted this index without building it; the two must agree, or the record would lie."""
    found = (tuple(idx.shape), int(valid.sum()) * problem.batch)
    planned = ((problem.n_atom, problem.n_neighbor), problem.live_pairs)
    if found != planned:
        raise RuntimeError(f"the index has shape and live pairs {found}, the plan counted {planned}")


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
