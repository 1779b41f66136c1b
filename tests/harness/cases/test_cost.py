"""The floor's arithmetic against the layer itself: FLOPs as torch counts them, bytes and weights as it holds them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness.cases import inputs, limits, problems
from benchmarks.harness.cases.case import Case, forward_of
from benchmarks.harness.levels import level_of
from benchmarks.harness.ruler.ceilings import Bandwidth, Ceilings
from benchmarks.harness.schema.problem import Problem
from benchmarks.harness.schema.record import Limit

LEVELS = ("attention", "block", "stack", "encoder", "decoder")
MODES = ("fwd", "fwdbwd", "train")
RATES = Ceilings(bandwidth_bytes_per_s=1e10, rate_flops_per_s=1e11, source="made up")
# Batches, ragged residues, chains that end inside a window, one atom, no neighbour at all, a cap, other blocks.
SHAPES = {
    "one chain": {"n_atom": 70},
    "batch": {"n_atom": 70, "batch": 2, "window": 8},
    "ragged": {"n_atom": 61, "atoms": "heavy", "window": 6},
    "one atom": {"n_atom": 1},
    "no neighbour": {"n_atom": 42, "window": 1, "batch": 2},
    "capped": {"n_atom": 70, "k_cap": 5},
    "blocks": {"n_atom": 150, "window_style": "blocks"},
    "chains": {"workload": "chains", "atoms": "heavy", "window": 8, "n_atom": None},
}


@pytest.fixture(autouse=True)
def small_chains(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of short chains, so that many windows end at one."""
    path = tmp_path / "chains.fasta"
    path.write_text(">a\nMKT\n>b\nGW\n>c\nAAYRG\n")
    monkeypatch.setitem(SHAPES["chains"], "workload", str(path))


def resolved(**axes: object) -> Problem:
    return problems.resolve(problems.Axes(**({"n_atom": 60, "window": 64, "n_blocks": 2} | axes)))[0]  # type: ignore[arg-type]


def built(axes: dict) -> inputs.Inputs:
    problem, source = problems.resolve(problems.Axes(**({"window": 64, "n_blocks": 2} | axes)))
    return inputs.build(problem, source)


def shapes_of(level: str) -> list[str]:
    own = {"capped", "blocks"} if level_of(level).builds_index else set()
    return [name for name in SHAPES if name not in own]


def bytes_of(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("mode", ["fwd", "fwdbwd"])
@pytest.mark.parametrize("level", LEVELS)
def test_flops_and_weights_are_those_of_the_layer(level: str, mode: str) -> None:
    problem = resolved(level=level, mode=mode, n_atom=70)
    assert problem.live_pairs == problem.n_atom * problem.n_neighbor  # no padding, which the plain layer multiplies too
    made = inputs.build(problem, None)
    call = forward_of(made, made.module)
    with FlopCounterMode(display=False) as counter:
        outputs = call(**made.fixed)
        if mode == "fwdbwd":
            torch.autograd.backward(outputs, [made.cotangents[name] for name in made.outputs])
    assert limits.floor(problem).flops == pytest.approx(counter.get_total_flops(), rel=1e-6)
    assert limits.weight_bytes(problem) == sum(w.numel() * w.element_size() for w in made.weights.values())


def moved_at_most(made: inputs.Inputs) -> int:
    """Bytes of everything that is handed over, gradients and the optimizer's moments included, each once a way."""
    case = Case(made, made.module)
    case()
    assert case.last is not None
    results = case.named(case.last)
    outputs = sum(bytes_of(results[name]) for name in made.outputs)
    leaves, weights = (sum(map(bytes_of, group.values())) for group in (made.leaves, made.weights))
    moved = leaves + outputs
    if made.problem.mode != "fwd":
        moved += sum(bytes_of(results[f"grad:{name}"]) for name in made.leaves) + sum(
            map(bytes_of, made.cotangents.values())
        )
    return moved + (5 * weights if made.problem.mode == "train" else 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("level", "shape"), [(level, shape) for level in LEVELS for shape in shapes_of(level)])
def test_no_floor_exceeds_inputs_outputs_and_weights(level: str, shape: str, mode: str, dtype: str) -> None:
    made = built(SHAPES[shape] | {"level": level, "mode": mode, "dtype": dtype})
    assert limits.floor(made.problem).bytes <= moved_at_most(made)


def live_bytes(made: inputs.Inputs, tensor: torch.Tensor) -> int:
    """A tensor's bytes, padding slots of pairs and unseen residue pairs left out."""
    p = made.problem
    if tensor.shape[1:] == (p.n_atom, p.n_neighbor, p.c_atompair):
        return p.live_pairs * p.c_atompair * tensor.element_size()
    if tensor.shape[1:] == (p.n_res, p.n_res, p.c_pair):
        tok, chain = made.workload.tok_idx, made.workload.chain
        seen = np.abs(tok[:, None] - tok) < p.window // 2
        if p.level == "encoder":
            seen &= chain[:, None] == chain
        pairs = len({(int(tok[i]), int(tok[j])) for i, j in zip(*seen.nonzero(), strict=True)})
        return p.batch * pairs * p.c_pair * tensor.element_size()
    return bytes_of(tensor)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", ["one chain", "batch", "one atom"])
def test_no_floor_is_less_than_what_has_to_be_moved(level: str, shape: str, mode: str) -> None:
    """Whole residues, one chain: the floor is exactly its operands, with live pairs where they are read."""
    made = built(SHAPES[shape] | {"level": level, "mode": mode})
    case = Case(made, made.module)
    case()
    assert case.last is not None
    outputs = list(case.last.outputs)
    read, written = list(made.leaves.values()), outputs
    if mode != "fwd":
        read, written = read + list(made.cotangents.values()), written + list(made.leaves.values())
    step = 5 * limits.weight_bytes(made.problem) if mode == "train" else 0
    moved = sum(live_bytes(made, t) for t in read) + sum(map(bytes_of, written)) + step
    assert limits.floor(made.problem).bytes == moved


@pytest.mark.parametrize("level", ["encoder", "decoder"])
def test_residue_pairs_of_ragged_chains_are_never_more_than_a_window_sees(level: str) -> None:
    for shape in ("ragged", "chains"):
        made = built(SHAPES[shape] | {"level": level})
        z = made.tensors["z_input" if level == "encoder" else "z"]
        counted = level_of(level).residue_pairs(made.problem) * made.problem.c_pair * z.element_size()
        assert 0 < counted <= live_bytes(made, z)
        if level == "decoder":
            assert counted == live_bytes(made, z)


def test_more_blocks_move_no_more_of_p() -> None:
    for mode in MODES:
        once, often = (resolved(level="stack", mode=mode, n_blocks=n) for n in (1, 5))
        weights = {"fwd": 1, "fwdbwd": 2, "train": 7}[mode] * (limits.weight_bytes(often) - limits.weight_bytes(once))
        assert limits.floor(often).bytes - limits.floor(once).bytes == weights
        assert limits.floor(often).exponentials == 5 * limits.floor(once).exponentials
        assert limits.floor(often).flops == 5 * limits.floor(once).flops


@pytest.mark.parametrize("mode", MODES)
def test_an_exponential_a_live_pair_head_and_block(mode: str) -> None:
    problem = resolved(level="stack", mode=mode, n_atom=300, window=8, batch=2, heads=8)
    assert problem.live_pairs < 2 * 300 * problem.n_neighbor
    assert limits.floor(problem).exponentials == 2 * 8 * problem.live_pairs


def test_without_a_live_pair_the_attention_asks_for_nothing() -> None:
    problem = resolved(window=1)
    atom = problem.n_atom * problem.c_atom * 4
    assert problem.live_pairs == 0
    assert limits.floor(problem) == limits.Work(0, atom, 0)  # zeros are written
    assert limits.floor(resolved(window=1, mode="fwdbwd")).bytes == 4 * atom + limits.weight_bytes(problem)
    block = limits.floor(resolved(level="block", window=1))
    assert block.flops == 2 * problem.n_atom * 8 * problem.c_atom**2  # the feed-forward


def test_only_live_pairs_are_read() -> None:
    problem = resolved(n_atom=2048, window=32)
    assert problem.live_pairs < problem.n_atom * problem.n_neighbor
    atoms, weights = 4 * problem.n_atom * problem.c_atom * 4, limits.weight_bytes(problem)
    assert limits.floor(problem).bytes == problem.live_pairs * problem.c_atompair * 4 + atoms + weights


def test_the_index_moves_its_output() -> None:
    problem = resolved(level="index", n_atom=2048)
    assert limits.floor(problem) == limits.Work(0, 8 * 2048 + 9 * 2048 * problem.n_neighbor, 0)
    assert limits.limit(problem, RATES, 1.0).bound == "bytes"
    assert limits.floor(resolved(level="index", window=1)) == limits.Work(0, 8 * 60, 0)


def test_the_largest_of_the_three_binds_and_is_named() -> None:
    problem = resolved(n_atom=2048, window=32)
    work = limits.floor(problem)
    fast = {"bandwidth_bytes_per_s": 1e15, "rate_flops_per_s": 1e16, "rate_exponentials_per_s": 1e15}
    spreads = {"bandwidth_spread": 0.01, "flops_spread": 0.02, "exponentials_spread": 0.03}
    for bound, rate, units, spread in (
        ("bytes", "bandwidth_bytes_per_s", work.bytes, 0.01),
        ("flops", "rate_flops_per_s", work.flops, 0.02),
        ("exponentials", "rate_exponentials_per_s", work.exponentials, 0.03),
    ):
        found = limits.limit(problem, Ceilings(**(fast | {rate: 1e6} | spreads), source=""), 2e6)
        assert (found.bound, found.floor_ms, found.spread) == (bound, pytest.approx(units / 1e3), spread)
        assert found.percent == pytest.approx(found.floor_ms / 2e4)
        assert found.definition == 2
    assert limits.limit(problem, RATES, None).percent is None


def test_exponentials_that_were_not_measured_bind_nothing() -> None:
    found = limits.limit(resolved(), RATES, 1.0)
    assert (found.rate_exponentials_per_s, found.spread) == (None, None)
    assert found.bound in ("bytes", "flops")


def caches() -> Ceilings:
    sizes = {1 << 20: 9e10, 1 << 24: 3e10, 1 << 26: 4e10}
    sets = tuple(Bandwidth(rate, rate, rate / 2, 0.1, size) for size, rate in sizes.items())
    return Ceilings(1e10, 1e15, "", 8e9, 1e10, main_bytes=1 << 28, bandwidth_spread=0.2, cached=sets)


@pytest.mark.parametrize(
    ("needed", "rate", "working_set"),
    [(1 << 10, 9e10, 1 << 20), (1 << 23, 9e10, 1 << 20), (1 << 25, 4e10, 1 << 26), (1 << 27, 4e10, 1 << 26),
     (1 << 28, 1e10, 1 << 28), (1 << 40, 1e10, 1 << 28)],
)  # fmt: skip
def test_what_a_cache_may_hold_is_held_against_the_cache(needed: int, rate: float, working_set: int) -> None:
    """Never against less than is possible: a larger working set that came out faster counts for a smaller one."""
    found = caches().memory(needed)
    assert (found.bytes_per_s, found.working_set_bytes) == (rate, working_set)


def test_the_rate_used_is_recorded() -> None:
    problem = resolved(n_atom=512, window=32)
    assert 1 << 20 < limits.floor(problem).bytes < 1 << 24
    found = limits.limit(problem, caches(), 1.0)
    assert (found.bandwidth_bytes_per_s, found.read_bytes_per_s, found.copy_bytes_per_s) == (9e10, 9e10, 4.5e10)
    assert (found.working_set_bytes, found.spread) == (1 << 20, 0.1)


def test_ceilings_cross_a_process_boundary() -> None:
    assert Ceilings(**json.loads(json.dumps(asdict(caches())))) == caches()


def test_of_two_measurements_the_larger_of_each_counts() -> None:
    one, two = caches(), caches()
    slow = replace(one.cached[0], bytes_per_s=1.0, spread=9.0)
    one = replace(one, rate_flops_per_s=1.0, flops_spread=9.0, cached=(slow, *one.cached[1:]))
    two = replace(two, bandwidth_bytes_per_s=1.0, bandwidth_spread=9.0, rate_exponentials_per_s=1e9)
    for raised in (one.raised(two), two.raised(one)):
        assert raised == replace(caches(), rate_exponentials_per_s=1e9)
    with pytest.raises(ValueError, match="same working sets"):
        one.raised(RATES)


def measured(percent: float, spread: float | None, problem: Problem | None = None) -> Limit:
    rates = Ceilings(1e10, 1e11, "", bandwidth_spread=spread, flops_spread=spread, exponentials_spread=spread)
    problem = problem or resolved(n_atom=512, window=32)
    floor_ms = limits.limit(problem, rates, None).floor_ms
    return limits.limit(problem, rates, 100 * floor_ms / percent)


@pytest.mark.parametrize(("percent", "spread"), [(40, None), (100, None), (99.9, 0.0), (104.9, 0.05), (250, 2.0)])
def test_what_is_within_the_ceilings_own_spread_is_a_number(percent: float, spread: float | None) -> None:
    assert limits.beyond(measured(percent, spread)) is None


@pytest.mark.parametrize(("percent", "spread"), [(100.5, None), (105.2, 0.05), (1699, 0.1), (3634, 2.0)])
@pytest.mark.parametrize("level", [*LEVELS, "index"])
def test_what_is_beyond_it_is_impossible_and_says_why(level: str, percent: float, spread: float | None) -> None:
    found = measured(percent, spread, resolved(level=level))
    said = limits.beyond(found)
    assert said is not None
    assert f"{percent:,.4g}% of the limit" in said
    assert f"{found.floor_ms:.4g} ms" in said
    assert {"bytes": f"{found.floor_bytes:,} bytes", "flops": f"{found.floor_flops:,} FLOPs"}[found.bound] in said
    assert ("spread not recorded" if spread is None else f"{100 * spread:.2g}%") in said


def test_zeros_that_were_returned_at_once_are_beyond_the_limit() -> None:
    """A call that only makes an empty result, as planted backends do while they are timed, at real rates."""
    problem = resolved(n_atom=4096, window=32, level="stack", mode="fwdbwd")
    h200 = Ceilings(4.2e12, 7e14, "", rate_exponentials_per_s=6e12, bandwidth_spread=0.004)
    assert limits.beyond(limits.limit(problem, h200, 0.011)) is not None
    assert limits.beyond(limits.limit(problem, h200, None)) is None
