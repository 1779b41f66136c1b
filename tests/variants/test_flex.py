"""FlexAttention: its block mask, its kernel on the CPU, its gradients by PyTorch's own eager mathematics of it."""

from __future__ import annotations

import runpy

import pytest
import torch
from torch.nn.attention import flex_attention as library

from tests import ROOT
from tests.variants.seam import band, errors, seam
from variants import UnsupportedError, band_plan, convert, flex, why_unavailable

runs_here = pytest.mark.skipif(bool(why_unavailable("flex")), reason="; ".join(why_unavailable("flex")))


@pytest.mark.parametrize(("n", "k"), [(1, 1), (128, 60), (129, 50), (700, 300), (1000, 434), (300, 290)])
def test_the_block_mask_is_that_of_the_whole_mask(n: int, k: int) -> None:
    """The same blocks, partial and full, by row and by column, as from evaluating every cell."""
    plan = band_plan(*band(n, k))
    assert not plan.has_holes
    made = flex.blocks(plan)
    whole = library.create_block_mask(
        lambda b, h, q, kv: (kv >= plan.start[q]) & (kv < plan.stop[q]), None, None, n, n, device="cpu"
    )
    for kind in ("kv", "full_kv", "q", "full_q"):
        got_count, want_count = (getattr(m, f"{kind}_num_blocks")[0, 0] for m in (made, whole))
        got, want = (getattr(m, f"{kind}_indices")[0, 0] for m in (made, whole))
        assert torch.equal(got_count, want_count)
        assert [g[:c].tolist() for g, c in zip(got, got_count)] == [w[:c].tolist() for w, c in zip(want, want_count)]


def test_a_dead_tile_has_no_blocks_and_holes_leave_none_full() -> None:
    idx, mask = band(600, 434)
    mask[128:256] = False
    assert flex.blocks(band_plan(idx, mask)).kv_num_blocks[0, 0, 1] == 0
    idx, mask = torch.arange(300).expand(300, 300), torch.ones(300, 300, dtype=torch.bool)
    assert flex.blocks(band_plan(idx, mask)).full_kv_num_blocks.sum() == 4
    mask[:, 1::2] = False
    made = flex.blocks(band_plan(idx, mask))
    assert made.full_kv_num_blocks.sum() == 0
    assert made.kv_num_blocks.sum() == 9


@runs_here
@pytest.mark.parametrize(("n", "k", "item_masks"), [(300, 290, False), (150, 50, True)])
def test_its_kernel_agrees_with_the_reference(n: int, k: int, item_masks: bool) -> None:
    problem = seam(n, k, batch=2, item_masks=item_masks)
    assert errors("flex", problem, backward=False)["O"] < 1e-5


@runs_here
@pytest.mark.parametrize(("n", "head_dim"), [(40, 8), (56, 16), (72, 8), (33, 24)])
def test_rows_that_the_cpu_kernel_gets_wrong_are_padded(n: int, head_dim: int) -> None:
    problem = seam(n, 12, heads=4, head_dim=head_dim)
    for _ in range(3):  # another garbage at every call
        assert errors("flex", problem, backward=False)["O"] < 1e-5


@runs_here
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX2", reason="AVX2 is where its kernel was found wrong"
)
def test_the_cpu_kernel_still_needs_the_padding() -> None:
    """A canary. Where it dies, torch has mended its kernel: take ``_CPU_ROWS`` out of ``flex``."""
    error = runpy.run_path(str(ROOT / "scripts" / "flex_cpu_rows.py"))["error"]
    assert error(48, 16) < 1e-5
    assert any(not error(40, 8, seed) < 1e-5 for seed in range(3)), "mended: flex can do without its padding"


@runs_here
def test_another_index_of_the_same_shape_compiles_nothing() -> None:
    from torch._dynamo.utils import counters

    problem = seam(150, 50, batch=2, item_masks=True)
    block = convert(problem.block, "flex")
    with torch.no_grad():
        block._attend(*problem.inputs, problem.neighbor_idx, problem.valid_mask)
        before = counters["stats"]["unique_graphs"]
        mask = problem.valid_mask.clone()
        mask[:, ::5] = False
        block._attend(*problem.inputs, problem.neighbor_idx.clone(), mask)
    assert counters["stats"]["unique_graphs"] == before


@pytest.mark.parametrize("item_masks", [False, True])
def test_gradients_through_bias_and_masks_are_right(monkeypatch: pytest.MonkeyPatch, item_masks: bool) -> None:
    """The CPU has no backward kernel; PyTorch's dense definition of FlexAttention's backward stands in for CUDA's.

    It evaluates our score_mod and mask_mod, and their gradients, on every cell: the bias gradient is scattered through
    the clamped slots of dead cells too.
    """

    def by_definition(function, *tensors, static=()):
        return torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=False)

    monkeypatch.setattr(library, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex, "require", lambda *_: None)
    monkeypatch.setattr(flex, "compiled", by_definition)
    problem = seam(150, 50, batch=2, item_masks=item_masks)
    assert max(errors("flex", problem, backward=True).values()) < 1e-5


def test_no_slots_give_zeros() -> None:
    assert errors("flex", seam(5, 0), backward=False)["O"] == 0


def test_limits_are_raised_not_passed_over() -> None:
    problem = seam(20, 5)
    block = convert(problem.block, "flex")
    with pytest.raises(UnsupportedError, match="backward: it has one on cuda"):
        block._attend(*problem.inputs, problem.neighbor_idx, problem.valid_mask)
    idx, mask = problem.neighbor_idx.clone(), problem.valid_mask
    idx[3, :2] = torch.tensor([7, 3])
    with torch.no_grad(), pytest.raises(UnsupportedError, match="row 3"):
        block._attend(*problem.inputs, idx, mask)
    wide = torch.empty(1).expand(1, 2**20, 2**10, 5)
    atoms = torch.empty(1).expand(1, 2**20, 2, 16)
    with torch.no_grad(), pytest.raises(UnsupportedError, match="32-bit offsets"):
        block._attend(atoms, atoms, atoms, wide, idx, mask)
