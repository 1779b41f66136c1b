"""No speed without correctness: every backend against the float64 reference, before timing and after.

Errors are relative norms, ``||x − ref|| / ||ref||``, and for tensors with one row per atom also the worst
row's, ``max_l ||x_l − ref_l|| / max(||ref_l||, rms row)``: one wrong row of 2,048 is 2% of the whole norm but
100% of its own. The reference is given the very inputs and weights that the backend has, upcast.

Tolerances are in units of the dtype's rounding u (2⁻⁵³, 2⁻²⁴, 2⁻¹¹, 2⁻⁸). See :data:`TOLERANCE`.

Where the whole reference would take too long, it is computed for a seeded sample of query rows: rows are
independent given K and V, and a cotangent that is zero elsewhere restricts the gradients to them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .record import Gate

if TYPE_CHECKING:
    from torch import Tensor


# Relative error norms allowed to outputs and to gradients.
TOLERANCE = {"float64": 1e-9, "float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}
GRADIENT_TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 6e-2}
# A single row has fewer elements to average rounding over than a whole tensor.
ROW_FACTOR = 8.0
ROW = " (worst row)"


@dataclass(frozen=True)
class Reference:
    """One expected tensor, float64. ``rows`` (of axis 1) are those it holds, None for all of it; ``by_row``: that
    axis is atoms or residues. ``scale`` stands in for a norm that is zero by the mathematics."""

    value: Tensor
    rows: Tensor | None = None
    by_row: bool = False
    scale: float | None = None
    after_timing: bool = True  # does it also hold for the full cotangents of the timed call?


def error_norms(reference: Reference, found: Tensor | None) -> dict[str, float | None]:
    """Relative errors: under ``""`` of the whole, under :data:`ROW` of the worst row; None if absent or not finite."""
    keys = ("", ROW) if reference.by_row else ("",)
    if found is None:
        return dict.fromkeys(keys)
    if reference.rows is not None:
        found = found.index_select(1, reference.rows)
    if found.shape != reference.value.shape:
        return dict.fromkeys(keys)
    wrong = found.detach().to(reference.value) - reference.value
    norm = max(float(reference.value.norm()), reference.scale or 0.0)
    errors = {"": _ratio(float(wrong.norm()), norm)}
    if reference.by_row and wrong.numel():
        by_row = wrong.transpose(0, 1).flatten(1).norm(dim=1)
        size = reference.value.transpose(0, 1).flatten(1).norm(dim=1)
        typical = max(norm / math.sqrt(len(size)), 1e-300)
        errors[ROW] = _finite(float((by_row / size.clamp_min(typical)).max()))
    return errors


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


def why_red(gate: Gate, dtype: str) -> str:
    """The entries that failed, worst first, in one line."""
    if gate.negative_control is None or gate.negative_control <= gate.tolerance:
        return f"the gate cannot tell: an all-zero output would get an error of {gate.negative_control}"
    errors = gate.errors | {f"{name} after timing": e for name, e in gate.errors_after.items()}
    bad = {n: e for n, e in errors.items() if e is None or e > allowed(n.removesuffix(" after timing"), dtype)}
    worst = sorted(bad.items(), key=lambda item: math.inf if item[1] is None else item[1], reverse=True)
    shown = ", ".join(f"{name} {'not finite' if e is None else f'{e:.2g}'}" for name, e in worst[:4])
    more = f" and {len(worst) - 4} more" if len(worst) > 4 else ""
    return f"relative errors beyond tolerance ({gate.tolerance:g}, gradients {gate.gradient_tolerance}): {shown}{more}"


@dataclass
class Expected:
    """What a problem's outputs and gradients must be. ``cotangents`` are zero outside the sampled rows."""

    dtype: str
    values: dict[str, Reference]
    cotangents: dict[str, Tensor]
    rows_checked: int
    rows_total: int


def expect(inputs: Inputs, *, max_pairs: int) -> Expected:
    """Compute the reference of a built problem, for all rows or for a sample of at most ``max_pairs`` pairs."""
    import copy

    import torch

    problem = inputs.problem
    module = copy.deepcopy(inputs.module).double()
    tensors = {n: t.detach().double().requires_grad_(t.requires_grad) for n, t in inputs.tensors.items()}
    weights = dict(module.named_parameters())
    if problem.level == "attention":
        weights = {n: w for n, w in weights.items() if n in inputs.weights}
    from dataclasses import replace

    from .inputs import shape_caller

    twin = replace(inputs, tensors=tensors, module=module, weights=weights)
    backward = problem.mode != "fwd"
    with torch.set_grad_enabled(backward):
        outputs = shape_caller(twin, module)(**inputs.fixed)
    values = {n: Reference(o.detach(), by_row=True) for n, o in zip(inputs.outputs, outputs, strict=True)}
    if backward:
        cot = [inputs.cotangents[n].double() for n in inputs.outputs]
        grads = torch.autograd.grad(outputs, list(twin.leaves.values()), cot)
        for n, g in zip(twin.leaves, grads, strict=True):
            values[f"grad:{n}"] = Reference(g)
    return Expected(problem.dtype, values, inputs.cotangents, problem.n_atom, problem.n_atom)


def check(case: Case, expected: Expected) -> Gate:
    """Run the case once against the expected cotangents and compare everything."""
    found = case.results(expected.cotangents)
    errors = _errors(expected, found)
    zeros = {name: None if t is None else t.new_zeros(()).expand(t.shape) for name, t in found.items()}
    control = _errors(expected, zeros)
    weakest = min((e for n, e in control.items() if e is not None and not n.startswith("grad:")), default=None)
    tolerance = TOLERANCE[expected.dtype]
    tells = weakest is not None and weakest > tolerance
    case.release()
    return Gate(
        passed=tells and passes(errors, expected.dtype),
        tolerance=tolerance,
        gradient_tolerance=GRADIENT_TOLERANCE[expected.dtype] if case.inputs.cotangents else None,
        errors=errors,
        rows_checked=expected.rows_checked,
        rows_total=expected.rows_total,
        negative_control=weakest,
    )


def check_again(case: Case, expected: Expected, before: Gate) -> Gate:
    """Compare what the last timed call left."""
    errors = _errors(expected, case.results(), after_timing=True)
    passed = before.passed and passes(errors, expected.dtype)
    return before.model_copy(update={"errors_after": errors, "passed": passed})


def _errors(
    expected: Expected, found: dict[str, Tensor | None], *, after_timing: bool = False
) -> dict[str, float | None]:
    return {
        name + suffix: error
        for name, reference in expected.values.items()
        if reference.after_timing or not after_timing
        for suffix, error in error_norms(reference, found.get(name)).items()
    }
