"""The reference of encoder and decoder, of the whole or of some runs of residues.

Both build their index themselves. Keys and values come from c, which belongs to one atom and no block changes; so what
a residue gets depends on the residues within one window of it, and on no others. A run of residues with one window's
margin on either side, cut out of every input, therefore has the exact outputs and gradients of its inner part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .expected import Reference

if TYPE_CHECKING:
    from torch import Tensor

    from .expected import Expected
    from .inputs import Inputs

_BY_RESIDUE = ("s_input", "s", "s_i")
_BY_RESIDUE_PAIR = ("z_input", "z")
_BY_PAIR = ("p_skip", "p")
_SPANS = 3
_MOST_PAIRS = 1 << 18  # the reference of a span builds its index by comparing all of its atoms


@dataclass(frozen=True)
class Span:
    """Residues ``[low, high)`` are compared; ``[first, last)``, one window wider, are computed. Atoms likewise."""

    low: int
    high: int
    first: int
    last: int
    atoms: tuple[int, int]
    inner_atoms: tuple[int, int]


def expect(inputs: Inputs, *, max_pairs: int) -> Expected:
    """The reference of an encoder or decoder problem, whole where it has at most ``max_pairs`` pairs (and 2¹⁸)."""
    import torch

    from .expected import Expected

    parts = choose(inputs, min(max_pairs, _MOST_PAIRS))
    rows = torch.cat([torch.arange(*part.inner_atoms) for part in parts]).to(inputs.problem.device)
    residues = torch.cat([torch.arange(part.low, part.high) for part in parts]).to(inputs.problem.device)
    total = _Sum(inputs, rows, residues)
    for part in parts:
        total.add(part)
    return Expected(inputs.problem, total.references(), total.cotangents, rows)


def choose(inputs: Inputs, max_pairs: int) -> list[Span]:
    """All residues, or runs at the start, over the first chain's end (or the middle), and at the end."""
    problem = inputs.problem
    pairs = problem.batch * problem.n_atom * problem.n_neighbor
    if pairs <= max_pairs:
        return [_span(inputs, 0, problem.n_res)]
    margin = max(problem.window // 2 - 1, 0)
    length = max(1, int(problem.n_res * max_pairs / pairs / _SPANS) - 2 * margin)
    chain, tok = inputs.workload.chain, inputs.workload.tok_idx
    edge = int(tok[(chain != chain[0]).argmax()]) if chain[-1] != chain[0] else problem.n_res // 2
    starts = {0, max(0, edge - length // 2), problem.n_res - length}
    spans: list[Span] = []
    for start in sorted(starts):
        low = max(start, spans[-1].high if spans else 0)
        if low < min(start + length, problem.n_res):
            spans.append(_span(inputs, low, min(start + length, problem.n_res)))
    return spans


def _span(inputs: Inputs, low: int, high: int) -> Span:
    import numpy as np

    tok, margin = inputs.workload.tok_idx, max(inputs.problem.window // 2 - 1, 0)
    first, last = max(0, low - margin), min(inputs.problem.n_res, high + margin)
    edges = [int(np.searchsorted(tok, r)) for r in (first, last, low, high)]
    return Span(low, high, first, last, (edges[0], edges[1]), (edges[2], edges[3]))


class _Sum:
    """Expected tensors, put together from spans: gradients add up, outputs stand side by side."""

    def __init__(self, inputs: Inputs, rows: Tensor, residues: Tensor) -> None:
        import torch

        self.inputs, self.rows, self.residues = inputs, rows, residues
        self.backward = inputs.problem.mode != "fwd"
        self.outputs: dict[str, list[Tensor]] = {name: [] for name in inputs.outputs}
        self.gradients: dict[str, Tensor] = {}
        self.cotangents: dict[str, Tensor] = {}
        if self.backward:
            from .expected import only_at

            self.cotangents = {n: only_at(t, self._places(n)) for n, t in inputs.cotangents.items()}
            self.gradients = {n: torch.zeros_like(t, dtype=torch.float64) for n, t in inputs.leaves.items()}

    def _places(self, name: str) -> Tensor:
        return self.residues if name in _BY_RESIDUE else self.rows

    def add(self, span: Span) -> None:
        import torch

        inputs = self.inputs
        cut = {name: _cut(name, tensor, span) for name, tensor in inputs.tensors.items()}
        local = {name: tensor.detach().double().requires_grad_(self.backward) for name, tensor in cut.items()}
        weights = {name: w.detach().double().requires_grad_(self.backward) for name, w in inputs.weights.items()}
        with torch.set_grad_enabled(self.backward):
            outputs = _reference(inputs, local, weights, span)
        inner = {name: _inner(name, tensor, span) for name, tensor in zip(inputs.outputs, outputs, strict=True)}
        for name, tensor in inner.items():
            self.outputs[name].append(_padded(name, tensor.detach(), inputs.problem.n_neighbor))
        if not self.backward:
            return
        seeds = [_seed(name, inputs.cotangents[name], inner[name], span) for name in inner]
        leaves = [*local.values(), *weights.values()]
        found = torch.autograd.grad(list(inner.values()), leaves, seeds, allow_unused=True)
        names = [*local, *(f"weight:{name}" for name in weights)]
        for name, gradient in zip(names, found, strict=True):
            if gradient is not None:
                target = self.gradients[name]
                (_cut(name, target, span) if name in local else target).add_(gradient)

    def references(self) -> dict[str, Reference]:
        import torch

        from .expected import bias_scales

        whole = len(self.rows) == self.inputs.problem.n_atom
        values = {
            name: Reference(torch.cat(parts, 1), self._places(name), by_row=True)
            for name, parts in self.outputs.items()
        }
        for name, gradient in self.gradients.items():
            by_row = not name.startswith("weight:")
            values[f"grad:{name}"] = Reference(gradient, by_row=by_row, after_timing=whole)
        return bias_scales(values)


def _cut(name: str, tensor: Tensor, span: Span) -> Tensor:
    """A view of what the span computes with."""
    if name in _BY_RESIDUE_PAIR:
        return tensor[:, span.first : span.last, span.first : span.last]
    return tensor[:, span.first : span.last] if name in _BY_RESIDUE else tensor[:, slice(*span.atoms)]


def _inner(name: str, tensor: Tensor, span: Span) -> Tensor:
    if name in _BY_RESIDUE:
        return tensor[:, span.low - span.first : span.high - span.first]
    return tensor[:, span.inner_atoms[0] - span.atoms[0] : span.inner_atoms[1] - span.atoms[0]]


def _seed(name: str, cotangent: Tensor, inner: Tensor, span: Span) -> Tensor:
    place = slice(span.low, span.high) if name in _BY_RESIDUE else slice(*span.inner_atoms)
    seed = cotangent[:, place].double()
    return seed[:, :, : inner.shape[2]] if name in _BY_PAIR else seed


def _padded(name: str, tensor: Tensor, n_slot: int) -> Tensor:
    """Pairs of a span have as many slots as its own longest list; the others' are padding, so 0."""
    import torch.nn.functional as F

    return F.pad(tensor, (0, 0, 0, n_slot - tensor.shape[2])) if name in _BY_PAIR else tensor


def _reference(inputs: Inputs, x: dict[str, Tensor], w: dict[str, Tensor], span: Span) -> tuple[Tensor, ...]:
    from variants import _op

    problem, atoms = inputs.problem, slice(*span.atoms)
    tok = inputs.fixed["tok_idx"][atoms] - span.first
    if problem.level == "encoder":
        uid = inputs.fixed["ref_space_uid"][atoms]
        return _op.encoder_reference(
            w, x["ref_pos"], x["ref_element"], uid, x["s_input"], x["z_input"], x["r_scaled"], tok,
            problem.window, problem.heads,
        )  # fmt: skip
    n_slot = int(_op.index_reference(tok, problem.window)[0].shape[1])
    p_skip = x["p_skip"][:, :, :n_slot]
    return _op.decoder_reference(
        w, x["q_skip"], p_skip, x["c_skip"], x["c"], x["s"], x["z"], tok, problem.window, problem.heads
    )
