"""No speed without correctness: every backend against the float64 reference, before timing and after.

Errors are relative norms, ``||x − ref|| / ||ref||``, and for tensors with one row per atom also the worst row's,
``max_l ||x_l − ref_l|| / max(||ref_l||, rms row)``: one wrong row of 2,048 is 2% of the whole norm but 100% of its own.

Where the level holds more than the seam, the seam is also checked apart (``attention``): a residual would hide it. And
an all-zero output must fail (the negative control), or the gate cannot tell right from wrong and is red.

The gate's own run has its fresh memory poisoned, so that a row which is never written does not pass on what the run
before left there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .record import Gate, Problem

if TYPE_CHECKING:
    from torch import Tensor

    from .case import Case
    from .expectation import Expected

# Relative error norms allowed at the seam. In half precision a correct backend rounds its scores, weights and output
# a few times: 0.4 to 1.3 roundings u of relative error in outputs and up to 2.6 u in gradients were seen in all
# backends (u = 2⁻⁸ in bfloat16, 2⁻¹¹ in float16), so 4 u and 8 u are allowed. In float32 sums over pairs dominate
# (5e-7, and 1e-5 in the gradient of LayerNorm's weight over a million pairs): ten times that. What must be caught is
# far beyond: sums kept in bfloat16 (3% and more), a neighbour too many (10%), a lost term (100%).
TOLERANCE = {"float64": 1e-10, "float32": 5e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
GRADIENT_TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "float16": 4e-3, "bfloat16": 3.2e-2}
# Above the seam roundings pile up, layer after layer; the seam inside is held to its own tolerance all the same.
LEVEL_FACTOR = {"attention": 1.0, "block": 2.0, "stack": 4.0, "encoder": 4.0, "decoder": 4.0, "index": 0.0}
# ReLU's derivative jumps: a rounding of relative size u moves a share of about u of the activations across zero and
# turns as many terms of a gradient on or off, so its relative error is about the root of u. In float16 that is far
# above the roundings themselves: 1.8% through one block, in every backend, against 0.05% with SiLU in its place (a test
# shows it); 2 √u is allowed.
KINK = {"float16": 2 * 2**-5.5}
# A single row has fewer elements to average rounding over than a whole tensor.
ROW_FACTOR = 8.0
MOST_PER_ROW = 0.5  # a row that is lost altogether has an error of 1
# torch's LayerNorm on CPU adds up its weight's gradient in the input's own dtype: over 900,000 pairs its error is 0.2
# in bfloat16 and 0.04 in float16, in every backend that calls it. A missing gradient (1.0) is still caught.
CPU_NORM_WEIGHT = {"float16": 0.1, "bfloat16": 0.5}
NULL = 1e-6  # of its scale: what a sum that is zero by the mathematics may be in float64
SEAM = "attention"
ROW = " (worst row)"
_AFTER = " after timing"
_CHUNK_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Reference:
    """One expected tensor, float64.

    ``rows`` are the places on axis 1 that it holds (None: all); ``alone``: zero is expected at every other place.
    ``by_row``: axis 1 is atoms or residues, so that the worst row can be told. ``scale`` stands in for a norm that is
    less, because its terms cancel; but zeros found where zeros are not due are still an error of 1. ``after_timing``:
    it also holds for the full cotangents of the timed call.
    """

    value: Tensor
    rows: Tensor | None = None
    by_row: bool = False
    alone: bool = False
    scale: float = 0.0
    after_timing: bool = True


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
        typical = max(norm / math.sqrt(len(size)), 1e-300)
        errors[ROW] = _finite(float((by_row / size.clamp_min(typical)).max()))
    return errors


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
    level = 1.0 if name.removesuffix(ROW) == SEAM else LEVEL_FACTOR[problem.level]
    whole = (GRADIENT_TOLERANCE if gradient else TOLERANCE)[dtype] * level
    if gradient and problem.level != "attention":
        whole = max(whole, KINK.get(dtype, 0.0))
    return min(whole * ROW_FACTOR, MOST_PER_ROW) if name.endswith(ROW) else whole


def passes(errors: dict[str, float | None], problem: Problem) -> bool:
    """Whether every error is a number within its tolerance."""
    return bool(errors) and all(e is not None and e <= allowed(name, problem) for name, e in errors.items())


def check(case: Case, expected: Expected) -> Gate:
    """Run the case once against the expected cotangents, in poisoned memory, and compare everything."""
    from . import seam
    from .poison import poisoned

    problem = expected.problem
    tolerance = allowed("output", problem)
    with seam.watched(case) as calls, poisoned(problem):
        found = case.results(expected.cotangents)
    errors = _errors(expected, found) | seam.errors(calls, expected.rows)
    control = _negative_control(expected, found)
    case.release()
    tells = control is not None and control > tolerance
    return Gate(
        passed=tells and passes(errors, problem),
        tolerance=tolerance,
        gradient_tolerance=None if problem.mode == "fwd" else allowed("grad:", problem),
        errors=errors,
        rows_checked=len(expected.rows),
        rows_total=problem.n_atom,
        negative_control=control,
    )


def check_again(case: Case, expected: Expected, before: Gate) -> Gate:
    """Compare what the last timed call left."""
    errors = _errors(expected, case.results(), after_timing=True)
    passed = before.passed and passes(errors, expected.problem)
    return before.model_copy(update={"errors_after": errors, "passed": passed})


def _errors(
    expected: Expected, found: dict[str, Tensor | None], *, after_timing: bool = False
) -> dict[str, float | None]:
    return {
        name + suffix: error
        for name, reference in expected.values.items()
        if reference.after_timing or not after_timing
        for suffix, error in error_norms(reference, found.get(name), alone=reference.alone and not after_timing).items()
    }


def _negative_control(expected: Expected, found: dict[str, Tensor | None]) -> float | None:
    """The least error that all-zero outputs get, by the same comparison."""
    outputs = {n: t for n, t in found.items() if t is not None and not n.startswith("grad:")}
    zeros = {name: tensor.new_zeros(()).expand(tensor.shape) for name, tensor in outputs.items()}
    told = [error_norms(expected.values[name], zero, alone=False)[""] for name, zero in zeros.items()]
    return None if not told or None in told else min(e for e in told if e is not None)


def why_red(gate: Gate, problem: Problem) -> str:
    """The entries that failed, worst first, in one line."""
    if gate.negative_control is None or gate.negative_control <= gate.tolerance:
        return f"the gate cannot tell: an all-zero output would get an error of {gate.negative_control}"
    errors = gate.errors | {name + _AFTER: e for name, e in gate.errors_after.items()}
    bad = {n: e for n, e in errors.items() if e is None or e > allowed(n.removesuffix(_AFTER), problem)}
    worst = sorted(bad.items(), key=lambda item: math.inf if item[1] is None else item[1], reverse=True)
    shown = ", ".join(f"{name} {'not finite' if e is None else f'{e:.2g}'}" for name, e in worst[:4])
    more = f" and {len(worst) - 4} more" if len(worst) > 4 else ""
    return f"relative errors beyond tolerance ({gate.tolerance:g}, gradients {gate.gradient_tolerance}): {shown}{more}"
