"""The machine code of the fused kernels, compiled offline: what a GPU would be slow for, caught without one."""

from __future__ import annotations

import functools

import pytest

pytest.importorskip("triton")

from variants._triton_inspect import Inspection, _loops, _shortest_way, inspect_shipped, parse

CEILING = {"forward": 4.5, "backward": 16.0}
DIRECTIONS = ("forward", "backward")


@functools.cache
def shipped(direction: str, arch: int, dtype: str) -> Inspection:
    """H 4, D 32, C 16: the usual shape."""
    return inspect_shipped(direction, arch=arch, dtype=dtype)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_instructions_per_pair_stay_under_the_ceiling(direction: str) -> None:
    assert shipped(direction, 90, "bfloat16").per_pair <= CEILING[direction]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("arch", "dtype"), [(80, "bfloat16"), (90, "bfloat16"), (100, "bfloat16"), (90, "float16")])
def test_half_precision_does_not_spill(direction: str, arch: int, dtype: str) -> None:
    found = shipped(direction, arch, dtype)
    assert (found.stack_bytes, found.spills) == (0, 0)
    assert found.ctas_per_sm >= 2
    assert found.tensor_core >= 40
    assert found.wide_loads >= 14


def test_single_precision_does_not_spill_forward() -> None:
    found = shipped("forward", 90, "float32")
    assert (found.stack_bytes, found.spills) == (0, 0)
    assert found.tensor_core > 0


LOOP = """
/*0000*/ MOV R1, c[0x0][0x28] ;
/*0010*/ IADD3 R2, R2, 0x10, RZ ;
/*0020*/ @P0 BRA 0x60 ;
/*0030*/ FADD R3, R3, R3 ;
/*0040*/ FADD R3, R3, R3 ;
/*0050*/ BRA 0x60 ;
/*0060*/ FMUL R4, R3, R3 ;
/*0070*/ @!P1 BRA 0x90 ;
/*0080*/ EXIT ;
/*0090*/ LDL R5, [R1] ;
/*5000*/ @P2 BRA 0x10 ;
/*5010*/ EXIT ;
"""


def test_the_shortest_way_skips_what_a_branch_skips() -> None:
    code = parse(LOOP)
    way = _shortest_way(code, 0x10, 0x5000)
    assert way == {"IADD3": 1, "BRA": 3, "FMUL": 1, "LDL": 1}
    assert _loops(code) == (way,)


def test_figures_come_from_the_code() -> None:
    found = Inspection(
        "k", 90, 4, 256, 128, 0, 40_000, 4, {"LDL.64": 2, "STL": 1, "HMMA.16816.F32": 3}, ({"FMUL": 640},)
    )
    assert (found.spills, found.tensor_core, found.per_pair, found.occupancy) == (3, 3, 10.0, 0.25)
    assert found.summary()["warp_instructions_per_pair"] == 10.0
