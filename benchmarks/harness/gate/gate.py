"""No speed without correctness: every backend against the float64 reference, before timing and after.

Errors are relative norms, ``||x − ref|| / ||ref||``, and for tensors with one row per atom also the worst row's,
``max_l ||x_l − ref_l|| / max(||ref_l||, rms row)``: one wrong row of 2,048 is 2% of the whole norm but 100% of its own.

A norm of roundings hides what is wrong by a factor: in bfloat16 an output × 1.01 is no further off than a right one.
Roundings have no direction, a factor has; so the *slope* ``⟨x, ref⟩ / ⟨ref, ref⟩ − 1`` has a tolerance of its own.

Where the level holds more than the seam, the seam is also checked apart (``attention``): a residual would hide it. And
the found output less what one neighbour a row brought to it (the negative control) must fail, or the gate cannot tell
right from wrong and is red.

The gate's own run has its fresh memory poisoned, so that a row which is never written does not pass on what the run
before left there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..reference.expected import Reference
from ..schema.problem import Problem
from ..schema.record import Gate
from .errors import ROW, Control, allowed, allowed_slope, control_of, error_norms, passes, slope_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..cases.case import Case
    from ..reference.expected import Expected, Spoil

_AFTER = " after timing"


def check(case: Case, expected: Expected) -> Gate:
    """Run the case once against the expected cotangents, in poisoned memory, and compare everything."""
    from ..ruler.poison import poisoned
    from . import attention_calls

    problem = expected.problem
    case.release()  # what an earlier call made is as good as right: its memory is to be poisoned too
    with attention_calls.watched(case) as calls, poisoned(problem.device):
        found = case.run_against(expected.cotangents)
    errors, slopes = _compared(expected, found)
    at_seam = attention_calls.compared(calls, expected.rows)
    errors, slopes = errors | at_seam.errors, slopes | at_seam.slopes
    control = at_seam.control if calls else _control(expected, found)
    case.release()
    return Gate(
        passed=control.tells and passes(errors, problem, slopes),
        tolerance=allowed("output", problem),
        gradient_tolerance=None if problem.mode == "fwd" else allowed("grad:", problem),
        errors=errors,
        slopes=slopes,
        rows_checked=len(expected.rows),
        rows_total=problem.n_atom,
        negative_control=control.error,
        control_tolerance=control.tolerance,
        control=control.kind,
    )


def check_again(expected: Expected, found: dict[str, Tensor | None], before: Gate) -> Gate:
    """Compare what a timed call made."""
    errors, slopes = _compared(expected, found, after_timing=True)
    passed = before.passed and passes(errors, expected.problem, slopes)
    return before.model_copy(update={"errors_after": errors, "slopes_after": slopes, "passed": passed})


def glance(expected: Expected, found: dict[str, Tensor | None], places: int = 32) -> str | None:
    """Compare a few rows, drawn afresh, of what a timed call made; what is wrong with them, or None.

    Only whole rows are told from wrong ones: an answer of another call, one not finished, zeros.
    """
    import torch

    for name, reference in expected.values.items():
        if not reference.by_row or not reference.after_timing or not reference.value.numel():
            continue
        tensor = found.get(name)
        rows = torch.arange(reference.value.shape[1]) if reference.rows is None else reference.rows
        drawn = torch.randint(len(rows), (min(places, len(rows)),)).to(rows.device)
        if tensor is None or tensor.shape[1] <= int(rows.max()):
            return f"{name} is missing rows"
        part = Reference(
            reference.value.index_select(1, drawn.to(reference.value.device)),
            rows[drawn].to(tensor.device),
            by_row=True,
            scale=reference.scale,
            typical=reference.typical_row,
        )
        error = error_norms(part, tensor, alone=False)[ROW]
        if error is None or error > allowed(name + ROW, expected.problem):
            shown = "not finite" if error is None else f"{error:.2g}"
            return f"a row of {name} is off by {shown} (allowed {allowed(name + ROW, expected.problem):.2g})"
    return None


def _compared(
    expected: Expected, found: dict[str, Tensor | None], *, after_timing: bool = False
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Errors and slopes by name."""
    errors: dict[str, float | None] = {}
    slopes: dict[str, float | None] = {}
    for name, reference in expected.values.items():
        if after_timing and not reference.after_timing:
            continue
        tensor = found.get(name)
        norms = error_norms(reference, tensor, alone=reference.alone and not after_timing)
        errors |= {name + suffix: error for suffix, error in norms.items()}
        if reference.scale == 0.0:  # where terms cancel, what is left has no slope
            slopes[name] = slope_of(reference, tensor)
    return errors, slopes


def _control(expected: Expected, found: dict[str, Tensor | None]) -> Control:
    def error_without(spoilt: Spoil) -> float | None:
        told = [_spoilt_error(expected.values[name], found.get(name), s) for name, s in expected.shares(spoilt).items()]
        return None if not told or None in told else min(error for error in told if error is not None)

    return control_of(error_without, allowed("output", expected.problem))


def _spoilt_error(reference: Reference, found: Tensor | None, share: Tensor) -> float | None:
    """The error of what was found less a share of it."""
    if found is None:
        return None
    there = found.detach() if reference.rows is None else found.detach().index_select(1, reference.rows)
    if there.shape != share.shape:
        return None
    return error_norms(Reference(reference.value), there.to(share) - share, alone=False)[""]


def why_red(gate: Gate, problem: Problem) -> str:
    """The entries that failed, worst first, in one line."""
    tolerance = gate.tolerance if gate.control_tolerance is None else gate.control_tolerance
    if gate.negative_control is None or gate.negative_control <= tolerance:
        return (
            "the gate cannot tell: an output that misses neighbours in every row would get an error of "
            f"{gate.negative_control}, {tolerance:g} is allowed"
        )
    errors = gate.errors | {name + _AFTER: e for name, e in gate.errors_after.items()}
    slopes = gate.slopes | {name + _AFTER: e for name, e in gate.slopes_after.items()}
    bad = {n: e for n, e in errors.items() if e is None or e > allowed(n.removesuffix(_AFTER), problem)}
    bad |= {
        f"slope of {n}": s
        for n, s in slopes.items()
        if s is None or abs(s) > allowed_slope(n.removesuffix(_AFTER), problem)
    }
    worst = sorted(bad.items(), key=lambda item: math.inf if item[1] is None else abs(item[1]), reverse=True)
    shown = ", ".join(f"{name} {'not finite' if e is None else f'{e:.2g}'}" for name, e in worst[:4])
    more = f" and {len(worst) - 4} more" if len(worst) > 4 else ""
    return f"relative errors beyond tolerance ({gate.tolerance:g}, gradients {gate.gradient_tolerance}): {shown}{more}"
