"""One backend on a built problem: the callable that is timed, and what it makes."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..levels import level_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ..reference.inputs import Inputs


def forward_of(inputs: Inputs, module: nn.Module) -> Callable[..., tuple[Tensor, ...]]:
    """One forward pass of the level as a function of its fixed arguments, always a tuple of outputs."""
    return level_of(inputs.problem.level).forward(inputs.problem, module, inputs.tensors)


@dataclass(frozen=True)
class Made:
    """What one call made: outputs and gradients, and which of the input sets it was given."""

    turn: int
    outputs: tuple[Tensor, ...]
    gradients: tuple[Tensor | None, ...]


class Case:
    """One backend on a problem: call it to run the timed region once.

    ``fwd`` runs without gradients; ``fwdbwd`` also takes the gradients of every input and weight
    against the fixed cotangents; ``train`` then takes an AdamW step. Its learning rate is 0, which
    costs the same arithmetic and leaves the weights as the gate saw them.

    The calls take turns among ``inputs`` and ``others``, so that an answer kept from another call is a
    wrong one. What the last call made is kept (``last``), and what one call made that was drawn among all
    since the last release (``drawn``): so freeing them (:meth:`release`) falls outside the timed region, and the gate
    can look at exactly what was timed, without the backend knowing which calls will be looked at.
    """

    def __init__(self, inputs: Inputs, module: nn.Module, others: Sequence[Inputs] = ()) -> None:
        self.inputs, self.module = inputs, module
        self.turns = (inputs, *others)
        self._forwards = [forward_of(one, module) for one in self.turns]
        self._leaves = [list(one.leaves.values()) for one in self.turns]
        self._cotangents = [inputs.cotangents[name] for name in inputs.outputs] if inputs.cotangents else []
        self._calls = self._since = 0
        self._draw = random.Random().random
        self.last: Made | None = None
        self.drawn: Made | None = None
        self._optimizer = _adamw(inputs.weights) if inputs.problem.mode == "train" else None

    def __call__(self) -> None:
        self.last = None  # never two results at once: at a million atoms that would not fit
        turn = self._calls % len(self.turns)
        self._calls += 1
        self._since += 1
        self.last = self._run(turn, self._cotangents, **self.turns[turn].fixed)
        if self._draw() * self._since < 1:  # each of the calls so far is the drawn one with equal chance
            self.drawn = self.last
        if self._optimizer is not None:
            self._step()

    def _run(self, turn: int, cotangents: list[Tensor], **fixed: Tensor) -> Made:
        import torch

        forward = self._forwards[turn]
        if self.inputs.problem.mode == "fwd":
            with torch.no_grad():
                return Made(turn, forward(**fixed), ())
        outputs = forward(**fixed)
        leaves = self._leaves[turn]
        return Made(turn, outputs, torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True))

    def _step(self) -> None:
        assert self.last is not None
        assert self._optimizer is not None
        weights = list(self.inputs.weights.values())
        for weight, gradient in zip(weights, self.last.gradients[-len(weights) :], strict=True):
            weight.grad = gradient
        self._optimizer.step()

    def release(self) -> None:
        """Drop what calls have made."""
        self.last = self.drawn = None
        self._since = 0
        if self._optimizer is not None:
            self._optimizer.zero_grad(set_to_none=True)

    def fresh_index(self) -> dict[str, Tensor]:
        """Copies of the index and mask, which no cached plan belongs to."""
        return {name: tensor.clone() for name, tensor in self.inputs.fixed.items()}

    def run_on(self, fixed: dict[str, Tensor]) -> None:
        """Run once on another index."""
        self.last = self._run(0, self._cotangents, **fixed)

    def run_against(self, cotangents: dict[str, Tensor]) -> dict[str, Tensor | None]:
        """Run the first input set once, against other cotangents, and name the results."""
        self.last = None
        against = [cotangents[name] for name in self.inputs.outputs] if cotangents else []
        self.last = self._run(0, against, **self.inputs.fixed)
        return self.named(self.last)

    def named(self, made: Made) -> dict[str, Tensor | None]:
        """Outputs by name, and gradients as ``grad:NAME``."""
        names = self.inputs.outputs
        found: dict[str, Tensor | None] = {n: t.detach() for n, t in zip(names, made.outputs, strict=True)}
        if made.gradients:
            found |= {f"grad:{n}": g for n, g in zip(self.inputs.leaves, made.gradients, strict=True)}
        return found


def _adamw(weights: dict[str, Tensor]) -> torch.optim.Optimizer:
    import torch

    return torch.optim.AdamW(list(weights.values()), lr=0.0)
