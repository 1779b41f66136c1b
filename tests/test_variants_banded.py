"""Attacks on ``banded`` beyond the common cases: random geometry, constant and extreme pairs, tiles of every kind."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import variants
from pallatom.architecture.atom_transformers import AtomTransformerBlock, build_sparse_pairs
from tests.variant_cases import errors
from variants import banded
from variants._backend import Shape
from variants._batches import batches
from variants._op import attention_reference
from variants._tiles import tiles

NAMES = ("O", "dQ", "dK", "dV", "dp", "dnorm_pair.weight", "dnorm_pair.bias", "dpair_bias.weight")


def _answers(
    inputs: list[Tensor], weights: list[Tensor], idx: Tensor, mask: Tensor, eps: float = 1e-5
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(banded's, the float64 reference's) output and gradients of the same random sum of the output."""
    heads, channels = weights[2].shape
    block = AtomTransformerBlock(heads * inputs[0].shape[-1], channels, heads).to(inputs[0].dtype)
    block.norm_pair.eps = eps
    block = variants.convert(block, "banded")
    with torch.no_grad():
        for parameter, value in zip(_weights(block), weights, strict=True):
            parameter.copy_(value)
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = block._attend(*leaves, idx, mask)
    grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out.dtype)
    got = torch.autograd.grad(out, [*leaves, *_weights(block)], grad_out)
    wide = [x.double().requires_grad_() for x in [*inputs, *weights]]
    ref_out = attention_reference(*wide, idx, mask, eps=eps)
    ref = torch.autograd.grad(ref_out, wide, grad_out.double(), materialize_grads=True)
    return dict(zip(NAMES, (out.detach(), *got))), dict(zip(NAMES, (ref_out.detach(), *ref)))


def _weights(block: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [block.get_parameter(name.removeprefix("d")) for name in NAMES[5:]]


@st.composite
def _problems(draw):
    """Any band: runs of rows with any start and length, slots shifted at will, dead slots anywhere."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n, slots = draw(st.integers(1, 40)), draw(st.integers(1, 17))
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).repeat(1 + n // sum(sizes))[:n]
    base = torch.randint(-slots, n, (len(sizes),), generator=g)
    if draw(st.booleans()):
        base = base.sort().values
    idx = base[group][:, None] + torch.arange(slots)
    batch = draw(st.integers(1, 2))
    mask = (idx >= 0) & (idx < n)
    if draw(st.booleans()):
        mask = mask & (torch.rand(batch, n, slots, generator=g) > draw(st.sampled_from([0.1, 0.6])))
    heads, dim, channels = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 6))

    def values(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    inputs = [values(batch, n, heads, dim) for _ in range(3)] + [values(batch, n, slots, channels)]
    return inputs, [values(channels), values(channels), values(heads, channels)], idx, mask, draw(st.integers(1, 12))


@settings(max_examples=80, deadline=None)
@given(_problems(), st.booleans())
def test_any_band_of_any_shape(problem, batched) -> None:
    inputs, weights, idx, mask, rows = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(banded, "_tiling", lambda plan: batches(plan, rows, 90) if batched else tiles(plan, rows))
        # ε well above 0: with one or two channels the norm of a pair is a step function otherwise
        got, ref = _answers(inputs, weights, idx, mask, eps=0.1)
    for name, x in got.items():
        assert torch.allclose(x, ref[name], rtol=1e-8, atol=1e-9), name


def _window(residues: int = 12, window: int = 6) -> tuple[Tensor, Tensor]:
    return build_sparse_pairs(torch.arange(residues * 5) // 5, window)


def _plain(dtype: torch.dtype, idx: Tensor, *, scale: float = 1.0, offset: float = 0.0):
    g = torch.Generator().manual_seed(0)

    def values(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    pairs = values(1, *idx.shape, 16) * scale + offset
    inputs = [values(1, len(idx), 2, 8).to(dtype) for _ in range(3)] + [pairs.to(dtype)]
    weights = [(1 + 0.3 * values(16)).to(dtype), values(16).to(dtype), values(2, 16).to(dtype)]
    return inputs, weights


@pytest.mark.parametrize("offset", [0.0, 3.0, 30.0, 1e3, -1e4])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_offsets_cost_no_more_digits_than_they_take_from_p_itself(offset: float, scale: float) -> None:
    idx, mask = _window()
    inputs, weights = _plain(torch.float32, idx, scale=scale, offset=offset * scale)
    found = errors(*_answers(inputs, weights, idx, mask))
    assert max(found.values()) < 1e-5 + 2e-7 * abs(offset), found


def test_one_far_off_pair_in_a_tile_is_no_worse() -> None:
    idx, mask = _window()
    inputs, weights = _plain(torch.float32, idx)
    inputs[3][0, 31, 7] += 2000.0
    found = errors(*_answers(inputs, weights, idx, mask))
    assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize("value", [0.0, 100.0, 1e-4])
def test_pairs_without_variance(value: float) -> None:
    idx, mask = _window()
    inputs, weights = _plain(torch.float32, idx, scale=0.0, offset=value)
    got, ref = _answers(inputs, weights, idx, mask)
    assert errors({"O": got["O"]}, ref)["O"] < 1e-5
    assert errors({"dV": got["dV"]}, ref)["dV"] < 1e-5
    assert got["dp"].isfinite().all()


def test_half_precision_extremes() -> None:
    """Squares of such pairs do not fit into half precision; sums of them do fit into single."""
    idx, mask = _window()
    inputs, weights = _plain(torch.float16, idx, scale=2e4)
    inputs[3].clamp_(-6e4, 6e4)
    found = errors(*_answers(inputs, weights, idx, mask))
    assert max(found.values()) < 5e-3, found


def test_scores_of_thousands_pick_the_largest() -> None:
    idx, mask = _window()
    inputs, weights = _plain(torch.float32, idx)
    inputs[0] = inputs[0] * 1e3
    got, ref = _answers(inputs, weights, idx, mask)
    assert errors({"O": got["O"]}, ref)["O"] < 1e-4
    assert all(x.isfinite().all() for x in got.values())


def test_a_pair_that_is_not_finite_spoils_its_row_and_no_other() -> None:
    idx, mask = _window()
    inputs, weights = _plain(torch.float32, idx)
    clean, _ = _answers(inputs, weights, idx, mask)
    inputs[3][0, 31, 7] = float("nan")
    spoiled, _ = _answers(inputs, weights, idx, mask)
    others = torch.arange(len(idx)) != 31
    assert spoiled["O"][:, 31].isnan().all()
    assert torch.allclose(spoiled["O"][:, others], clean["O"][:, others], atol=1e-5)


def test_costs_follow_the_tiles() -> None:
    """Twice the atoms: twice the work and no more scratch."""
    small, large = (Shape(1, n, 434, 4, 32, 16, n * 434, 4, 4) for n in (8192, 16384))
    for mode in ("fwd", "fwdbwd"):
        a, b = banded.cost(small, mode), banded.cost(large, mode)
        assert b.flops == pytest.approx(2 * a.flops, rel=1e-3)
        assert b.bytes == 2 * a.bytes
    assert banded.cost(large, "fwd").peak_bytes < 0.2 * large.p_bytes
