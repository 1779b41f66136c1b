"""No speed without correctness: every backend against the float64 reference, before timing and after.

Errors are relative norms, ``||x − ref|| / ||ref||``, and for tensors with one row per atom also the worst row's,
``max_l ||x_l − ref_l|| / max(||ref_l||, rms row)``: one wrong row of 2,048 is 2% of the whole norm but 100% of its own.

Where the level holds more than the seam, the seam is also checked apart (``attention``): a residual would hide it. And an
all-zero output must fail (the negative control), or the gate cannot tell right from wrong and is red.

The gate's own run has its fresh memory poisoned, so that a row which is never written does not pass on what the run
before left there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .record import Gate

if TYPE_CHECKING:
    from torch import Tensor

    from .expectation import Expected
    from .inputs import Case

# Relative error norms allowed to outputs and to gradients. See docs in _tolerances_.
TOLERANCE = {"float64": 1e-9, "float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}
GRADIENT_TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 6e-2}
# A single row has fewer elements to average rounding over than a whole tensor.
ROW_FACTOR = 8.0
ROW = " (worst row)"
_AFTER = " after timing"
_CHUNK_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Reference:
    """One expected tensor, float64.

    ``rows`` are the places on axis 1 that it holds (None: all); ``alone``: zero is expected at every other place.
    ``by_row``: axis 1 is atoms or residues, so that the worst row can be told. ``scale`` stands in for a norm that is
    zero by the mathematics. ``after_timing``: it also holds for the full cotangents of the timed call.
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
    norm = max(float(reference.value.norm()), reference.scale)
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


def allowed(name: str, dtype: str) -> float:
    """The tolerance of one entry of ``Gate.errors``."""
    base = (GRADIENT_TOLERANCE if name.startswith("grad:") else TOLERANCE)[dtype]
    return base * (ROW_FACTOR if name.endswith(ROW) else 1.0)


def passes(errors: dict[str, float | None], dtype: str) -> bool:
    """Whether every error is a number within its tolerance."""
    return bool(errors) and all(e is not None and e <= allowed(name, dtype) for name, e in errors.items())


def check(case: Case, expected: Expected) -> Gate:
    """Run the case once against the expected cotangents, in poisoned memory, and compare everything."""
    from . import seam
    from .poison import poisoned

    problem, dtype = expected.problem, expected.problem.dtype
    with seam.watched(case) as calls, poisoned(problem):
        found = case.results(expected.cotangents)
    errors = _errors(expected, found) | seam.errors(calls, expected.rows)
    control = _negative_control(expected, found)
    case.release()
    tells = control is not None and control > TOLERANCE[dtype]
    return Gate(
        passed=tells and passes(errors, dtype),
        tolerance=TOLERANCE[dtype],
        gradient_tolerance=None if problem.mode == "fwd" else GRADIENT_TOLERANCE[dtype],
        errors=errors,
        rows_checked=len(expected.rows),
        rows_total=problem.n_atom,
        negative_control=control,
    )


def check_again(case: Case, expected: Expected, before: Gate) -> Gate:
    """Compare what the last timed call left."""
    errors = _errors(expected, case.results(), after_timing=True)
    passed = before.passed and passes(errors, expected.problem.dtype)
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


def why_red(gate: Gate, dtype: str) -> str:
    """The entries that failed, worst first, in one line."""
    if gate.negative_control is None or gate.negative_control <= gate.tolerance:
        return f"the gate cannot tell: an all-zero output would get an error of {gate.negative_control}"
    errors = gate.errors | {name + _AFTER: e for name, e in gate.errors_after.items()}
    bad = {n: e for n, e in errors.items() if e is None or e > allowed(n.removesuffix(_AFTER), dtype)}
    worst = sorted(bad.items(), key=lambda item: math.inf if item[1] is None else item[1], reverse=True)
    shown = ", ".join(f"{name} {'not finite' if e is None else f'{e:.2g}'}" for name, e in worst[:4])
    more = f" and {len(worst) - 4} more" if len(worst) > 4 else ""
    return f"relative errors beyond tolerance ({gate.tolerance:g}, gradients {gate.gradient_tolerance}): {shown}{more}"
