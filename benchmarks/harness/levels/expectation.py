"""What a problem's outputs and gradients must be: the float64 reference, whole or for a sample of rows.

The reference (``variants/_op.py``) is given the very inputs and weights that the backends have, upcast. Where all of it
would take too long, a seeded sample of query rows is taken: rows are independent given K and V (and in a stack given
c), so with cotangents that are zero elsewhere every gradient is exact too, and zero where no sampled row reaches.
Encoder and decoder build their index themselves; there the sample is a few runs of residues, each with the margin that
its window needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..schema.problem import Problem
from . import spans
from .expected import Expected, Reference, Spoil, bias_scales, fewer, one_less, only_at

if TYPE_CHECKING:
    from torch import Tensor

    from .inputs import Inputs


def expect(inputs: Inputs, *, max_pairs: int) -> Expected:
    """The reference of a built problem, of all rows or of a sample of about ``max_pairs`` pairs."""
    problem = inputs.problem
    if problem.level in ("encoder", "decoder"):
        return spans.expect(inputs, max_pairs=max_pairs)
    rows = sample_rows(inputs, max_pairs)
    if problem.level == "index":
        return _index(inputs, rows)
    return _at_rows(inputs, rows)


def sample_rows(inputs: Inputs, max_pairs: int) -> Tensor:
    """Rows to check, ascending: all, or the ends, the chains' edges, rows without neighbours, and a seeded rest."""
    import torch

    n, per_row = inputs.problem.n_atom, max(1, inputs.problem.batch * inputs.problem.n_neighbor)
    device = inputs.problem.device
    wanted = max_pairs // per_row
    if wanted >= n:
        return torch.arange(n, device=device)
    chain = torch.tensor(inputs.workload.chain)
    edges = (chain[1:] != chain[:-1]).nonzero()[:, 0]
    valid = inputs.fixed.get("valid_mask")
    dead = torch.tensor([], dtype=torch.int64) if valid is None else (~valid.any(-1)).nonzero()[:, -1].cpu()
    odd = torch.cat([torch.tensor([0, n - 1]), edges[:16], edges[:16] + 1, dead[:8]])
    drawn = torch.randperm(n, generator=torch.Generator().manual_seed(inputs.problem.seed))[: max(8, wanted)]
    return torch.cat([odd, drawn]).unique().to(device)


def _at_rows(inputs: Inputs, rows: Tensor) -> Expected:
    """Attention, block or stack at some rows; what only those rows touch is compared there, and is 0 elsewhere."""
    import torch

    from variants import _op

    part = _op.restrict(inputs.fixed["neighbor_idx"], inputs.fixed["valid_mask"], rows)
    of_keys = ("K", "V", "c")  # keyed by the atoms that are seen; every other input by the rows that see
    places = {name: part.keys if name in of_keys else rows for name in inputs.tensors}
    backward = inputs.problem.mode != "fwd"
    local = {
        name: tensor.detach().index_select(1, places[name]).double().requires_grad_(backward)
        for name, tensor in inputs.tensors.items()
    }
    weights = {name: w.detach().double().requires_grad_(backward) for name, w in inputs.weights.items()}
    with torch.set_grad_enabled(backward):
        output = reference_of(inputs.problem)(local, weights, part.neighbor_idx, part.valid_mask)
    values = {"output": Reference(output.detach(), rows, by_row=True)}
    cotangents = inputs.cotangents
    whole = len(rows) == inputs.problem.n_atom
    if backward:
        cotangents = {"output": only_at(inputs.cotangents["output"], rows)}
        leaves = [*local.values(), *weights.values()]
        seed = inputs.cotangents["output"].index_select(1, rows).double()
        gradients = torch.autograd.grad(output, leaves, seed, allow_unused=True)
        for (name, leaf), gradient in zip({**local, **weights}.items(), gradients, strict=True):
            value = torch.zeros_like(leaf) if gradient is None else gradient
            if name in local:
                after = whole or name not in of_keys
                values[f"grad:{name}"] = Reference(value, places[name], by_row=True, alone=True, after_timing=after)
            else:
                values[f"grad:weight:{name}"] = Reference(value, after_timing=whole)

    def shares(spoilt: Spoil) -> dict[str, Tensor]:
        with torch.no_grad():
            short = reference_of(inputs.problem)(local, weights, part.neighbor_idx, spoilt(part.valid_mask))
        return {"output": values["output"].value - short}

    return Expected(inputs.problem, bias_scales(values), cotangents, rows, shares)


def _index(inputs: Inputs, rows: Tensor) -> Expected:
    """The index, from the runs of atoms that the workload module finds by itself; it must agree exactly."""
    import torch

    from ..workload.workloads import neighbour_runs

    problem = inputs.problem
    slots, *runs = neighbour_runs(inputs.workload, problem.window, chains=False)
    start, stop = (torch.tensor(run, device=problem.device)[rows, None] for run in runs)
    atoms = start + torch.arange(slots, device=problem.device)
    live = atoms < stop
    found = {"neighbor_idx": atoms.masked_fill(~live, 0), "valid_mask": live}
    values = {name: Reference(tensor[None].double(), rows, by_row=True) for name, tensor in found.items()}

    def shares(spoilt: Spoil) -> dict[str, Tensor]:
        return {"valid_mask": (live ^ spoilt(live))[None].double()}

    return Expected(problem, values, {}, rows, shares)


def reference_of(problem: Problem) -> Callable[..., Tensor]:
    """The level's reference as a function of (inputs, weights, index, mask)."""
    from variants import _op

    def attention(x: dict[str, Tensor], w: dict[str, Tensor], idx: Tensor, valid: Tensor) -> Tensor:
        pair = (w["norm_pair.weight"], w["norm_pair.bias"], w["pair_bias.weight"])
        return _op.attention_reference(x["Q"], x["K"], x["V"], x["p"], *pair, idx, valid)

    def block(x: dict[str, Tensor], w: dict[str, Tensor], idx: Tensor, valid: Tensor) -> Tensor:
        return _op.block_reference(w, x["q"], x["c"], x["p"], idx, valid, problem.heads)

    def stack(x: dict[str, Tensor], w: dict[str, Tensor], idx: Tensor, valid: Tensor) -> Tensor:
        return _op.stack_reference(w, x["q"], x["c"], x["p"], idx, valid, problem.heads)

    return {"attention": attention, "block": block, "stack": stack}[problem.level]


__all__ = ["Expected", "bias_scales", "expect", "fewer", "one_less", "only_at", "reference_of", "sample_rows"]
