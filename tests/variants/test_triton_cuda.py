"""The fused Triton backend on a GPU: what its interpreter cannot show. Skipped where there is none.

Kernels are compiled here, a few seconds for each combination of dtype and sizes, so every combination earns its place.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import variants
from tests.variants.seam import Seam, scattered, seam
from tests.variants.variant_cases import CASES, PARAMETERS, answer, errors, problem, reference
from variants import UnsupportedError, triton_fused
from variants._op import attention_reference
from variants.triton import tune, tuned
from variants.triton.config import Config, Sizes, backward_config
from variants.triton.tuned import Kernel

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# fp32 products are three tf32 products each; in half precision it is the results' own rounding
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
# where digits cancel: in a p of mean 100, in a softmax that is one slot's, in sums over all pairs
ILL_CONDITIONED = {"large_offset": 20.0, "large_bias": 20.0}
WEIGHTS = 5.0
USUAL = (4, 32, 16)
DIRECTIONS = ("forward", "backward")


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Whatever is allocated without being written is NaN, and what runs by default is the atomic backward."""
    garbage = torch.full((1 << 24,), torch.nan, device="cuda")
    del garbage  # the allocator hands out its blocks again
    yield
    torch.use_deterministic_algorithms(False)


def _cells():
    """Every case in fp32 and fp16, and what differs in kind in bf16 and in the deterministic backward."""
    kinds = ("two_chains", "random_holes", "unsorted")
    for name, case in CASES.items():
        for dtype in DTYPES:
            if (case.half or dtype == torch.float32) and (name in kinds or dtype != torch.bfloat16):
                for deterministic in (False, True) if name in kinds and dtype != torch.float16 else (False,):
                    label = f"{name}-{str(dtype).removeprefix('torch.')}{'-deterministic' * deterministic}"
                    yield pytest.param(name, dtype, deterministic, id=label)


@pytest.mark.parametrize(("case", "dtype", "deterministic"), list(_cells()))
def test_every_case_agrees_with_the_reference(case: str, dtype: torch.dtype, deterministic: bool) -> None:
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    given = problem(case, dtype, "cuda")
    got = answer(variants.convert(given.block, "triton_fused"), given)
    found = errors(got, reference(case, dtype))
    limit = TOLERANCE[dtype] * ILL_CONDITIONED.get(case, 1.0)
    weights = {f"d{name}" for name in PARAMETERS}
    assert all(e <= limit * (WEIGHTS if name in weights else 1.0) for name, e in found.items()), found
    assert not got["dnorm_pair.bias"].any()
    assert not got["dp"][~given.valid_mask.expand(got["dp"].shape[:3])].any()


def on_gpu(made: Seam, dtype: torch.dtype, pair_dtype: torch.dtype | None = None) -> Seam:
    """The same problem in these dtypes, its weights in fp32."""
    pair_dtype = pair_dtype or dtype
    inputs = tuple(
        x.detach().cuda().to(pair_dtype if i == 3 else dtype).requires_grad_() for i, x in enumerate(made.inputs)
    )
    return Seam(made.block.cuda(), inputs, made.neighbor_idx.cuda(), made.valid_mask.cuda())


def fused(made: Seam, inputs: tuple[Tensor, ...] | None = None) -> Tensor:
    block = variants.convert(made.block, "triton_fused")
    return block._attend(*(inputs or made.inputs), made.neighbor_idx, made.valid_mask)


def gradients(made: Seam, out: Tensor, grad_o: Tensor) -> list[Tensor]:
    weights = (made.block.norm_pair.weight, made.block.pair_bias.weight)
    return list(torch.autograd.grad(out, [*made.inputs, *weights], grad_o))


def worst(made: Seam) -> dict[str, float]:
    """Relative error norms of O and all gradients against float64, as their dtype holds it: where a gradient of 1e-8
    falls below what float16 resolves, that is no kernel's fault."""
    torch.manual_seed(1)
    out = fused(made)
    grad_o = torch.randn_like(out)
    got = [out.detach(), *gradients(made, out, grad_o)]
    norm, weight = made.block.norm_pair, made.block.pair_bias.weight
    exact = [x.detach().double().requires_grad_() for x in (*made.inputs, norm.weight, norm.bias, weight)]
    want_o = attention_reference(*exact, made.neighbor_idx, made.valid_mask, norm.eps)
    want = torch.autograd.grad(want_o, [x for i, x in enumerate(exact) if i != 5], grad_o.double())
    names = ("O", "dQ", "dK", "dV", "dp", "dgamma", "dW")
    pairs = zip(names, got, (want_o.detach(), *want), strict=True)
    return {name: float((g.double() - w.to(g.dtype).double()).norm() / w.norm()) for name, g, w in pairs}


def hold(found: dict[str, float], dtype: torch.dtype) -> None:
    limit = TOLERANCE[dtype]
    assert all(e <= limit * (WEIGHTS if name in ("dgamma", "dW") else 1.0) for name, e in found.items()), found


SIZES = [
    *((torch.bfloat16, size) for size in [(1, 8, 4), (3, 24, 5), (8, 32, 16), (4, 32, 64), (16, 32, 32), (16, 64, 64)]),
    *((torch.float16, size) for size in [(2, 64, 16), (1, 64, 64), (16, 64, 16)]),
    *((torch.float32, size) for size in [(3, 24, 5), (8, 32, 16), (16, 32, 32)]),
]


@pytest.mark.parametrize(("dtype", "size"), SIZES, ids=lambda x: str(x).removeprefix("torch.").replace(", ", "-"))
def test_sizes(dtype: torch.dtype, size: tuple[int, int, int]) -> None:
    heads, head_dim, channels = size
    made = on_gpu(seam(203, 61, heads=heads, head_dim=head_dim, channels=channels), dtype)
    assert triton_fused._band_or_none(made.neighbor_idx, made.valid_mask) is not None
    hold(worst(made), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("holes", [False, True])
def test_usual_sizes_over_many_tiles(dtype: torch.dtype, holes: bool) -> None:
    """N and K that nothing divides, a dead row, two items; with ``holes`` a mask per item."""
    heads, head_dim, channels = USUAL
    shape = {"batch": 2, "heads": heads, "head_dim": head_dim, "channels": channels}
    hold(worst(on_gpu(seam(1031, 433, item_masks=holes, **shape), dtype)), dtype)


@pytest.mark.parametrize("size", [(12, 32, 32), (4, 32, 64), (7, 48, 24)], ids=str)
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_split_backward_over_many_tiles(size: tuple[int, int, int], deterministic: bool) -> None:
    """Two groups of heads, or one; several programs of the pass over pairs; NaN in every dead slot of p."""
    torch.use_deterministic_algorithms(deterministic)
    heads, head_dim, channels = size
    sizes = Sizes(torch.bfloat16, torch.bfloat16, *size)
    assert backward_config(sizes, _arch()).split_heads is not None
    shape = {"batch": 2, "heads": heads, "head_dim": head_dim, "channels": channels}
    hold(worst(on_gpu(seam(1031, 433, item_masks=True, **shape), torch.bfloat16)), torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [USUAL, (13, 24, 24)], ids=str)
@pytest.mark.parametrize("deterministic", [False, True])
def test_gather_mode(dtype: torch.dtype, size: tuple[int, int, int], deterministic: bool) -> None:
    """The second size is split in half precision: two groups of heads, the last one not full."""
    torch.use_deterministic_algorithms(deterministic)
    heads, head_dim, channels = size
    shape = {"heads": heads, "head_dim": head_dim, "channels": channels}
    made = on_gpu(seam(403, 97, batch=2, index=scattered, item_masks=True, **shape), dtype)
    assert triton_fused._band_or_none(made.neighbor_idx, made.valid_mask) is None
    hold(worst(made), dtype)


def test_half_activations_with_single_pairs() -> None:
    made = on_gpu(seam(203, 61, heads=4, head_dim=32, channels=16), torch.float16, torch.float32)
    hold(worst(made), torch.float16)


@pytest.mark.parametrize("index", ["band", "holes", "scattered"])
def test_deterministic_gradients_are_equal_to_the_bit(index: str) -> None:
    """Every gradient, over three runs. The atomic ones agree with them to rounding."""
    heads, head_dim, channels = USUAL
    kind = {"index": scattered} if index == "scattered" else {"item_masks": index == "holes"}
    made = seam(1500, 230, batch=2, heads=heads, head_dim=head_dim, channels=channels, **kind)
    made = on_gpu(made, torch.bfloat16)
    grad_o = torch.randn_like(made.inputs[0])
    runs = []
    for deterministic in (True, True, True, False):
        torch.use_deterministic_algorithms(deterministic)
        runs.append(gradients(made, fused(made), grad_o))
    for again in runs[1:3]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))
    for exact, atomic in zip(runs[0], runs[3], strict=True):
        assert float((exact.double() - atomic.double()).norm() / exact.double().norm()) < 5e-3


def test_compiles_without_a_graph_break() -> None:
    torch.compiler.reset()
    made = on_gpu(seam(203, 61, heads=4, head_dim=32, channels=16), torch.bfloat16)
    block = variants.convert(made.block, "triton_fused")

    def loss(*given: Tensor) -> Tensor:
        out = block._attend(*given, made.neighbor_idx, made.valid_mask)
        return (out.float() ** 2).sum()

    want = torch.autograd.grad(loss(*made.inputs), made.inputs)
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*made.inputs), made.inputs)
    for g, w in zip(got, want, strict=True):
        assert float((g.double() - w.double()).norm() / w.double().norm()) < 5e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    """A block in fp32: linears give half precision, p stays as it came."""
    made = seam(203, 61, heads=4, head_dim=32, channels=16)
    with torch.no_grad():
        for x in made.block.parameters():
            x.mul_(0.1)  # scores of a few units
    block = variants.convert(made.block.cuda(), "triton_fused")
    index = (made.neighbor_idx.cuda(), made.valid_mask.cuda())
    q, c = (torch.randn(1, 203, 128, device="cuda", requires_grad=True) for _ in range(2))
    p = made.inputs[3].nan_to_num().cuda().requires_grad_()
    exact = made.block(q, c, p, *index).detach()
    with torch.autocast("cuda", dtype):
        out = block(q, c, p, *index)
    assert float((out.float() - exact).detach().norm() / exact.norm()) < 2e-2
    out.float().square().sum().backward()
    for x in (q, c, p, *block.parameters()):
        assert x.grad is not None
        assert x.grad.dtype == torch.float32
        assert x.grad.isfinite().all()


def test_checkpoint_gives_the_same_gradients() -> None:
    torch.use_deterministic_algorithms(True)
    made = on_gpu(seam(203, 61, heads=4, head_dim=32, channels=16), torch.bfloat16)
    grad_o = torch.randn_like(made.inputs[0])
    want = gradients(made, fused(made), grad_o)
    out = checkpoint(lambda *given: fused(made, given), *made.inputs, use_reentrant=False)
    assert isinstance(out, Tensor)
    for g, w in zip(gradients(made, out, grad_o), want, strict=True):
        assert torch.equal(g, w)


@pytest.mark.parametrize("index", ["band", "scattered"])
def test_opcheck(index: str) -> None:
    """Deterministic: opcheck compares a traced backward with an eager one."""
    torch.use_deterministic_algorithms(True)
    kind = {"index": scattered} if index == "scattered" else {}
    made = on_gpu(seam(40, 12, **kind), torch.float32)
    norm, inputs = made.block.norm_pair, [x.detach().nan_to_num().requires_grad_() for x in made.inputs]
    weights = [x.detach().requires_grad_() for x in (norm.weight, norm.bias, made.block.pair_bias.weight)]
    arguments = (*inputs, *weights, made.neighbor_idx, made.valid_mask, norm.eps, False)
    torch.library.opcheck(torch.ops.pallatom_bench.atom_attention.default, arguments)


def test_replays_as_a_cuda_graph() -> None:
    """Once warm, neither pass waits for the device."""
    made = on_gpu(seam(203, 61, heads=4, head_dim=32, channels=16), torch.bfloat16)
    grad_o = torch.randn_like(made.inputs[0])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        out = fused(made)
        want = [out, *gradients(made, out, grad_o)]
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = fused(made)
        got = [out, *gradients(made, out, grad_o)]
    for t in got:
        t.detach().fill_(torch.nan)
    graph.replay()
    for g, w in zip(got, want, strict=True):
        assert float((g.detach().double() - w.detach().double()).norm() / w.detach().double().norm()) < 5e-3


def test_strided_inputs_and_streams() -> None:
    made = on_gpu(seam(203, 61, heads=4, head_dim=32, channels=16), torch.bfloat16)
    want = fused(made)
    strided = tuple(x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in made.inputs)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.inference_mode():
        got = fused(made, strided)
    side.synchronize()
    assert torch.equal(got, want)


def _long_band(n: int, slots: int) -> tuple[Tensor, Tensor]:
    """Residues of 14 atoms that see ``slots`` atoms around them, fewer at the ends."""
    residue = torch.arange(n, device="cuda") // 14 * 14
    start = (residue - slots // 2).clamp(min=0)
    stop = (residue + slots // 2).clamp(max=n)
    idx = start[:, None] + torch.arange(slots, device="cuda")
    mask = idx < stop[:, None]
    return idx.masked_fill_(~mask, 0), mask


@pytest.mark.parametrize("mode", ["band", "gather"])
def test_offsets_beyond_32_bits(mode: str) -> None:
    """p holds 2.3e9 numbers: the first rows and the last against float64, and the memory that the forward takes."""
    n, slots, (heads, head_dim, channels) = 330_000, 434, USUAL
    if torch.cuda.mem_get_info()[0] < 30e9:
        pytest.skip("needs 30 GB of free GPU memory")
    idx, mask = _long_band(n, slots)
    if mode == "gather":
        idx = idx.roll(1, 1)
        mask = mask.roll(1, 1)
    block = variants.convert(
        seam(11, 6, heads=heads, head_dim=head_dim, channels=channels).block, "triton_fused"
    ).cuda()
    torch.manual_seed(0)
    Q, K, V, dO = (torch.randn(1, n, heads, head_dim, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    p = torch.randn(1, n, slots, channels, device="cuda", dtype=torch.bfloat16)
    assert p.numel() > 2**31
    assert (triton_fused._band_or_none(idx, mask) is None) == (mode == "gather")
    leaves = [x.requires_grad_() for x in (Q, K, V, p)]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = block._attend(*leaves, idx, mask)
    extra = torch.cuda.max_memory_allocated() - before
    assert extra <= 0.05 * p.numel() * p.element_size()
    dq, dk, dv, dp = torch.autograd.grad(out, leaves, dO)
    assert all(bool(t.isfinite().all()) for t in (dk, dv, dp[:, ::1009]))
    for rows in (slice(0, 64), slice(n - 64, n)):
        keys = slice(max(rows.start - slots, 0), min(rows.stop + slots, n))
        local = torch.where(mask[rows], idx[rows] - keys.start, 0)
        own = [
            x.detach()[:, part].double().requires_grad_() for x, part in ((Q, rows), (K, keys), (V, keys), (p, rows))
        ]
        weights = [x.detach().double() for x in (block.norm_pair.weight, block.norm_pair.bias, block.pair_bias.weight)]
        want = attention_reference(*own, *weights, local, mask[rows], block.norm_pair.eps)
        want_q, want_p = torch.autograd.grad(want, [own[0], own[3]], dO[:, rows].double())
        for got, exact in ((out[:, rows], want), (dq[:, rows], want_q), (dp[:, rows], want_p)):
            error = float((got.detach().double() - exact.detach()).norm() / exact.detach().norm())
            assert error <= TOLERANCE[torch.bfloat16], (rows, error)


def test_tuning_at_first_use(monkeypatch, tmp_path) -> None:
    """Timed on this GPU, kept in the cache folder, used from then on, and logged apart."""
    kernels = {d: Kernel(d, "band", Sizes(torch.bfloat16, torch.bfloat16, *USUAL), _arch()) for d in DIRECTIONS}
    pool = {d: (k.shipped(), Config(16, 16, 8, 1)) for d, k in kernels.items()}
    monkeypatch.setattr(tune, "candidates", lambda kernel: pool[kernel.direction])
    monkeypatch.setattr(tune, "_process", tune.Process())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(tuned.TUNED_FILE, raising=False)
    monkeypatch.setenv(tuned.AUTOTUNE, "1")
    tuned.forget()
    made = on_gpu(seam(203, 61, heads=4, head_dim=32, channels=16), torch.bfloat16)
    hold(worst(made), torch.bfloat16)
    assert [t.kernel for t in tune.tunings()] == list(kernels.values())
    for done in tune.tunings():
        assert all(t.reason is None and t.ms is not None and t.ms > 0 for t in done.trials), done
        assert tuned.config_for(done.kernel) == done.best
    assert tune.tuning_ms() > 0
    hold(worst(made), torch.bfloat16)
    assert len(tune.tunings()) == 2
    tuned.forget()


def _arch() -> int:
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


HARD = {"mean_1000": (1.0, 1000.0), "mean_-20000": (40.0, -20000.0), "small": (1e-6, 0.0), "large": (1e4, 0.0)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("values", HARD)
@pytest.mark.parametrize("index", ["band", "scattered", "split"])
def test_pairs_of_any_mean_and_size(dtype: torch.dtype, values: str, index: str) -> None:
    """Nearly constant rows have what rounding left of them, and nothing of their mean."""
    spread, mean = HARD[values]
    heads, head_dim, channels = (4, 32, 64) if index == "split" else USUAL
    kind: dict[str, Any] = {"index": scattered} if index == "scattered" else {}
    made = seam(203, 61, heads=heads, head_dim=head_dim, channels=channels, **kind)
    with torch.no_grad():
        made.block.pair_bias.weight.mul_(4 / channels)
    q, k, v, p = (x.detach().nan_to_num() for x in made.inputs)
    made = on_gpu(Seam(made.block, (q, k, v, p * spread + mean), made.neighbor_idx, made.valid_mask), dtype)
    found = worst(made)
    if dtype == torch.float32 and mean:  # digits that a mean has taken from p, and from x - mean in dp
        limit = 1e-3
        assert max(found.values()) <= limit, found
    else:
        hold(found, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("index", ["band", "scattered"])
def test_pairs_whose_squares_overflow_give_nan(dtype: torch.dtype, index: str) -> None:
    kind: dict[str, Any] = {"index": scattered} if index == "scattered" else {}
    made = seam(203, 61, heads=4, head_dim=32, channels=16, **kind)
    q, k, v, p = (x.detach().nan_to_num() for x in made.inputs)
    made = on_gpu(Seam(made.block, (q, k, v, p * 1e20), made.neighbor_idx, made.valid_mask), dtype)
    out, rows = fused(made), made.valid_mask.any(1)
    dq, _, _, dp, *_ = gradients(made, out, torch.randn_like(out))
    assert out[:, rows].isnan().all()
    assert dq[:, rows].isnan().all()
    assert dp[made.valid_mask.expand(dp.shape[:3])].isnan().all()
    assert not out[:, ~rows].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("index", ["band", "scattered"])
def test_a_saturated_softmax_keeps_its_gradients(dtype: torch.dtype, index: str) -> None:
    kind: dict[str, Any] = {"index": scattered} if index == "scattered" else {}
    made = seam(203, 61, heads=4, head_dim=32, channels=16, **kind)
    q, k, v, p = (x.detach().nan_to_num() for x in made.inputs)
    found = worst(on_gpu(Seam(made.block, (30 * q, 30 * k, v, p), made.neighbor_idx, made.valid_mask), dtype))
    limit = {torch.float32: 1e-2, torch.float16: 2e-2, torch.bfloat16: 6e-2}[dtype]
    assert max(found.values()) <= limit, found


@pytest.mark.parametrize("index", ["band", "scattered"])
def test_a_batch_beyond_the_grids_second_axis(index: str) -> None:
    kind: dict[str, Any] = {"index": scattered} if index == "scattered" else {}
    made = on_gpu(seam(7, 5, batch=70_001, heads=1, head_dim=16, channels=4, **kind), torch.float32)
    hold(worst(made), torch.float32)


def test_a_device_that_is_not_current() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two CUDA devices, {torch.cuda.device_count()} found")
    made = on_gpu(seam(203, 61, heads=4, head_dim=32, channels=16), torch.bfloat16)
    want = fused(made)
    there = tuple(x.detach().to("cuda:1").requires_grad_() for x in made.inputs)
    other = Seam(made.block.to("cuda:1"), there, made.neighbor_idx.to("cuda:1"), made.valid_mask.to("cuda:1"))
    assert torch.cuda.current_device() == 0
    got = fused(other)
    assert got.device == torch.device("cuda:1")
    assert torch.equal(got.cpu(), want.cpu())
    assert all(x.device == got.device for x in gradients(other, got, torch.randn_like(got)))


def test_a_plan_made_on_one_stream_serves_another() -> None:
    """While the first stream is busy, and after the plan and its index are gone."""
    made = on_gpu(seam(1031, 433, heads=4, head_dim=32, channels=16), torch.bfloat16)
    grad_o = torch.randn_like(made.inputs[0])
    torch.use_deterministic_algorithms(True)
    first = fused(made)
    want = [first, *gradients(made, first, grad_o)]
    for _ in range(3):
        fresh = Seam(made.block, made.inputs, made.neighbor_idx.clone(), made.valid_mask.clone())
        torch.cuda.synchronize()
        sides = [torch.cuda.Stream() for _ in range(2)]
        outs = []
        for side in sides:
            with torch.cuda.stream(side):
                torch.cuda._sleep(2_000_000)
                outs.append(fused(fresh))
                outs += gradients(fresh, outs[-1], grad_o)
        del fresh
        garbage = [torch.full((1 << 20,), -1, device="cuda", dtype=torch.int32) for _ in range(8)]
        torch.cuda.synchronize()
        del garbage
        for got, exact in zip(outs, want * 2, strict=True):
            assert torch.equal(got, exact)


def test_a_capture_without_a_call_before_is_refused_by_name() -> None:
    made = on_gpu(seam(203, 61, heads=4, head_dim=32, channels=16), torch.bfloat16)
    want = fused(made)
    fresh = Seam(made.block, made.inputs, made.neighbor_idx.clone(), made.valid_mask.clone())
    with (
        torch.no_grad(),
        pytest.raises(UnsupportedError, match="graph capture: one call with the same index"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        fused(fresh)
    assert torch.equal(fused(fresh), want)


def test_a_kernel_that_a_capture_is_the_first_to_use_runs_or_is_refused_by_name() -> None:
    """The index is known; these sizes were never asked for."""
    made = on_gpu(seam(203, 61, heads=4, head_dim=32, channels=16), torch.bfloat16)
    fused(made)
    other = on_gpu(seam(203, 61, heads=2, head_dim=48, channels=12), torch.bfloat16)
    other = Seam(other.block, other.inputs, made.neighbor_idx, made.valid_mask)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.no_grad(), torch.cuda.graph(graph):
            got = fused(other)
    except UnsupportedError as e:
        assert "graph capture" in str(e)  # noqa: PT017 — either is right
        return
    graph.replay()
    with torch.no_grad():
        assert torch.equal(got, fused(other))


def test_paths() -> None:
    def path(made: Seam) -> str:
        block = variants.convert(made.block, "triton_fused")
        return variants.path(block, *made.inputs, made.neighbor_idx, made.valid_mask)

    usual: dict[str, Any] = {"heads": 4, "head_dim": 32, "channels": 16}
    assert path(on_gpu(seam(203, 61, **usual), torch.bfloat16)) == "band"
    assert path(on_gpu(seam(203, 61, item_masks=True, **usual), torch.bfloat16)) == "band with holes"
    assert path(on_gpu(seam(203, 61, index=scattered, **usual), torch.bfloat16)) == "gather"
    wide = on_gpu(seam(203, 61, heads=16, head_dim=64, channels=64), torch.bfloat16)
    assert path(wide) == "band, split"
    with torch.no_grad():
        assert path(wide) == "band"
    single = on_gpu(seam(203, 61, heads=16, head_dim=64, channels=16), torch.float32)
    assert path(single).endswith("gather")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what does not fit is known before it is launched
        hold(worst(single), torch.float32)
