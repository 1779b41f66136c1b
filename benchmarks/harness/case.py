"""One backend on a built problem: the callable that is timed, and what it makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pallatom.architecture.atom_transformers import AtomTransformerBlock

    from .inputs import Inputs


def forward_of(inputs: Inputs, module: nn.Module) -> Callable[..., tuple[Tensor, ...]]:
    """One forward pass of the level as a function of its fixed arguments, always a tuple of outputs."""
    level, tensors = inputs.problem.level, inputs.tensors
    if level == "index":
        from pallatom.architecture.atom_transformers import build_sparse_pairs

        return lambda tok_idx: tuple(t[None] for t in build_sparse_pairs(tok_idx, inputs.problem.window))
    if level == "attention":
        attend = cast("AtomTransformerBlock", module)._attend  # the seam
        q, k, v, p = (tensors[name] for name in ("Q", "K", "V", "p"))
        return lambda neighbor_idx, valid_mask: (attend(q, k, v, p, neighbor_idx, valid_mask),)
    if level in ("block", "stack"):
        q, c, p = (tensors[name] for name in ("q", "c", "p"))
        return lambda neighbor_idx, valid_mask: (module(q, c, p, neighbor_idx, valid_mask),)
    return lambda **fixed: tuple(module(**tensors, **fixed))


class Case:
    """One backend on a problem: call it to run the timed region once.

    ``fwd`` runs without gradients; ``fwdbwd`` also takes the gradients of every input and weight
    against the fixed cotangents; ``train`` then takes an AdamW step. Its learning rate is 0, which
    costs the same arithmetic and leaves the weights as the gate saw them. What the last call made is
    kept, so that freeing it (:meth:`release`) falls outside the timed region and the gate can look
    at exactly what was timed.
    """

    def __init__(self, inputs: Inputs, module: nn.Module) -> None:
        self.inputs, self.module = inputs, module
        self._forward = forward_of(inputs, module)
        self._leaves = list(inputs.leaves.values())
        self._cotangents = [inputs.cotangents[name] for name in inputs.outputs] if inputs.cotangents else []
        self._kept: tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]] | None = None
        self._optimizer = _adamw(inputs.weights) if inputs.problem.mode == "train" else None

    def __call__(self) -> None:
        self._kept = None  # never two results at once: at a million atoms that would not fit
        self._kept = self._run(self._cotangents, **self.inputs.fixed)
        if self._optimizer is not None:
            self._step()

    def _run(self, cotangents: list[Tensor], **fixed: Tensor):
        import torch

        if self.inputs.problem.mode == "fwd":
            with torch.no_grad():
                return self._forward(**fixed), ()
        outputs = self._forward(**fixed)
        return outputs, torch.autograd.grad(outputs, self._leaves, cotangents, allow_unused=True)

    def _step(self) -> None:
        assert self._kept is not None
        assert self._optimizer is not None
        weights = list(self.inputs.weights.values())
        for weight, gradient in zip(weights, self._kept[1][-len(weights) :], strict=True):
            weight.grad = gradient
        self._optimizer.step()

    def release(self) -> None:
        """Drop what the last call made."""
        self._kept = None
        if self._optimizer is not None:
            self._optimizer.zero_grad(set_to_none=True)

    def fresh_index(self) -> dict[str, Tensor]:
        """Copies of the index and mask, which no cached plan belongs to."""
        return {name: tensor.clone() for name, tensor in self.inputs.fixed.items()}

    def run_on(self, fixed: dict[str, Tensor]) -> None:
        """Run once on another index."""
        self._kept = self._run(self._cotangents, **fixed)

    def results(self, cotangents: dict[str, Tensor] | None = None) -> dict[str, Tensor | None]:
        """Outputs by name and gradients as ``grad:NAME``: of a run against other cotangents, or, without
        them, those that the last call kept."""
        if cotangents is not None:
            self._kept = None
            against = [cotangents[name] for name in self.inputs.outputs] if cotangents else []
            self._kept = self._run(against, **self.inputs.fixed)
        if self._kept is None:
            raise RuntimeError("no call has been made since the last release")
        outputs, gradients = self._kept
        named: dict[str, Tensor | None] = {n: t.detach() for n, t in zip(self.inputs.outputs, outputs, strict=True)}
        if gradients:
            named |= {f"grad:{n}": g for n, g in zip(self.inputs.leaves, gradients, strict=True)}
        return named


def _adamw(weights: dict[str, Tensor]) -> torch.optim.Optimizer:
    import torch

    return torch.optim.AdamW(list(weights.values()), lr=0.0)
