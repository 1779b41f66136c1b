"""The fused CPU kernels: any shape, any number of threads, their memory, and how they come to be compiled."""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import variants
from benchmarks.harness.ruler.memory import peak_memory
from pallatom.architecture.atom_transformers import AtomTransformer, AtomTransformerBlock, build_sparse_pairs
from tests.variants.band_problems import answers, plain, problems, window
from tests.variants.seam import errors as seam_errors
from tests.variants.seam import seam
from tests.variants.variant_cases import answer, errors, problem
from variants import cpu_fused
from variants.cpu import library

pytestmark = pytest.mark.skipif(bool(variants.why_unavailable("cpu_fused")), reason="nothing to compile with")
FOLDER = Path(variants.__file__).parent


@pytest.fixture
def threads() -> Iterator[None]:
    """Whatever number a test sets ends with it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@settings(max_examples=40, deadline=None)
@given(problems(max_heads=5, max_dim=35, max_channels=19))
def test_any_band_of_any_shape(problem) -> None:
    """Heads, channels and head dims on either side of what a vector holds; any holes, any starts."""
    inputs, weights, idx, mask, _ = problem
    inputs, weights = [x.float() for x in inputs], [x.float() for x in weights]
    got, ref = answers("cpu_fused", inputs, weights, idx, mask, eps=0.1)
    # dS is a difference that may cancel to nothing (with one live slot it is 0), at the size of dV's terms
    terms = 0.1 * float(ref["dV"].norm())
    for name, x in got.items():
        assert float((x - ref[name]).norm()) < 2e-5 * max(float(ref[name].norm()), terms, 1.0), name


@pytest.mark.parametrize("channels", [16, 5])
@pytest.mark.parametrize(("heads", "head_dim"), [(4, 32), (3, 16), (1, 48), (8, 4)])
def test_tiles_of_every_size_agree(channels: int, heads: int, head_dim: int) -> None:
    """Several tiles a thread, a last one that is not full, slots that fill no whole vector, holes with NaN in them."""
    for n, k, holes in ((203, 61, True), (100, 100, False), (49, 16, True)):
        made = seam(n, k, batch=2, item_masks=holes, heads=heads, head_dim=head_dim, channels=channels)
        assert max(seam_errors("cpu_fused", made, backward=True).values()) < 2e-5


def test_rows_that_see_far_apart_atoms_share_no_tile() -> None:
    """Spans of a thousand atoms, where a tile's scores have room for a hundred columns."""
    g = torch.Generator().manual_seed(0)
    start = torch.randint(0, 1000 - 12, (200,), generator=g).repeat_interleave(5)
    idx = start[:, None] + torch.arange(12)
    made = seam(1000, 12, index=lambda n, k: (idx, torch.ones(n, k, dtype=torch.bool)), channels=16)
    assert max(seam_errors("cpu_fused", made, backward=True).values()) < 2e-5


def test_narrow_gradients_are_rounded_to_the_nearest() -> None:
    wide = seam(60, 21, item_masks=True)
    leaves = [x.bfloat16().nan_to_num() for x in wide.inputs]
    block = variants.convert(wide.block, "cpu_fused")
    found = []
    for p in (leaves[3].float().requires_grad_(), leaves[3].requires_grad_()):
        out = block._attend(*(x.float() for x in leaves[:3]), p, wide.neighbor_idx, wide.valid_mask)
        found += torch.autograd.grad(out.square().sum(), p)
    assert torch.equal(found[0].bfloat16(), found[1])


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, 0x7FFFFFFF])
def test_any_nan_spoils_its_row(bits: int) -> None:
    made = seam(60, 21, channels=16)
    with torch.no_grad():
        made.inputs[0][0, 17] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
        block = variants.convert(made.block, "cpu_fused")
        out = block._attend(*made.inputs, made.neighbor_idx, made.valid_mask)
    assert out[0, 17].isnan().all()
    assert out[0, :17].isfinite().all()


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64])
def test_any_number_of_threads_agrees_and_repeats_its_bits(count: int, threads: None) -> None:
    made = seam(203, 61, batch=2, item_masks=True, channels=16)
    torch.set_num_threads(count)
    assert max(seam_errors("cpu_fused", made, backward=True).values()) < 2e-5
    given = problem("random_holes", torch.float32)
    block = variants.convert(given.block, "cpu_fused")
    first, second = answer(block, given), answer(block, given)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_calls_from_several_threads_do_not_meet() -> None:
    """The interpreter's lock is let go while a kernel runs."""
    made = seam(203, 61, batch=2, channels=16)
    block = variants.convert(made.block, "cpu_fused")

    def call(_: int) -> torch.Tensor:
        with torch.no_grad():
            return block._attend(*made.inputs, made.neighbor_idx, made.valid_mask)

    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(call, range(80)))
    assert all(torch.equal(outputs[0], x) for x in outputs)


@pytest.mark.parametrize("size", [3e4, 1e36])
def test_wide_pairs_in_bfloat16_keep_their_range(size: float) -> None:
    idx, mask = window()
    inputs, weights = plain(torch.bfloat16, idx, scale=1.0)
    inputs[3] *= size**0.5
    found = errors(*answers("cpu_fused", inputs, weights, idx, mask))
    assert max(found.values()) < 2e-2, found


def test_gradients_of_gradients_are_refused() -> None:
    made = seam(30, 9)
    block = variants.convert(made.block, "cpu_fused")
    leaves = [x.nan_to_num().requires_grad_() for x in made.inputs]
    out = block._attend(*leaves, made.neighbor_idx, made.valid_mask)
    (first,) = torch.autograd.grad(out.square().sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_float16_and_float64_are_refused_by_name() -> None:
    for dtype in (torch.float16, torch.float64):
        made = seam(20, 5, dtype=dtype)
        block = variants.convert(made.block, "cpu_fused")
        with torch.no_grad(), pytest.raises(variants.UnsupportedError, match=f"dtype.*{str(dtype)[6:]} was found"):
            block._attend(*made.inputs, made.neighbor_idx, made.valid_mask)


def test_extra_memory_is_a_fraction_of_p() -> None:
    """At most half of p was asked for; only dp is as large as p backward."""
    idx, mask = build_sparse_pairs(torch.arange(1024) // 14, 32)
    block = variants.convert(AtomTransformerBlock(128, 16, 4), "cpu_fused")
    inputs = [torch.randn(1, 1024, 4, 32) for _ in range(3)] + [torch.randn(1, *idx.shape, 16)]
    p_bytes = inputs[3].numel() * 4

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return block._attend(*inputs, idx, mask)

    def both() -> tuple[torch.Tensor, ...]:
        leaves = [x.requires_grad_() for x in inputs]
        return torch.autograd.grad(block._attend(*leaves, idx, mask).sum(), leaves)

    forward()
    assert 0 < peak_memory(forward, "cpu")[0] < 0.2 * p_bytes
    assert p_bytes < peak_memory(both, "cpu")[0] < 1.5 * p_bytes


def test_a_compiled_model_may_hold_it() -> None:
    torch.manual_seed(0)
    model = variants.convert(AtomTransformer(32, 16, n_blocks=2, n_heads=2, window_size=6), "cpu_fused")
    idx, mask = build_sparse_pairs(torch.arange(30) // 4, 6)
    q, c, p = torch.randn(1, 30, 32), torch.randn(1, 30, 32), torch.randn(1, *idx.shape, 16)
    compiled = torch.compile(model, backend="aot_eager")
    assert torch.allclose(model(q, c, p, idx, mask), compiled(q, c, p, idx, mask), atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are x86's")
@pytest.mark.parametrize("instructions", [(), ("-mavx2", "-mfma")], ids=["sse2", "avx2"])
def test_narrower_vectors_give_the_same_answers(
    instructions: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled for older processors: four and eight lanes where this one may have sixteen."""
    if instructions and not torch.cpu._is_avx2_supported():
        pytest.skip("this processor has no AVX2")
    flags = tuple(f for f in library._FLAGS if f != "-O3" and not f.startswith("-march"))
    monkeypatch.setattr(library, "_FLAGS", (*flags, "-O1", *instructions))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cpu_fused, "library", functools.cache(library.library.__wrapped__))
    for channels in (16, 5):
        made = seam(101, 37, batch=2, item_masks=True, heads=4, head_dim=20, channels=channels)
        assert max(seam_errors("cpu_fused", made, backward=True).values()) < 2e-5


def stack_call(backend: str, dtype: torch.dtype) -> tuple[Any, dict[str, Tensor], tuple[Tensor, Tensor]]:
    """A stack of three, its leaves, and an index with dead rows and padding."""
    torch.manual_seed(0)
    stack = variants.convert(AtomTransformer(16, 6, n_blocks=3, n_heads=2).to(dtype), backend)
    idx, live = build_sparse_pairs(torch.arange(60) // 4, 8)
    live[5:9] = False
    shapes = {"q": (2, 60, 16), "c": (2, 60, 16), "p": (2, *idx.shape, 6)}
    leaves = {name: torch.randn(shape, dtype=dtype).requires_grad_() for name, shape in shapes.items()}
    return stack, leaves, (idx, live)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_blocks_of_a_stack_sum_their_gradients_of_p(dtype: torch.dtype) -> None:
    """As torch would, pass after pass, also after one that wanted no gradient of p, and none is left behind."""
    stack, leaves, index = stack_call("cpu_fused", dtype)
    plain, same, _ = stack_call("gather", dtype)
    cotangent = torch.randn(2, 60, 16, dtype=dtype)
    (want,) = torch.autograd.grad(plain(**same, neighbor_idx=index[0], valid_mask=index[1]), same["p"], cotangent)
    out = stack(**leaves, neighbor_idx=index[0], valid_mask=index[1])
    torch.autograd.grad(out, leaves["q"], cotangent, retain_graph=True)
    first, again = (torch.autograd.grad(out, leaves["p"], cotangent, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)
    assert first is not again
    assert (first - want).norm() / want.norm() < (1e-5 if dtype == torch.float32 else 3e-2)
    assert first[:, 5:9].eq(0).all()
    nodes, shared = [out.grad_fn], []
    for node in nodes:
        nodes += [n for n, _ in node.next_functions if n is not None and n not in nodes]
        shared += [node] if "SharedPairs" in node.name() else []
    assert len(shared) == 1
    assert not shared[0].sums


def test_a_stack_of_two_backends_and_hooks_on_p() -> None:
    """A block that is not ours, one whose p a hook replaces, and a hook on p itself: all parts of the sum arrive."""
    stack, leaves, index = stack_call("cpu_fused", torch.float32)
    plain, same, _ = stack_call("gather", torch.float32)
    stack.blocks[1].__class__ = AtomTransformerBlock
    for module in (stack, plain):
        module.blocks[2].register_forward_pre_hook(lambda _, args: (*args[:2], 2 * args[2], *args[3:]))
    seen: list[Tensor] = []
    leaves["p"].register_hook(seen.append)
    sums = ((stack(*leaves.values(), *index), leaves["p"]), (plain(*same.values(), *index), same["p"]))
    grads = [torch.autograd.grad(out.square().sum(), p)[0] for out, p in sums]
    assert (grads[0] - grads[1]).norm() / grads[1].norm() < 1e-5
    assert torch.equal(seen[0], grads[0])


def test_a_stack_makes_one_gradient_of_p() -> None:
    stack, leaves, _ = stack_call("cpu_fused", torch.float32)
    idx, live = build_sparse_pairs(torch.arange(600) // 14)
    leaves = {"q": torch.randn(1, 600, 16), "c": torch.randn(1, 600, 16), "p": torch.randn(1, *idx.shape, 6)}
    leaves = {name: x.requires_grad_() for name, x in leaves.items()}

    def call() -> object:
        return torch.autograd.grad(stack(*leaves.values(), idx, live).sum(), list(leaves.values()))

    call()
    assert 1 <= peak_memory(call, "cpu")[0] / leaves["p"].nbytes < 1.9
