"""Which algorithm a call takes can be asked before it is made."""

from __future__ import annotations

import pytest
import torch

import variants
from tests.variants.seam import seam
from tests.variants.variant_cases import CASES, problem
from variants import UnsupportedError

F32 = torch.float32


def path(name: str, given) -> str:
    block = variants.convert(given.block, name)
    with torch.no_grad():
        return variants.path(block, *given.inputs, given.neighbor_idx, given.valid_mask)


@pytest.mark.parametrize("name", variants.names())
@pytest.mark.parametrize("case", CASES)
def test_every_call_that_runs_has_a_path_and_every_other_is_refused(name: str, case: str) -> None:
    given = problem(case, F32)
    if variants.why_unavailable(name, dtype=F32, band=CASES[case].band):
        with pytest.raises(UnsupportedError):
            path(name, given)
        return
    answer = path(name, given)
    assert answer == answer.strip().lower()
    assert answer
    assert path(name, given) == answer


def test_what_a_path_depends_on_shows() -> None:
    dense, holes, none = problem("ragged", F32), problem("random_holes", F32), problem("no_slots", F32)
    dead = problem("all_dead", F32)
    assert path("gather", dense) == "gather"
    assert path("dense", holes) == "dense"
    assert (path("banded", dense), path("banded", holes)) == ("band", "band with holes")
    assert [path("sdpa_tiles", x) for x in (dense, holes, none, dead)] == ["band", "band with holes", "layer", "layer"]


@pytest.mark.parametrize("name", ["flex", "cpu_fused", "xformers_blocksparse"])
def test_so_it_does_in_backends_that_are_not_always_there(name: str) -> None:
    if reasons := variants.why_unavailable(name):
        pytest.skip("; ".join(reasons))
    dense, none = problem("ragged", F32), problem("no_slots", F32)
    empty = "band" if name == "cpu_fused" else "layer"
    assert (path(name, dense), path(name, none)) == ("blocks" if "blocks" in name else "band", empty)


def test_a_block_of_nobody_is_no_backend() -> None:
    class Custom(variants.load("banded").block):
        """Somebody's own."""

        def _attend(self, Q, K, V, p, neighbor_idx, valid_mask):
            return Q

    class Sharded(variants.load("banded").block):
        """As FSDP makes them: another class with the same attention."""

    given = seam(5, 3)
    block = variants.convert(given.block, "banded")
    block.__class__ = Sharded
    with torch.no_grad():
        assert variants.path(block, *given.inputs, given.neighbor_idx, given.valid_mask).startswith("band")
    block.__class__ = Custom
    with pytest.raises(TypeError, match="Custom"):
        variants.path(block, *given.inputs, given.neighbor_idx, given.valid_mask)
