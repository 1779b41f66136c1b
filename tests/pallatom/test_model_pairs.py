"""The model's own pairs: made chunk by chunk without gradients, in little memory, over an index that is kept."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import variants
from benchmarks.harness.ruler.memory import peak_memory
from pallatom.architecture import _chunks, _index
from pallatom.architecture import atom_transformers as layer
from pallatom.architecture._remember import remembered
from tests.pallatom import model_cases as cases
from variants import _op

PARTS = pytest.mark.parametrize("part", ["encoder", "decoder"])


def arguments(part: str) -> dict[str, Tensor]:
    """B = 2, NaN in the decoder's padding, a reference space of its own for each item of the encoder's batch."""
    inputs = getattr(cases, f"{part}_inputs")()
    if part == "encoder":
        inputs["ref_space_uid"] = torch.stack([inputs["ref_space_uid"], inputs["tok_idx"] // 2])
    return inputs


@PARTS
@pytest.mark.parametrize("slots", [1, 100, 333])
def test_chunks_make_the_same_pairs(part: str, slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row at a time, a few, and a last chunk that is not full: all as the reference has it."""
    monkeypatch.setitem(_chunks.PAIR_CHUNK, "cpu", slots)
    module, inputs = getattr(cases, part)(), arguments(part)
    want = getattr(_op, f"{part}_reference")(
        module.state_dict(), **inputs, window_size=cases.WINDOW, n_heads=cases.HEADS
    )
    with torch.no_grad():
        outputs = module(**inputs)
    for got, value in zip(outputs, want, strict=True):
        assert cases.error(got, value) < 1e-9


def test_chunks_are_for_calls_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_chunks.PAIR_CHUNK, "cpu", 8)
    sizes: list[int] = []

    def make(rows: slice) -> tuple[Tensor]:
        sizes.append(len(range(10)[rows]))
        return (torch.arange(10.0)[None, rows, None],)

    index = torch.zeros(10, 2, dtype=torch.int64)
    (whole,) = _chunks.by_rows(make, index)
    with torch.no_grad():
        (joined,) = _chunks.by_rows(make, index)
    assert sizes == [10, 4, 4, 2]
    assert torch.equal(whole, joined)


def large(part: str, backend: str) -> tuple[Callable[[], object], int]:
    """A forward call of the usual sizes at 512 atoms, and the bytes of its p."""
    g = torch.Generator().manual_seed(0)
    n_atom, n_res, d = 512, 37, 16
    tok = torch.arange(n_atom) // 14
    idx, _ = layer.build_sparse_pairs(tok, 32)

    def normal(*shape: int) -> Tensor:
        return torch.randn(1, *shape, generator=g)

    trunk = {"s": normal(n_res, 384), "z": normal(n_res, n_res, 128)}
    atoms = {x: normal(n_atom, 128) for x in ("q_skip", "c_skip", "c")}
    if part == "encoder":
        module: nn.Module = layer.AtomFeatureEncoder(8, 384, 128, 384, d, 128, 3, 4)
        inputs = {"ref_pos": normal(n_atom, 3), "ref_element": normal(n_atom, 5), "r_scaled": normal(n_atom, 3)}
        inputs |= {"ref_space_uid": torch.zeros_like(tok), "s_input": trunk["s"], "z_input": trunk["z"]}
    else:
        module = layer.AtomAttentionDecoder(384, 128, 128, d)
        inputs = {**atoms, **trunk, "p_skip": normal(*idx.shape, d)}
    module = variants.convert(module, backend)

    def call() -> object:
        with torch.no_grad():
            return module(**inputs, tok_idx=tok)

    return call, idx.numel() * d * 4


@pytest.mark.parametrize(("part", "most"), [("encoder", 4.0), ("decoder", 2.5)])
def test_a_forward_call_makes_few_tensors_as_large_as_p(part: str, most: float) -> None:
    """Outputs included (the encoder returns one p and hands another to its blocks); 6 p was asked for."""
    call, p_bytes = large(part, "banded")
    call()
    peak, _ = peak_memory(call, "cpu")
    assert 1.0 < peak / p_bytes < most


def counted() -> tuple[Callable[..., object], list[int]]:
    calls: list[int] = []

    @remembered
    def make(tensor: Tensor, n: int, other: Tensor | None = None) -> object:
        calls.append(1)
        return (tensor.sum() + n, other)

    return make, calls


def test_the_same_values_give_the_same_index() -> None:
    make, calls = counted()
    tok, uid = torch.arange(5), torch.zeros(5)
    first = make(tok, 3)
    assert make(tok, 3) is first
    assert make(tok, 4) is not first
    with_uid = make(tok, 3, uid)
    assert make(tok, 3, uid.clone()) is with_uid
    assert make(tok, 3) is first
    assert make(tok, 3, uid + 1) is not with_uid
    assert make(tok.clone(), 3) is not first
    assert len(calls) == 5


def test_an_edit_is_seen_whoever_makes_it() -> None:
    make, calls = counted()
    tok = torch.arange(5)
    make(tok, 0)
    tok.numpy()[2] = 7  # counts no version
    make(tok, 0)
    tok.data[3] = 9
    make(tok, 0)
    tok[0] = 1
    make(tok, 0)
    tok.data = tok.int()
    make(tok, 0)
    assert len(calls) == 5


def test_nothing_outlives_the_tensor() -> None:
    class Made:
        pass

    make = remembered(lambda tensor: Made())
    tok = torch.arange(5)
    made = weakref.ref(make(tok))
    gc.collect()
    assert made() is not None
    del tok
    gc.collect()
    assert made() is None


@pytest.mark.parametrize("batch", [None, 2])
def test_a_models_index_goes_with_its_residues(batch: int | None) -> None:
    tok = torch.arange(30) // 3
    if batch:
        tok = tok.expand(batch, -1).clone()
    made = weakref.ref(_index.atom_pairs(tok, 10, 8)[1])
    gc.collect()
    assert made() is not None
    del tok
    gc.collect()
    assert made() is None


@PARTS
def test_a_model_makes_its_index_once_and_again_when_residues_change(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[int] = []
    build = _index.build_sparse_pairs
    monkeypatch.setattr(_index, "build_sparse_pairs", lambda *a: built.append(1) or build(*a))
    module, inputs = getattr(cases, part)(), arguments(part)
    first = module(**inputs)
    with torch.inference_mode():
        module(**inputs)
    assert len(built) == 1
    if part == "encoder":
        inputs["ref_space_uid"].numpy()[1] = 0
        changed = module(**inputs)
        assert len(built) == 2
        assert not torch.equal(changed[1][1], first[1][1])
        assert torch.equal(changed[1][0], first[1][0])
