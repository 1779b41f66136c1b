"""The same backend at a small size that breaks kernels, once a run, in the most exact dtype that it has.

What a half-precision gate at a friendly size cannot see, a few hundred atoms in float32 can: a scale off by 1%, an eps
of 1e-2, one neighbour lost in one row of sixteen, a mask or pair tensor of item 0 used for all. So every backend also
computes the seam on two items with masks of their own, dead rows, holes, a saturated head, and pair rows far off zero,
nearly constant, huge and tiny; N is 8 modulo 16. A backend that refuses holes gets the plain window instead.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..cases import registry
from ..levels import SCORE_STD, level_of
from ..ruler.poison import poisoned
from ..schema.axes import DType
from ..schema.problem import Problem
from ..schema.record import Trial
from .errors import ROW, SEAM, allowed, allowed_slope, error_norms, slope_of
from .failures import synchronize

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCH, N_ATOM, WINDOW = 2, 152, 8
# Pair rows about a mean m have their m rounded to m u: what float32 still knows of a row about 32, bfloat16 of one
# about 1,000 as a spread of a few units.
OFFSET = {"float64": 1000.0, "float32": 32.0, "bfloat16": 1000.0, "float16": 300.0}
# Beside the gate's own tolerances: right backends use a quarter of them in float32 and up to all in half precision.
FACTOR = 2.0
_MOST_ROW = 0.5


@dataclass(frozen=True)
class _Call:
    """The seam's arguments by name, the leaves among them, and what comes back."""

    tensors: dict[str, Tensor]
    idx: Tensor
    valid: Tensor
    cotangent: Tensor


def of(spec: str, problem: Problem) -> Trial | None:
    """The trial that vouches for a backend on this problem: the first red one, else that of the most exact dtype; None
    where the backend refuses all of it."""
    told = [_run(spec, _small(problem, dtype).model_dump_json()) for dtype in _dtypes(spec, problem)]
    red = [trial for trial in told if trial is not None and not trial.passed]
    return next(iter(red + [trial for trial in told if trial is not None]), None)


def why_red(trial: Trial, problem: Problem) -> str:
    """The entries that failed, in one line."""
    small = _small(problem, trial.dtype)
    bad = [
        f"{n} {'not finite' if e is None else f'{e:.2g}'}" for n, e in trial.errors.items() if not _fine(n, e, small)
    ]
    bad += [
        f"slope of {n} {'not finite' if s is None else f'{s:.2g}'}"
        for n, s in trial.slopes.items()
        if not _straight(n, s, small)
    ]
    return (
        f"at {N_ATOM} atoms in {trial.dtype}, with masks per item, dead rows and pair rows far off zero, nearly "
        f"constant, huge and tiny: relative errors {', '.join(bad[:4])}"
    )


def _dtypes(spec: str, problem: Problem) -> list[DType]:
    """float32 where the backend has it, and the problem's own where that is less exact."""
    import torch

    has_exact = torch.float32 in registry.load(spec).dtypes
    own: list[DType] = [problem.dtype]
    if not has_exact:
        return own
    # What compiles for every dtype is given one chance: the compiler takes tens of seconds.
    less_exact = problem.dtype in ("bfloat16", "float16") and not registry.load(spec).compiles
    return ["float32", *own] if less_exact else ["float32"]


def _small(problem: Problem, dtype: DType) -> Problem:
    """The trial as a problem: the sizes of heads and pairs are the given one's, so that it runs the same kernels."""
    return problem.model_copy(
        update={
            "level": SEAM,
            "mode": "fwd" if problem.mode == "fwd" else "fwdbwd",
            "dtype": dtype,
            "workload": "trial",
            "n_atom": N_ATOM,
            "window": WINDOW,
            "batch": BATCH,
            "atoms": "heavy",
            "window_style": "residues",
            "k_cap": None,
            "n_blocks": 1,
            "c_token": 1,
            "c_pair": 1,
            "seed": 0,
            **dict.fromkeys(("n_res", "n_neighbor", "live_pairs"), 1),
        }
    )


@functools.lru_cache(maxsize=256)
def _run(spec: str, asked: str) -> Trial | None:
    """Once a process for each backend and problem (as JSON); a compiler's work is done once too."""
    from variants import UnsupportedError

    small = Problem.model_validate_json(asked)
    for holes in (True, False):
        module, call = _build(small, holes=holes)
        try:
            with poisoned(small.device):
                found = _results(registry.converted(spec, module), call, small)
                synchronize(small.device)
        except UnsupportedError:
            continue
        return _judged(found, _expected(module, call, small), small)
    return None


def _build(small: Problem, *, holes: bool) -> tuple[nn.Module, _Call]:
    import torch

    from pallatom.architecture.atom_transformers import AtomTransformerBlock, build_sparse_pairs

    from ..cases.inputs import seed_parameters

    g = torch.Generator().manual_seed(1)
    sizes = torch.randint(1, 15, (N_ATOM,), generator=g)
    tok = torch.repeat_interleave(torch.arange(N_ATOM), sizes)[:N_ATOM]
    idx, window = build_sparse_pairs(tok, WINDOW)
    valid = window
    if holes:
        chain = (torch.arange(N_ATOM) >= 70).long()
        own = torch.stack([window, window & (chain[:, None] == chain[idx])])
        own[1] &= torch.rand(window.shape, generator=g) > 0.1
        own[:, 40:44] = False
        own[1, 100] = False
        valid = own
    dtype = getattr(torch, small.dtype)

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        return torch.randn(BATCH, N_ATOM, *shape, generator=g) * std

    std = SCORE_STD**0.5
    q, k, v = (normal(small.heads, small.head_dim, std=s) for s in (std, std, 1.0))
    q[1, :, 0] *= 6.0
    p = normal(idx.shape[1], small.c_atompair)
    p[:, 0::5] += OFFSET[small.dtype]
    p[:, 1::5] = 1.0 + 1e-2 * p[:, 1::5]
    p[:, 2::5] *= 100.0
    p[:, 3::5] *= 1e-2
    p = p.masked_fill(~valid.expand(BATCH, -1, -1)[..., None], torch.nan)
    tensors = {"Q": q, "K": k, "V": v, "p": p}
    module = AtomTransformerBlock(small.c_atom, small.c_atompair, small.heads, WINDOW)
    seed_parameters(module, small)
    module.to(small.device, dtype)
    backward = small.mode != "fwd"
    placed = {n: t.to(small.device, dtype).requires_grad_(backward) for n, t in tensors.items()}
    cotangent = normal(small.heads, small.head_dim).to(small.device, dtype)
    return module, _Call(placed, idx.to(small.device), valid.to(small.device), cotangent)


def _results(module: nn.Module, call: _Call, small: Problem) -> dict[str, Tensor | None]:
    import torch

    weights = {n: w for n, w in module.named_parameters() if n.startswith(level_of(SEAM).trained)}
    with torch.set_grad_enabled(small.mode != "fwd"):
        output = module._attend(*call.tensors.values(), call.idx, call.valid)  # type: ignore[operator]
        return _with_gradients(output, call, weights, small)


def _expected(module: nn.Module, call: _Call, small: Problem) -> dict[str, Tensor | None]:
    import torch

    from variants import _op

    backward = small.mode != "fwd"
    wide = {n: t.detach().double().requires_grad_(backward) for n, t in call.tensors.items()}
    weights = {
        n: w.detach().double().requires_grad_(backward)
        for n, w in module.named_parameters()
        if n.startswith(level_of(SEAM).trained)
    }
    with torch.set_grad_enabled(backward):
        q, k, v, p = wide.values()
        gamma, beta, project = (weights[n] for n in ("norm_pair.weight", "norm_pair.bias", "pair_bias.weight"))
        output = _op.attention_reference(q, k, v, p, gamma, beta, project, call.idx, call.valid)
        twin = _Call(wide, call.idx, call.valid, call.cotangent.double())
        return _with_gradients(output, twin, weights, small)


def _with_gradients(
    output: Tensor, call: _Call, weights: Mapping[str, Tensor], small: Problem
) -> dict[str, Tensor | None]:
    import torch

    found: dict[str, Tensor | None] = {"output": output.detach()}
    if small.mode != "fwd":
        leaves = call.tensors | {f"weight:{name}": w for name, w in weights.items()}
        gradients = torch.autograd.grad(output, list(leaves.values()), call.cotangent, allow_unused=True)
        found |= {f"grad:{name}": g for name, g in zip(leaves, gradients, strict=True)}
    return found


def _judged(found: dict[str, Tensor | None], expected: dict[str, Tensor | None], small: Problem) -> Trial:
    from ..reference.expected import Reference, bias_scales

    values = {
        name: Reference(value.detach(), by_row=not name.startswith("grad:weight:"))
        for name, value in expected.items()
        if value is not None
    }
    errors: dict[str, float | None] = {}
    slopes: dict[str, float | None] = {}
    for name, reference in bias_scales(values).items():
        norms = error_norms(reference, found.get(name), alone=False)
        errors |= {name + suffix: error for suffix, error in norms.items()}
        if reference.scale == 0.0:
            slopes[name] = slope_of(reference, found.get(name))
    good = all(_fine(n, e, small) for n, e in errors.items()) and all(_straight(n, s, small) for n, s in slopes.items())
    return Trial(dtype=small.dtype, passed=good, errors=errors, slopes=slopes)


def _fine(name: str, error: float | None, small: Problem) -> bool:
    most = allowed(name, small) * FACTOR
    return error is not None and error <= (min(most, _MOST_ROW) if name.endswith(ROW) else most)


def _straight(name: str, slope: float | None, small: Problem) -> bool:
    return slope is not None and abs(slope) <= allowed_slope(name, small) * FACTOR
