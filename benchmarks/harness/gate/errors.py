"""Errors of one tensor against its reference, what is allowed, and the negative control.

A relative error norm ``||x − ref|| / ||ref||`` sees what is wrong anywhere, the worst row's sees one wrong row, and the
slope ``⟨x, ref⟩ / ⟨ref, ref⟩ − 1`` a factor that a norm of roundings hides (:mod:`.gate` says why).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..levels import level_of
from ..reference.expected import Reference, fewer, one_less
from ..schema.problem import Problem

if TYPE_CHECKING:
    from torch import Tensor

    from ..reference.expected import Spoil


# Relative error norms allowed at the seam. In half precision a correct backend rounds its scores, weights and output
# a few times: 0.4 to 1.3 roundings u of relative error in outputs and up to 2.6 u in gradients were seen in all
# backends (u = 2⁻⁸ in bfloat16, 2⁻¹¹ in float16), so 4 u and 8 u are allowed. In float32 sums over pairs dominate
# (5e-7, and 1e-5 in the gradient of LayerNorm's weight over a million pairs): ten times that. What must be caught is
# far beyond: sums kept in bfloat16 (3% and more), a neighbour too many (10%), a lost term (100%).
TOLERANCE = {"float64": 1e-10, "float32": 5e-6, "float16": 2e-3, "bfloat16": 1.6e-2}


GRADIENT_TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "float16": 4e-3, "bfloat16": 3.2e-2}


# ReLU's derivative jumps: a rounding of relative size u moves a share of about u of the activations across zero and
# turns as many terms of a gradient on or off, so its relative error is about the root of u. In float16 that is far
# above the roundings themselves: 1.8% through one block, in every backend, against 0.05% with SiLU in its place (a test
# shows it); 2 √u is allowed.
KINK = {"float16": 2 * 2**-5.5}
# In float32 that is rare, and then one activation among B N c: a gradient that few of them decide is off by about one
# part in the root of their number, however exact all else is. Of 40 right cells (decoder and encoder, 96 atoms) five
# had one, up to 1.1e-2 in a weight's gradient (its slope 1.8e-3), where 2e-6 is usual; twice the root is allowed, and a
# quarter of that as a slope. The seam itself has no
# ReLU: there, and in the trial, gradients are held as before.
ONE_FLIP = 2.0


# A single row has fewer elements to average rounding over than a whole tensor.
ROW_FACTOR = 8.0


MOST_PER_ROW = 0.5  # a row that is lost altogether has an error of 1


# torch's LayerNorm on CPU adds up its weight's gradient in the input's own dtype: over 900,000 pairs its error is 0.2
# in bfloat16 and 0.04 in float16 (0.1 in an encoder), in every backend that calls it. A missing gradient (1.0) is still
# caught.
CPU_NORM_WEIGHT = {"float16": 0.2, "bfloat16": 0.5}


# Slopes of right backends: outputs up to 8e-5 in bfloat16, 7e-6 in float16 and 2e-8 in float32, up to a stack, since
# roundings cancel; gradients of inputs up to 9e-4 at the seam and, as those of weights, up to 1.1e-2 in bfloat16 and
# 2.3e-3 in float16 behind a stack's ReLUs. An output × 1.01 and a gradient × 0.97 must be red there. Encoder, decoder
# have outputs of few elements (r_update) and weights that a few ReLUs decide (mlp_p): on an H200 in bfloat16 up to
# 2.4e-3 and 3.9e-2 in six backends, the layer itself among them; the seam inside is held to its own tolerance.
SLOPE = {"float64": 1e-10, "float32": 1e-6, "float16": 1.25e-4, "bfloat16": 1e-3}


GRADIENT_SLOPE = {"float64": 1e-10, "float32": 1e-4, "float16": 6e-3, "bfloat16": 2e-2}


# LayerNorm's weight on CPU, as above: sums in the input's own dtype stall; over pairs up to 0.26 low, over atoms 0.024.
CPU_NORM_SLOPE = {"float16": 0.15, "bfloat16": 0.4}


CPU_ATOM_NORM_SLOPE = {"float16": 0.015, "bfloat16": 0.1}


_NORM_WEIGHT = re.compile(r"^grad:.*norm\w*\.weight$")


NULL = 1e-6  # of its scale: what a sum that is zero by the mathematics may be in float64


SEAM = "attention"  # the entry of a gate for the attention inside a larger level


ROW = " (worst row)"


_CHUNK_ELEMENTS = 1 << 24


def error_norms(reference: Reference, found: Tensor | None, *, alone: bool) -> dict[str, float | None]:
    """Relative errors: under ``""`` of the whole, under :data:`ROW` of the worst row; None if absent or not finite."""
    suffixes = ("", ROW) if reference.by_row and reference.value.numel() else ("",)
    if found is None:
        return dict.fromkeys(suffixes)
    there = found.detach()
    outside = 0.0
    if reference.rows is not None:
        if len(reference.rows) < there.shape[1]:
            outside = _norm_outside(there, reference.rows)
        there = there.index_select(1, reference.rows)
    if there.shape != reference.value.shape or not math.isfinite(outside):
        return dict.fromkeys(suffixes)
    wrong = there.to(reference.value) - reference.value
    norm = float(reference.value.norm())
    if norm <= NULL * reference.scale or bool(there.any()):
        norm = max(norm, reference.scale)
    error = math.hypot(float(wrong.norm()), outside if alone else 0.0)
    errors = {"": _ratio(error, norm)}
    if len(suffixes) > 1:
        by_row = wrong.transpose(0, 1).flatten(1).norm(dim=1)
        size = reference.value.transpose(0, 1).flatten(1).norm(dim=1)
        errors[ROW] = _finite(float((by_row / size.clamp_min(reference.typical_row)).max()))
    return errors


def slope_of(reference: Reference, found: Tensor | None) -> float | None:
    """``⟨x, ref⟩ / ⟨ref, ref⟩ − 1`` over the places that the reference holds; None if absent, of another shape or not
    finite."""
    if found is None:
        return None
    there = found.detach()
    if reference.rows is not None:
        there = there.index_select(1, reference.rows)
    if there.shape != reference.value.shape:
        return None
    wrong = there.to(reference.value) - reference.value
    return _ratio(float((wrong * reference.value).sum()), float(reference.value.norm()) ** 2)


def _norm_outside(tensor: Tensor, rows: Tensor) -> float:
    """Norm over all other places of axis 1, a chunk at a time; infinite or NaN if anything there is."""
    import torch

    other = torch.ones(tensor.shape[1], dtype=torch.bool, device=tensor.device)
    other[rows] = False
    step = max(1, _CHUNK_ELEMENTS * tensor.shape[1] // max(tensor.numel(), 1))
    total = 0.0
    for low in range(0, tensor.shape[1], step):
        chunk = tensor[:, low : low + step].transpose(0, 1).flatten(1)
        sizes = torch.linalg.vector_norm(chunk.float(), dim=1)
        total += float((sizes.double() ** 2)[other[low : low + step]].sum())
    return math.sqrt(total)


def _ratio(error: float, norm: float) -> float | None:
    """error / norm; exact zeros agree, an error against nothing is not a number."""
    if error == 0.0:
        return 0.0
    return _finite(error / norm) if norm > 0 else None


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def allowed(name: str, problem: Problem) -> float:
    """The tolerance of one entry of ``Gate.errors``."""
    dtype = problem.dtype
    if name.endswith("norm_pair.weight") and problem.device == "cpu" and dtype in CPU_NORM_WEIGHT:
        return CPU_NORM_WEIGHT[dtype]
    gradient = name.startswith("grad:")
    level = level_of(problem.level)
    factor = 1.0 if name.removesuffix(ROW) == SEAM else level.error_factor
    whole = (GRADIENT_TOLERANCE if gradient else TOLERANCE)[dtype] * factor
    if gradient and level.has_relu:
        whole = max(whole, KINK.get(dtype, 0.0), _one_flip(problem))
    return min(whole * ROW_FACTOR, MOST_PER_ROW) if name.endswith(ROW) else whole


def _one_flip(problem: Problem) -> float:
    """What one activation on the wrong side of zero may do to a gradient, in float32."""
    if problem.dtype != "float32":
        return 0.0
    return ONE_FLIP / math.sqrt(problem.batch * problem.n_atom * problem.c_atom)


def allowed_slope(name: str, problem: Problem) -> float:
    """The tolerance of one entry of ``Gate.slopes``."""
    if problem.device == "cpu" and problem.dtype in CPU_NORM_SLOPE and _NORM_WEIGHT.search(name):
        over_pairs = name.endswith("norm_pair.weight")
        return (CPU_NORM_SLOPE if over_pairs else CPU_ATOM_NORM_SLOPE)[problem.dtype]
    factor = 1.0 if name == SEAM else level_of(problem.level).slope_factor
    gradient = name.startswith("grad:")
    allowed = (GRADIENT_SLOPE if gradient else SLOPE)[problem.dtype] * factor
    return max(allowed, _one_flip(problem) / 4) if gradient and level_of(problem.level).has_relu else allowed


def passes(
    errors: Mapping[str, float | None], problem: Problem, slopes: Mapping[str, float | None] | None = None
) -> bool:
    """Whether every error and every slope is a number within its tolerance."""
    good = all(e is not None and e <= allowed(name, problem) for name, e in errors.items())
    straight = all(s is not None and abs(s) <= allowed_slope(name, problem) for name, s in (slopes or {}).items())
    return bool(errors) and good and straight


@dataclass(frozen=True)
class Control:
    """The error of an output that misses neighbours, and what a right output may have."""

    error: float | None
    tolerance: float
    kind: Literal["neighbour", "neighbours"] = "neighbour"

    @property
    def tells(self) -> bool:
        """Whether the gate tells such an output from a right one."""
        return self.error is not None and self.error > self.tolerance


def control_of(error_without: Callable[[Spoil], float | None], tolerance: float) -> Control:
    """The control that leaves out one neighbour a row; where the dtype's roundings hide that, one in sixteen."""
    single = Control(error_without(one_less), tolerance)
    return single if single.tells else Control(error_without(fewer), tolerance, "neighbours")
