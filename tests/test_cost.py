"""The floor's arithmetic against the layer itself: FLOPs as torch counts them, weights as it holds them."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import cases, cost, inputs
from benchmarks.harness.case import forward_of
from benchmarks.harness.ceilings import Ceilings
from benchmarks.harness.record import Problem

LEVELS = ("attention", "block", "stack", "encoder", "decoder")
RATES = Ceilings(bandwidth_bytes_per_s=1e10, rate_flops_per_s=1e11, source="made up")


def resolved(**axes: object) -> Problem:
    return cases.resolve(cases.Axes(**({"n_atom": 60, "window": 64, "n_blocks": 2} | axes)))[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["fwd", "fwdbwd"])
@pytest.mark.parametrize("level", LEVELS)
def test_flops_and_weights_are_those_of_the_layer(level: str, mode: str) -> None:
    problem = resolved(level=level, mode=mode)
    assert problem.live_pairs == problem.n_atom * problem.n_neighbor  # no padding, which the plain layer multiplies too
    made = inputs.build(problem, None)
    call = forward_of(made, made.module)
    with FlopCounterMode(display=False) as counter:
        outputs = call(**made.fixed)
        if mode == "fwdbwd":
            torch.autograd.backward(outputs, [made.cotangents[name] for name in made.outputs])
    assert cost.floor(problem).flops == pytest.approx(counter.get_total_flops(), rel=1e-6)
    assert cost.weight_bytes(problem) == sum(w.numel() * w.element_size() for w in made.weights.values())


@pytest.mark.parametrize("level", LEVELS)
def test_bytes_hold_at_least_the_inputs_and_outputs(level: str) -> None:
    forward, both, train = (cost.floor(resolved(level=level, mode=mode)).bytes for mode in ("fwd", "fwdbwd", "train"))
    made = inputs.build(resolved(level=level, mode="fwdbwd"), None)
    passed_in = sum(t.numel() * t.element_size() for t in made.tensors.values())
    given_back = sum(t.numel() * t.element_size() for t in made.cotangents.values())
    assert forward >= passed_in + given_back
    assert both >= 2 * (passed_in + given_back) + passed_in
    assert train == both + 7 * cost.weight_bytes(resolved(level=level))


def test_only_live_pairs_are_read() -> None:
    problem = resolved(n_atom=2048, window=32)
    assert problem.live_pairs < problem.n_atom * problem.n_neighbor
    atoms = 4 * problem.n_atom * problem.c_atom * 4
    assert cost.floor(problem).bytes == problem.live_pairs * problem.c_atompair * 4 + atoms


def test_the_index_moves_its_output() -> None:
    problem = resolved(level="index", n_atom=2048)
    work = cost.floor(problem)
    assert work == cost.Work(0, 8 * 2048 + 9 * 2048 * problem.n_neighbor)
    assert cost.limit(problem, RATES, 1.0).bound == "bytes"


def test_the_limit_is_the_slower_of_bytes_and_flops() -> None:
    problem = resolved(n_atom=2048, window=32)
    work = cost.floor(problem)
    by_bytes = cost.limit(problem, Ceilings(1e10, 1e15, ""), 20.0)
    assert (by_bytes.bound, by_bytes.floor_ms) == ("bytes", pytest.approx(work.bytes / 1e7))
    assert by_bytes.percent == pytest.approx(5 * by_bytes.floor_ms)
    by_flops = cost.limit(problem, Ceilings(1e15, 1e10, ""), None)
    assert (by_flops.bound, by_flops.floor_ms) == ("flops", pytest.approx(work.flops / 1e7))
    assert by_flops.percent is None


def test_a_window_of_one_residue_has_pairs_of_nothing() -> None:
    for level in LEVELS:
        work = cost.floor(resolved(level=level, window=1))
        assert work.bytes > 0
