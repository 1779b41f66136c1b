"""The index over a workload's atoms, against definitions that compare every atom with every other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.harness.workload import workloads
from benchmarks.harness.workload.workloads import Workload, WorkloadError, attention_index, neighbour_runs


def workload(tok: list[int], chain: list[int]) -> Workload:
    n = len(tok)
    xyz = np.zeros((n, 3), np.float32)
    return Workload("t", "t", "heavy", max(tok) + 2, np.array(tok), np.array(chain), np.full(n, 6), xyz)


def ragged(seed: int, chains: int) -> Workload:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 12, size=9 * chains)
    sizes[::9] = 3
    tok = np.repeat(np.arange(len(sizes)), sizes)
    return workload(tok.tolist(), (tok // 9).tolist())


def live_sets(index: torch.Tensor, valid: torch.Tensor) -> list[list[int]]:
    return [row[mask].tolist() for row, mask in zip(index, valid)]


CASES = [
    ragged(0, 1),
    ragged(1, 3),
    ragged(2, 6),
    workload([0], [0]),
    workload([0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 1, 2]),
    workload([0, 0, 0, 4, 4, 9], [0, 0, 0, 0, 1, 1]),
]


@pytest.mark.parametrize("work", CASES)
@pytest.mark.parametrize("window", [1, 2, 3, 4, 7, 32, 1000])
def test_the_plain_window_is_the_definition(work, window):
    index, valid = attention_index(work, window)
    near = np.abs(work.tok_idx[:, None] - work.tok_idx[None]) < window // 2
    same = work.chain[:, None] == work.chain[None]
    assert (index.dtype, valid.dtype) == (torch.int64, torch.bool)
    assert live_sets(index, valid) == [np.flatnonzero(row).tolist() for row in near & same]
    assert index.shape == valid.shape == (work.n_atom, near.sum(1).max())


@pytest.mark.parametrize("work", CASES)
@pytest.mark.parametrize("window", [2, 7, 32])
@pytest.mark.parametrize("k_cap", [1, 2, 5, 16, 1000])
def test_a_cap_keeps_the_nearest_of_the_same_chain_as_a_band(work, window, k_cap):
    full = live_sets(*attention_index(work, window))
    index, valid = attention_index(work, window, k_cap=k_cap)
    assert index.shape[1] == min(k_cap, attention_index(work, window)[0].shape[1])
    for atom, (kept, allowed) in enumerate(zip(live_sets(index, valid), full)):
        assert len(kept) == min(k_cap, len(allowed))
        assert kept == list(range(kept[0], kept[0] + len(kept)))
        assert set(kept) <= set(allowed)
        farthest = max(abs(other - atom) for other in kept)
        closer = [other for other in allowed if abs(other - atom) < farthest]
        assert set(closer) <= set(kept)
    assert (index[~valid] >= 0).all()
    assert (index < work.n_atom).all()


@pytest.mark.parametrize("n_atom", [1, 31, 32, 127, 128, 129, 500, 602])
def test_blocks_are_32_queries_by_128_keys(n_atom):
    work = workloads.synthetic(n_atom, "heavy")
    index, valid = attention_index(work, 32, style="blocks")
    k = min(128, n_atom)
    expected = []
    for atom in range(n_atom):
        start = min(max(32 * (atom // 32) - 48, 0), n_atom - k)
        expected.append(list(range(start, start + k)))
    assert live_sets(index, valid) == expected
    assert index.shape == (n_atom, k)


def test_blocks_stay_within_a_chain():
    work = workloads.load("1bd2", "heavy")
    index, valid = attention_index(work, 32, style="blocks")
    for atom in (0, 2_290, 2_300, 6_685):
        row = index[atom][valid[atom]].numpy()
        assert (work.chain[row] == work.chain[atom]).all()
        assert atom in row
    assert index.shape[1] == 128


@pytest.mark.parametrize("style", workloads.STYLES)
@pytest.mark.parametrize("k_cap", [None, 64])
@pytest.mark.parametrize("name", ["ubiquitin", "1a28"])
def test_the_index_counted_beforehand_is_the_index_built(name, k_cap, style):
    work = workloads.load(name, "heavy")
    index, valid = attention_index(work, 32, k_cap=k_cap, style=style)
    n_neighbor, start, stop = neighbour_runs(work, 32, k_cap=k_cap, style=style)
    assert n_neighbor == index.shape[1]
    assert (valid.sum(1).numpy() == stop - start).all()
    assert int(valid.sum()) == int((stop - start).sum())


def test_atom14_and_window_32_give_434_neighbours():
    index, valid = attention_index(workloads.load("gfp", "atom14"), 32)
    assert index.shape[1] == 434
    assert int(valid.sum(1).max()) == 434


def test_impossible_windows_and_caps_are_refused():
    work = workloads.load("ubiquitin")
    with pytest.raises(WorkloadError, match="window: expected a number of residues of at least 1, got 0"):
        attention_index(work, 0)
    with pytest.raises(WorkloadError, match="k_cap: expected a number of neighbours of at least 1, got -3"):
        attention_index(work, 32, k_cap=-3)
    with pytest.raises(WorkloadError, match="style: expected one of residues, blocks; got 'rows'"):
        attention_index(work, 32, style="rows")
