"""What is expected of a problem: tensors in float64, the rows that they hold, and how they are to be compared."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..schema.problem import Problem

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Reference:
    """One expected tensor, float64.

    ``rows`` are the places on axis 1 that it holds (None: all); ``alone``: zero is expected at every other place.
    ``by_row``: axis 1 is atoms or residues, so that the worst row can be told. ``scale``: lower bound of the
    denominator, for gradients whose terms cancel; it does not excuse a result of all zeros, whose error is 1.
    ``typical``: the same for a row, where the value holds too few rows to tell. ``after_timing``: it also holds for the
    full cotangents of the timed call.
    """

    value: Tensor
    rows: Tensor | None = None
    by_row: bool = False
    alone: bool = False
    scale: float = 0.0
    typical: float | None = None
    after_timing: bool = True

    @functools.cached_property
    def typical_row(self) -> float:
        """The root mean square norm of a row: lower bound of the denominator of a row's error."""
        if self.typical is not None:
            return self.typical
        norm = max(float(self.value.norm()), self.scale)
        return max(norm / math.sqrt(max(self.value.shape[1], 1)), 1e-300)


# The gradient of a LayerNorm's bias is a sum over rows that may cancel: by the mathematics, in norm_pair, whose bias
# shifts every score of a row alike, which a softmax does not see; or by chance (7-fold in one encoder, where bfloat16's
# 2% then read as 15%). What rounding the terms bring is what they bring to the gradient of the weight beside it, the
# same terms times numbers of unit variance: so it is held against the greater of the two.
_NORM_BIAS = re.compile(r"(norm\w*\.)bias$")


Spoil = Callable[["Tensor"], "Tensor"]


@dataclass
class Expected:
    """The reference by tensor name; ``cotangents`` are those that it was computed for, zero outside ``rows``.
    ``shares(spoilt)``: by how much outputs change under the mask ``spoilt(valid_mask)``, for the negative control."""

    problem: Problem
    values: dict[str, Reference]
    cotangents: dict[str, Tensor]
    rows: Tensor
    shares: Callable[[Spoil], dict[str, Tensor]] = lambda spoilt: {}

    @property
    def whole(self) -> bool:
        return len(self.rows) == self.problem.n_atom


def only_at(tensor: Tensor, rows: Tensor) -> Tensor:
    """The tensor with zeros outside ``rows`` of axis 1; itself where that is all of it."""
    import torch

    if len(rows) == tensor.shape[1]:
        return tensor
    return torch.zeros_like(tensor).index_copy(1, rows, tensor.index_select(1, rows))


def bias_scales(values: dict[str, Reference]) -> dict[str, Reference]:
    """Give the gradients of LayerNorms' biases, whose terms may cancel, the scale of the weight's beside them."""
    for name, reference in list(values.items()):
        beside = values.get(_NORM_BIAS.sub(r"\1weight", name))
        if _NORM_BIAS.search(name) and beside is not None:
            values[name] = replace(reference, scale=float(beside.value.norm()))
    return values


def one_less(valid_mask: Tensor) -> Tensor:
    """The mask [..., K] without one live slot of each row: another place in the list from row to row."""
    return _without(valid_mask, 1 << 62)


def fewer(valid_mask: Tensor) -> Tensor:
    """The mask [..., K] without one in sixteen of each row's live slots, and without one at least."""
    return _without(valid_mask, 16)


def _without(valid_mask: Tensor, every: int) -> Tensor:
    import torch

    count = valid_mask.sum(-1, keepdim=True)
    row = torch.arange(valid_mask.shape[-2], device=valid_mask.device)[:, None]
    first = (row * 7919) % count.clamp(min=1, max=every)
    place = valid_mask.cumsum(-1) - 1
    return valid_mask & (((place - first) % every != 0) | (place < first))
