"""The seam of the pairs: every backend that makes them agrees with the layer in float64, gradients too, or refuses."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import variants
from benchmarks.harness.ruler.memory import peak_memory
from pallatom.architecture import _samples
from pallatom.architecture import atom_transformers as layer
from pallatom.architecture._index import atom_pairs
from tests.pallatom import model_cases as cases
from variants import UnsupportedError, _op

MAKERS = [n for n in variants.names() if variants.load(n).encoder is not None and not variants.why_unavailable(n)]
BACKENDS = pytest.mark.parametrize("backend", MAKERS)
PARTS = pytest.mark.parametrize("part", ["encoder", "decoder"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_some_backend_makes_pairs() -> None:
    assert "cpu_fused" in MAKERS or variants.why_unavailable("cpu_fused")


@BACKENDS
@pytest.mark.parametrize(("part", "uid"), [("encoder", "shared"), ("encoder", "per item"), ("decoder", "none")])
def test_the_whole_model_agrees(backend: str, part: str, uid: str) -> None:
    """Ragged atoms, residues without, two chains, B = 2, NaN in the decoder's padding: every output and gradient."""
    plain: Any = getattr(cases, part)(torch.float32)
    inputs = getattr(cases, f"{part}_inputs")(dtype=torch.float32)
    if uid == "per item":
        inputs["ref_space_uid"] = torch.stack([inputs["ref_space_uid"], inputs["tok_idx"] // 2])
    module = variants.convert(plain, backend)
    leaves, state = cases.with_gradients(inputs), dict(module.named_parameters())
    outputs = module(**leaves)
    got = {str(i): o for i, o in enumerate(outputs)} | cases.pull_back(outputs, {**leaves, **state})
    leaves, state = cases.with_gradients(inputs), cases.with_gradients(plain.state_dict())
    reference = getattr(_op, f"{part}_reference")
    outputs = reference(state, **leaves, window_size=cases.WINDOW, n_heads=cases.HEADS)
    want = {str(i): o for i, o in enumerate(outputs)} | cases.pull_back(outputs, {**leaves, **state})
    cases.assert_agree(got, want, cases.GRADIENT_FACTOR * cases.TOLERANCE[torch.float32])


def model(part: str, d: int, dtype: torch.dtype) -> Any:
    """As narrow as can be but for its pairs."""
    if part == "encoder":
        made: nn.Module = layer.AtomFeatureEncoder(4, 4, 4, 4, d, 4, 1, 1)
    else:
        made = layer.AtomAttentionDecoder(4, 4, 4, d, 1, 1)
    return cases.randomised(made.to(torch.float64)).to(dtype)


def seam(part: str, rng: torch.Generator, tok: Tensor, n_res: int, window: int, d: int, batch: int) -> dict[str, Any]:
    """Arguments of ``_pairs`` in float64: chains that differ by item, dead rows, junk in the decoder's padding."""
    tok, idx, valid = atom_pairs(tok, n_res, window)
    valid = valid.clone()
    valid[::7] = False
    if part == "encoder":
        uid = torch.randint(2, (batch, len(tok)), generator=rng)
        valid = valid & (uid[:, :, None] == uid[:, idx])

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=rng, dtype=torch.float64)

    z = normal(n_res, min(n_res, max(1, 2 * (window // 2) - 1)), d)
    index = {"z": z, "tok": tok, "neighbor_idx": idx, "valid_mask": valid}
    if part == "encoder":
        return {"ref_pos": normal(len(tok), 3), "own": normal(len(tok), d), "other": normal(len(tok), d), **index}
    return {"p_skip": normal(*idx.shape, d).masked_fill(~valid[..., None], torch.nan), **index}


def live_results(module: Any, arguments: dict[str, Any], dtype: torch.dtype, grads: str = "both") -> dict[str, Tensor]:
    """Outputs where slots are live, and every gradient of them."""
    leaves = {k: v.to(dtype) if v.is_floating_point() else v for k, v in arguments.items()}
    leaves = cases.with_gradients(leaves)
    outputs = module._pairs(**leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    used = {"both": slice(None), "p_skip": slice(0, 1), "p": slice(-1, None)}[grads]
    live = arguments["valid_mask"][..., None]
    live = live if live.ndim == 4 else live[None]
    alive = [torch.where(_samples.repeated(live, len(o)), o, 0) for o in outputs][used]
    state = {k: v for k, v in module.named_parameters() if k.split(".")[0] in MAKES_PAIRS[len(outputs)]}
    if grads == "p_skip":
        leaves, state = (
            {k: v for k, v in leaves.items() if k != "z"},
            {k: v for k, v in state.items() if "mlp" not in k},
        )
    return {f"output {i}": o for i, o in enumerate(alive)} | cases.pull_back(alive, {**leaves, **state})


MAKES_PAIRS = {2: ("proj_d_vec", "proj_inv_sq", "proj_v", "mlp_p"), 1: ("mlp_p",)}


def compare(backend: str, part: str, arguments: dict[str, Any], dtype: torch.dtype, grads: str = "both") -> None:
    plain = model(part, arguments["z"].shape[-1], dtype)
    rounded = {k: v.to(dtype).double() if v.is_floating_point() else v for k, v in arguments.items()}
    want = live_results(model(part, arguments["z"].shape[-1], dtype).double(), rounded, torch.float64, grads)
    got = live_results(variants.convert(plain, backend), arguments, dtype, grads)
    assert got.keys() == want.keys()
    for name, value in want.items():
        if value.detach().norm() > 0:
            allowed = cases.TOLERANCE[dtype] * (1 if name.startswith("output") else cases.GRADIENT_FACTOR)
            assert cases.error(got[name], value) < allowed, f"{name}: {cases.error(got[name], value):.2e}"
        else:
            assert got[name].eq(0).all(), name


@BACKENDS
@PARTS
@DTYPES
@pytest.mark.parametrize("seed", range(6))
def test_any_index_agrees(backend: str, part: str, dtype: torch.dtype, seed: int, threads: int) -> None:
    """Any order of residues with gaps between them, windows from nothing to everything, channels of all widths."""
    rng = torch.Generator().manual_seed(seed)
    n_res = (1, 5, 40, 12, 30, 3)[seed]
    tok = torch.randint(n_res, ((1, 7, 90, 50, 130, 33)[seed],), generator=rng)
    tok = tok.sort().values if seed % 2 else tok
    window, d = (32, 1, 8, 40, 9, 4)[seed], (16, 3, 16, 20, 6, 32)[seed]
    compare(backend, part, seam(part, rng, tok, n_res, window, d, 1 + seed % 3), dtype)


@BACKENDS
@PARTS
@DTYPES
def test_each_sample_may_have_a_z_of_its_own(backend: str, part: str, dtype: torch.dtype) -> None:
    """p has z's batch B_p M, p_skip and all it is made of B_p: their gradients are summed over the samples."""
    arguments = seam(part, torch.Generator().manual_seed(6), torch.arange(60) // 4, 15, 8, 16, 2)
    own = torch.randn(6, *arguments["z"].shape[1:], generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    compare(backend, part, arguments | {"z": own}, dtype)


@BACKENDS
@pytest.mark.parametrize("grads", ["p_skip", "p"])
def test_one_output_may_go_unused(backend: str, grads: str) -> None:
    arguments = seam("encoder", torch.Generator().manual_seed(1), torch.arange(60) // 4, 15, 8, 16, 2)
    compare(backend, "encoder", arguments, torch.float32, grads)


@BACKENDS
@PARTS
def test_the_same_call_gives_the_same_bits(backend: str, part: str, threads: int) -> None:
    rng = torch.Generator().manual_seed(2)
    arguments = seam(part, rng, torch.arange(300) // 6, 50, 16, 16, 2)
    module = variants.convert(model(part, 16, torch.float32), backend)
    first = live_results(module, arguments, torch.float32)
    for _ in range(3):
        for name, value in live_results(module, arguments, torch.float32).items():
            assert torch.equal(first[name], value), name


@BACKENDS
@PARTS
def test_nan_in_a_live_slot_is_not_hidden(backend: str, part: str) -> None:
    """A NaN among the residue pairs reaches exactly the slots that use it, as in the layer."""
    rng = torch.Generator().manual_seed(3)
    arguments = seam(part, rng, torch.arange(40) // 4, 10, 8, 16, 1)
    arguments["z"][0, 4, 2] = torch.nan
    plain = model(part, 16, torch.float32)
    cast = {k: v.float() if v.is_floating_point() else v for k, v in arguments.items()}
    results = []
    made: Any = variants.convert(plain, backend)
    for module in (plain, made):
        outputs = module._pairs(**cast)
        p = outputs[-1] if isinstance(outputs, tuple) else outputs
        results.append(p.isnan().any(-1) & arguments["valid_mask"])
    assert results[0].any()
    assert torch.equal(*results)


@BACKENDS
@PARTS
def test_autocast_and_inference_mode(backend: str, part: str) -> None:
    plain = getattr(cases, part)(torch.float32)
    module, inputs = variants.convert(plain, backend), getattr(cases, f"{part}_inputs")(dtype=torch.float32)
    want = plain(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        narrow, as_layer = module(**inputs), plain(**inputs)
    with torch.inference_mode():
        inferred = module(**inputs)
    for got, value, like, same in zip(narrow, want, as_layer, inferred, strict=True):
        assert got.dtype == like.dtype
        assert cases.error(got, value) < 3 * cases.TOLERANCE[torch.bfloat16]
        assert cases.error(same, value) < cases.TOLERANCE[torch.float32]


@BACKENDS
@PARTS
def test_strided_arguments(backend: str, part: str) -> None:
    rng = torch.Generator().manual_seed(4)
    arguments = seam(part, rng, torch.arange(40) // 4, 10, 8, 16, 2)
    strided = {k: torch.stack([v, v], -1)[..., 0] if v.is_floating_point() else v for k, v in arguments.items()}
    strided |= {k: arguments[k].mT.contiguous().mT for k in ("neighbor_idx", "valid_mask")}
    assert not strided["neighbor_idx"].is_contiguous()
    module = variants.convert(model(part, 16, torch.float32), backend)
    got, want = (live_results(module, x, torch.float32) for x in (strided, arguments))
    assert all(torch.equal(got[name], want[name]) for name in want)


@BACKENDS
@PARTS
def test_second_derivatives_are_refused_aloud(backend: str, part: str) -> None:
    """Also where all cotangents are constants."""
    module: Any = variants.convert(getattr(cases, part)(torch.float32), backend)
    leaves = cases.with_gradients(getattr(cases, f"{part}_inputs")(dtype=torch.float32))
    z = leaves["z_input" if part == "encoder" else "z"]
    (first,) = torch.autograd.grad([x.sum() for x in module(**leaves)], z, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated again"):
        first.sum().backward()


@BACKENDS
@PARTS
def test_checkpoints_give_the_same_bits(backend: str, part: str) -> None:
    module: Any = variants.convert(getattr(cases, part)(torch.float32), backend)
    inputs = getattr(cases, f"{part}_inputs")(dtype=torch.float32)
    results = []
    run: Any
    for run in (module, functools.partial(checkpoint, module, use_reentrant=False)):
        leaves = cases.with_gradients(inputs)
        results.append(cases.pull_back(run(**leaves), {**leaves, **dict(module.named_parameters())}))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@BACKENDS
def test_the_pairs_alone_are_made(backend: str) -> None:
    """Forward p_skip and p; with gradients nothing of their size beside these and the gradients that are handed in."""
    rng = torch.Generator().manual_seed(5)
    arguments = seam("encoder", rng, torch.arange(420) // 14, 30, 32, 16, 1)
    leaves = {k: v.float().requires_grad_() if v.is_floating_point() else v for k, v in arguments.items()}
    module: Any = variants.convert(model("encoder", 16, torch.float32), backend)
    wanted = [v for v in leaves.values() if v.requires_grad]

    def call() -> object:
        outputs = module._pairs(**leaves)
        return torch.autograd.grad(outputs, wanted, outputs)

    call()
    p_bytes = leaves["neighbor_idx"].numel() * 16 * 4
    assert 2 <= peak_memory(call, "cpu")[0] / p_bytes < 2.3


@BACKENDS
def test_convert_swaps_both_ways(backend: str) -> None:
    tree = nn.ModuleDict({"encoder": cases.encoder(torch.float32), "decoder": cases.decoder(torch.float32)})
    twin: Any = variants.convert(tree, backend)
    declared = variants.load(backend)
    assert type(twin["encoder"]) is declared.encoder
    assert type(twin["decoder"]) is declared.decoder
    assert twin.state_dict().keys() == tree.state_dict().keys()
    assert all(a is b for a, b in zip(twin.parameters(), tree.parameters(), strict=True))
    back: Any = variants.convert(twin, "gather")
    assert (type(back["encoder"]), type(back["decoder"])) == (layer.AtomFeatureEncoder, layer.AtomAttentionDecoder)


@BACKENDS
def test_a_class_of_ones_own_is_refused_where_it_would_be_replaced(backend: str) -> None:
    class Custom(layer.AtomAttentionDecoder):
        def _pairs(self, *args: Any, **kwargs: Any) -> Tensor:
            return 2 * super()._pairs(*args, **kwargs)

    module = Custom(4, 4, 4, 4, 1, 1)
    with pytest.raises(TypeError, match="Custom"):
        variants.convert(module, backend)
    assert type(variants.convert(module, "gather")) is Custom
    own = layer.AtomAttentionDecoder(4, 4, 4, 4, 1, 1)
    own._pairs = lambda *args: args[0]  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError, match="AtomAttentionDecoder"):
        variants.convert(own, backend)


def hooked(model: Any) -> None:
    model.mlp_p[1].register_forward_hook(lambda module, args, out: 2 * out)


def hooked_whole(model: Any) -> None:
    model.mlp_p.register_forward_pre_hook(lambda module, args: (2 * args[0],))


def with_bias(model: Any) -> None:
    model.mlp_p[4] = nn.Linear(6, 6)


def dropped(model: Any) -> None:
    model.mlp_p = nn.Sequential(*model.mlp_p, nn.Dropout(0.1))


def other_activation(model: Any) -> None:
    model.mlp_p[3] = nn.SiLU()


def other_width(model: Any) -> None:
    model.mlp_p[0], model.mlp_p[2] = layer.LinearNoBias(6, 8), layer.LinearNoBias(8, 6)


def own_forward(model: Any) -> None:
    model.mlp_p[6].forward = lambda x: x


CHANGES = [hooked, hooked_whole, with_bias, dropped, other_activation, other_width, own_forward]


@BACKENDS
@PARTS
@pytest.mark.parametrize("change", CHANGES)
def test_children_that_are_not_plain_are_refused_by_name(backend: str, part: str, change: Any) -> None:
    """When a model is converted, where it shows without sizes, and at every call."""
    module: Any = getattr(cases, part)(torch.float32)
    inputs = getattr(cases, f"{part}_inputs")(dtype=torch.float32)
    twin = variants.convert(module, backend)
    twin(**inputs)
    change(twin)
    with pytest.raises(UnsupportedError, match="mlp_p"):
        twin(**inputs)
    if change is not other_width:
        change(module)
        with pytest.raises(UnsupportedError, match=r"outer\.mlp_p"):
            variants.convert(nn.ModuleDict({"outer": module}), backend)


@BACKENDS
def test_the_encoders_own_linears_must_be_plain_too(backend: str) -> None:
    for name in ("proj_d_vec", "proj_inv_sq", "proj_v"):
        module: Any = cases.encoder(torch.float32)
        getattr(module, name).register_full_backward_hook(lambda *args: None)
        with pytest.raises(UnsupportedError, match=name):
            variants.convert(module, backend)


@BACKENDS
@PARTS
def test_other_dtypes_are_refused_by_name(backend: str, part: str) -> None:
    for dtype in {torch.float64, torch.float16} - set(variants.load(backend).dtypes):
        inputs = getattr(cases, f"{part}_inputs")(dtype=dtype)
        with pytest.raises(UnsupportedError, match=str(dtype).removeprefix("torch.")):
            variants.convert(getattr(cases, part)(dtype), backend)(**inputs)
