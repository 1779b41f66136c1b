"""Samples that share pairs, conditioning and masks: outputs, every gradient, and what is never made M times."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.harness.ruler import memory
from pallatom.architecture.atom_transformers import AtomTransformerBlock, build_sparse_pairs
from tests.pallatom import model_cases as cases
from tests.pallatom.test_model import both
from variants import _op

TIGHT = 1e-9
SAMPLES = [1, 2, 5]


def shared_inputs(entries: int, samples: int, *, own_c: bool, mask: str, dtype: torch.dtype = torch.float64) -> dict:
    """A block's arguments: q of every sample, c of each or of each entry; `mask`: shared, per entry, per item."""
    batch = entries * samples
    given = cases.block_inputs(mask="shared" if mask == "shared" else "per item", batch=entries, dtype=dtype)
    rng = torch.Generator().manual_seed(7)
    q = torch.randn(batch, *given.q.shape[1:], generator=rng, dtype=torch.float64).to(dtype)
    c = torch.randn(batch if own_c else entries, *given.c.shape[1:], generator=rng, dtype=torch.float64).to(dtype)
    live = given.valid_mask
    if mask == "per item":  # an entry's padding is what no sample of it sees
        live = live.repeat_interleave(samples, 0)
        kept = torch.rand(live.shape, generator=rng) > 0.2
        kept.view(entries, samples, *live.shape[1:])[:, 0] = True
        live = live & kept
    return {"q": q, "c": c, "p": given.p, "neighbor_idx": given.neighbor_idx, "valid_mask": live}


@pytest.mark.parametrize("mask", ["shared", "per entry", "per item"])
@pytest.mark.parametrize("own_c", [False, True])
@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize("entries", [1, 2])
def test_stack_agrees(entries: int, samples: int, own_c: bool, mask: str) -> None:
    inputs = shared_inputs(entries, samples, own_c=own_c, mask=mask)
    got, want = both(
        cases.stack(), inputs, lambda state, leaves: _op.stack_reference(state, **leaves, n_heads=cases.HEADS)
    )
    assert got["d p"].shape == inputs["p"].shape
    cases.assert_agree(got, want, TIGHT)


def test_the_reference_is_that_of_repeated_entries() -> None:
    """Item b M + i uses entry b: as if every shared tensor had been repeated, the sample fastest."""
    inputs = shared_inputs(2, 3, own_c=False, mask="per entry")
    state = cases.stack().state_dict()
    alone = {name: x.repeat_interleave(3, 0) if name in ("c", "p", "valid_mask") else x for name, x in inputs.items()}
    one, other = (_op.stack_reference(state, **given, n_heads=cases.HEADS) for given in (inputs, alone))
    assert torch.equal(one, other)


@pytest.mark.parametrize("own", ["", "s", "z", "s and z"])
@pytest.mark.parametrize("uid", ["shared", "per entry"])
@pytest.mark.parametrize("samples", SAMPLES)
def test_encoder_agrees(samples: int, uid: str, own: str) -> None:
    inputs, many = cases.encoder_inputs(), cases.encoder_inputs(batch=2 * samples, seed=3)
    inputs["r_scaled"] = many["r_scaled"]
    if uid == "per entry":
        inputs["ref_space_uid"] = torch.stack([inputs["ref_space_uid"], inputs["tok_idx"] // 2])
    for letter in "sz":
        if letter in own.split():
            inputs[f"{letter}_input"] = many[f"{letter}_input"]
    got, want = both(
        cases.encoder(),
        inputs,
        lambda state, leaves: _op.encoder_reference(state, **leaves, window_size=cases.WINDOW, n_heads=cases.HEADS),
    )
    batches = [len(got[f"output {i}"]) for i in range(5)]
    assert batches == [2 * samples, 2 * samples, 2, 2, len(inputs["s_input"])]
    cases.assert_agree(got, want, TIGHT)


@pytest.mark.parametrize("own", ["", "s", "z", "s z c", "c c_skip"])
@pytest.mark.parametrize("samples", SAMPLES)
def test_decoder_agrees(samples: int, own: str) -> None:
    inputs, many = cases.decoder_inputs(), cases.decoder_inputs(batch=2 * samples, seed=3)
    for name in ("q_skip", *own.split()):
        inputs[name] = many[name]
    got, want = both(
        cases.decoder(),
        inputs,
        lambda state, leaves: _op.decoder_reference(state, **leaves, window_size=cases.WINDOW, n_heads=cases.HEADS),
    )
    assert len(got["output 1"]) == len(inputs["z"])
    cases.assert_agree(got, want, TIGHT)


def test_gradients_are_summed_in_float32() -> None:
    """257 equal gradients in bfloat16: added up one by one in bfloat16 the sum stops at 256."""
    samples = 257
    given = cases.block_inputs(batch=1, dtype=torch.bfloat16)
    block = cases.stack(1, torch.bfloat16).blocks[0]
    heads = (1, given.q.shape[1], cases.HEADS, cases.C_ATOM // cases.HEADS)
    rng = torch.Generator().manual_seed(2)
    q, k, v, grad = (torch.randn(heads, generator=rng).bfloat16() for _ in range(4))

    def gradients(count: int) -> tuple[Tensor, ...]:
        leaves = [x.clone().requires_grad_() for x in (k, v, given.p)]
        out = block._attend(q.expand(count, -1, -1, -1).clone(), *leaves, given.neighbor_idx, given.valid_mask)
        return torch.autograd.grad(out, leaves, grad.expand_as(out))

    for one, many in zip(gradients(1), gradients(samples), strict=True):
        assert cases.error(many.float(), samples * one.float()) < 1e-2


@pytest.mark.parametrize("expanded", ["p", "c", "p and c", "p and c and mask"])
@pytest.mark.parametrize("trained", [False, True])
def test_expanded_tensors_agree(expanded: str, trained: bool) -> None:
    """Stride 0 over the batch: the same numbers, and where gradients are wanted each item its own."""
    mask = "per entry" if "mask" in expanded else "shared"
    inputs = shared_inputs(1, 3, own_c=expanded == "p", mask=mask)
    given = dict(inputs)
    for name, key in (("p", "p"), ("c", "c"), ("mask", "valid_mask")):
        if name in expanded.split():
            given[key] = inputs[key].expand(3, *inputs[key].shape[1:])
    module = cases.stack()
    if not trained:
        with torch.no_grad():
            assert cases.error(module(**given), module(**inputs)) < 1e-14
        return
    got, want = both(module, given, lambda state, leaves: _op.stack_reference(state, **leaves, n_heads=cases.HEADS))
    cases.assert_agree(got, want, TIGHT)


def test_one_entry_each_is_the_plain_case_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of how samples are taken apart runs where no two share anything."""
    from pallatom.architecture import _samples

    monkeypatch.setattr(_samples, "of_samples", None)
    inputs = cases.block_inputs(mask="per item")
    want = _op.stack_reference(cases.stack().state_dict(), *inputs.all(), cases.HEADS)
    assert cases.error(cases.stack()(*inputs.all()), want) < TIGHT


@pytest.mark.parametrize("expanded", [False, True])
def test_no_forward_grows_by_samples_times_p(expanded: bool) -> None:
    """What 12 samples take above one is atoms: less than one more p."""
    samples, n_atom, c_atom, c_atompair = 12, 96, 8, 32
    idx, live = build_sparse_pairs(torch.arange(n_atom), 2 * n_atom)
    rng = torch.Generator().manual_seed(0)
    q = torch.randn(samples, n_atom, c_atom, generator=rng)
    c, p = torch.randn(1, n_atom, c_atom, generator=rng), torch.randn(1, *idx.shape, c_atompair, generator=rng)
    shared = [x.expand(samples, *x.shape[1:]) if expanded else x for x in (c, p)]
    block = AtomTransformerBlock(c_atom, c_atompair, 2)
    with torch.no_grad():
        one, many = (memory.peak_memory(call, "cpu")[0] for call in (
            lambda: block(q[:1], c, p, idx, live), lambda: block(q, *shared, idx, live),
        ))  # fmt: skip
    assert 8 * q.nbytes < p.nbytes
    assert many - one < 8 * q.nbytes


def test_second_derivatives() -> None:
    inputs = shared_inputs(1, 2, own_c=False, mask="shared")
    keep = 12  # atoms: enough for a window, few enough for differences
    live = inputs["valid_mask"][:keep] & (inputs["neighbor_idx"][:keep] < keep)
    q, c, p = inputs["q"][:, :keep], inputs["c"][:, :keep], inputs["p"][:, :keep].nan_to_num(0, 0, 0)
    leaves = [x.detach().clone().requires_grad_() for x in (q, c, p)]
    idx = inputs["neighbor_idx"][:keep].masked_fill(~live, 0)
    block = cases.stack(1).blocks[0]
    assert torch.autograd.gradgradcheck(lambda q, c, p: block(q, c, p, idx, live), leaves, fast_mode=True)


def test_a_compiled_stack_agrees() -> None:
    inputs = shared_inputs(1, 2, own_c=True, mask="per item")
    module = cases.stack(1)
    results = []
    for run in (torch.compile(module, backend="aot_eager", fullgraph=True), module):
        leaves = cases.with_gradients(inputs)
        out = run(**leaves)
        results.append({"q": out, **cases.pull_back([out], {**leaves, **dict(module.named_parameters())})})
    torch._dynamo.reset()
    cases.assert_agree(results[0], results[1], TIGHT)
