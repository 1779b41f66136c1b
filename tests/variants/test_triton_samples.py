"""The Triton kernels where samples share pairs, in the interpreter: over a band, over any table, and split."""

from __future__ import annotations

import pytest
import torch

import variants
from pallatom.architecture.atom_transformers import AtomTransformerBlock
from tests.variants.test_samples import check, shared
from tests.variants.variant_cases import Problem

pytestmark = pytest.mark.interpreted


def fused(given: Problem) -> AtomTransformerBlock:
    block = variants.convert(given.block, "triton_fused")
    assert isinstance(block, AtomTransformerBlock)
    return block


@pytest.mark.parametrize(
    ("case", "entries", "samples", "own_c", "mask", "dtype"),
    [
        ("nan_in_padding", 1, 5, False, "per entry", torch.float32),
        ("nan_in_padding", 2, 2, True, "per item", torch.float32),
        ("nan_in_padding", 2, 2, False, "per item", torch.bfloat16),
        ("dead_rows", 2, 2, False, "shared", torch.float32),
        ("unsorted", 2, 2, True, "per entry", torch.float32),
        ("unsorted", 1, 2, False, "shared", torch.float32),
    ],
)
@pytest.mark.parametrize("deterministic", [False, True])
def test_conforms(case, entries, samples, own_c, mask, dtype, deterministic) -> None:
    given = shared(case, entries, samples, own_c=own_c, mask=mask, dtype=dtype)
    torch.use_deterministic_algorithms(deterministic)
    try:
        assert not check(fused(given), given, backward=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not check(fused(given), given, backward=False)


def test_its_path_says_that_samples_are_taken_one_by_one() -> None:
    alone, many = (
        shared("dead_rows", 1, samples, own_c=False, mask="shared", dtype=torch.float32) for samples in (1, 2)
    )
    paths = [variants.path(fused(x), *x.inputs, x.neighbor_idx, x.valid_mask) for x in (alone, many)]
    assert paths[1] == f"{paths[0]}, sample by sample"
