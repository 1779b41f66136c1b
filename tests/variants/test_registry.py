"""Finding backends, saying why one does not run, and swapping them inside a model."""

from __future__ import annotations

import copy
import dataclasses
import sys
import types
from pathlib import Path

import pytest
import torch

import variants
from pallatom.architecture.atom_transformers import AtomTransformer, AtomTransformerBlock, build_sparse_pairs
from tests.variants.seam import floor_of
from variants import _registry, _require
from variants._backend import Backend, Shape, UnsupportedError

GATHER = variants.load("gather")


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch):
    """Register ``name`` as a backend declared like ``gather``, but for the given fields."""

    def register(name: str, **fields) -> Backend:
        backend = dataclasses.replace(GATHER, **fields)
        module = types.ModuleType(f"variants.{name}")
        module.BACKEND = backend
        monkeypatch.setitem(sys.modules, f"variants.{name}", module)
        known = (*_registry.names(), name)
        monkeypatch.setattr(_registry, "names", lambda: known)
        return backend

    return register


def test_names_are_the_files_and_importing_them_is_left_for_later() -> None:
    folder = Path(variants.__file__).parent
    assert set(variants.names()) == {f.stem for f in folder.glob("[!_]*.py")}
    assert {"gather", "dense", "banded"} <= set(variants.names())
    assert all(isinstance(variants.load(name), Backend) for name in variants.names())


@pytest.mark.parametrize("call", [variants.load, variants.why_unavailable, lambda n: variants.convert(_stack(), n)])
def test_an_unknown_name_lists_all_names(call) -> None:
    with pytest.raises(ValueError, match="bandit") as error:
        call("bandit")
    assert all(name in str(error.value) for name in variants.names())


@pytest.mark.parametrize("name", variants.names())
def test_declarations_are_whole(name: str) -> None:
    backend = variants.load(name)
    assert issubclass(backend.block, AtomTransformerBlock)
    assert set(backend.backward) <= {"cpu", "cuda"}
    assert set(backend.devices) <= {"cpu", "cuda"}
    assert torch.float32 in backend.dtypes
    assert backend.summary
    assert "__init__" not in vars(backend.block) or backend.block is AtomTransformerBlock
    shape = Shape(1, 2048, 434, 4, 32, 16, 2048 * 400, 4, 4)
    for mode in ("fwd", "fwdbwd"):
        cost, least = backend.cost(shape, mode), floor_of(shape, mode)
        assert cost.flops >= least.flops
        assert cost.bytes >= least.bytes
        assert cost.peak_bytes >= shape.atom_bytes
    assert backend.cost(shape, "fwdbwd").flops > backend.cost(shape, "fwd").flops


def test_all_reasons_are_given_at_once_each_with_what_is_required_and_found(pretend) -> None:
    pretend(
        "narrow",
        devices=("cuda",),
        dtypes=(torch.float16, torch.bfloat16),
        backward=(),
        requires=("no_such_module_here", "json"),
        needs_band=True,
    )
    reasons = variants.why_unavailable("narrow", device="cpu", dtype=torch.float64, backward=True, band=False)
    assert [r.partition(":")[0] for r in reasons] == ["device", "dtype", "backward", "module", "index"]
    for reason, required, found in zip(
        reasons,
        ("cuda", "float16, bfloat16", "no device", "no_such_module_here", "a band"),
        ("cpu", "float64", "gradient", "not installed", "another index"),
        strict=True,
    ):
        assert required in reason
        assert found in reason


def test_nothing_to_say_about_what_runs() -> None:
    for name in ("gather", "dense", "banded"):
        for dtype in (torch.float64, "float32", torch.bfloat16):
            assert variants.why_unavailable(name, dtype=dtype, backward=True) == []
    assert variants.why_unavailable("gather", band=False) == []
    assert len(variants.why_unavailable("banded", band=False)) == 1


def test_a_device_that_is_not_there_is_a_reason() -> None:
    beyond = torch.cuda.device_count()
    (reason,) = variants.why_unavailable("gather", device=f"cuda:{beyond}")
    assert f"cuda:{beyond}" in reason
    assert f"finds {beyond} cuda" in reason
    assert any("does not know" in r for r in variants.why_unavailable("gather", device="warp"))


def test_compute_capability_is_compared(pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend("hopper", min_capability=(9, 0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    (reason,) = variants.why_unavailable("hopper", device="cuda")
    assert "9.0" in reason
    assert "8.6" in reason
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    assert variants.why_unavailable("hopper", device="cuda") == []


def test_a_library_that_does_not_load_is_a_reason_and_our_own_bug_is_not(pretend, tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "unloadable_lib.py").write_text("raise OSError('libfancy.so.12: cannot open shared object file')\n")
    (tmp_path / "half_there.py").write_text("import missing_dependency\n")
    (tmp_path / "ours_broken.py").write_text("from variants.band.plan import no_such_function\n")
    pretend("fancy", requires=("unloadable_lib", "half_there"))
    unloadable, half = variants.why_unavailable("fancy")
    assert "libfancy.so.12" in unloadable
    assert "missing_dependency" in half
    pretend("broken", requires=("ours_broken",))
    with pytest.raises(ImportError, match="no_such_function"):
        variants.why_unavailable("broken")
    monkeypatch.delitem(sys.modules, "variants.dense", raising=False)
    monkeypatch.setitem(sys.modules, "variants._require", None)  # as if dense's own import were broken
    with pytest.raises(ImportError):
        variants.why_unavailable("dense")


def test_the_probe_is_asked_only_where_it_can_answer(pretend) -> None:
    asked = []

    def probe(device: str) -> list[str]:
        asked.append(device)
        return ["probe: a full moon is required, a new one was found"]

    pretend("lunar", probe=probe, devices=("cpu",))
    assert variants.why_unavailable("lunar") == ["probe: a full moon is required, a new one was found"]
    pretend("lunar_without_library", probe=probe, requires=("no_such_module_here",))
    assert len(variants.why_unavailable("lunar_without_library")) == 1
    assert len(variants.why_unavailable("lunar", device=f"cuda:{torch.cuda.device_count()}")) == 2
    assert asked == ["cpu"]


def test_running_what_cannot_run_gives_the_same_reasons(pretend) -> None:
    backend = pretend("picky", dtypes=(torch.float16,), backward=(), requires=("no_such_module_here",))
    block, inputs = _seam_call()
    with pytest.raises(UnsupportedError) as refusal:
        _require.require(backend, block, *inputs[:4])
    assert len(refusal.value.reasons) == 3
    assert all(reason in str(refusal.value) for reason in refusal.value.reasons)


def test_banded_and_dense_refuse_the_indices_they_cannot_take() -> None:
    block, (q, k, v, p, idx, mask) = _seam_call()
    flipped, twice = idx.clone(), idx.clone()
    flipped[9] = flipped[9].flip(0)
    twice[11, 1] = twice[11, 0]
    with pytest.raises(UnsupportedError, match="row 9 "):
        variants.convert(block, "banded")._attend(q, k, v, p, flipped, mask)
    assert variants.convert(block, "dense")._attend(q, k, v, p, flipped, mask).isfinite().all()
    with pytest.raises(UnsupportedError, match="row 11 "):
        variants.convert(block, "dense")._attend(q, k, v, p, twice, mask)


@pytest.mark.parametrize("name", variants.names())
def test_convert_shares_every_tensor_and_leaves_the_original(name: str) -> None:
    model = _stack()
    model.register_buffer("note", torch.ones(2))
    before = copy.deepcopy({key: value.clone() for key, value in model.state_dict().items()})
    twin = variants.convert(model, name)
    assert type(twin) is AtomTransformer
    assert twin is not model
    assert [type(b) for b in twin.blocks] == [variants.load(name).block] * 2
    assert [type(b) for b in model.blocks] == [AtomTransformerBlock] * 2
    own, shared = dict(model.named_parameters()), dict(twin.named_parameters())
    assert own.keys() == shared.keys()
    assert all(own[key] is shared[key] for key in own)
    assert twin.note is model.note
    assert twin.state_dict().keys() == before.keys()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    again = variants.convert(twin, "gather")
    assert [type(b) for b in again.blocks] == [AtomTransformerBlock] * 2
    twin.eval()
    assert model.training


def test_convert_keeps_the_tree_ties_and_hooks() -> None:
    block = AtomTransformerBlock(8, 4, 2)
    tree = torch.nn.ModuleDict({"a": block, "b": block, "other": torch.nn.Linear(2, 2)})
    calls = []
    tree["other"].register_forward_hook(lambda *_: calls.append(1))
    twin = variants.convert(tree, "banded")
    assert twin["a"] is twin["b"]
    assert twin["a"] is not block
    twin["other"](torch.ones(2))
    assert calls == [1]


def test_convert_refuses_what_it_would_break() -> None:
    class Custom(AtomTransformerBlock):
        def _attend(self, Q, K, V, p, neighbor_idx, valid_mask):
            return Q

    with pytest.raises(TypeError, match="Custom"):
        variants.convert(torch.nn.Sequential(Custom(8, 4, 2)), "banded")
    with pytest.raises(ValueError, match="Linear has none"):
        variants.convert(torch.nn.Linear(2, 2), "banded")
    with pytest.raises(TypeError, match="int"):
        variants.convert(3, "banded")  # pyright: ignore[reportArgumentType]


def test_training_a_converted_model_trains_the_original() -> None:
    torch.manual_seed(0)
    model = _stack()
    twin = variants.convert(model, "banded")
    idx, mask = build_sparse_pairs(torch.arange(30) // 4, 6)
    q, c, p = torch.randn(1, 30, 16), torch.randn(1, 30, 16), torch.randn(1, 30, idx.shape[1], 4)
    before = model(q, c, p, idx, mask)
    assert torch.allclose(before, twin(q, c, p, idx, mask), atol=1e-5)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    twin(q, c, p, idx, mask).square().mean().backward()
    optimizer.step()
    after = model(q, c, p, idx, mask)
    assert not torch.allclose(before, after, atol=1e-5)
    assert torch.allclose(after, twin(q, c, p, idx, mask), atol=1e-5)


def _stack() -> AtomTransformer:
    return AtomTransformer(16, 4, n_blocks=2, n_heads=2, window_size=6)


def _seam_call():
    torch.manual_seed(0)
    block = AtomTransformerBlock(16, 4, 2)
    idx, mask = build_sparse_pairs(torch.arange(24) // 4, 6)
    q, k, v = torch.randn(3, 1, 24, 2, 8).unbind()
    return block, (q, k, v, torch.randn(1, 24, idx.shape[1], 4), idx, mask)
