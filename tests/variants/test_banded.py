"""Attacks on band backends beyond the common cases: random geometry, constant and extreme pairs, odd tiles."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import variants
from tests.variants.band_problems import answers, plain, problems, window
from tests.variants.variant_cases import errors
from variants import banded
from variants._backend import Shape
from variants.band.batches import batches
from variants.band.tiles import tiles

BOTH = pytest.mark.parametrize("name", ["banded", *([] if variants.why_unavailable("cpu_fused") else ["cpu_fused"])])


@settings(max_examples=80, deadline=None)
@given(problems(), st.booleans())
def test_any_band_of_any_shape(problem, batched) -> None:
    inputs, weights, idx, mask, rows = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(banded, "_tiling", lambda plan: batches(plan, rows, 90) if batched else tiles(plan, rows))
        # ε well above 0: with one or two channels the norm of a pair is a step function otherwise
        got, ref = answers("banded", inputs, weights, idx, mask, eps=0.1)
    for name, x in got.items():
        assert torch.allclose(x, ref[name], rtol=1e-8, atol=1e-9), name


@BOTH
@pytest.mark.parametrize("offset", [0.0, 3.0, 30.0, 1e3, -1e4])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_offsets_cost_no_more_digits_than_they_take_from_p_itself(name: str, offset: float, scale: float) -> None:
    idx, mask = window()
    inputs, weights = plain(torch.float32, idx, scale=scale, offset=offset * scale)
    found = errors(*answers(name, inputs, weights, idx, mask))
    assert max(found.values()) < 1e-5 + 2e-7 * abs(offset), found


@BOTH
def test_one_far_off_pair_in_a_tile_is_no_worse(name: str) -> None:
    idx, mask = window()
    inputs, weights = plain(torch.float32, idx)
    inputs[3][0, 31, 7] += 2000.0
    found = errors(*answers(name, inputs, weights, idx, mask))
    assert max(found.values()) < 1e-5, found


@BOTH
@pytest.mark.parametrize("value", [0.0, 100.0, 1e-4])
def test_pairs_without_variance(name: str, value: float) -> None:
    idx, mask = window()
    inputs, weights = plain(torch.float32, idx, scale=0.0, offset=value)
    got, ref = answers(name, inputs, weights, idx, mask)
    assert errors({"O": got["O"]}, ref)["O"] < 1e-5
    assert errors({"dV": got["dV"]}, ref)["dV"] < 1e-5
    assert got["dp"].isfinite().all()


def test_half_precision_extremes() -> None:
    """Squares of such pairs do not fit into half precision; sums of them do fit into single."""
    idx, mask = window()
    inputs, weights = plain(torch.float16, idx, scale=2e4)
    inputs[3].clamp_(-6e4, 6e4)
    found = errors(*answers("banded", inputs, weights, idx, mask))
    assert max(found.values()) < 5e-3, found


@BOTH
def test_scores_of_thousands_pick_the_largest(name: str) -> None:
    idx, mask = window()
    inputs, weights = plain(torch.float32, idx)
    inputs[0] = inputs[0] * 1e3
    got, ref = answers(name, inputs, weights, idx, mask)
    assert errors({"O": got["O"]}, ref)["O"] < 1e-4
    assert all(x.isfinite().all() for x in got.values())


@BOTH
def test_a_pair_that_is_not_finite_spoils_its_row_and_no_other(name: str) -> None:
    idx, mask = window()
    inputs, weights = plain(torch.float32, idx)
    clean, _ = answers(name, inputs, weights, idx, mask)
    inputs[3][0, 31, 7] = float("nan")
    spoiled, _ = answers(name, inputs, weights, idx, mask)
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
