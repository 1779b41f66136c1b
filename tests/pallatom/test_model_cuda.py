"""The layer on a GPU: dtypes, autocast, one compiled graph, CUDA graphs. Skipped where there is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pallatom.architecture.atom_transformers import build_sparse_pairs
from tests.pallatom import model_cases as cases
from variants import _op

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

DTYPES = pytest.mark.parametrize("dtype", cases.TOLERANCE, ids=str)


def on_gpu(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cuda() for name, tensor in arguments.items()}


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_index_is_that_of_the_cpu(order: str) -> None:
    tok = cases.tokens(order)
    for got, want in zip(build_sparse_pairs(tok.cuda(), 8), build_sparse_pairs(tok, 8), strict=True):
        assert got.is_cuda
        assert torch.equal(got.cpu(), want)


@DTYPES
@pytest.mark.parametrize("mask", ["shared", "per item"])
def test_stack(dtype: torch.dtype, mask: str) -> None:
    module = cases.stack(dtype=dtype).cuda()
    inputs = on_gpu(vars(cases.block_inputs(mask=mask, dtype=dtype)))
    results = []
    for reference in (False, True):
        leaves = cases.with_gradients(inputs)
        state = cases.with_gradients(module.state_dict()) if reference else dict(module.named_parameters())
        output = _op.stack_reference(state, **leaves, n_heads=cases.HEADS) if reference else module(**leaves)
        total = (output.double() * torch.linspace(-1, 1, output.numel(), device="cuda").view_as(output)).sum()
        wanted = {name: leaf for name, leaf in {**leaves, **state}.items() if leaf.requires_grad}
        gradients = dict(zip(wanted, torch.autograd.grad(total, list(wanted.values())), strict=True))
        results.append({"output": output, **gradients})
    got, want = results
    for name, value in want.items():
        if not name.endswith("norm_pair.bias"):  # 0 but for rounding
            allowed = cases.TOLERANCE[dtype] * (1 if name == "output" else cases.GRADIENT_FACTOR)
            assert cases.error(got[name], value) < allowed, name


@DTYPES
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_encoder_and_decoder(part: str, dtype: torch.dtype) -> None:
    module = getattr(cases, part)(dtype).cuda()
    inputs = on_gpu(getattr(cases, f"{part}_inputs")("shuffled", dtype=dtype))
    reference = getattr(_op, f"{part}_reference")
    want = reference(module.state_dict(), **inputs, window_size=cases.WINDOW, n_heads=cases.HEADS)
    for got, value in zip(module(**inputs), want, strict=True):
        assert got.dtype == dtype
        assert cases.error(got, value) < cases.TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_autocast(part: str, dtype: torch.dtype) -> None:
    module = getattr(cases, part)(torch.float32).cuda()
    inputs = on_gpu(getattr(cases, f"{part}_inputs")(dtype=torch.float32))
    reference = getattr(_op, f"{part}_reference")
    want = reference(module.state_dict(), **inputs, window_size=cases.WINDOW, n_heads=cases.HEADS)
    with torch.autocast("cuda", dtype):
        outputs = module(**inputs)
    for got, value in zip(outputs, want, strict=True):
        assert cases.error(got, value) < 3 * cases.TOLERANCE[dtype]
    sum(o.float().sum() for o in outputs).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_block_compiles_whole() -> None:
    torch.compiler.reset()
    block = cases.stack(1, torch.float32).blocks[0].cuda()
    inputs = on_gpu(vars(cases.block_inputs(dtype=torch.float32)))
    compiled = torch.compile(block, fullgraph=True)
    assert cases.error(compiled(**inputs), block(**inputs)) < 1e-5


def test_replays_as_a_cuda_graph() -> None:
    """Once warm, nothing in a block waits for the device."""
    module = cases.stack(2, torch.float32).cuda()
    inputs = on_gpu(vars(cases.block_inputs(dtype=torch.float32)))
    with torch.no_grad():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            want = module(**inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = module(**inputs)
        output.zero_()
        graph.replay()
    assert cases.error(output, want) < 1e-6


@pytest.mark.parametrize("name", ["q", "p", "neighbor_idx", "valid_mask"])
def test_refuses_tensors_left_on_the_cpu(name: str) -> None:
    module = cases.stack(1).cuda()
    inputs = vars(cases.block_inputs())
    with pytest.raises(ValueError, match=f"{name} must be on cuda:0, where the parameters are, got cpu"):
        module(**on_gpu(inputs) | {name: inputs[name]})
