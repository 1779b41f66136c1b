"""Every backend on calls drawn at random: right by the float64 definition, not finite, or refused.

A minute's worth by default; ``FUZZ_EXAMPLES=10000 pytest tests/variants/test_fuzz.py`` looks longer, and then at the
backends that compile every shape too.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, note, settings

import variants
from tests.variants.fuzz_problems import Draw, answer, call_of, draws, faults, reference
from variants import UnsupportedError

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
COMPILING = [name for name in variants.names() if variants.load(name).compiles]
EAGER = [name for name in variants.names() if name not in COMPILING and name not in ("gather", "triton_fused")]

fuzz = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck), print_blob=False
)


def check(draw: Draw, names: list[str]) -> None:
    call = call_of(draw)
    backward = draw.mode == "grad"
    want, layer = reference(call, backward=backward), answer(call.block, call, backward=backward)
    found = {}
    if (
        draw.qk <= 5 and draw.pairs <= 1e4 and draw.channels > 2 and draw.dtype.itemsize >= 4
    ):  # where the dtype can hold the answer
        found["gather"] = faults(layer, want, want, call)
    for name in names:
        backend = variants.load(name)
        own = backward and "cpu" in backend.backward
        try:
            got = answer(variants.convert(call.block, name), call, backward=own)
        except UnsupportedError as refusal:
            note(f"{name}: {refusal}")
            continue
        found[name] = faults(got, layer, want, call, name)
    assert not {name: what for name, what in found.items() if what}, draw


@settings(fuzz, max_examples=EXAMPLES)
@given(draws())
def test_no_finite_number_is_wrong(draw: Draw) -> None:
    check(draw, EAGER)


@pytest.mark.interpreted
@settings(fuzz, max_examples=max(EXAMPLES // 10, 1))
@given(draws())
def test_nor_is_one_in_the_interpreter(draw: Draw) -> None:
    check(draw, ["triton_fused"])


@pytest.mark.skipif(EXAMPLES < 1000, reason="seconds an example: FUZZ_EXAMPLES=1000 or more asks for it")
@settings(fuzz, max_examples=max(EXAMPLES // 100, 1))
@given(draws())
def test_nor_is_one_of_a_compiled_program(draw: Draw) -> None:
    check(draw, COMPILING)
