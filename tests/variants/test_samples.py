"""Every backend where samples share pairs: outputs and all gradients against the definition, or refused by name."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch import Tensor

import variants
from pallatom.architecture import _samples
from pallatom.architecture.atom_transformers import AtomTransformerBlock
from tests.pallatom import model_cases
from tests.variants.variant_cases import PARAMETERS, Problem, answer, errors, problem
from variants import _op
from variants._op import attention_reference
from variants._require import require

TOLERANCE = {torch.float64: 1e-9, torch.float32: 5e-5, torch.bfloat16: 3e-2}
WEIGHT_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-1}
ENTRIES, SAMPLES = (1, 2), (1, 2, 5)
MASKS = ("shared", "per entry", "per item")
CASES = ("nan_in_padding", "dead_rows")
COMPILED = ("gather_compiled", "flex")  # seconds a shape


@functools.cache
def shared(
    case: str, entries: int, samples: int, *, own_c: bool, mask: str, dtype: torch.dtype, device: str = "cpu"
) -> Problem:
    """A case's problem with ``samples`` items an entry of p; K and V of each item or of each entry."""
    given = problem(case, torch.float64)
    batch = entries * samples
    g = torch.Generator().manual_seed(batch + own_c)
    _, n, heads, dim = given.inputs[0].shape

    def draw(count: int) -> Tensor:
        return torch.randn(count, n, heads, dim, generator=g, dtype=torch.float64)

    live = given.valid_mask[:entries]
    if mask == "shared":
        live = given.valid_mask.all(0)
    if mask == "per item":
        live = live.repeat_interleave(samples, 0)
        live = live & (torch.rand(live.shape, generator=g) > 0.2) if case == "nan_in_padding" else live
    union = _samples.live_in_any(live if live.dim() == 3 else live[None], entries)
    p = given.inputs[3][:entries].masked_fill(~union[..., None], torch.nan)
    keys = batch if own_c else entries
    inputs = tuple(x.to(device, dtype) for x in (draw(batch), draw(keys), draw(keys), p))
    block = variants.convert(given.block, "gather")
    assert isinstance(block, AtomTransformerBlock)
    fresh = AtomTransformerBlock(heads * dim, p.shape[3], heads).double()
    fresh.load_state_dict(block.state_dict())
    return Problem(
        fresh.to(device, dtype), inputs, given.neighbor_idx.to(device), live.to(device), draw(batch).to(device, dtype)
    )


def wanted(given: Problem) -> dict[str, Tensor]:
    leaves = [x.detach().double().requires_grad_() for x in given.inputs]
    leaves += [given.block.get_parameter(name).detach().double().requires_grad_() for name in PARAMETERS]
    out = attention_reference(*leaves, given.neighbor_idx, given.valid_mask)
    found = torch.autograd.grad(out, leaves, given.grad_out.double(), materialize_grads=True)
    return {"O": out.detach()} | {f"d{name}": x for name, x in zip(("Q", "K", "V", "p", *PARAMETERS), found)}


def wrong(got: dict[str, Tensor], given: Problem) -> dict[str, str]:
    """What is off, and by how much; a gradient in a slot that no sample sees."""
    dtype = given.inputs[0].dtype
    weights = {f"d{name}" for name in PARAMETERS}
    found = {}
    for name, error in errors(got, wanted(given)).items():
        limit = (WEIGHT_TOLERANCE if name in weights else TOLERANCE)[dtype]
        if not error <= limit:
            found[name] = f"{error:.1e} > {limit:.0e}"
    if "dp" in got:
        live = given.valid_mask if given.valid_mask.dim() == 3 else given.valid_mask[None]
        dead = ~_samples.live_in_any(live, len(got["dp"])).expand(got["dp"].shape[:3])
        if (got["dp"][dead] != 0).any():
            found["padding"] = "a gradient"
    return found


def check(block: AtomTransformerBlock, given: Problem, *, backward: bool) -> dict[str, str]:
    if backward:
        return wrong(answer(block, given), given)
    with torch.no_grad():
        out = block._attend(*given.inputs, given.neighbor_idx, given.valid_mask)
    return wrong({"O": out}, given)


def _cells():
    for name in variants.names():
        if name == "triton_fused":
            continue  # in the interpreter: test_triton_samples
        for entries in ENTRIES:
            for samples in SAMPLES:
                for own_c in (False, True):
                    for mask in MASKS:
                        few = (entries, samples, own_c, mask) in ((2, 2, False, "per entry"), (1, 5, True, "per item"))
                        if few or name not in COMPILED:
                            yield name, entries, samples, own_c, mask


@pytest.mark.parametrize(("name", "entries", "samples", "own_c", "mask"), list(_cells()))
def test_conforms_or_says_why_not(name: str, entries: int, samples: int, own_c: bool, mask: str) -> None:
    backend, dtype = variants.load(name), torch.float32
    for case in CASES if name not in COMPILED else CASES[:1]:
        given = shared(case, entries, samples, own_c=own_c, mask=mask, dtype=dtype)
        block = variants.convert(given.block, name)
        assert isinstance(block, AtomTransformerBlock)
        if variants.why_unavailable(name, dtype=dtype) or (samples > 1 and not backend.samples):
            with pytest.raises(variants.UnsupportedError) as refusal, torch.no_grad():
                block._attend(*given.inputs, given.neighbor_idx, given.valid_mask)
            assert refusal.value.reasons
            continue
        assert not check(block, given, backward="cpu" in backend.backward), case


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", [x for x in variants.names() if x not in (*COMPILED, "triton_fused")])
def test_conforms_in_other_dtypes(name: str, dtype: torch.dtype) -> None:
    backend = variants.load(name)
    if variants.why_unavailable(name, dtype=dtype, backward=True) or not backend.samples:
        return
    for own_c, mask in ((False, "per entry"), (True, "per item")):
        given = shared(CASES[0], 2, 3, own_c=own_c, mask=mask, dtype=dtype)
        block = variants.convert(given.block, name)
        assert isinstance(block, AtomTransformerBlock)
        assert not check(block, given, backward=True)


class _FirstEntry(AtomTransformerBlock):
    """Reads p[0] for every item."""

    def _attend(self, Q, K, V, p, neighbor_idx, valid_mask):
        return super()._attend(Q, K, V, p[:1].expand_as(p), neighbor_idx, valid_mask)


class _NoSum(AtomTransformerBlock):
    """Gives the first sample's gradient of p for that of all."""

    def _attend(self, Q, K, V, p, neighbor_idx, valid_mask):
        first = super()._attend(Q, K, V, p, neighbor_idx, valid_mask)
        rest = super()._attend(Q, K, V, p.detach(), neighbor_idx, valid_mask)
        is_first = torch.arange(len(Q)) % (len(Q) // len(p)) == 0
        return torch.where(is_first[:, None, None, None], first, rest)


class _Slowest(AtomTransformerBlock):
    """Takes item i to use entry i mod B_p."""

    def _attend(self, Q, K, V, p, neighbor_idx, valid_mask):
        return super()._attend(Q, K, V, p.repeat(len(Q) // len(p), 1, 1, 1), neighbor_idx, valid_mask)


PLANTED = {"reads p[0] for all": _FirstEntry, "forgets the sum": _NoSum, "orders samples slowest": _Slowest}


@pytest.mark.parametrize("kind", [AtomTransformerBlock, *PLANTED.values()])
def test_planted_backends_are_red(kind: type[AtomTransformerBlock]) -> None:
    given = shared(CASES[0], 2, 2, own_c=True, mask="shared", dtype=torch.float64)
    block = variants.convert(given.block, "gather")
    block.__class__ = kind
    assert isinstance(block, AtomTransformerBlock)
    found = check(block, given, backward=True)
    assert bool(found) == (kind is not AtomTransformerBlock)
    if kind is _NoSum:
        assert set(found) & {"dp", "dpair_bias.weight"}
        assert not set(found) & {"O", "dQ", "dK", "dV"}
    elif found:
        assert "O" in found


def test_a_backend_without_samples_refuses_them() -> None:
    given = shared(CASES[0], 2, 2, own_c=True, mask="shared", dtype=torch.float32)
    without = dataclasses.replace(variants.load("gather"), samples=False)
    with pytest.raises(variants.UnsupportedError, match="samples: an entry of p for each item is required, 2 for 4"):
        require(without, given.block, *given.inputs)
    require(variants.load("gather"), given.block, *given.inputs)


@pytest.mark.parametrize("own", ["", "z", "s"])
@pytest.mark.parametrize("name", ["banded", "cpu_fused", "dense"])
def test_encoder_and_decoder_conform(name: str, own: str) -> None:
    """Three samples of each of two systems, which may have a z or an s of their own."""
    for module, inputs, noised, suffix, reference in (
        (model_cases.encoder(torch.float32), model_cases.encoder_inputs, "r_scaled", "_input", _op.encoder_reference),
        (model_cases.decoder(torch.float32), model_cases.decoder_inputs, "q_skip", "", _op.decoder_reference),
    ):
        given, many = (inputs(batch=batch, seed=3, dtype=torch.float32) for batch in (2, 6))
        given |= {key: many[key] for key in (noised, own + suffix if own else noised)}
        sizes = {"window_size": model_cases.WINDOW, "n_heads": model_cases.HEADS}
        state, fast = dict(module.named_parameters()), variants.convert(module, name)
        results = []
        for run in (fast, functools.partial(reference, state, **sizes)):
            leaves = model_cases.with_gradients(given)
            outputs = run(**leaves)
            gradients = model_cases.pull_back(outputs, {**leaves, **state})
            results.append({f"output {i}": x for i, x in enumerate(outputs)} | gradients)
        model_cases.assert_agree(results[0], results[1], 1e-4)
