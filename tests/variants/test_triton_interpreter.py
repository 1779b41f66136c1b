"""What the Triton kernels compute, in Triton's CPU interpreter: ``interpreter.py`` says in which process."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

pytest.importorskip("triton")

import variants
from pallatom.architecture.atom_transformers import AtomTransformerBlock
from tests.variants.seam import band, scattered, seam
from tests.variants.seam import errors as seam_errors
from tests.variants.variant_cases import CASES, answer, errors, problem, reference
from variants import triton_fused
from variants._backend import UnsupportedError
from variants._op import attention_reference
from variants.band.plan import band_plan
from variants.triton import bench, tune
from variants.triton import config as tiles
from variants.triton.bench import GpuBench
from variants.triton.config import Config, Sizes, backward_config, gather_config
from variants.triton.launch import backward
from variants.triton.plans import holders_of, in_order, queries_of
from variants.triton.tuned import Kernel

pytestmark = pytest.mark.interpreted

TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 2e-2}
# Beyond the tolerance only what eager PyTorch does not reach either, in the same dtypes on the same inputs: twice and a
# half its worst error. A p of mean 100 has lost two digits; scores of 100 have steps of 8e-6, and so have the weights
# that are made of them; an O rounded to half precision is in every delta = <dO, O>.
YARDSTICK = 2.5
ILL_CONDITIONED = ("large_offset", "large_bias")
SINGLE = (
    "ragged", "two_chains", "dead_rows", "all_dead", "random_holes", "nan_in_padding", "k_capped", "jumping_starts",
    "large_offset", "large_bias", "own_residue_only", "no_slots", "one_atom", "unsorted",
)  # fmt: skip
HALF = ("ragged", "two_chains", "dead_rows", "random_holes", "unsorted")
BRAIN = ("two_chains", "random_holes")


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Whatever is allocated without being written is NaN."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(8).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def _cells():
    for dtype, cases in ((torch.float32, SINGLE), (torch.float16, HALF), (torch.bfloat16, BRAIN)):
        for case in cases:
            for deterministic in (True, False):
                if deterministic or case in ("dead_rows", "random_holes", "unsorted"):  # sums differ in nothing else
                    label = f"{case}-{str(dtype).removeprefix('torch.')}{'-deterministic' * deterministic}"
                    yield pytest.param(case, dtype, deterministic, id=label)


@pytest.mark.parametrize(("case", "dtype", "deterministic"), list(_cells()))
def test_agrees_with_the_reference(case: str, dtype: torch.dtype, deterministic: bool) -> None:
    torch.use_deterministic_algorithms(deterministic)
    given = problem(case, dtype)
    got, want = answer(variants.convert(given.block, "triton_fused"), given), reference(case, dtype)
    found, limit = errors(got, want), TOLERANCE[dtype]
    if case in ILL_CONDITIONED:
        eager = max(errors(answer(given.block, given), want).values())
        assert eager > limit, "no exception is needed"
        limit = YARDSTICK * eager
    if case == "one_atom":  # every gradient but dV's is 0: differences of equal terms of this size
        limit *= float((given.grad_out * given.inputs[2]).sum(-1).norm())
    assert max(found.values()) <= limit, found
    assert not got["dnorm_pair.bias"].any()
    live = given.valid_mask.expand(got["dp"].shape[:3])
    assert not got["dp"][~live].any()


def _random(n: int, k: int, *, heads: int, head_dim: int, channels: int, dtypes: tuple[torch.dtype, torch.dtype]):
    """``(block, leaves (Q, K, V, p), idx, mask, dO)`` over a scattered table."""
    made = seam(n, k, index=scattered, heads=heads, head_dim=head_dim, channels=channels)
    leaves = [x.detach().nan_to_num().to(dtypes[i == 3]).requires_grad_() for i, x in enumerate(made.inputs)]
    return made.block, leaves, made.neighbor_idx, made.valid_mask, torch.randn(made.inputs[0].shape).to(dtypes[0])


def _errors(backend: str, block, leaves, idx, mask, grad_o) -> list[float]:
    """Relative error norms of O and of the gradients of Q, K, V, p, gamma, beta and W against float64."""
    parameters = [block.norm_pair.weight, block.norm_pair.bias, block.pair_bias.weight]
    out = variants.convert(block, backend)._attend(*leaves, idx, mask)
    got = [out, *torch.autograd.grad(out, [*leaves, *parameters], grad_o)]
    exact = [x.detach().double().requires_grad_() for x in [*leaves, *parameters]]
    want_o = attention_reference(*exact, idx, mask)
    want = [want_o, *torch.autograd.grad(want_o, exact, grad_o.double(), materialize_grads=True)]
    assert out.dtype == leaves[0].dtype
    norms = [float(w.detach().norm()) for w in want]
    norms[6] = max(norms[-3:])  # beta's gradient is 0
    return [
        float((g.detach().double() - w.detach()).norm()) / norm for g, w, norm in zip(got, want, norms, strict=True)
    ]


def _compare(block, leaves, idx, mask, grad_o, tolerance: float, *, by_eager: bool = False) -> None:
    """Within the tolerance; with ``by_eager`` or within what eager PyTorch allows."""
    found = _errors("triton_fused", block, leaves, idx, mask, grad_o)
    if by_eager:
        tolerance = max(tolerance, YARDSTICK * max(_errors("gather", block, leaves, idx, mask, grad_o)))
    assert max(found) <= tolerance, found


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gather_agrees_with_the_reference(dtype: torch.dtype, deterministic: bool) -> None:
    torch.use_deterministic_algorithms(deterministic)
    block, leaves, idx, mask, grad_o = _random(13, 9, heads=3, head_dim=24, channels=16, dtypes=(dtype, dtype))
    assert triton_fused._band_or_none(idx, mask) is None
    _compare(block, leaves, idx, mask, grad_o, TOLERANCE[dtype])


@pytest.mark.parametrize("deterministic", [True, False])
def test_gather_with_a_mask_per_item(deterministic: bool) -> None:
    """Every row sees atom 0, none sees atom 4; what one item's mask hides the other may show."""
    torch.use_deterministic_algorithms(deterministic)
    made = seam(14, 6, batch=2, index=scattered, item_masks=True)
    idx = torch.where(made.neighbor_idx == 4, 5, made.neighbor_idx)
    idx[:, 2] = 0
    leaves = [x.detach().nan_to_num().requires_grad_() for x in made.inputs]
    grad_o = torch.randn(leaves[0].shape)
    _compare(made.block, leaves, idx, made.valid_mask, grad_o, TOLERANCE[torch.float32])
    out = variants.convert(made.block, "triton_fused")._attend(*leaves, idx, made.valid_mask)
    dk, dv = torch.autograd.grad(out, leaves[1:3], grad_o)
    assert not dk[:, 4].any()
    assert not dv[:, 4].any()


def test_an_inverted_table_holds_every_live_slot_once() -> None:
    idx, mask = scattered(17, 6)
    masks = torch.stack([mask, mask.roll(3, 0)])
    held = holders_of(idx, masks)
    live = masks.any(0)
    assert held.slots.dtype == torch.int32
    assert sorted(held.slots.tolist()) == live.flatten().nonzero()[:, 0].tolist()
    for atom in range(17):
        mine = held.slots[held.first[atom] : held.first[atom + 1]]
        assert (idx.flatten()[mine] == atom).all()
        assert (mine.diff() > 0).all()


SPLIT = Config(16, 16, 4, 1, split_heads=4)


@pytest.fixture
def split(monkeypatch):
    """Every backward is split, four heads a program, whatever its sizes."""
    choose = triton_fused.launch._choose

    def chosen(direction, problem, plan=None):
        config = SPLIT if direction == "backward" and plan is not None else choose(direction, problem, plan)
        return replace(config, split_heads=4) if direction == "backward" else config

    monkeypatch.setattr(triton_fused.launch, "_choose", chosen)


@pytest.mark.usefixtures("split")
@pytest.mark.parametrize(
    ("case", "dtype", "deterministic"),
    [
        ("two_chains", torch.float32, True),
        ("dead_rows", torch.float32, True),
        ("random_holes", torch.float32, False),
        ("nan_in_padding", torch.float32, True),
        ("all_dead", torch.float16, True),
        ("k_capped", torch.float16, False),
        ("random_holes", torch.float16, True),
    ],
)
def test_a_split_backward_agrees_with_the_reference(case: str, dtype: torch.dtype, deterministic: bool) -> None:
    test_agrees_with_the_reference(case, dtype, deterministic)


@pytest.mark.usefixtures("split")
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize(("index", "heads", "channels"), [(band, 6, 5), (band, 8, 40), (scattered, 6, 5)])
def test_groups_of_heads_and_a_mask_per_item(index: Any, heads: int, channels: int, deterministic: bool) -> None:
    """Two groups, the last one not full; p is NaN in every dead slot, inside its row's band too."""
    torch.use_deterministic_algorithms(deterministic)
    made = seam(37, 21, batch=2, index=index, item_masks=True, heads=heads, head_dim=16, channels=channels)
    assert (triton_fused._band_or_none(made.neighbor_idx, made.valid_mask) is None) == (index is scattered)
    eager = max(seam_errors("gather", made, backward=True).values())
    found = seam_errors("triton_fused", made, backward=True)
    assert max(found.values()) <= max(1e-6, YARDSTICK * eager), found


@pytest.mark.parametrize(
    ("index", "size"),
    [(band, (16, 64, 16)), (band, (5, 24, 40)), (band, (1, 64, 64)), (scattered, (13, 8, 5)), (scattered, (5, 48, 16))],
)
def test_sizes_that_ship_split(index: Any, size: tuple[int, int, int]) -> None:
    heads, head_dim, channels = size
    sizes = Sizes(torch.float16, torch.float16, *size)
    config = backward_config(sizes, 90) if index is band else gather_config("backward", sizes, 90)
    assert config.split_heads is not None
    made = seam(19, 12, index=index, heads=heads, head_dim=head_dim, channels=channels)
    leaves = [x.detach().nan_to_num().half().requires_grad_() for x in made.inputs]
    grad_o = torch.randn(leaves[0].shape).half()
    _compare(made.block.half(), leaves, made.neighbor_idx, made.valid_mask, grad_o, 1e-3, by_eager=True)


def test_the_pass_over_pairs_crosses_programs_and_ends_anywhere(monkeypatch) -> None:
    """Several programs, the last one not full, and dW the sum of their parts: as one kernel has it."""
    for module in (tiles, triton_fused.launch):
        monkeypatch.setattr(module, "PAIRS_A_PROGRAM", 256)
    made = seam(37, 12, heads=6, channels=8, head_dim=16)
    q, k, v, p = (x.nan_to_num().half() for x in made.inputs)
    norm, weight = made.block.norm_pair.weight.detach(), made.block.pair_bias.weight.detach()
    plan = band_plan(made.neighbor_idx, made.valid_mask)
    given = triton_fused._problem(q, k, v, p, norm, weight, made.valid_mask, 1e-5)
    assert p[..., 0].numel() % 256 != 0
    kept = triton_fused.launch.forward(given, plan)
    whole = Config(16, 16, 4, 1)
    apart, again, one = (
        backward(given, plan, *kept, kept[0], deterministic=True, config=config) for config in (SPLIT, SPLIT, whole)
    )
    for got, same, want in zip(apart, again, one, strict=True):
        assert torch.equal(got, same)
        assert float((got.double() - want.double()).norm() / want.double().norm()) < 1e-3


@pytest.mark.parametrize(
    ("heads", "head_dim", "channels"), [(1, 8, 4), (3, 24, 5), (16, 16, 32), (2, 64, 64), (8, 32, 16)]
)
def test_sizes_are_padded(heads: int, head_dim: int, channels: int) -> None:
    made = seam(19, 12, heads=heads, head_dim=head_dim, channels=channels)
    leaves = [x.detach().requires_grad_() for x in made.inputs]
    assert triton_fused._band_or_none(made.neighbor_idx, made.valid_mask) is not None
    exact = [x.detach().nan_to_num().requires_grad_() for x in leaves]
    _compare(made.block, exact, made.neighbor_idx, made.valid_mask, torch.randn(leaves[0].shape), 1e-6, by_eager=True)


def test_half_activations_with_single_pairs() -> None:
    """What autocast gives: Q, K, V of the linears in half precision, p as it came."""
    made = seam(19, 12, heads=4, head_dim=16, channels=16)
    leaves = [x.detach().nan_to_num().to(torch.float16 if i < 3 else torch.float32) for i, x in enumerate(made.inputs)]
    leaves = [x.requires_grad_() for x in leaves]
    _compare(
        made.block, leaves, made.neighbor_idx, made.valid_mask, torch.randn(leaves[0].shape).half(), 1e-3, by_eager=True
    )


def test_deterministic_dq_is_the_sum_of_the_atomic_one() -> None:
    """Two runs in slots agree to the bit, and with the atomics to rounding."""
    made = seam(40, 16, heads=2, head_dim=16, channels=8)
    q, k, v, p = (x.nan_to_num() for x in made.inputs)
    norm, weight = made.block.norm_pair.weight.detach(), made.block.pair_bias.weight.detach()
    plan = band_plan(made.neighbor_idx, made.valid_mask)
    given = triton_fused._problem(q, k, v, p, norm, weight, made.valid_mask, 1e-5)
    kept = triton_fused.launch.forward(given, plan)
    once, again = (backward(given, plan, *kept, kept[0], deterministic=True)[0] for _ in range(2))
    atomic = backward(given, plan, *kept, kept[0], deterministic=False)[0]
    assert torch.equal(once, again)
    torch.testing.assert_close(once, atomic, rtol=1e-5, atol=1e-6)


def test_query_ranges_hold_every_live_pair() -> None:
    """Each key block's rows: all that see some key of it are inside the first range, all of the second see all."""
    idx, mask = CASES["dead_rows"].index(torch.Generator().manual_seed(3))
    for live in (mask, torch.ones_like(mask[:1]).expand_as(mask) & mask.any(0)):
        plan = band_plan(idx, live)
        assert in_order(plan)
        first, last, inner_first, inner_last = queries_of(plan, 16)
        for block in range(first.numel()):
            lo, hi = 16 * block, min(16 * block + 16, idx.shape[0])
            sees = (plan.start < hi) & (plan.stop > lo)
            rows = sees.nonzero()[:, 0]
            if len(rows):
                assert first[block] <= rows[0]
                assert rows[-1] < last[block]
            inner = slice(int(inner_first[block]), int(inner_last[block]))
            assert ((plan.start[inner] <= lo) & (plan.stop[inner] >= lo + 16)).all()


def _small() -> tuple[AtomTransformerBlock, tuple, tuple]:
    made = seam(11, 6, heads=2, head_dim=16, channels=8)
    inputs = tuple(x.nan_to_num().requires_grad_() for x in made.inputs)
    return variants.convert(made.block, "triton_fused"), inputs, (made.neighbor_idx, made.valid_mask)


def _op_arguments() -> tuple:
    block, inputs, index = _small()
    norm = block.norm_pair
    weights = (x.detach().requires_grad_() for x in (norm.weight, norm.bias, block.pair_bias.weight))
    return (*inputs, *weights, *index, norm.eps, False)


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.pallatom_bench.atom_attention.default, _op_arguments())


def test_compiles_without_a_graph_break() -> None:
    block, inputs, index = _small()

    def loss(*given: torch.Tensor) -> torch.Tensor:
        return block._attend(*given, *index).square().sum()

    want = torch.autograd.grad(loss(*inputs), inputs)
    got = torch.autograd.grad(torch.compile(loss, backend="aot_eager", fullgraph=True)(*inputs), inputs)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


def test_checkpoint_gives_the_same_gradients() -> None:
    block, inputs, index = _small()
    want = torch.autograd.grad(block._attend(*inputs, *index).square().sum(), inputs)
    out = checkpoint(lambda *given: block._attend(*given, *index), *inputs, use_reentrant=False)
    for g, w in zip(torch.autograd.grad(out.square().sum(), inputs), want, strict=True):
        torch.testing.assert_close(g, w)


def test_block_under_autocast() -> None:
    made = seam(11, 6, heads=2, head_dim=16, channels=8)
    block = variants.convert(made.block, "triton_fused")
    q, c = torch.randn(1, 11, 32, requires_grad=True), torch.randn(1, 11, 32)
    p = made.inputs[3].nan_to_num().requires_grad_()
    exact = made.block(q, c, p, made.neighbor_idx, made.valid_mask)
    with torch.autocast("cpu", torch.bfloat16):
        out = block(q, c, p, made.neighbor_idx, made.valid_mask)
    out.float().square().sum().backward()
    assert p.grad is not None
    assert p.grad.dtype == torch.float32
    assert p.grad.isfinite().all()
    assert float((out.float() - exact).detach().norm() / exact.detach().norm()) < 2e-2


def test_second_derivative_is_refused() -> None:
    block, inputs, index = _small()
    (dq,) = torch.autograd.grad(block._attend(*inputs, *index).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(UnsupportedError, match="first derivatives only"):
        dq.sum().backward()


def test_limits_are_named() -> None:
    made = seam(11, 6, heads=2, head_dim=16, channels=65)
    block = variants.convert(made.block, "triton_fused")
    with pytest.raises(UnsupportedError, match="c_atompair: at most 64 is required, 65 was found"):
        block._attend(*made.inputs, made.neighbor_idx, made.valid_mask)


def test_non_contiguous_inputs() -> None:
    block, inputs, index = _small()
    strided = [x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    torch.testing.assert_close(block._attend(*strided, *index), block._attend(*inputs, *index))


def test_the_original_is_left_alone() -> None:
    made = seam(11, 6)
    state = copy.deepcopy(made.block.state_dict())
    variants.convert(made.block, "triton_fused")._attend(*made.inputs, made.neighbor_idx, made.valid_mask)
    for name, x in made.block.state_dict().items():
        assert torch.equal(x, state[name])


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_band_too_large_for_a_multiprocessor_is_gathered(deterministic: bool, monkeypatch) -> None:
    """The two kinds of kernel agree on what the forward leaves for the backward."""
    from triton.runtime.errors import OutOfResources

    def no_room(*_, **__):
        raise OutOfResources(262144, 232448, "shared memory")

    torch.use_deterministic_algorithms(deterministic)
    made = seam(19, 12, batch=2, item_masks=True)
    leaves = [x.detach().nan_to_num().requires_grad_() for x in made.inputs]
    for name in ("backward", "forward"):  # first the backward alone
        monkeypatch.setattr(triton_fused.launch, name, no_room)
        _compare(made.block, leaves, made.neighbor_idx, made.valid_mask, torch.randn(leaves[0].shape), 1e-6)


@pytest.mark.parametrize("mode", ["band", "holes", "gather"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_tuning_runs_every_kernel_on_inputs_of_its_own(direction, mode, monkeypatch) -> None:
    """All but the clock and the compiler: another tile agrees with the default, and is kept if it is the faster."""

    class Untimed(GpuBench):
        def median_ms(self, config: Config) -> float:
            return 1.0 / config.num_warps

        def spills(self, config: Config) -> int:
            return 0

    torch.use_deterministic_algorithms(False)
    kernel = Kernel(direction, mode, Sizes(torch.float32, torch.float32, 2, 16, 8), 90)
    other = Config(1, 16, 16, 1) if mode == "gather" else Config(32, 16, 16, 1)
    monkeypatch.setattr(tune, "candidates", lambda kernel: (kernel.shipped(), other))
    monkeypatch.setattr(tune, "_process", tune.Process())
    monkeypatch.setattr(bench, "_WINDOW", 4)
    done = tune.tune_kernel(kernel, Untimed(kernel, "cpu", 23))
    assert [t.reason for t in done.trials] == [None, None]
    assert done.best == other


HARD = {
    "mean_1000": (1.0, 1000.0),
    "mean_-1000": (1.0, -1000.0),
    "mean_20000": (40.0, 20000.0),
    "small": (1e-6, 0.0),
    "large": (1e4, 0.0),
}
"""Pair rows as standard deviation and mean: nearly constant, and far from 1."""


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("values", HARD)
@pytest.mark.parametrize(
    ("index", "size"), [(band, (4, 16, 16)), (scattered, (4, 16, 16)), (band, (3, 24, 24)), (band, (5, 16, 64))]
)
def test_pairs_of_any_mean_and_size(dtype: torch.dtype, values: str, index: Any, size: tuple[int, int, int]) -> None:
    """Against float64 on the same numbers, as rounded: what rounding leaves constant has no variance and no bias."""
    heads, head_dim, channels = size
    spread, mean = HARD[values]
    made = seam(21, 12, index=index, heads=heads, head_dim=head_dim, channels=channels)
    leaves = [x.detach().nan_to_num() for x in made.inputs]
    leaves[3] = leaves[3] * spread + mean
    leaves = [x.to(dtype).requires_grad_() for x in leaves]
    assert leaves[3].isfinite().all()
    grad_o = torch.randn(leaves[0].shape).to(dtype)
    with torch.no_grad():
        made.block.pair_bias.weight.mul_(4 / channels)
    _compare(made.block.to(dtype), leaves, made.neighbor_idx, made.valid_mask, grad_o, TOLERANCE[dtype], by_eager=True)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("channels", [16, 24, 5])
def test_constant_pairs_have_no_bias(dtype: torch.dtype, channels: int) -> None:
    """Whatever their value: O is that of p = 0, to the bit where the channels are a power of two."""
    made = seam(21, 12, heads=4, head_dim=16, channels=channels)
    q, k, v, p = (x.detach().nan_to_num().to(dtype) for x in made.inputs)
    block = variants.convert(made.block.to(dtype), "triton_fused")
    want = block._attend(q, k, v, torch.zeros_like(p), made.neighbor_idx, made.valid_mask)
    for value in (1000.0, -1000.0, 30000.0, 65000.0):
        got = block._attend(q, k, v, torch.full_like(p, value), made.neighbor_idx, made.valid_mask)
        assert float((got.double() - want.double()).norm() / want.double().norm()) <= TOLERANCE[dtype] / 10


@pytest.mark.parametrize("index", [band, scattered])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pairs_whose_squares_overflow_give_nan(dtype: torch.dtype, index: Any) -> None:
    """In the rows that hold them, forward and backward: all other rows are what they are without."""
    made = seam(21, 12, index=index, heads=4, head_dim=16, channels=16)
    leaves = [x.detach().nan_to_num().to(dtype) for x in made.inputs]
    block = variants.convert(made.block, "triton_fused")
    grad_o = torch.randn(leaves[0].shape).to(dtype)

    def run(p: torch.Tensor) -> list[torch.Tensor]:
        inputs = [x.detach().requires_grad_() for x in (*leaves[:3], p)]
        out = block._attend(*inputs, made.neighbor_idx, made.valid_mask)
        return [out.detach(), *torch.autograd.grad(out, inputs, grad_o)]

    rows = made.valid_mask.any(1)
    one, whole = leaves[3].clone(), leaves[3] * 1e20
    one[:, 5] *= 1e20
    assert made.valid_mask[5].any()
    for t, plain in zip((run(one)[i] for i in (0, 1)), run(leaves[3])[:2], strict=True):
        assert t[:, 5].isnan().all()
        assert torch.equal(t[:, 6:], plain[:, 6:])
    out, dq, _, _, dp = run(whole)
    for t in (out, dq):
        assert t[:, rows].isnan().all()
    assert dp[made.valid_mask.expand(dp.shape[:3])].isnan().all()


@pytest.mark.parametrize("index", [band, scattered])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_saturated_softmax_keeps_its_gradients(dtype: torch.dtype, index: Any) -> None:
    """Scores of hundreds: dP - <dO, O> cancels in all rows but a few, and dQ, dK and dp are what is left."""
    made = seam(37, 21, index=index, heads=4, head_dim=16, channels=16)
    scale = (30.0, 30.0, 1.0, 1.0)
    leaves = [(x.detach().nan_to_num() * s).to(dtype).requires_grad_() for x, s in zip(made.inputs, scale, strict=True)]
    block, grad_o = made.block.to(dtype), torch.randn(leaves[0].shape).to(dtype)
    found = _errors("triton_fused", block, leaves, made.neighbor_idx, made.valid_mask, grad_o)
    assert max(found) <= {torch.float32: 5e-3, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype], found
