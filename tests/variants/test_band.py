"""The band plan and the tiles over it: they name exactly the live pairs, refuse what is no band, keep nothing alive."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from pallatom.architecture.atom_transformers import build_sparse_pairs
from tests.variants.variant_cases import CASES
from variants import NotABand, UnsupportedError, band_plan
from variants.band.batches import batches
from variants.band.plan import _band_plan
from variants.band.tiles import tiles


def _index(counts: list[int], window: int, cut: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Residues of the given sizes; with ``cut``, atoms before and from it on do not see each other."""
    tok = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    idx, mask = build_sparse_pairs(tok, window)
    if cut is not None:
        second = torch.arange(len(tok)) >= cut
        mask = mask & (second[:, None] == second[idx])
    return idx, mask


def _pairs(idx: torch.Tensor, mask: torch.Tensor) -> set[tuple[int, int, int]]:
    """(row, slot, atom) of every slot that is live in some batch item."""
    live = (mask if mask.dim() == 2 else mask.any(0)).nonzero().tolist()
    return {(row, slot, int(idx[row, slot])) for row, slot in live}


indices = st.builds(
    _index,
    counts=st.lists(st.integers(0, 7), min_size=1, max_size=24).filter(sum),
    window=st.integers(1, 14),
    cut=st.none() | st.integers(0, 60),
)


@settings(max_examples=150, deadline=None)
@given(indices, st.integers(0, 2**31), st.sampled_from([0.0, 0.0, 0.2]))
def test_hull_holds_the_live_pairs_and_without_holes_nothing_else(index, seed, drop) -> None:
    idx, mask = index
    if mask.numel():
        mask = mask & (torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)) >= drop)
    plan = band_plan(idx, mask)
    hull = {
        (row, int(atom - plan.base[row]), atom)
        for row in range(len(idx))
        for atom in range(int(plan.start[row]), int(plan.stop[row]))
    }
    live = _pairs(idx, mask)
    assert live <= hull
    assert plan.has_holes == (live != hull)
    assert plan.n_live == len(live)


@settings(max_examples=150, deadline=None)
@given(indices, st.integers(1, 40), st.booleans())
def test_tiles_move_every_live_slot_to_its_atom_and_none_else(index, rows, batched) -> None:
    idx, mask = index
    plan = band_plan(idx, mask)
    made = batches(plan, rows, 200) if batched else tiles(plan, rows)
    moved = []
    for tile in made:
        assert tile.n_rows == tile.rows.stop - tile.rows.start > 0
        assert batched or tile.n_rows <= rows
        slots = torch.arange(tile.n_rows * plan.n_neighbor)
        landed = torch.empty(tile.score_shape(1), dtype=torch.int64)
        tile.to_span(slots[None], landed, -1)
        returned = torch.full_like(slots, -2)
        tile.to_slots(landed + 1, returned[None])
        inside = set(landed[landed >= 0].tolist())
        assert returned.tolist() == [slot + 1 if slot in inside else 0 for slot in slots.tolist()]
        atoms = tile.window(torch.arange(len(idx))[None, :, None])[..., 0]
        for part, row, column in (landed >= 0).nonzero().tolist():
            slot = int(landed[part, row, column])
            row = tile.rows.start + part * landed.shape[1] + row
            assert slot // plan.n_neighbor == row - tile.rows.start
            moved.append((row, slot % plan.n_neighbor, int(atoms[part, column])))
    assert [t.rows.start for t in made] == sorted({t.rows.start for t in made})
    assert len(moved) == len(set(moved))
    assert set(moved) == _pairs(idx, mask)


@settings(max_examples=60, deadline=None)
@given(indices, st.integers(1, 40), st.booleans())
def test_windows_and_queries_are_put_back_where_they_came_from(index, rows, batched) -> None:
    idx, mask = index
    plan = band_plan(idx, mask)
    atoms = torch.arange(2.0 * len(idx) * 3).view(2, -1, 3)
    copied, counted = torch.zeros_like(atoms), torch.zeros_like(atoms)
    for tile in batches(plan, rows, 200) if batched else tiles(plan, rows):
        tile.put_queries(copied, tile.queries(atoms))
        live = torch.empty(tile.score_shape(2))
        tile.to_span(torch.ones(2, tile.n_rows * plan.n_neighbor), live, 0)
        tile.add_to_window(counted, live, torch.ones_like(tile.queries(atoms)))
    alive = plan.stop > plan.start
    assert torch.equal(copied[:, alive], atoms[:, alive])
    seen = torch.zeros(len(idx)).index_add_(0, idx[mask], torch.ones(int(mask.sum())))
    assert torch.equal(counted, seen[None, :, None].expand_as(counted))


def test_equal_residues_are_moved_by_few_copies() -> None:
    idx, mask = build_sparse_pairs(torch.arange(14 * 60) // 14, 8)
    plan = band_plan(idx, mask)
    assert max(len(t.runs) for t in tiles(plan, 84)[1:-1]) == 1


def test_a_tile_is_cut_where_the_span_would_jump() -> None:
    start = torch.tensor([0, 900, 0, 900]).repeat_interleave(4)
    idx = start[:, None] + torch.arange(8)
    idx = torch.cat([idx, torch.zeros(1000 - 16, 8, dtype=torch.int64)])
    mask = (torch.arange(1000) < 16)[:, None].expand(-1, 8).contiguous()
    plan = band_plan(idx, mask)
    assert not plan.monotone
    assert [(t.lo, t.hi) for t in tiles(plan, 64)] == [(0, 8), (900, 908)] * 2


def test_what_is_no_band_is_refused_with_its_first_row() -> None:
    idx, mask = _index([3] * 10, 8)
    idx = idx.clone()
    idx[17, 4] += 1
    idx[22] = idx[22].flip(0)
    with pytest.raises(NotABand, match="row 17 ") as refusal:
        band_plan(idx, mask)
    assert refusal.value.row == 17
    assert isinstance(refusal.value, UnsupportedError)
    mask = mask.clone()
    mask[17, 4] = False
    with pytest.raises(NotABand) as refusal:
        band_plan(idx, mask)
    assert refusal.value.row == 22


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.band])
def test_unsorted_cases_are_no_band(name: str) -> None:
    with pytest.raises(NotABand):
        band_plan(*CASES[name].index(torch.Generator().manual_seed(0)))


def test_a_live_neighbour_outside_the_atoms_is_an_error() -> None:
    idx = torch.arange(4)[:, None] + torch.arange(3)
    with pytest.raises(ValueError, match=r"neighbor_idx must lie in \[0, N=4\).*got 4 at \[2, 2\]"):
        band_plan(idx, torch.ones(4, 3, dtype=torch.bool))


def test_items_that_differ_count_as_holes() -> None:
    idx, mask = _index([4] * 8, 6)
    both = torch.stack([mask, mask])
    assert not band_plan(idx, both).has_holes
    both[1, 3] = False
    plan = band_plan(idx, both)
    assert plan.has_holes
    assert plan.n_live == int(both.sum())


def test_same_tensors_give_the_same_plan_and_edits_are_seen() -> None:
    idx, mask = _index([4] * 8, 6)
    plan = band_plan(idx, mask)
    assert band_plan(idx, mask) is plan
    assert band_plan(idx.clone(), mask) is not plan
    mask[5, 0] = False
    edited = band_plan(idx, mask)
    assert edited is not plan
    assert int(edited.start[5]) == int(plan.start[5]) + 1
    idx[9, 2] += 1
    with pytest.raises(NotABand):
        band_plan(idx, mask)


@pytest.mark.parametrize("first_to_go", ["index", "mask"])
def test_a_plan_goes_with_its_tensors(first_to_go: str) -> None:
    kept = dict(zip(("index", "mask"), _index([4] * 8, 6), strict=True))
    plan = weakref.ref(band_plan(kept["index"], kept["mask"]))
    base = weakref.ref(plan().base)
    tensor = weakref.ref(kept.pop(first_to_go))
    gc.collect()
    assert tensor() is None, "the plan kept its tensor alive"
    assert plan() is None
    assert base() is None


def test_inference_tensors_are_planned_once_and_edits_are_seen() -> None:
    """They count no versions. What is made of them serves outside inference mode too."""
    with torch.inference_mode():
        idx, mask = (x.clone() for x in _index([4] * 8, 6))
        plan = band_plan(idx, mask)
        assert plan.n_live == int(mask.sum())
        assert band_plan(idx, mask) is plan
        assert not plan.start.is_inference()
        mask[5, 0] = False
        assert band_plan(idx, mask).n_live == plan.n_live - 1


def test_edits_that_torch_does_not_count_are_seen() -> None:
    idx, mask = _index([4] * 8, 6)
    plan = band_plan(idx, mask)
    mask.numpy()[5] = False
    assert band_plan(idx, mask).n_live < plan.n_live
    idx.data[9, 2] += 1
    with pytest.raises(NotABand):
        band_plan(idx, mask)


def test_planning_takes_little_memory() -> None:
    """What is kept to compare with is as large as index and mask; the plan itself takes less on its way."""
    idx, mask = build_sparse_pairs(torch.arange(14 * 1200) // 14, 32)
    assert 0 < _peak(lambda: _band_plan.__wrapped__(idx, mask)) < 0.6 * idx.nbytes
    assert _peak(lambda: band_plan(idx, mask)) < 1.1 * (idx.nbytes + mask.nbytes)


def _peak(call: Callable[[], object]) -> int:
    with torch.profiler.profile(profile_memory=True) as profile:
        made = call()
    held = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    del made
    return peak
