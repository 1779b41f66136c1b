"""The reference at some query rows, or at all of them.

The reference (``variants/_op.py``) is given the very inputs and weights that the backends have, upcast. Where all of it
would take too long, a seeded sample of query rows is taken: rows are independent given K and V (and in a stack given
c), so with cotangents that are zero elsewhere every gradient is exact too, and zero where no sampled row reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from .expected import Expected, Reference, Spoil, bias_scales, only_at

if TYPE_CHECKING:
    from torch import Tensor

    from .inputs import Inputs


def expect(
    inputs: Inputs, reference: Callable[..., tuple[Tensor, ...]], keys: Collection[str], *, max_pairs: int
) -> Expected:
    """``reference(inputs, weights, given)`` at a sample of rows of about ``max_pairs`` pairs: what only those rows
    touch is compared there, and is 0 elsewhere. ``keys``: inputs of the atoms that are seen; all others are of those
    that see.
    """
    import torch

    from variants import _op

    rows = sample_rows(inputs, max_pairs)
    part = _op.restrict(inputs.fixed["neighbor_idx"], inputs.fixed["valid_mask"], rows)
    places = {name: part.keys if name in keys else rows for name in inputs.tensors}
    backward = inputs.problem.mode != "fwd"
    local = {
        name: tensor.detach().index_select(1, places[name]).double().requires_grad_(backward)
        for name, tensor in inputs.tensors.items()
    }
    weights = {name: w.detach().double().requires_grad_(backward) for name, w in inputs.weights.items()}

    def outputs(valid: Tensor) -> dict[str, Tensor]:
        given = {"neighbor_idx": part.neighbor_idx, "valid_mask": valid}
        return dict(zip(inputs.outputs, reference(local, weights, given), strict=True))

    with torch.set_grad_enabled(backward):
        made = outputs(part.valid_mask)
    values = {name: Reference(output.detach(), rows, by_row=True) for name, output in made.items()}
    cotangents = {name: only_at(tensor, rows) for name, tensor in inputs.cotangents.items()}
    whole = len(rows) == inputs.problem.n_atom
    if backward:
        leaves = [*local.values(), *weights.values()]
        seeds = [inputs.cotangents[name].index_select(1, rows).double() for name in made]
        gradients = torch.autograd.grad(list(made.values()), leaves, seeds, allow_unused=True)
        for (name, leaf), gradient in zip({**local, **weights}.items(), gradients, strict=True):
            value = torch.zeros_like(leaf) if gradient is None else gradient
            if name in local:
                after = whole or name not in keys
                values[f"grad:{name}"] = Reference(value, places[name], by_row=True, alone=True, after_timing=after)
            else:
                values[f"grad:weight:{name}"] = Reference(value, after_timing=whole)

    def shares(spoilt: Spoil) -> dict[str, Tensor]:
        with torch.no_grad():
            short = outputs(spoilt(part.valid_mask))
        return {name: values[name].value - tensor for name, tensor in short.items()}

    return Expected(inputs.problem, bias_scales(values), cotangents, rows, shares)


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


def expect_index(inputs: Inputs, *, max_pairs: int) -> Expected:
    """The index, from the runs of atoms that the workload module finds by itself; it must agree exactly."""
    import torch

    from ..workload.workloads import neighbour_runs

    problem, rows = inputs.problem, sample_rows(inputs, max_pairs)
    slots, *runs = neighbour_runs(inputs.workload, problem.window, chains=False)
    start, stop = (torch.tensor(run, device=problem.device)[rows, None] for run in runs)
    atoms = start + torch.arange(slots, device=problem.device)
    live = atoms < stop
    found = {"neighbor_idx": atoms.masked_fill(~live, 0), "valid_mask": live}
    values = {name: Reference(tensor[None].double(), rows, by_row=True) for name, tensor in found.items()}

    def shares(spoilt: Spoil) -> dict[str, Tensor]:
        return {"valid_mask": (live ^ spoilt(live))[None].double()}

    return Expected(problem, values, {}, rows, shares)
