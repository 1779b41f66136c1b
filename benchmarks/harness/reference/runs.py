"""The reference at some runs of residues, or at all of them.

For levels that build their index themselves. Keys and values come from c, which belongs to one atom and no block
changes; so what a residue gets depends on the residues within one window of it, and on no others. A run of residues
with one window's margin on either side, cut out of every input, therefore has the exact outputs and gradients of its
inner part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .expected import Expected, Reference, bias_scales, only_at

if TYPE_CHECKING:
    from torch import Tensor

    from .inputs import Inputs

_RUNS = 3
_MOST_PAIRS = 1 << 18  # the reference of a run builds its index by comparing all of its atoms


@dataclass(frozen=True)
class Run:
    """Residues ``[low, high)`` are compared; ``[first, last)``, one window wider, are computed. Atoms likewise."""

    low: int
    high: int
    first: int
    last: int
    atoms: tuple[int, int]
    inner_atoms: tuple[int, int]


def expect(inputs: Inputs, reference: Callable[..., tuple[Tensor, ...]], *, max_pairs: int) -> Expected:
    """``reference(inputs, weights, given)``, whole where there are at most ``max_pairs`` pairs (and 2¹⁸)."""
    import torch

    parts = choose(inputs, min(max_pairs, _MOST_PAIRS))
    rows = torch.cat([torch.arange(*part.inner_atoms) for part in parts]).to(inputs.problem.device)
    residues = torch.cat([torch.arange(part.low, part.high) for part in parts]).to(inputs.problem.device)
    total = _Sum(inputs, reference, rows, residues)
    for part in parts:
        total.add(part)
    return Expected(inputs.problem, total.references(), total.cotangents, rows)


def choose(inputs: Inputs, max_pairs: int) -> list[Run]:
    """All residues, or runs at the start, over the first chain's end (or the middle), and at the end."""
    problem = inputs.problem
    pairs = problem.batch * problem.n_atom * problem.n_neighbor
    if pairs <= max_pairs:
        return [_run(inputs, 0, problem.n_res)]
    margin = max(problem.window // 2 - 1, 0)
    length = max(1, int(problem.n_res * max_pairs / pairs / _RUNS) - 2 * margin)
    chain, tok = inputs.workload.chain, inputs.workload.tok_idx
    edge = int(tok[(chain != chain[0]).argmax()]) if chain[-1] != chain[0] else problem.n_res // 2
    starts = {0, max(0, edge - length // 2), problem.n_res - length}
    runs: list[Run] = []
    for start in sorted(starts):
        low = max(start, runs[-1].high if runs else 0)
        if low < min(start + length, problem.n_res):
            runs.append(_run(inputs, low, min(start + length, problem.n_res)))
    return runs


def _run(inputs: Inputs, low: int, high: int) -> Run:
    import numpy as np

    tok, margin = inputs.workload.tok_idx, max(inputs.problem.window // 2 - 1, 0)
    first, last = max(0, low - margin), min(inputs.problem.n_res, high + margin)
    edges = [int(np.searchsorted(tok, r)) for r in (first, last, low, high)]
    return Run(low, high, first, last, (edges[0], edges[1]), (edges[2], edges[3]))


class _Sum:
    """Expected tensors, put together from runs: gradients add up, outputs stand side by side."""

    def __init__(
        self, inputs: Inputs, reference: Callable[..., tuple[Tensor, ...]], rows: Tensor, residues: Tensor
    ) -> None:
        import torch

        self.inputs, self.reference, self.rows, self.residues = inputs, reference, rows, residues
        self.backward = inputs.problem.mode != "fwd"
        self.outputs: dict[str, list[Tensor]] = {name: [] for name in inputs.outputs}
        self.gradients: dict[str, Tensor] = {}
        self.cotangents: dict[str, Tensor] = {}
        if self.backward:
            self.cotangents = {n: only_at(t, self._places(n)) for n, t in inputs.cotangents.items()}
            self.gradients = {n: torch.zeros_like(t, dtype=torch.float64) for n, t in inputs.leaves.items()}

    def _places(self, name: str) -> Tensor:
        return self.residues if _by_residue(self.inputs, name) else self.rows

    def add(self, run: Run) -> None:
        import torch

        inputs = self.inputs
        cut = {name: _cut(inputs, name, tensor, run) for name, tensor in inputs.tensors.items()}
        local = {name: tensor.detach().double().requires_grad_(self.backward) for name, tensor in cut.items()}
        weights = {name: w.detach().double().requires_grad_(self.backward) for name, w in inputs.weights.items()}
        with torch.set_grad_enabled(self.backward):
            outputs = self._computed(local, weights, run)
        inner = {name: _inner(inputs, name, tensor, run) for name, tensor in zip(inputs.outputs, outputs, strict=True)}
        for name, tensor in inner.items():
            self.outputs[name].append(_padded(inputs, name, tensor.detach()))
        if not self.backward:
            return
        seeds = [_seed(inputs, name, tensor, run) for name, tensor in inner.items()]
        leaves = [*local.values(), *weights.values()]
        found = torch.autograd.grad(list(inner.values()), leaves, seeds, allow_unused=True)
        names = [*local, *(f"weight:{name}" for name in weights)]
        for name, gradient in zip(names, found, strict=True):
            if gradient is not None:
                target = self.gradients[name]
                (_cut(inputs, name, target, run) if name in local else target).add_(gradient)

    def _computed(self, x: dict[str, Tensor], w: dict[str, Tensor], run: Run) -> tuple[Tensor, ...]:
        """The reference of what was cut out; residues are counted from the run's first, pairs have its own slots."""
        from variants import _op

        given = {name: tensor[slice(*run.atoms)] for name, tensor in self.inputs.fixed.items()}
        given["tok_idx"] = given["tok_idx"] - run.first
        paired = [name for name in x if "K" in self.inputs.axes[name]]
        if paired:
            n_slot = _op.index_reference(given["tok_idx"], self.inputs.problem.window)[0].shape[1]
            x = x | {name: x[name][:, :, :n_slot] for name in paired}
        return self.reference(x, w, given)

    def references(self) -> dict[str, Reference]:
        import torch

        whole = len(self.rows) == self.inputs.problem.n_atom
        values = {
            name: Reference(torch.cat(parts, 1), self._places(name), by_row=True)
            for name, parts in self.outputs.items()
        }
        for name, gradient in self.gradients.items():
            by_row = not name.startswith("weight:")
            values[f"grad:{name}"] = Reference(gradient, by_row=by_row, after_timing=whole)
        return bias_scales(values)


def _by_residue(inputs: Inputs, name: str) -> bool:
    return inputs.axes[name][1] == "R"


def _cut(inputs: Inputs, name: str, tensor: Tensor, run: Run) -> Tensor:
    """A view of what the run computes with."""
    if inputs.axes[name][1:3] == ("R", "R"):
        return tensor[:, run.first : run.last, run.first : run.last]
    return tensor[:, run.first : run.last] if _by_residue(inputs, name) else tensor[:, slice(*run.atoms)]


def _inner(inputs: Inputs, name: str, tensor: Tensor, run: Run) -> Tensor:
    if _by_residue(inputs, name):
        return tensor[:, run.low - run.first : run.high - run.first]
    return tensor[:, run.inner_atoms[0] - run.atoms[0] : run.inner_atoms[1] - run.atoms[0]]


def _seed(inputs: Inputs, name: str, inner: Tensor, run: Run) -> Tensor:
    place = slice(run.low, run.high) if _by_residue(inputs, name) else slice(*run.inner_atoms)
    seed = inputs.cotangents[name][:, place].double()
    return seed[:, :, : inner.shape[2]] if "K" in inputs.axes[name] else seed


def _padded(inputs: Inputs, name: str, tensor: Tensor) -> Tensor:
    """Pairs of a run have as many slots as its own longest list; the others' are padding, so 0."""
    import torch.nn.functional as F

    missing = inputs.problem.n_neighbor - tensor.shape[2]
    return F.pad(tensor, (0, 0, 0, missing)) if "K" in inputs.axes[name] else tensor
