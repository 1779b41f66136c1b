"""Children that are not what they were: every backend computes what the layer then computes, or refuses by name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_full_backward_hook
from torch.nn.utils import parametrizations, prune

import variants
from pallatom.architecture.atom_transformers import AtomTransformer, AtomTransformerBlock, LinearNoBias
from tests.variants.seam import seam
from variants import UnsupportedError

HERE = [name for name in variants.names() if not variants.why_unavailable(name)]
SIZES = {"n": 40, "k": 12, "batch": 2, "item_masks": True, "channels": 8}


class LoRA(nn.Module):
    """y = x Wᵀ + (x Aᵀ) Bᵀ, as adapters wrap a linear: without the attributes of one."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.randn(rank, base.in_features))
        self.b = nn.Parameter(torch.randn(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.a.T @ self.b.T


class WeightedLoRA(LoRA):
    """As the adapters that still show the weight of what they wrap."""

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> None:
        return None


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1.5 * x


def lora(block: AtomTransformerBlock) -> None:
    block.pair_bias = LoRA(block.pair_bias)  # pyright: ignore[reportAttributeAccessIssue]


def weighted_lora(block: AtomTransformerBlock) -> None:
    block.pair_bias = WeightedLoRA(block.pair_bias)  # pyright: ignore[reportAttributeAccessIssue]


def dropped(block: AtomTransformerBlock) -> None:
    block.pair_bias = nn.Sequential(block.pair_bias, nn.Dropout(0.0), Scaled())  # pyright: ignore


def own_forward(block: AtomTransformerBlock) -> None:
    linear = block.pair_bias
    linear.forward = lambda input: 2 * nn.functional.linear(input, linear.weight)


def hook(block: AtomTransformerBlock) -> None:
    block.pair_bias.register_forward_hook(lambda module, args, out: out * 2)


def pre_hook(block: AtomTransformerBlock) -> None:
    block.norm_pair.register_forward_pre_hook(lambda module, args: (args[0].sin(),))


def backward_hook(block: AtomTransformerBlock) -> None:
    block.pair_bias.register_full_backward_hook(lambda module, grad_in, grad_out: (grad_in[0] * 2,))


def backward_pre_hook(block: AtomTransformerBlock) -> None:
    block.norm_pair.register_full_backward_pre_hook(lambda module, grad_out: (grad_out[0] * 2,))


def weight_norm(block: AtomTransformerBlock) -> None:
    parametrizations.weight_norm(block.pair_bias)
    with torch.no_grad():
        block.pair_bias.parametrizations.weight.original0.mul_(2)  # pyright: ignore


def pruned(block: AtomTransformerBlock) -> None:
    """By a pre-hook that puts the weight together."""
    prune.l1_unstructured(block.pair_bias, "weight", amount=0.5)
    with torch.no_grad():
        block.pair_bias.weight_orig.mul_(2)  # pyright: ignore[reportCallIssue]


def rms(block: AtomTransformerBlock) -> None:
    block.norm_pair = nn.RMSNorm(SIZES["channels"])  # pyright: ignore[reportAttributeAccessIssue]


def no_norm(block: AtomTransformerBlock) -> None:
    block.norm_pair = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]


def no_affine(block: AtomTransformerBlock) -> None:
    block.norm_pair = nn.LayerNorm(SIZES["channels"], elementwise_affine=False)


def no_norm_bias(block: AtomTransformerBlock) -> None:
    block.norm_pair = nn.LayerNorm(SIZES["channels"], bias=False)
    block.norm_pair.weight.data.mul_(0.5)


def other_eps(block: AtomTransformerBlock) -> None:
    block.norm_pair.eps = 0.3


def biased(block: AtomTransformerBlock) -> None:
    linear = nn.Linear(SIZES["channels"], block.n_heads)
    linear.weight = block.pair_bias.weight
    block.pair_bias = linear  # pyright: ignore[reportAttributeAccessIssue]


def plain_linear(block: AtomTransformerBlock) -> None:
    linear = nn.Linear(SIZES["channels"], block.n_heads, bias=False)
    block.pair_bias = linear  # pyright: ignore[reportAttributeAccessIssue]


CHANGES: dict[str, Callable[[AtomTransformerBlock], None]] = {
    f.__name__: f
    for f in (
        *(lora, weighted_lora, dropped, own_forward, hook, pre_hook, backward_hook, backward_pre_hook, weight_norm),
        *(pruned, rms, no_norm, no_affine, no_norm_bias, other_eps, biased, plain_linear),
    )
}
STILL_PLAIN = ("no_affine", "no_norm_bias", "other_eps", "plain_linear")


@functools.cache
def given():
    return seam(**SIZES)


def changed(change: str) -> AtomTransformerBlock:
    """The problem's block with a child changed, and drawn anew so that other tests find theirs as it was."""
    torch.manual_seed(3)
    block = AtomTransformerBlock(32, SIZES["channels"], 2)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_()
    CHANGES[change](block)
    return block


def outcome(block: AtomTransformerBlock, backward: bool) -> dict[str, Tensor]:
    """O, and the gradients of the inputs and of every parameter that the pair bias is made of."""
    inputs = [x.detach().nan_to_num().requires_grad_(backward) for x in given().inputs]
    with torch.set_grad_enabled(backward):
        out = block._attend(*inputs, given().neighbor_idx, given().valid_mask)
    if not backward:
        return {"O": out}
    trained = dict(block.norm_pair.named_parameters(prefix="norm_pair"))
    trained |= dict(block.pair_bias.named_parameters(prefix="pair_bias"))
    wanted = {**dict(zip("QKVp", inputs)), **trained}
    gradients = torch.autograd.grad(out.square().sum(), list(wanted.values()), materialize_grads=True)
    return {"O": out.detach()} | dict(zip(wanted, gradients))


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """The gradient of a bias before the softmax is 0: what rounding leaves of it is held against the others'."""
    assert got.keys() == want.keys()
    scale = max(float(x.norm()) for name, x in want.items() if name != "O") if len(want) > 1 else 0.0
    for name, x in want.items():
        limit = 1e-4 * max(float(x.norm()), 0.01 * scale)
        assert float((got[name] - x).norm()) <= limit, name


# Each of these is a compilation, or several, for a backend that compiles.
COMPILED = ("lora", "hook", "backward_hook", "rms", "other_eps")


@pytest.mark.parametrize(
    ("name", "change"),
    [(name, change) for name in HERE for change in (COMPILED if variants.load(name).compiles else CHANGES)],
)
def test_a_changed_child_is_honoured_or_refused(name: str, change: str) -> None:
    backend, block = variants.load(name), changed(change)
    backward = "cpu" in backend.backward
    want = outcome(block, backward)
    if backend.reads_weights and change not in STILL_PLAIN:
        with pytest.raises(UnsupportedError, match=r"(norm_pair|pair_bias): .* required.* found"):
            variants.convert(block, name)
        late = variants.convert(AtomTransformerBlock(32, SIZES["channels"], 2), name)
        late.norm_pair, late.pair_bias, late.n_heads = block.norm_pair, block.pair_bias, block.n_heads
        with pytest.raises(UnsupportedError, match=r"(norm_pair|pair_bias): .* required.* found"):
            outcome(late, backward)
        return
    try:
        got = outcome(variants.convert(block, name), backward)
    except UnsupportedError as refusal:
        assert any(child in str(refusal) for child in ("norm_pair", "pair_bias"))  # noqa: PT017
        return
    assert_same(got, want)


@contextmanager
def _registered(handle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize(
    "register",
    [
        lambda: register_module_forward_hook(
            lambda module, args, out: out * 2 if isinstance(module, nn.Linear) else None
        ),
        lambda: register_module_full_backward_hook(lambda module, grad_in, grad_out: None),
    ],
    ids=["forward", "backward"],
)
def test_a_hook_on_all_modules_is_honoured_or_refused(name: str, register) -> None:
    block = variants.convert(given().block, name)
    with _registered(register()):
        want = outcome(given().block, backward=False)
        try:
            got = outcome(block, backward=False)
        except UnsupportedError as refusal:
            assert "modules: no hook on all modules is required" in str(refusal)  # noqa: PT017
            return
        assert not variants.load(name).reads_weights
        assert_same(got, want)


@pytest.mark.parametrize("name", [name for name in HERE if variants.load(name).reads_weights])
def test_weights_of_other_sizes_are_refused_at_the_seam(name: str) -> None:
    block = variants.convert(given().block, name)
    block.pair_bias, block.norm_pair = LinearNoBias(SIZES["channels"] + 1, 2), nn.LayerNorm(SIZES["channels"] + 1)
    with pytest.raises(UnsupportedError) as refusal:
        outcome(block, backward=False)
    assert [reason.partition(":")[0] for reason in refusal.value.reasons] == ["norm_pair", "pair_bias"]


def test_convert_names_every_child_of_every_block() -> None:
    model = AtomTransformer(32, 8, n_blocks=3, n_heads=2)
    lora(model.blocks[0])  # pyright: ignore[reportArgumentType]
    rms(model.blocks[2])  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnsupportedError) as refusal:
        variants.convert(model, "banded")
    assert [reason.partition(":")[0] for reason in refusal.value.reasons] == [
        "blocks.0.pair_bias",
        "blocks.2.norm_pair",
    ]
    assert "LoRA was found" in str(refusal.value)
    assert variants.convert(model, "dense") is not model


def test_convert_refuses_a_block_with_an_attention_of_its_own() -> None:
    block = AtomTransformerBlock(32, 8, 2)
    block._attend = lambda Q, *others: Q  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError, match="own behaviour"):
        variants.convert(block, "banded")


@pytest.mark.parametrize("child", ["to_q", "to_k", "to_v", "to_out", "ff1", "ff2", "pair_bias"])
def test_the_layer_itself_takes_a_wrapped_child(child: str) -> None:
    """What it checks of its arguments it does not read off children that may be anything."""
    block = AtomTransformerBlock(32, 8, 2)
    base = getattr(block, child)
    q, p = torch.randn(2, 40, 32), torch.randn(2, 40, 12, 8)
    mask = torch.ones_like(given().valid_mask)
    idx = torch.arange(12).expand(40, 12)
    want = block(q, q, p, idx, mask)
    setattr(block, child, nn.Sequential(base))
    assert torch.allclose(block(q, q, p, idx, mask), want)
