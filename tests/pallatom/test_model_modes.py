"""The layer under other dtypes, autocast, torch.compile and inference mode; its names, its shapes, its memory."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError, install_import_hook
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pallatom.architecture.atom_transformers import (
    AtomAttentionDecoder,
    AtomFeatureEncoder,
    AtomTransformerBlock,
    build_sparse_pairs,
)
from tests.pallatom import model_cases as cases
from variants import _op

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def outputs_of(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


@DTYPES
def test_dtypes(dtype: torch.dtype) -> None:
    """Outputs and gradients keep the dtype and agree with float64 on the very same (rounded) inputs and weights."""
    module, inputs = cases.stack(dtype=dtype), cases.block_inputs(dtype=dtype)
    results = []
    for reference in (False, True):
        leaves = cases.with_gradients(vars(inputs))
        state = cases.with_gradients(module.state_dict()) if reference else dict(module.named_parameters())
        output = _op.stack_reference(state, **leaves, n_heads=cases.HEADS) if reference else module(**leaves)
        gradients = cases.pull_back([output], {**leaves, **state})
        assert all(g.dtype == dtype for g in gradients.values())
        results.append({"output": output, **gradients})
    got, want = results
    assert got["output"].dtype == dtype
    for name, value in want.items():
        if not name.endswith("norm_pair.bias"):  # 0 but for rounding
            allowed = cases.TOLERANCE[dtype] * (1 if name == "output" else cases.GRADIENT_FACTOR)
            assert cases.error(got[name], value) < allowed, name


@DTYPES
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_dtypes_of_encoder_and_decoder(part: str, dtype: torch.dtype) -> None:
    module = getattr(cases, part)(dtype)
    inputs = getattr(cases, f"{part}_inputs")(dtype=dtype)
    reference = getattr(_op, f"{part}_reference")
    want = reference(module.state_dict(), **inputs, window_size=cases.WINDOW, n_heads=cases.HEADS)
    for got, value in zip(module(**inputs), want, strict=True):
        assert got.dtype == dtype
        assert cases.error(got, value) < cases.TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    """float32 inputs and weights; also p in the narrow dtype, which mixes dtypes and is refused without autocast."""
    module, inputs = cases.stack(dtype=torch.float32), cases.block_inputs(dtype=torch.float32)
    want = _op.stack_reference(module.state_dict(), *inputs.all(), cases.HEADS)
    for p in (inputs.p, inputs.p.to(dtype)):
        leaves = cases.with_gradients(vars(inputs) | {"p": p})
        with torch.autocast("cpu", dtype):
            output = module(**leaves)
        assert output.dtype == torch.float32
        assert cases.error(output, want) < cases.TOLERANCE[dtype]
        for name, gradient in cases.pull_back([output], {**leaves, **dict(module.named_parameters())}).items():
            assert gradient.isfinite().all(), name
    with pytest.raises(TypeError, match=r"p must be torch\.float32"):
        module(**vars(inputs) | {"p": inputs.p.to(dtype)})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_autocast_of_encoder_and_decoder(part: str, dtype: torch.dtype) -> None:
    module = getattr(cases, part)(torch.float32)
    inputs = getattr(cases, f"{part}_inputs")(dtype=torch.float32)
    want = getattr(_op, f"{part}_reference")(
        module.state_dict(), **inputs, window_size=cases.WINDOW, n_heads=cases.HEADS
    )
    leaves = cases.with_gradients(inputs)
    with torch.autocast("cpu", dtype):
        outputs = module(**leaves)
    for got, value in zip(outputs, want, strict=True):
        assert cases.error(got, value) < 3 * cases.TOLERANCE[dtype]
    for name, gradient in cases.pull_back(outputs, {**leaves, **dict(module.named_parameters())}).items():
        assert gradient.isfinite().all(), name


def test_seam_takes_queries_narrower_than_pairs() -> None:
    """Under autocast Q, K, V come narrow while p may stay wide: O has Q's dtype."""
    inputs = cases.block_inputs(dtype=torch.float32)
    block = cases.stack(1, torch.float32).blocks[0]
    assert isinstance(block, AtomTransformerBlock)
    Q = torch.randn(2, inputs.q.shape[1], cases.HEADS, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    output = block._attend(Q, Q, Q, inputs.p, inputs.neighbor_idx, inputs.valid_mask)
    pair = (block.norm_pair.weight, block.norm_pair.bias, block.pair_bias.weight)
    want = _op.attention_reference(Q, Q, Q, inputs.p, *pair, inputs.neighbor_idx, inputs.valid_mask)
    assert output.dtype == torch.bfloat16
    assert cases.error(output, want) < cases.TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_large_scores_and_very_unequal_ones_stay_finite(dtype: torch.dtype) -> None:
    """Scores near ±400: exp would overflow, and rows are one-hot; the pairs' mean is far from 0."""
    block = cases.stack(1, dtype).blocks[0]
    assert isinstance(block, AtomTransformerBlock)
    inputs = cases.block_inputs(dtype=dtype)
    rng = torch.Generator().manual_seed(0)
    Q, K, V = (30 * torch.randn(2, inputs.q.shape[1], cases.HEADS, 6, generator=rng) for _ in range(3))
    leaves = cases.with_gradients({"Q": Q.to(dtype), "K": K.to(dtype), "V": V.to(dtype), "p": inputs.p + 100})
    output = block._attend(*leaves.values(), inputs.neighbor_idx, inputs.valid_mask)
    assert output.isfinite().all()
    for name, gradient in cases.pull_back([output], leaves).items():
        assert gradient.isfinite().all(), name


def test_block_compiles_whole() -> None:
    """One graph, forward and backward, and the compiled block agrees; another size recompiles and works."""
    torch.compiler.reset()
    block = cases.stack(1).blocks[0]
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for mask, window in (("shared", cases.WINDOW), ("shared", 4), ("per item", cases.WINDOW)):
        results = []
        for run in (block, compiled):
            leaves = cases.with_gradients(vars(cases.block_inputs(mask=mask, window=window)))
            output = run(**leaves)
            results.append({"q": output, **cases.pull_back([output], {**leaves, **dict(block.named_parameters())})})
        cases.assert_agree(results[1], results[0], 1e-12)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_encoder_and_decoder_break_only_at_the_index(part: str) -> None:
    """Before the index come only checks; all that follows is one graph, and it agrees."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, example: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    module = getattr(cases, part)()
    inputs = getattr(cases, f"{part}_inputs")()
    expected = module(**inputs)  # beforehand: the very first call with Dynamo loaded also makes the disabled function
    outputs = torch.compile(module, backend=count)(**inputs)
    for got, want in zip(outputs, expected, strict=True):
        assert cases.error(got, want) < 1e-12
    reasons = list(torch._dynamo.utils.counters["graph_break"])
    assert len(reasons) == len(graphs) == 1
    assert "atom_pairs" in reasons[0]


def test_shapes_alone_on_the_meta_device() -> None:
    """A block has no values to look at there; what it would cost can still be asked."""
    inputs = [tensor.to("meta") for tensor in cases.block_inputs().all()]
    assert cases.stack().to("meta")(*inputs).shape == inputs[0].shape


def test_function_transforms() -> None:
    """torch.func sees through the layer and its checks: vmap over the batch, forward-mode derivatives."""
    module, inputs = cases.stack(), cases.block_inputs()
    q, c, p, *index = inputs.all()
    one_by_one = torch.func.vmap(lambda q, c, p: module(q[None], c[None], p[None], *index)[0])(q, c, p)
    assert cases.error(one_by_one, module(*inputs.all())) < 1e-13
    leaf = q.clone().requires_grad_()
    output = module(leaf, c, p, *index)
    tangent = torch.randn(q.shape, generator=torch.Generator().manual_seed(1), dtype=q.dtype)
    forward = torch.func.jvp(lambda q: module(q, c, p, *index), (q,), (tangent,))[1]
    (backward,) = torch.autograd.grad(output, leaf, torch.ones_like(output))
    assert forward.sum().item() == pytest.approx((backward * tangent).sum().item(), rel=1e-10)


@pytest.mark.parametrize("n_atom", [0, 1])
def test_no_atoms_or_one(n_atom: int) -> None:
    arguments = cases.encoder_inputs(batch=1)
    per_atom = ("ref_pos", "ref_element", "r_scaled")
    arguments |= {name: arguments[name][:, :n_atom] for name in per_atom}
    arguments |= {name: arguments[name][:n_atom] for name in ("ref_space_uid", "tok_idx")}
    module = cases.encoder()
    want = _op.encoder_reference(module.state_dict(), **arguments, window_size=cases.WINDOW, n_heads=cases.HEADS)
    for got, value in zip(module(**arguments), want, strict=True):
        assert cases.error(got, value) < 1e-9


def test_inference_mode() -> None:
    """The same bits, and no grad on anything; an index made inside counts versions, so plans of it can be kept."""
    for part in ("encoder", "decoder"):
        module = getattr(cases, part)()
        inputs = getattr(cases, f"{part}_inputs")()
        want = module(**inputs)
        with torch.inference_mode():
            got = module(**inputs)
        for g, w in zip(got, want, strict=True):
            assert g.is_inference()
            assert torch.equal(g, w)


NORMS = {"norm_q", "norm_c", "norm_pair", "norm_ff"}
LINEARS = {"to_q", "to_k", "to_v", "to_out", "pair_bias", "ff1", "ff2"}


def affine(*names: str) -> set[str]:
    return {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}


def weights(*names: str) -> set[str]:
    return {f"{name}.weight" for name in names}


BLOCK_KEYS = affine(*NORMS) | weights(*LINEARS)
STACK_KEYS = {f"transformer.blocks.{i}.{key}" for i in range(2) for key in BLOCK_KEYS}
MLP_KEYS = {f"mlp_p.{i}.weight" for i in (0, 2, 4, 6)}


def test_parameters_are_those_of_the_api() -> None:
    assert set(cases.stack(1).blocks[0].state_dict()) == BLOCK_KEYS
    projections = ["fref_c", "d_vec", "inv_sq", "v", "cl_pair", "cm_pair", "r_scaled", "s_init", "z_init", "agg"]
    assert set(cases.encoder().state_dict()) == (
        STACK_KEYS
        | MLP_KEYS
        | affine("norm_s_init", "norm_z_init")
        | weights(*(f"proj_{name}" for name in projections))
    )
    assert set(cases.decoder().state_dict()) == (
        STACK_KEYS
        | MLP_KEYS
        | affine("norm_s_q", "norm_z", "norm_q_out", "norm_s_c")
        | weights("proj_s_q", "proj_z", "proj_r", "proj_s_c")
    )


def test_attributes_and_sizes_are_those_of_the_api() -> None:
    block = AtomTransformerBlock(128, 16, 4)
    assert (block.n_heads, block.head_dim, block.window_size) == (4, 32, 32)
    assert sum(p.numel() for p in block.parameters()) == 4 * 128**2 + 2 * 4 * 128**2 + 3 * 2 * 128 + 2 * 16 + 4 * 16
    encoder = cases.encoder()
    assert (encoder.m, encoder.window_size) == (cases.C_ATOM, cases.WINDOW)
    assert cases.decoder().window_size == cases.WINDOW


class Shapes(TorchDispatchMode):
    """Records the shape of every tensor that any operation makes, in the backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.seen.add(tuple(tensor.shape))
        return result


def test_residue_means_are_summed_wide() -> None:
    """256 and 999 ones: added up in bfloat16, the ones are lost and their number stops at 256."""
    module = cases.encoder(torch.bfloat16)
    h = torch.ones(1, 1000, cases.C_RESIDUE, dtype=torch.bfloat16)
    h[:, 0] = 256
    mean = module._residue_mean(h, torch.ones(1000, dtype=torch.int64), 3)
    assert mean.dtype == torch.bfloat16
    assert mean[0, :, 0].tolist() == pytest.approx([0, 1.255, 0], rel=2**-8)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_trunk_channels_never_meet_atom_pairs(part: str) -> None:
    """No tensor has c_pair channels for each of N * K pairs, nor N * N of anything; norm and projection come first."""
    module = getattr(cases, part)()
    leaves = cases.with_gradients(getattr(cases, f"{part}_inputs")())
    tok = leaves["tok_idx"]
    neighbor_idx, _ = build_sparse_pairs(tok, cases.WINDOW)
    n_atom, pairs = neighbor_idx.shape[0], neighbor_idx.numel()
    assert pairs > cases.N_RES**2
    with Shapes() as shapes:
        sum(o.sum() for o in module(**leaves)).backward()
    of_trunk = {shape for shape in shapes.seen if shape and shape[-1] == cases.C_PAIR}
    assert (2, cases.N_RES, cases.N_RES, cases.C_PAIR) in of_trunk
    assert all(torch.Size(shape).numel() < 2 * pairs * cases.C_PAIR for shape in of_trunk), of_trunk
    assert not any(shape[i : i + 2] == (n_atom, n_atom) for shape in shapes.seen for i in range(len(shape)))


@pytest.fixture(scope="module")
def checked() -> Iterator[ModuleType]:
    """A second copy of the modules whose jaxtyping signatures are checked on every call."""
    pytest.importorskip("beartype")
    package = "pallatom.architecture"
    plain = {name: sys.modules.pop(f"{package}.{name}") for name in ("_index", "atom_transformers")}
    try:
        with install_import_hook([f"{package}.{name}" for name in plain], "beartype.beartype"):
            yield importlib.import_module(f"{package}.atom_transformers")
    finally:
        for name, module in plain.items():
            sys.modules[f"{package}.{name}"] = module
            setattr(sys.modules[package], name, module)


def test_shapes_of_every_signature_hold(checked: ModuleType) -> None:
    encoder = checked.AtomFeatureEncoder(3 + cases.ELEMENTS, cases.C_TOKEN, cases.C_PAIR, 11, 6, 24, 2, 4, cases.WINDOW)
    decoder = checked.AtomAttentionDecoder(cases.C_TOKEN, cases.C_PAIR, 24, 6, 2, 4, cases.WINDOW)
    stack = checked.AtomTransformer(24, 6, 2, 4)
    for order in ("sorted", "shuffled"):
        encoder(**cases.encoder_inputs(order, dtype=torch.float32))
        decoder(**cases.decoder_inputs(order, dtype=torch.float32))
        for mask in ("shared", "per item"):
            stack(**vars(cases.block_inputs(order, mask, dtype=torch.float32)))
    inputs = cases.encoder_inputs(dtype=torch.bfloat16)
    inputs["tok_idx"] = inputs["tok_idx"].expand(2, -1)
    inputs["ref_space_uid"] = torch.stack([inputs["ref_space_uid"], inputs["tok_idx"][0]])
    encoder.bfloat16()(**inputs)


def test_signatures_would_notice(checked: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the checking copy does check, arguments and results."""
    with pytest.raises(TypeCheckError):
        checked.build_sparse_pairs(torch.zeros(3), 4)
    stack = checked.AtomTransformer(24, 6, 1, 4)
    inputs = vars(cases.block_inputs(dtype=torch.float32))
    with pytest.raises(TypeCheckError):
        stack(**inputs | {"c": inputs["c"][:, 1:]})
    monkeypatch.setattr(checked.AtomTransformerBlock, "forward", lambda self, q, *rest: q[..., 1:])
    with pytest.raises(TypeCheckError):
        stack(**inputs)


def test_checks_cost_nothing_in_normal_use() -> None:
    for function in (AtomTransformerBlock.forward, AtomFeatureEncoder.forward, AtomAttentionDecoder.forward):
        assert not hasattr(function, "__wrapped__")


def test_initial_parameters_are_torch_defaults() -> None:
    """No hidden initialisation: norms start at 1 and 0 with torch's eps, linears have no bias."""
    for module in (AtomFeatureEncoder(8, 20, 14, 20, 6, 24, 1, 4), AtomAttentionDecoder(20, 14, 24, 6)):
        for layer in module.modules():
            if isinstance(layer, nn.LayerNorm):
                assert layer.weight.eq(1).all()
                assert layer.bias.eq(0).all()
                assert layer.eps == 1e-5
            if isinstance(layer, nn.Linear):
                assert layer.bias is None
