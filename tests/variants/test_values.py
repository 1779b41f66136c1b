"""Values that take digits: nearly constant, huge and tiny pairs, saturated softmax. Every backend is right or says NaN.

Right is against float64 on the same numbers, by what the layer itself is off in the same dtype: a backend may lose what
the layer loses, and where a fused kernel loses less than that it is held to that.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import variants
from tests.variants.seam import Seam, seam
from variants._op import attention_reference

NAMES = ("O", "dQ", "dK", "dV", "dp", "dgamma", "dW")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
YARDSTICK = 2.5
SATURATED = {"banded": 5e-3, "cpu_fused": 5e-3, "dense": 2e-2, "sdpa_tiles": 2e-2, "xformers_blocksparse": 2e-2}
"""Of a softmax with scores of hundreds: its gradients in bf16. The layer's and compiled gathers', whose weights are
rounded to bf16 before they meet V, are off by all of their norm, as their docstrings say."""


@dataclass(frozen=True)
class Values:
    """p = ``spread`` N(0, 1) + ``mean``, and Q and K times ``scores``."""

    spread: float = 1.0
    mean: float = 0.0
    scores: float = 1.0


RIGHT = {
    "mean_1000": Values(mean=1000.0),
    "mean_-1000": Values(mean=-1000.0),
    "mean_20000": Values(40.0, 20000.0),
    "large": Values(1e18),
    "small": Values(1e-6),
    "tiny": Values(1e-20),
    "subnormal": Values(1e-39),
}
TOO_LARGE = {"squares_overflow": Values(1e20), "all_but_overflows": Values(3e37)}


def _problem(values: Values, dtype: torch.dtype) -> tuple[Seam, Tensor]:
    made = seam(37, 21, heads=4, head_dim=16, channels=16)
    q, k, v, p = (x.nan_to_num() for x in made.inputs)
    inputs = (values.scores * q, values.scores * k, v, values.spread * p + values.mean)
    inputs = tuple(x.to(dtype).requires_grad_() for x in inputs)
    return Seam(made.block.to(dtype), inputs, made.neighbor_idx, made.valid_mask), torch.randn(q.shape).to(dtype)


def _answer(name: str, made: Seam, grad_o: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    block = variants.convert(made.block, name)
    weights = (made.block.norm_pair.weight, made.block.pair_bias.weight)
    reasons = variants.why_unavailable(name, dtype=dtype, backward=True)
    if reasons:
        with torch.no_grad():
            return {"O": block._attend(*made.inputs, made.neighbor_idx, made.valid_mask)}
    out = block._attend(*made.inputs, made.neighbor_idx, made.valid_mask)
    return dict(zip(NAMES, (out.detach(), *torch.autograd.grad(out, [*made.inputs, *weights], grad_o)), strict=True))


def _reference(made: Seam, grad_o: Tensor) -> dict[str, Tensor]:
    norm, weight = made.block.norm_pair, made.block.pair_bias.weight
    exact = [x.detach().double().requires_grad_() for x in (*made.inputs, norm.weight, norm.bias, weight)]
    out = attention_reference(*exact, made.neighbor_idx, made.valid_mask, norm.eps)
    wanted = [x for i, x in enumerate(exact) if i != 5]
    return dict(zip(NAMES, (out.detach(), *torch.autograd.grad(out, wanted, grad_o.double())), strict=True))


def _errors(got: dict[str, Tensor], want: dict[str, Tensor]) -> dict[str, float]:
    """Relative error norms. Where p has hardly any variance, dgamma and dW are sums of nothing, and not looked at."""
    scale = {name: float(want[name].norm()) for name in got}
    weights = 1e-2 * float(want["dQ"].norm())
    looked_at = [n for n in got if scale[n] > (weights if n in ("dgamma", "dW") else 0)]
    return {name: float((got[name].double() - want[name]).norm()) / scale[name] for name in looked_at}


def _runs(name: str, dtype: torch.dtype) -> None:
    if reasons := variants.why_unavailable(name, dtype=dtype):
        pytest.skip("; ".join(reasons))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("values", RIGHT)
@pytest.mark.parametrize("name", variants.names())
def test_pairs_of_any_mean_and_size(name: str, values: str, dtype: torch.dtype) -> None:
    _runs(name, dtype)
    made, grad_o = _problem(RIGHT[values], dtype)
    want = _reference(made, grad_o)
    found, layer = (_errors(_answer(n, made, grad_o, dtype), want) for n in (name, "gather"))
    assert all(e <= max(TOLERANCE[dtype], YARDSTICK * layer[n]) for n, e in found.items()), (found, layer)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("values", TOO_LARGE)
@pytest.mark.parametrize("name", variants.names())
def test_what_overflows_is_never_a_finite_wrong_number(name: str, values: str, dtype: torch.dtype) -> None:
    _runs(name, dtype)
    made, grad_o = _problem(TOO_LARGE[values], dtype)
    got, want = _answer(name, made, grad_o, dtype), _reference(made, grad_o)
    for what in ("O", "dQ") if "dQ" in got else ("O",):
        by_row = (got[what].double() - want[what]).flatten(2).norm(dim=2) / want[what].flatten(2).norm(dim=2)
        live = made.valid_mask.any(1)
        right = by_row[:, live] < TOLERANCE[dtype]
        assert (right | ~got[what].flatten(2).isfinite().any(2)[:, live]).all(), what


@pytest.mark.parametrize("shift", [-1e12, -1e31])
@pytest.mark.parametrize("name", variants.names())
def test_a_score_however_low_is_above_that_of_a_pair_that_is_none(name: str, shift: float) -> None:
    """The norm's bias shifts every score of a row alike, which a softmax does not see: right is the answer without it,
    or that of float64, which loses the scores beside 1e31 as float32 does."""
    _runs(name, torch.float32)
    made, _ = _problem(Values(), torch.float32)
    with torch.no_grad():
        made.block.pair_bias.weight.copy_(made.block.pair_bias.weight.abs())
        plain = made.block._attend(*made.inputs, made.neighbor_idx, made.valid_mask)
        made.block.norm_pair.bias.fill_(shift)
        exact = [x.detach().double() for x in (*made.inputs, *made.block.norm_pair.parameters())]
        weight = made.block.pair_bias.weight.double()
        lost = attention_reference(*exact, weight, made.neighbor_idx, made.valid_mask, made.block.norm_pair.eps)
        got = variants.convert(made.block, name)._attend(*made.inputs, made.neighbor_idx, made.valid_mask)
        layer = made.block._attend(*made.inputs, made.neighbor_idx, made.valid_mask)
    errors = [float((got.double() - right).norm() / right.norm()) for right in (plain.double(), lost, layer.double())]
    assert min(errors) < 1e-4, errors


@pytest.mark.parametrize("name", SATURATED)
def test_a_saturated_softmax_keeps_its_gradients_in_bf16(name: str) -> None:
    _runs(name, torch.bfloat16)
    made, grad_o = _problem(Values(scores=30.0), torch.bfloat16)
    found = _errors(_answer(name, made, grad_o, torch.bfloat16), _reference(made, grad_o))
    assert max(found.values()) <= SATURATED[name], found
