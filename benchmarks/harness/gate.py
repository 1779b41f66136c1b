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

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .record import Gate, Problem

if TYPE_CHECKING:
    from torch import Tensor

    from .case import Case
    from .expectation import Expected, Spoil

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
OUTER_SLOPE_FACTOR = 4.0
_NORM_WEIGHT = re.compile(r"^grad:.*norm\w*\.weight$")
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
    typical: float | None = None  # the norm of a row, where the value holds too few to tell
    after_timing: bool = True

    @functools.cached_property
    def typical_row(self) -> float:
        """The root mean square norm of a row: less than this is held against this."""
        if self.typical is not None:
            return self.typical
        norm = max(float(self.value.norm()), self.scale)
        return max(norm / math.sqrt(max(self.value.shape[1], 1)), 1e-300)


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


def slope(reference: Reference, found: Tensor | None) -> float | None:
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
    level = 1.0 if name.removesuffix(ROW) == SEAM else LEVEL_FACTOR[problem.level]
    whole = (GRADIENT_TOLERANCE if gradient else TOLERANCE)[dtype] * level
    if gradient and problem.level != "attention":
        whole = max(whole, KINK.get(dtype, 0.0))
    return min(whole * ROW_FACTOR, MOST_PER_ROW) if name.endswith(ROW) else whole


def allowed_slope(name: str, problem: Problem) -> float:
    """The tolerance of one entry of ``Gate.slopes``."""
    if problem.device == "cpu" and problem.dtype in CPU_NORM_SLOPE and _NORM_WEIGHT.search(name):
        over_pairs = name.endswith("norm_pair.weight")
        return (CPU_NORM_SLOPE if over_pairs else CPU_ATOM_NORM_SLOPE)[problem.dtype]
    outer = problem.level in ("encoder", "decoder") and name != SEAM
    factor = OUTER_SLOPE_FACTOR if outer else 1.0
    return (GRADIENT_SLOPE if name.startswith("grad:") else SLOPE)[problem.dtype] * factor


def passes(
    errors: Mapping[str, float | None], problem: Problem, slopes: Mapping[str, float | None] | None = None
) -> bool:
    """Whether every error and every slope is a number within its tolerance."""
    good = all(e is not None and e <= allowed(name, problem) for name, e in errors.items())
    straight = all(s is not None and abs(s) <= allowed_slope(name, problem) for name, s in (slopes or {}).items())
    return bool(errors) and good and straight


def check(case: Case, expected: Expected) -> Gate:
    """Run the case once against the expected cotangents, in poisoned memory, and compare everything."""
    from . import seam
    from .poison import poisoned

    problem = expected.problem
    case.release()  # what an earlier call made is as good as right: its memory is to be poisoned too
    with seam.watched(case) as calls, poisoned(problem):
        found = case.run_against(expected.cotangents)
    errors, slopes = _compared(expected, found)
    at_seam = seam.compared(calls, expected.rows)
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
            slopes[name] = slope(reference, tensor)
    return errors, slopes


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


def control(error_without: Callable[[Spoil], float | None], tolerance: float) -> Control:
    """The control that leaves out one neighbour a row; where the dtype's roundings hide that, one in sixteen."""
    from .expectation import fewer, one_less

    single = Control(error_without(one_less), tolerance)
    return single if single.tells else Control(error_without(fewer), tolerance, "neighbours")


def _control(expected: Expected, found: dict[str, Tensor | None]) -> Control:
    def error_without(spoilt: Spoil) -> float | None:
        told = [_spoilt_error(expected.values[name], found.get(name), s) for name, s in expected.shares(spoilt).items()]
        return None if not told or None in told else min(error for error in told if error is not None)

    return control(error_without, allowed("output", expected.problem))


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
