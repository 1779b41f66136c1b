"""A problem, built: the tensors that every backend and the reference are given, and the numbers they are drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from ..schema.problem import Problem
    from ..workload.workloads import Workload


@dataclass
class Inputs:
    """One problem, built: what every backend is given.

    ``tensors`` are the arguments that may take a gradient, by name; ``fixed`` those that may not.
    ``module`` is the plain layer; ``weights`` those of its parameters that the level uses, by name.
    ``axes`` are the letters of each input's and output's axes, ``("B", "N", "c_atom")``, outputs in order.
    ``cotangents`` are the fixed output gradients, by output name.
    """

    problem: Problem
    workload: Workload
    module: nn.Module
    tensors: dict[str, Tensor]
    fixed: dict[str, Tensor]
    weights: dict[str, Tensor]
    outputs: tuple[str, ...]
    axes: Mapping[str, tuple[str, ...]]
    cotangents: dict[str, Tensor] = field(default_factory=dict)

    @property
    def leaves(self) -> dict[str, Tensor]:
        """Everything that gets a gradient: inputs and weights."""
        return self.tensors | {f"weight:{name}": w for name, w in self.weights.items()}


class Draw:
    """Seeded normal tensors of the problem's dtype on its device."""

    def __init__(self, problem: Problem) -> None:
        import torch

        self.device = torch.device(problem.device)
        self.dtype: torch.dtype = getattr(torch, problem.dtype)
        self.generator = torch.Generator(device=self.device).manual_seed(problem.seed + 1)

    def normal(self, *shape: int, std: float = 1.0) -> Tensor:
        import torch

        return torch.randn(shape, generator=self.generator, device=self.device, dtype=self.dtype).mul_(std)

    def array(self, values: np.ndarray, batch: int) -> Tensor:
        """The same known values for every item of a batch."""
        import torch

        return torch.tensor(values).to(device=self.device, dtype=self.dtype).expand(batch, -1, -1).clone()
