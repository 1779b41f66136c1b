"""xformers' two routes, and PyTorch's control for the second."""

from __future__ import annotations

import importlib.metadata
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.variants.seam import band, errors, scattered, seam
from variants import (
    UnsupportedError,
    band_plan,
    convert,
    sdpa_tiles,
    why_unavailable,
    xformers_fmha,
)
from variants import xformers_blocksparse as blocksparse
from variants.band.packing import ROWS, packed_bias, packing, size_reasons
from variants.libraries import xformers

needs_xformers = pytest.mark.skipif(bool(xformers.library_reasons()), reason="; ".join(xformers.library_reasons()))

CASES = {
    "band": {"n": 150, "k": 50},
    "item masks": {"n": 150, "k": 50, "batch": 2, "item_masks": True},
    "whole tiles": {"n": 128, "k": 60, "batch": 2},
    "one atom": {"n": 1, "k": 1},
    "no slots": {"n": 5, "k": 0},
    "rows that see nothing of a block": {"n": 70, "k": 5},
}


@needs_xformers
@pytest.mark.parametrize("case", [*CASES, "scattered"])
def test_blocksparse_agrees_with_the_reference(case: str) -> None:
    problem = seam(**CASES[case]) if case in CASES else seam(70, 20, batch=2, index=scattered)
    assert max(errors("xformers_blocksparse", problem, backward=True).values()) < 1e-5


@needs_xformers
def test_blocksparse_without_a_live_pair_gives_zeros() -> None:
    problem = seam(40, 5)
    problem.valid_mask.fill_(False)
    problem.inputs[3].fill_(torch.nan)
    found = errors("xformers_blocksparse", problem, backward=True)
    assert set(found.values()) == {0.0}


@needs_xformers
def test_its_softmax_needs_the_row_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows 60 and more below the greatest score: the library's softmax alone is wrong there, shifted it is right."""
    problem = seam(64, 40)
    problem.inputs[0][:, ::2] *= 100  # rows of great scores among rows of small ones
    assert errors("xformers_blocksparse", problem, backward=False)["O"] < 1e-4
    monkeypatch.setattr(blocksparse, "row_shifted", lambda values, where: values)
    assert errors("xformers_blocksparse", problem, backward=False)["O"] > 1e-2


@needs_xformers
def test_blocksparse_refuses_a_neighbour_twice() -> None:
    problem = seam(40, 5)
    row = int(problem.valid_mask.sum(1).argmax())
    problem.neighbor_idx[row, 1] = problem.neighbor_idx[row, 0]
    block = convert(problem.block, "xformers_blocksparse")
    with torch.no_grad(), pytest.raises(UnsupportedError, match="no neighbour twice"):
        block._attend(*problem.inputs, problem.neighbor_idx, problem.valid_mask)


def test_blocksparse_refuses_a_layout_that_the_library_cannot_list() -> None:
    n = 2**19 + 1
    with pytest.raises(UnsupportedError, match="layout of at most"):
        blocksparse.layout(torch.zeros(n, 1, dtype=torch.int64), torch.ones(n, 1, dtype=torch.bool))


@pytest.mark.parametrize(("n", "k"), [(1, 1), (64, 30), (150, 50), (200, 190)])
def test_every_live_slot_lands_on_its_atom_and_every_other_cell_is_dead(n: int, k: int) -> None:
    idx, mask = band(n, k)
    tiles = packing(band_plan(idx, mask))
    bias = torch.arange(1.0, n * k + 1).view(1, n, k, 1)
    packed = packed_bias(bias, tiles)
    count, width = tiles.keys.shape
    assert packed.shape == (count, 1, ROWS, width)
    rows = packed.flatten(0, 2)
    assert bool((rows[n:] < -1e30).all())
    for row in range(n):
        live = rows[row] > -1e30
        assert tiles.keys[row // ROWS][live].tolist() == idx[row][mask[row]].tolist()
        assert rows[row][live].tolist() == bias[0, row, :, 0][mask[row]].tolist()


@pytest.mark.parametrize("batch", [1, 2])
def test_packed_strides_are_what_the_kernel_takes(batch: int) -> None:
    packed = packed_bias(torch.zeros(batch, 150, 50, 3), packing(band_plan(*band(150, 50))))
    assert packed.stride(-1) == 1
    assert all(stride % 8 == 0 for stride in packed.stride()[:-1])


@pytest.mark.parametrize("case", CASES)
def test_the_control_agrees_with_the_reference(case: str) -> None:
    assert max(errors("sdpa_tiles", seam(**CASES[case]), backward=True).values()) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_fmha_agrees_with_the_reference_where_sdpa_stands_in_for_its_kernel(
    monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(xformers_fmha, "require", lambda *_: None)
    monkeypatch.setattr(xformers_fmha, "fused", sdpa_tiles.fused)
    assert max(errors("xformers_fmha", seam(**CASES[case]), backward=True).values()) < 1e-5


@needs_xformers
def test_fmha_raises_what_the_operators_object_to() -> None:
    q, k = torch.zeros(2, ROWS, 2, 16), torch.zeros(2, 24, 2, 16)
    bias = torch.zeros(2, 2, ROWS, 25)[..., :24].requires_grad_()
    with pytest.raises(UnsupportedError) as refused:
        xformers_fmha.fused(q, k, k, bias)
    for operator in ("cutlassF", "cutlassB"):
        assert any(operator in why and "device=cpu" in why for why in refused.value.reasons)
        assert any(operator in why and "stride" in why for why in refused.value.reasons)


@needs_xformers
def test_fmha_keeps_a_gradient_that_only_the_bias_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library takes its path without gradients where none of q, k, v needs one."""
    from xformers.ops import fmha

    def stand_in(q: Tensor, k: Tensor, v: Tensor, attn_bias: Tensor, op: tuple) -> Tensor:
        assert q.requires_grad
        return sdpa_tiles.fused(q, k, v, attn_bias)

    monkeypatch.setattr(fmha, "memory_efficient_attention", stand_in)
    for operator in (fmha.cutlass.FwOp, fmha.cutlass.BwOp):
        monkeypatch.setattr(operator, "not_supported_reasons", classmethod(lambda *_: []))
    q, k = torch.randn(2, ROWS, 2, 16), torch.randn(2, 24, 2, 16)
    bias = torch.randn(2, 2, ROWS, 24, requires_grad=True)
    (gradient,) = torch.autograd.grad(xformers_fmha.fused(q, k, k, bias).sum(), bias)
    assert bool(gradient.any())


def test_fmha_says_that_it_needs_cuda() -> None:
    assert any("cuda is required" in why for why in why_unavailable("xformers_fmha", device="cpu"))


@needs_xformers
def test_an_extension_that_does_not_load_is_named_with_the_loaders_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    from xformers import _cpp_lib

    try:
        try:
            raise OSError("libcudart.so.12: cannot open shared object file")
        except OSError as e:
            raise _cpp_lib.xFormersInvalidLibException(None) from e
    except _cpp_lib.xFormersInvalidLibException as e:
        monkeypatch.setattr(_cpp_lib, "_cpp_library_load_exception", e)
    (reason,) = xformers.extension_reasons()
    assert "libcudart.so.12: cannot open" in reason
    assert "nvidia-cuda-runtime-cu12" in reason
    monkeypatch.setattr(_cpp_lib, "_cpp_library_load_exception", None)
    assert xformers.extension_reasons() == []


def test_another_release_or_none_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    for version, words in ((lambda _: "9.9", "9.9 was found"), (absent, "not installed")):
        monkeypatch.setattr(importlib.metadata, "version", version)
        (reason,) = xformers.library_reasons.__wrapped__()
        assert words in reason


def test_pairs_beyond_what_layer_norm_addresses_are_refused() -> None:
    large = SimpleNamespace(is_cuda=True, numel=lambda: 6_944_000_000)
    assert "6944000000" in " ".join(size_reasons(large))  # type: ignore[arg-type]
    assert not size_reasons(SimpleNamespace(is_cuda=True, numel=lambda: 2**32))  # type: ignore[arg-type]
    assert not size_reasons(torch.zeros(2, 2))
