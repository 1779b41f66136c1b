"""How backends are called in real models: one gradient alone, odd strides, autocast, checkpoints, torch.compile."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import variants
from benchmarks.harness.ruler.device import peak_memory
from pallatom.architecture.atom_transformers import AtomTransformer, build_sparse_pairs
from tests.variants.variant_cases import INPUTS, PARAMETERS, answer, errors, problem, reference
from variants import Shape

EAGER = [
    name
    for name in variants.names()
    if not variants.load(name).compiles and not variants.why_unavailable(name, backward=True)
]
F32 = torch.float32


def _call(block: torch.nn.Module, inputs: list[Tensor], case: str) -> Tensor:
    given = problem(case, F32)
    return block._attend(*inputs, given.neighbor_idx, given.valid_mask)


@pytest.mark.parametrize("name", EAGER)
@pytest.mark.parametrize("wanted", [*INPUTS, *PARAMETERS])
def test_one_gradient_alone(name: str, wanted: str) -> None:
    given = problem("dead_rows", F32)
    block = variants.convert(given.block, name)
    inputs = [x.detach().clone() for x in given.inputs]
    tensors = dict(zip(INPUTS, inputs, strict=True)) | {x: block.get_parameter(x) for x in PARAMETERS}
    try:
        for parameter in block.parameters():
            parameter.requires_grad_(False)
        tensors[wanted].requires_grad_(True)
        out = _call(block, inputs, "dead_rows")
        (gradient,) = torch.autograd.grad(out, tensors[wanted], given.grad_out)
    finally:
        block.requires_grad_(True)  # shared with the cached problem
    ref = reference("dead_rows", F32)
    assert errors({f"d{wanted}": gradient}, ref)[f"d{wanted}"] < 1e-4


@pytest.mark.parametrize("name", EAGER)
def test_strides_do_not_matter(name: str) -> None:
    given = problem("random_holes", F32)
    block = variants.convert(given.block, name)
    q, k, v, p = given.inputs
    odd = [
        q.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        torch.stack([k, k], 2)[:, :, 1],
        v.transpose(1, 2).contiguous().transpose(1, 2),
        p.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    ]
    leaves = [x.detach().requires_grad_() for x in odd]
    out = _call(block, leaves, "random_holes")
    gradients = torch.autograd.grad(out, leaves, given.grad_out)
    got = {"O": out.detach()} | {f"d{x}": g for x, g in zip(INPUTS, gradients, strict=True)}
    found = errors(got, reference("random_holes", F32))
    assert max(found.values()) < 5e-5, found


@pytest.mark.parametrize("name", EAGER)
def test_a_broadcast_gradient_is_taken(name: str) -> None:
    """The gradient of a plain sum is one number under zero strides."""
    given = problem("ragged", F32)
    block = variants.convert(given.block, name)
    inputs = [x.detach().clone().requires_grad_() for x in given.inputs]
    _call(block, inputs, "ragged").sum().backward()
    plain = [x.detach().clone().requires_grad_() for x in given.inputs]
    _call(given.block, plain, "ragged").sum().backward()
    given.block.zero_grad()
    for got, ref in zip(inputs, plain, strict=True):
        assert torch.allclose(got.grad, ref.grad, atol=1e-4)


@pytest.mark.parametrize("name", EAGER)
def test_the_same_call_twice_gives_the_same_bits(name: str) -> None:
    given = problem("random_holes", F32)
    block = variants.convert(given.block, name)
    first, second = answer(block, given), answer(block, given)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", EAGER)
def test_autocast_gives_narrow_queries_and_wide_pairs(name: str) -> None:
    given = problem("two_chains", F32)
    block = variants.convert(given.block, name)
    narrow = [x.bfloat16() for x in given.inputs[:3]]
    leaves = [x.detach().clone().requires_grad_() for x in (*narrow, given.inputs[3])]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = _call(block, leaves, "two_chains")
    gradients = torch.autograd.grad(out, leaves, given.grad_out.bfloat16())
    assert out.dtype == torch.bfloat16
    assert [g.dtype for g in gradients] == [torch.bfloat16] * 3 + [torch.float32]
    got = {"O": out.detach()} | {f"d{x}": g for x, g in zip(INPUTS, gradients, strict=True)}
    found = errors(got, reference("two_chains", F32))
    assert max(found.values()) < 4e-2, found


@pytest.mark.parametrize("name", EAGER)
def test_a_checkpointed_block_recomputes_itself(name: str) -> None:
    given = problem("ragged", F32)
    block = variants.convert(given.block, name)
    inputs = [x.detach().clone().requires_grad_() for x in given.inputs]
    out = checkpoint(lambda *x: _call(block, list(x), "ragged"), *inputs, use_reentrant=False)
    gradients = torch.autograd.grad(out, inputs, given.grad_out)
    found = errors({f"d{x}": g for x, g in zip(INPUTS, gradients, strict=True)}, reference("ragged", F32))
    assert max(found.values()) < 5e-5, found


def test_editing_p_between_forward_and_backward_is_an_error() -> None:
    given = problem("ragged", F32)
    block = variants.convert(given.block, "banded")
    inputs = [x.detach().clone().requires_grad_() for x in given.inputs]
    out = _call(block, inputs, "ragged")
    with torch.no_grad():
        inputs[3].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_compiled_model_may_hold_banded() -> None:
    torch.manual_seed(0)
    model = variants.convert(AtomTransformer(16, 4, n_blocks=2, n_heads=2, window_size=6), "banded")
    idx, mask = build_sparse_pairs(torch.arange(30) // 4, 6)
    q, c, p = torch.randn(1, 30, 16), torch.randn(1, 30, 16), torch.randn(1, 30, idx.shape[1], 4)
    compiled = torch.compile(model, backend="aot_eager")
    eager_out, compiled_out = model(q, c, p, idx, mask), compiled(q, c, p, idx, mask)
    assert torch.allclose(eager_out, compiled_out, atol=1e-6)
    wanted = list(model.parameters())
    eager = torch.autograd.grad(eager_out.square().sum(), wanted, allow_unused=True)
    got = torch.autograd.grad(compiled_out.square().sum(), wanted, allow_unused=True)
    for ours, theirs in zip(got, eager, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", EAGER)
@pytest.mark.parametrize(("residues", "window"), [(36, 16), (50, 4)])
def test_predicted_peak_is_what_the_allocator_sees(name: str, residues: int, window: int) -> None:
    step, shape = _measured_call(name, residues, window)
    cost = variants.load(name).cost
    for mode in ("fwd", "fwdbwd"):
        measured, _ = peak_memory(lambda mode=mode: step(mode), "cpu")
        assert measured is not None
        assert 1 / 1.75 < cost(shape, mode).peak_bytes / measured < 1.75, mode


def test_banded_stores_nothing_as_large_as_p_but_its_gradient() -> None:
    step, shape = _measured_call("banded", 100, 32)
    forward, _ = peak_memory(lambda: step("fwd"), "cpu")
    both, _ = peak_memory(lambda: step("fwdbwd"), "cpu")
    assert 0 < forward < 0.3 * shape.p_bytes
    assert shape.p_bytes < both < 1.5 * shape.p_bytes


@pytest.mark.parametrize("name", EAGER)
def test_predicted_peak_of_samples_that_share_p(name: str) -> None:
    step, shape = _measured_call(name, 36, 16, samples=8)
    cost = variants.load(name).cost
    for mode in ("fwd", "fwdbwd"):
        measured, _ = peak_memory(lambda mode=mode: step(mode), "cpu")
        assert 1 / 1.75 < cost(shape, mode).peak_bytes / measured < 1.75, mode


@pytest.mark.parametrize("name", ["banded", "cpu_fused"])
def test_samples_hold_no_pair_tensor_each(name: str) -> None:
    """Above one sample, seven more take what their atoms do: forward less than a p, with gradients less than two."""
    steps = [_measured_call(name, 73, 32, samples=samples)[0] for samples in (1, 8)]
    p_bytes = _measured_call(name, 73, 32)[1].p_bytes
    for mode, most in (("fwd", 1.0), ("fwdbwd", 2.0)):
        one, many = (peak_memory(lambda step=step, mode=mode: step(mode), "cpu")[0] for step in steps)
        assert many - one < most * p_bytes, mode


@pytest.mark.parametrize(
    ("name", "trained"), [*((name, False) for name in EAGER), ("banded", True), ("cpu_fused", True)]
)
def test_a_forward_copies_no_expanded_p(name: str, trained: bool) -> None:
    """Not for the gradients of other tensors; those that read p themselves not for its own either."""
    torch.manual_seed(0)
    idx, mask = build_sparse_pairs(torch.arange(14 * 36) // 14, 16)
    block = variants.convert(AtomTransformer(16, 64, n_blocks=1, n_heads=1).blocks[0], name)
    q, k, v = (torch.randn(8, len(idx), 1, 16) for _ in range(3))
    p = torch.randn(1, *idx.shape, 64, requires_grad=trained)
    peaks = []
    for batch in (1, 8):
        given = (*(x[:batch] for x in (q, k, v)), p.expand(batch, -1, -1, -1), idx, mask)
        block._attend(*given)
        peaks.append(peak_memory(lambda given=given: block._attend(*given), "cpu")[0])
    assert peaks[1] - peaks[0] < p.nbytes


def _measured_call(name: str, residues: int, window: int, samples: int = 1):
    torch.manual_seed(0)
    idx, mask = build_sparse_pairs(torch.arange(14 * residues) // 14, window)
    n, slots = idx.shape
    block = variants.convert(AtomTransformer(128, 16, n_blocks=1, n_heads=4).blocks[0], name)
    leaves = [torch.randn(samples, n, 4, 32, requires_grad=True) for _ in range(3)]
    leaves.append(torch.randn(1, n, slots, 16, requires_grad=True))
    wanted = [*leaves, *(block.get_parameter(x) for x in PARAMETERS)]
    grad_out = torch.randn(samples, n, 4, 32)

    def step(mode: str) -> object:
        with torch.set_grad_enabled(mode == "fwdbwd"):
            out = block._attend(*leaves, idx, mask)
        return (out, torch.autograd.grad(out, wanted, grad_out)) if mode == "fwdbwd" else out

    step("fwdbwd")
    return step, Shape(samples, n, slots, 4, 32, 16, samples * int(mask.sum()), 4, 4, samples=samples)
