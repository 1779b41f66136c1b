"""Kinds of calls that were wrong in silence somewhere: every backend computes the definition, or refuses by name."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

import variants
from tests.variants.fuzz_problems import Call, Draw, answer, call_of, faults, reference
from tests.variants.variant_cases import problem
from variants import UnsupportedError

HALF = (torch.bfloat16, torch.float16)
USUAL = Draw(n=56, slots=16, heads=4, dim=8, index="capped", mask="holes")  # 56: 8 beyond a multiple of 16
VALUES = {
    "near-constant pairs": [replace(USUAL, dtype=dtype, offset=1000.0) for dtype in (torch.float32, *HALF)],
    "constant pairs": [replace(USUAL, pairs=0.0)],
    "huge pairs": [replace(USUAL, pairs=1e20), replace(USUAL, pairs=1e20, dtype=torch.bfloat16)],
    "tiny values": [replace(USUAL, qk=1e-20, pairs=1e-20)],
    "saturated softmax": [replace(USUAL, dtype=dtype, qk=30.0) for dtype in (torch.float32, *HALF)],
    "dead item": [replace(USUAL, mask="dead item")],
    "all dead": [replace(USUAL, mask="all dead")],
    "expanded": [replace(USUAL, layout="expanded")],
    "strided": [replace(USUAL, layout="strided")],
    "inference mode": [replace(USUAL, mode="inference")],
    "no affine": [replace(USUAL, affine=False)],
    "another eps": [replace(USUAL, eps=0.3)],
    "wide pairs": [replace(USUAL, dtype=torch.bfloat16, wide_pairs=True)],
    "any order": [replace(USUAL, index="scattered")],
    "neighbours twice": [replace(USUAL, index="repeated")],
}
SIZES = [
    replace(USUAL, n=48 + beyond, dim=dim, heads=2, channels=channels)
    for beyond in (0, 1, 8, 15)
    for dim, channels in ((8, 16), (16, 8), (24, 5), (32, 16), (48, 3), (64, 8))
]
COMPILED_VALUES = ("near-constant pairs", "saturated softmax", "dead item")


def _marked(name: str, *values: object, label: str):
    return pytest.param(name, *values, id=f"{name}-{label}", marks=pytest.mark.interpreted if "triton" in name else ())


def _values():
    """Backends that compile every shape and dtype get a few kinds of one shape in float32."""
    for name in variants.names():
        compiles = variants.load(name).compiles
        for kind, draws in VALUES.items():
            for draw in draws[:1] if compiles or "triton" in name else draws:
                if kind in COMPILED_VALUES or not compiles:
                    yield _marked(name, draw, label=f"{kind}-{str(draw.dtype)[6:]}")


def _sizes():
    for name in variants.names():
        few = variants.load(name).compiles or "triton" in name  # compiled, or interpreted: seconds each
        for draw in [SIZES[12], SIZES[19]] if few else SIZES:
            yield _marked(name, draw, label=f"N {draw.n} D {draw.dim}")


@functools.cache
def expected(draw: Draw, backward: bool) -> tuple[Call, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The call, the layer's answer, the definition's."""
    call = call_of(draw)
    return call, answer(call.block, call, backward=backward), reference(call, backward=backward)


def check(name: str, draw: Draw) -> None:
    backend = variants.load(name)
    backward = draw.mode == "grad" and "cpu" in backend.backward
    call, layer, want = expected(draw, backward)
    try:
        got = answer(variants.convert(call.block, name), call, backward=backward)
    except UnsupportedError as refusal:
        assert refusal.reasons  # noqa: PT017
        return
    assert not faults(got, layer, want, call)


@pytest.mark.parametrize(("name", "draw"), list(_values()))
def test_every_kind_of_values(name: str, draw: Draw) -> None:
    check(name, draw)


@pytest.mark.parametrize(("name", "draw"), list(_sizes()))
def test_every_kind_of_sizes(name: str, draw: Draw) -> None:
    check(name, draw)


def _seam(name: str, mask: torch.Tensor, idx: torch.Tensor, case: str = "random_holes") -> torch.Tensor:
    given = problem(case, torch.float32)
    block = variants.convert(given.block, name)
    with torch.no_grad():
        return block._attend(*given.inputs, idx, mask)


NAMES = [_marked(name, label="") for name in variants.names()]


@pytest.mark.parametrize("name", NAMES)
def test_an_edit_is_seen_whoever_makes_it(name: str) -> None:
    """Counted by torch, through NumPy, through ``.data``, and of tensors that count nothing."""
    given = problem("random_holes", torch.float32)
    with torch.inference_mode():
        uncounted = given.valid_mask.clone()
    edits = [
        (given.valid_mask.clone(), lambda mask: mask[:, 20:30].fill_(False)),
        (given.valid_mask.clone(), lambda mask: mask.numpy()[:, 20:30].fill(False)),
        (given.valid_mask.clone(), lambda mask: mask.data[:, 20:30].fill_(False)),
        (uncounted, lambda mask: mask[:, 20:30].fill_(False)),
    ]
    for mask, edit in edits:
        with torch.inference_mode(mask.is_inference()):
            try:
                _seam(name, mask, given.neighbor_idx)
            except UnsupportedError:
                assert variants.why_unavailable(name)
                return
            edit(mask)
            got = _seam(name, mask, given.neighbor_idx)
            want = _seam("gather", mask.clone(), given.neighbor_idx)
        assert (got[:, 20:30] == 0).all()
        assert torch.allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("bad", [-1, 70])
@pytest.mark.parametrize("name", NAMES)
def test_a_live_slot_without_an_atom_is_refused_at_the_seam(name: str, bad: int) -> None:
    given = problem("random_holes", torch.float32)
    row, slot = given.valid_mask.any(0).nonzero()[-1].tolist()
    idx = given.neighbor_idx.clone()
    idx[row, slot] = bad
    if variants.why_unavailable(name):
        with pytest.raises(UnsupportedError):
            _seam(name, given.valid_mask, idx)
        return
    with pytest.raises(ValueError, match=rf"neighbor_idx must lie in \[0, N=70\).* got {bad} at \[{row}, {slot}\]"):
        _seam(name, given.valid_mask, idx)
    idx.copy_(given.neighbor_idx)
    assert _seam(name, given.valid_mask, idx).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_what_was_planned_in_inference_mode_serves_training(name: str) -> None:
    backend, given = variants.load(name), problem("random_holes", torch.float32)
    if variants.why_unavailable(name) or "cpu" not in backend.backward:
        pytest.skip("; ".join(variants.why_unavailable(name)) or "no gradients on CPU")
    idx, mask = given.neighbor_idx.clone(), given.valid_mask.clone()
    with torch.inference_mode():
        _seam(name, mask, idx)
    leaves = [x.detach().clone().requires_grad_() for x in given.inputs]
    out = variants.convert(given.block, name)._attend(*leaves, idx, mask)
    assert all(x.isfinite().all() for x in torch.autograd.grad(out, leaves, given.grad_out))
