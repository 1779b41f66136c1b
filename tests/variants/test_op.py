"""The reference itself: against loops over numbers, its gradients against differences, its rows against the whole."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.pallatom import model_cases as cases
from variants import _op


def seam_inputs(n_atom: int = 5, n_slot: int = 4, batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Random neighbours with repeats, a dead row, a mask per item."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    live = torch.rand(batch, n_atom, n_slot, generator=rng) > 0.3
    live[:, 1] = False
    return {
        "Q": normal(batch, n_atom, 2, 3),
        "K": normal(batch, n_atom, 2, 3),
        "V": normal(batch, n_atom, 2, 3),
        "p": normal(batch, n_atom, n_slot, 4),
        "norm_weight": normal(4),
        "norm_bias": normal(4),
        "pair_weight": normal(2, 4),
        "neighbor_idx": torch.randint(n_atom, (n_atom, n_slot), generator=rng),
        "valid_mask": live,
    }


def by_loops(x: dict[str, Tensor]) -> Tensor:
    """One number at a time, with Python's own floats."""
    batch, n_atom, heads, dim = x["Q"].shape
    output = torch.zeros(x["Q"].shape, dtype=torch.float64)
    Q, K, V, p, idx, live = (x[name].tolist() for name in ("Q", "K", "V", "p", "neighbor_idx", "valid_mask"))
    gamma, beta, weight = (x[name].tolist() for name in ("norm_weight", "norm_bias", "pair_weight"))
    for b in range(batch):
        for atom in range(n_atom):
            slots = [k for k in range(len(idx[atom])) if live[b][atom][k]]
            for h in range(heads):
                scores = []
                for k in slots:
                    pair = p[b][atom][k]
                    mean = sum(pair) / len(pair)
                    deviation = math.sqrt(sum((v - mean) ** 2 for v in pair) / len(pair) + 1e-5)
                    normed = [(v - mean) / deviation * g + s for v, g, s in zip(pair, gamma, beta, strict=True)]
                    dot = sum(u * v for u, v in zip(Q[b][atom][h], K[b][idx[atom][k]][h], strict=True))
                    bias = sum(u * v for u, v in zip(normed, weight[h], strict=True))
                    scores.append(math.exp(dot / math.sqrt(dim) + bias))
                for d in range(dim):
                    terms = (s / sum(scores) * V[b][idx[atom][k]][h][d] for s, k in zip(scores, slots, strict=True))
                    output[b, atom, h, d] = sum(terms)
    return output


@pytest.mark.parametrize("seed", range(3))
def test_attention_equals_loops_over_numbers(seed: int) -> None:
    inputs = seam_inputs(seed=seed)
    assert cases.error(_op.attention_reference(*inputs.values()), by_loops(inputs)) < 1e-13


def test_attention_has_the_gradients_of_its_values() -> None:
    inputs = seam_inputs()
    leaves = {k: v.requires_grad_() for k, v in inputs.items() if v.is_floating_point()}
    rest = (inputs["neighbor_idx"], inputs["valid_mask"])
    assert torch.autograd.gradcheck(lambda *x: _op.attention_reference(*x, *rest), tuple(leaves.values()))


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for chunk in (_op._CHUNK_ELEMENTS, 1):
        monkeypatch.setattr(_op, "_CHUNK_ELEMENTS", chunk)
        inputs = seam_inputs(n_atom=50, n_slot=7)  # at least 16 rows at once: 4 chunks
        leaves = {k: v.requires_grad_() for k, v in inputs.items() if v.is_floating_point()}
        output = _op.attention_reference(*inputs.values())
        results.append({"O": output, **cases.pull_back([output], leaves)})
    del results[0]["norm_bias"], results[1]["norm_bias"]
    cases.assert_agree(results[1], results[0], 1e-13)


def test_upcasts_whatever_it_is_given() -> None:
    inputs = seam_inputs()
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
    wide = {k: v.double() if v.is_floating_point() else v for k, v in half.items()}
    output = _op.attention_reference(*half.values())
    assert output.dtype == torch.float64
    assert torch.equal(output, _op.attention_reference(*wide.values()))


@settings(max_examples=12, deadline=None)
@given(rows=st.lists(st.integers(0, 47), min_size=1, max_size=12, unique=True), per_item=st.booleans())
def test_rows_alone_equal_rows_of_the_whole(rows: list[int], per_item: bool) -> None:
    """Through two blocks, gradients of everything included, for a cotangent on those rows alone."""
    inputs = cases.block_inputs(mask="per item" if per_item else "shared")
    chosen = torch.tensor(rows)
    module = cases.stack(2)
    results = []
    for only in (None, chosen):
        leaves = cases.with_gradients(vars(inputs))
        state = cases.with_gradients(module.state_dict())
        output = _op.stack_reference(state, **leaves, n_heads=cases.HEADS, rows=only)
        output = output[:, chosen] if only is None else output
        results.append({"q": output, **cases.pull_back([output], {**leaves, **state})})
    for name, want in results[0].items():
        got, want = results[1][name].detach(), want.detach()
        assert got.isfinite().all()
        assert float((got - want).norm()) <= 1e-12 * max(1.0, float(want.norm())), name


def test_restriction_keeps_what_rows_see_and_nothing_else() -> None:
    idx = torch.tensor([[0, 4, -7], [1, 10**9, 0], [3, 2, 0], [3, 0, 0], [4, 0, 1]])
    live = torch.tensor([[1, 1, 0], [1, 0, 1], [1, 1, 1], [1, 0, 0], [0, 0, 0]]).bool()
    part = _op.restrict(idx, live, torch.tensor([1, 0, 4]))
    assert part.keys.tolist() == [0, 1, 4]
    assert part.keys[part.neighbor_idx][part.valid_mask].tolist() == [1, 0, 0, 4]
    assert torch.equal(part.valid_mask, live[[1, 0, 4]])
    per_item = torch.stack([live, torch.zeros_like(live)])
    again = _op.restrict(idx, per_item, torch.tensor([1, 0, 4]))
    assert torch.equal(again.keys, part.keys)
    assert again.valid_mask.shape == (2, 3, 3)


def test_rows_that_see_nothing() -> None:
    inputs = cases.block_inputs()
    dead = torch.tensor([7, 47])
    assert not inputs.valid_mask[dead].any()
    module = cases.stack(1)
    part = _op.restrict(inputs.neighbor_idx, inputs.valid_mask, dead)
    assert part.keys.numel() == 1
    assert not part.valid_mask.any()
    got = _op.stack_reference(module.state_dict(), *inputs.all(), cases.HEADS, rows=dead)
    want = _op.stack_reference(module.state_dict(), *inputs.all(), cases.HEADS)[:, dead]
    assert cases.error(got, want) < 1e-14
