"""The layer against the float64 reference: outputs and every gradient, on awkward inputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pallatom.architecture.atom_transformers import AtomTransformerBlock, build_sparse_pairs
from tests.pallatom import model_cases as cases
from variants import _op

TIGHT = 1e-9
ORDERS = ["sorted", "shuffled"]


def both(
    module: nn.Module, inputs: dict[str, Tensor], reference: Callable[[dict[str, Tensor], dict[str, Tensor]], tuple]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs, and gradients of all inputs and parameters, of the module and of the reference."""
    results = []
    for run in (lambda state, leaves: module(**leaves), reference):
        parameters = dict(module.named_parameters())
        state = {k: v.detach().clone().requires_grad_() for k, v in parameters.items()} if results else parameters
        leaves = cases.with_gradients(inputs)
        outputs = run(state, leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        result = {f"output {i}": o for i, o in enumerate(outputs)}
        gradients = cases.pull_back(outputs, {**leaves, **state})
        results.append(result | {f"d {name}": g for name, g in gradients.items()})
    return results[0], results[1]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mask", ["shared", "per item"])
def test_stack_agrees(order: str, mask: str) -> None:
    """Two blocks, ragged atoms, an empty residue, two chains, dead rows, NaN and wild indices in padding, B = 2."""
    inputs = vars(cases.block_inputs(order, mask))
    got, want = both(
        cases.stack(), inputs, lambda state, leaves: _op.stack_reference(state, **leaves, n_heads=cases.HEADS)
    )
    cases.assert_agree(got, want, TIGHT)
    live = inputs["valid_mask"].expand(2, -1, -1)
    assert got["d p"][~live].eq(0).all()


@pytest.mark.parametrize("mask", ["shared", "per item"])
def test_block_and_its_seam_agree(mask: str) -> None:
    """The seam alone too: in a block's output the residual hides what attention adds."""
    inputs = cases.block_inputs(mask=mask)
    block = cases.stack(1).blocks[0]
    got, want = both(
        block, vars(inputs), lambda state, leaves: _op.block_reference(state, **leaves, n_heads=cases.HEADS)
    )
    cases.assert_agree(got, want, TIGHT)

    assert isinstance(block, AtomTransformerBlock)
    rng = torch.Generator().manual_seed(5)
    heads = (2, inputs.q.shape[1], cases.HEADS, cases.C_ATOM // cases.HEADS)
    qkv = {k: torch.randn(heads, generator=rng, dtype=torch.float64) for k in "QKV"}
    rest = (inputs.neighbor_idx, inputs.valid_mask)
    pair = {
        "norm_pair.weight": block.norm_pair.weight,
        "norm_pair.bias": block.norm_pair.bias,
        "pair_bias.weight": block.pair_bias.weight,
    }
    leaves = cases.with_gradients(qkv | {"p": inputs.p}) | pair
    seam = block._attend(*(leaves[k] for k in "QKVp"), *rest)
    want = _op.attention_reference(*leaves.values(), *rest)
    cases.assert_agree(
        {"O": seam, **cases.pull_back([seam], leaves)}, {"O": want, **cases.pull_back([want], leaves)}, TIGHT
    )
    dead = ~inputs.valid_mask.any(-1).expand(2, -1)
    assert dead.any()
    assert seam[dead].eq(0).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("uid", ["shared", "equal rows", "per item"])
def test_encoder_agrees(order: str, uid: str) -> None:
    inputs = cases.encoder_inputs(order)
    if uid == "equal rows":
        inputs["ref_space_uid"] = inputs["ref_space_uid"].expand(2, -1)
    if uid == "per item":
        inputs["ref_space_uid"] = torch.stack([inputs["ref_space_uid"], inputs["tok_idx"] // 2])
        inputs["tok_idx"] = inputs["tok_idx"].expand(2, -1)
    got, want = both(
        cases.encoder(),
        inputs,
        lambda state, leaves: _op.encoder_reference(state, **leaves, window_size=cases.WINDOW, n_heads=cases.HEADS),
    )
    cases.assert_agree(got, want, TIGHT)
    assert got["output 0"].shape == (2, cases.N_RES, cases.C_RESIDUE)
    empty = [4, cases.N_RES - 1]
    assert got["output 0"][:, empty].eq(0).all()


@pytest.mark.parametrize("order", ORDERS)
def test_decoder_agrees(order: str) -> None:
    inputs = cases.decoder_inputs(order)
    got, want = both(
        cases.decoder(),
        inputs,
        lambda state, leaves: _op.decoder_reference(state, **leaves, window_size=cases.WINDOW, n_heads=cases.HEADS),
    )
    cases.assert_agree(got, want, TIGHT)
    dead = inputs["p_skip"].isnan()
    assert dead.any()
    assert got["output 1"][dead].eq(0).all()
    assert got["d p_skip"][dead].eq(0).all()


@pytest.mark.parametrize("window", [1, 2, 2 * cases.N_RES + 5])
def test_narrowest_and_widest_windows_agree(window: int) -> None:
    """W = 1: nobody sees anybody (K = 0). W >= 2R: everybody sees everybody."""
    inputs = cases.encoder_inputs(batch=1)
    inputs["ref_space_uid"] = torch.zeros_like(inputs["tok_idx"])
    module = cases.encoder(window=window)
    want = _op.encoder_reference(module.state_dict(), **inputs, window_size=window, n_heads=cases.HEADS)
    outputs = module(**inputs)
    n_atom = len(inputs["tok_idx"])
    assert outputs[3].shape[2] == {1: 0, 2: 9}.get(window, n_atom)
    for got, reference in zip(outputs, want, strict=True):
        assert cases.error(got, reference) < TIGHT
    again = cases.decoder(window=window)
    arguments = cases.decoder_inputs(batch=1, window=window)
    for got, reference in zip(
        again(**arguments),
        _op.decoder_reference(again.state_dict(), **arguments, window_size=window, n_heads=cases.HEADS),
        strict=True,
    ):
        assert cases.error(got, reference) < TIGHT


def test_no_neighbour_slots_still_has_gradients() -> None:
    inputs = cases.block_inputs(window=1)
    assert inputs.neighbor_idx.shape[1] == 0
    got, want = both(
        cases.stack(1), vars(inputs), lambda state, leaves: _op.stack_reference(state, **leaves, n_heads=cases.HEADS)
    )
    for name, value in want.items():
        value = value.detach()
        assert got[name].shape == value.shape
        assert got[name].isfinite().all()
        assert float((got[name].detach() - value).norm()) <= TIGHT * max(1.0, float(value.norm()))


def test_one_atom() -> None:
    module = cases.stack()
    q, c = torch.randn(2, 3, 1, cases.C_ATOM, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    idx, live = build_sparse_pairs(torch.tensor([4]))
    p = torch.ones(3, 1, 1, cases.C_PAIR_OF_ATOMS, dtype=torch.float64)
    want = _op.stack_reference(module.state_dict(), q, c, p, idx, live, cases.HEADS)
    assert cases.error(module(q, c, p, idx, live), want) < TIGHT


def test_strided_inputs_agree() -> None:
    module, inputs = cases.stack(1), cases.block_inputs()
    q, c, p, idx, live = inputs.all()
    strided = (
        q.transpose(0, 1).contiguous().transpose(0, 1),
        torch.stack([c, c], -1)[..., 1],
        p.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        idx.T.contiguous().T,
        torch.stack([live, ~live], 1)[:, 0],
    )
    assert not any(tensor.is_contiguous() for tensor in strided)
    assert cases.error(module(*strided), module(*inputs.all())) < 1e-14


def test_padding_never_reaches_a_result() -> None:
    """Bit for bit: the same outputs and gradients whatever padding slots hold."""
    module = cases.stack()
    results = []
    for junk in (False, True):
        leaves = cases.with_gradients(vars(cases.block_inputs(mask="per item", junk=junk)))
        output = module(**leaves)
        results.append({"q": output, **cases.pull_back([output], {**leaves, **dict(module.named_parameters())})})
    for name, clean in results[0].items():
        assert torch.equal(clean, results[1][name]), name


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_no_nan_is_made_on_the_way() -> None:
    """Dead rows and padding leave no NaN even in gradients on the way: torch's anomaly detection stays usable."""
    module = cases.stack()
    leaves = cases.with_gradients(vars(cases.block_inputs()))
    with torch.autograd.detect_anomaly(check_nan=True):
        module(**leaves).sum().backward()


def test_second_derivatives() -> None:
    """Analytic against numerical second derivatives, a dead row and padding included."""
    idx, live = build_sparse_pairs(torch.tensor([0, 0, 1, 3, 3, 4]), 4)
    live[1] = False
    assert not live.all()
    rng = torch.Generator().manual_seed(0)
    shapes = [(1, 6, cases.C_ATOM), (1, 6, cases.C_ATOM), (1, *idx.shape, cases.C_PAIR_OF_ATOMS)]
    inputs = [torch.randn(shape, generator=rng, dtype=torch.float64, requires_grad=True) for shape in shapes]
    block = cases.stack(1).blocks[0]
    assert torch.autograd.gradgradcheck(lambda q, c, p: block(q, c, p, idx, live), inputs, fast_mode=True)


@pytest.mark.parametrize("wrong", ["zero", "one slot more", "no bias", "unscaled"])
def test_the_comparison_would_notice(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative controls: a subtly wrong seam is far outside the tolerance."""
    right = AtomTransformerBlock._attend

    def attend(self: AtomTransformerBlock, Q: Tensor, K: Tensor, V: Tensor, p: Tensor, idx: Tensor, live: Tensor):
        if wrong == "zero":
            return torch.zeros_like(Q)
        if wrong == "one slot more":
            live = live.clone()
            live[0, live[0].sum()] = True
            idx, p = idx.clamp(0, len(idx) - 1), p.nan_to_num(0, 0, 0)
        if wrong == "no bias":
            p = torch.zeros_like(p)
        if wrong == "unscaled":
            Q = Q * self.head_dim**0.5
        return right(self, Q, K, V, p, idx, live)

    monkeypatch.setattr(AtomTransformerBlock, "_attend", attend)
    module, inputs = cases.stack(1), cases.block_inputs()
    want = _op.stack_reference(module.state_dict(), *inputs.all(), cases.HEADS)
    assert cases.error(module(*inputs.all()), want) > 1e-6
