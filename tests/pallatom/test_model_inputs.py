"""What the layers refuse: every error names the argument, what was expected and what came."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pallatom.architecture import _validate
from pallatom.architecture.atom_transformers import (
    AtomAttentionDecoder,
    AtomFeatureEncoder,
    AtomTransformer,
    AtomTransformerBlock,
)
from tests.pallatom import model_cases as cases

Change = Callable[[Any], Any]

BLOCK_ERRORS: list[tuple[str, Change, type[Exception], str]] = [
    ("q", lambda q: q[0], ValueError, r"q must have shape \[B, N, c_atom=24\], got \[48, 24\]"),
    ("q", lambda q: q[..., :-1], ValueError, r"q must have shape \[B=2, N=48, c_atom=24\], got \[2, 48, 23\]"),
    ("c", lambda c: c[:1], ValueError, r"c must have shape \[B=2, N=48, c_atom=24\], got \[1, 48, 24\]"),
    ("q", lambda q: q[[0, 1, 0]], ValueError, r"q must have a batch B that is a multiple of p's.*B_p=2 .*got B=3"),
    ("q", lambda q: q[:1], ValueError, r"q must have a batch B .*multiple of B_p=2 was expected, got B=1"),
    ("p", lambda p: p[[0, 1, 0]], ValueError, r"q must have a batch B .*multiple of B_p=3 was expected, got B=2"),
    ("c", lambda c: c[:, 1:], ValueError, r"c must have shape .*N=48.*got \[2, 47, 24\]"),
    ("p", lambda p: p[..., :-1], ValueError, r"p must have shape .*c_atompair=6\], got \[2, 48, \d+, 5\]"),
    ("p", lambda p: p[:, :, 0], ValueError, r"p must have shape \[B_p, N=48, K, c_atompair=6\], got \[2, 48, 6\]"),
    ("p", lambda p: p[:, :, :3], ValueError, r"neighbor_idx must have shape \[N=48, K=3\], got \[48, \d+\]"),
    ("q", lambda q: q.float(), TypeError, r"q must be torch\.float64, .*no autocast.* got torch\.float32"),
    ("c", lambda c: c.half(), TypeError, r"c must be torch\.float64.*got torch\.float16"),
    ("p", lambda p: p.bfloat16(), TypeError, r"p must be torch\.float64.*got torch\.bfloat16"),
    ("q", lambda q: q.long(), TypeError, r"q must be floating point, got torch\.int64"),
    ("p", lambda p: p.numpy(), TypeError, "p must be a tensor, got ndarray"),
    ("q", lambda q: q.to("meta"), ValueError, "q must be on cpu, where the parameters are, got meta"),
    ("p", lambda p: p.to("meta"), ValueError, "p must be on cpu.*got meta"),
    ("neighbor_idx", lambda i: i.to("meta"), ValueError, "neighbor_idx must be on cpu.*got meta"),
    ("valid_mask", lambda v: v.to("meta"), ValueError, "valid_mask must be on cpu.*got meta"),
    ("neighbor_idx", lambda i: i.int(), TypeError, r"neighbor_idx must be torch\.int64, got torch\.int32"),
    ("neighbor_idx", lambda i: i.double(), TypeError, r"neighbor_idx must be torch\.int64, got torch\.float64"),
    ("neighbor_idx", lambda i: i[None], ValueError, r"neighbor_idx must have shape \[N=48, K=\d+\], got \[1, 48"),
    ("neighbor_idx", lambda i: i.tolist(), TypeError, "neighbor_idx must be a tensor, got list"),
    ("valid_mask", lambda v: v.long(), TypeError, r"valid_mask must be torch\.bool, got torch\.int64"),
    ("valid_mask", lambda v: v.double(), TypeError, r"valid_mask must be torch\.bool, got torch\.float64"),
    ("valid_mask", lambda v: v[1:], ValueError, r"valid_mask must have shape \[N=48, K=\d+\], got \[47"),
    ("valid_mask", lambda v: v.expand(3, -1, -1), ValueError, r"valid_mask must have shape \[B=2, N=48.*got \[3, 48"),
    ("valid_mask", lambda v: None, TypeError, "valid_mask must be a tensor, got NoneType"),
]


@pytest.mark.parametrize(("name", "change", "kind", "message"), BLOCK_ERRORS)
def test_block_refuses(name: str, change: Change, kind: type[Exception], message: str) -> None:
    arguments = vars(cases.block_inputs())
    module = cases.stack(1)
    module(**arguments)
    with pytest.raises(kind, match=message):
        module(**arguments | {name: change(arguments[name])})


@pytest.mark.parametrize("name", ["c", "valid_mask"])
def test_what_samples_share_has_their_batch_or_that_of_the_pairs(name: str) -> None:
    inputs = cases.block_inputs(mask="per item")
    given = vars(inputs) | {"q": inputs.q.repeat_interleave(3, 0)}
    module = cases.stack(1)
    module(**given)
    for batch in (1, 3):
        wrong = given | {name: given[name][[0, 1, 0][:batch]]}
        with pytest.raises(ValueError, match=rf"{name} must have shape \[B=6 or B_p=2, N=48.*got \[{batch}, 48"):
            module(**wrong)


@pytest.mark.parametrize("bad", [-1, 48, 10**12])
@pytest.mark.parametrize("mask", ["shared", "per item"])
def test_live_indices_outside_the_atoms_are_refused(bad: int, mask: str) -> None:
    inputs = cases.block_inputs(mask=mask)
    seen = inputs.valid_mask.any(0) if mask == "per item" else inputs.valid_mask
    atom, slot = seen.nonzero()[17].tolist()
    inputs.neighbor_idx[atom, slot] = bad
    message = rf"neighbor_idx must lie in \[0, N=48\) wherever valid_mask is set, got {bad} at \[{atom}, {slot}\]"
    with pytest.raises(ValueError, match=message):
        cases.stack(1)(*inputs.all())


class TestValuesAreLookedAtOncePerPair:
    """The pass over [N, K] is made again exactly when the index or the mask is another, or has changed."""

    @pytest.fixture
    def looks(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        seen: list[int] = []
        original = _validate._out_of_range

        def counted(*arguments: Any) -> torch.Tensor:
            seen.append(1)
            return original(*arguments)

        monkeypatch.setattr(_validate, "_out_of_range", counted)
        return seen

    def test_once_for_all_blocks_and_calls(self, looks: list[int]) -> None:
        module, inputs = cases.stack(3), cases.block_inputs()
        module(*inputs.all())
        module(*inputs.all())
        assert len(looks) == 1

    def test_again_after_a_change_in_place(self, looks: list[int]) -> None:
        module, inputs = cases.stack(1), cases.block_inputs()
        module(*inputs.all())
        inputs.neighbor_idx[0, 0] = 999  # live
        with pytest.raises(ValueError, match="got 999"):
            module(*inputs.all())
        inputs.neighbor_idx[0, 0] = 0
        module(*inputs.all())
        assert len(looks) == 2, "what it held before had been found good"
        inputs.valid_mask[7] = True  # a dead row whose index holds junk
        with pytest.raises(ValueError, match=r"at \[7, "):
            module(*inputs.all())
        assert len(looks) == 3

    def test_again_after_a_change_that_torch_does_not_count(self, looks: list[int]) -> None:
        module, inputs = cases.stack(1), cases.block_inputs()
        module(*inputs.all())
        inputs.neighbor_idx.numpy()[0, 0] = -1  # live
        with pytest.raises(ValueError, match=r"got -1 at \[0, 0\]"):
            module(*inputs.all())
        inputs.neighbor_idx.data[0, 0] = 999
        with pytest.raises(ValueError, match="got 999"):
            module(*inputs.all())
        assert len(looks) == 3

    def test_again_for_another_index_or_mask(self, looks: list[int]) -> None:
        module, inputs = cases.stack(1), cases.block_inputs()
        module(*inputs.all())
        mask = inputs.valid_mask
        inputs.valid_mask = mask.clone()
        module(*inputs.all())
        assert len(looks) == 1, "another mask with the same values"
        inputs.valid_mask = torch.ones_like(mask)
        with pytest.raises(ValueError, match="neighbor_idx must lie in"):
            module(*inputs.all())
        inputs.valid_mask, inputs.neighbor_idx = mask, inputs.neighbor_idx.clone()
        module(*inputs.all())
        assert len(looks) == 3

    def test_once_for_tensors_made_under_inference_mode(self, looks: list[int]) -> None:
        module, inputs = cases.stack(3), cases.block_inputs()
        with torch.inference_mode():
            inputs.valid_mask, inputs.neighbor_idx = inputs.valid_mask.clone(), inputs.neighbor_idx.clone()
            module(*inputs.all())
            module(*inputs.all())
            assert len(looks) == 1
            inputs.neighbor_idx[0, 0] = 999
            with pytest.raises(ValueError, match="got 999"):
                module(*inputs.all())

    def test_keeps_nothing_alive(self) -> None:
        inputs = cases.block_inputs()
        cases.stack(1)(*inputs.all())
        index, mask = weakref.ref(inputs.neighbor_idx), weakref.ref(inputs.valid_mask)
        del inputs
        gc.collect()
        assert index() is None
        assert mask() is None


ENCODER_ERRORS: list[tuple[str, Change, type[Exception], str]] = [
    ("ref_pos", lambda x: x[..., :2], ValueError, r"ref_pos must have shape \[B_p=2, N=48, xyz=3\], got \[2, 48, 2\]"),
    ("ref_element", lambda x: x[..., :4], ValueError, r"ref_element must have shape .*E=5\], got \[2, 48, 4\]"),
    ("ref_element", lambda x: x.long(), TypeError, r"ref_element must be floating point, got torch\.int64"),
    ("s_input", lambda x: x[:, 1:], ValueError, r"z_input must have shape \[B=2, R=12, R=12, c_pair=14\], got \[2, 13"),
    ("z_input", lambda x: x[:, :, 1:], ValueError, r"z_input must have shape .*R=13, R=13.*got \[2, 13, 12, 14\]"),
    ("s_input", lambda x: x[..., 1:], ValueError, r"s_input must have shape .*c_token=20\], got \[2, 13, 19\]"),
    ("r_scaled", lambda x: x[:, 1:], ValueError, r"r_scaled must have shape \[B=2, N=48, xyz=3\], got \[2, 47, 3\]"),
    ("r_scaled", lambda x: x[:1], ValueError, r"r_scaled must have a batch B .* multiple of B_p=2 .*got B=1"),
    ("r_scaled", lambda x: x[[0, 1, 0]], ValueError, r"multiple of ref_pos's.* multiple of B_p=2 .*got B=3"),
    (
        "s_input",
        lambda x: x[[0, 1, 0]],
        ValueError,
        r"s_input must have shape \[B=2, R=13, c_token=20\], got \[3, 13, 20\]",
    ),
    ("r_scaled", lambda x: x.float(), TypeError, r"r_scaled must be torch\.float64.*got torch\.float32"),
    ("z_input", lambda x: x.to("meta"), ValueError, "z_input must be on cpu.*got meta"),
    ("tok_idx", lambda x: x.to("meta"), ValueError, "tok_idx must be on cpu.*got meta"),
    ("ref_space_uid", lambda x: x.to("meta"), ValueError, "ref_space_uid must be on cpu.*got meta"),
    ("ref_space_uid", lambda x: x.double(), TypeError, r"ref_space_uid must hold integers, got torch\.float64"),
    (
        "ref_space_uid",
        lambda x: x[1:],
        ValueError,
        r"ref_space_uid must have shape \[N=48\] or \[B_p=2, N=48\], got \[47\]",
    ),
    ("tok_idx", lambda x: x.expand(3, -1), ValueError, r"tok_idx must have shape \[N=48\] or .*got \[3, 48\]"),
    ("tok_idx", lambda x: x.double(), TypeError, r"tok_idx must hold integers, got torch\.float64"),
    ("tok_idx", lambda x: x.tolist(), TypeError, "tok_idx must be a tensor, got list"),
    ("tok_idx", lambda x: x - 1, ValueError, "tok_idx must not be negative, got -1"),
    ("tok_idx", lambda x: x + 2, ValueError, "tok_idx must be below the number of residues R=13, got 13"),
    (
        "tok_idx",
        lambda x: torch.stack([x, x.flip(0)]),
        ValueError,
        "tok_idx must be the same.*row 1 differs from row 0",
    ),
]

DECODER_ERRORS: list[tuple[str, Change, type[Exception], str]] = [
    ("q_skip", lambda x: x[..., 1:], ValueError, r"q_skip must have shape .*c_atom=24\], got \[2, 48, 23\]"),
    ("p_skip", lambda x: x[..., 1:], ValueError, r"p_skip must have shape .*c_atompair=6\], got"),
    (
        "p_skip",
        lambda x: x[:, :, 1:],
        ValueError,
        r"p_skip must have shape \[B_p=2, N=48, K=33, c_atompair=6\], got \[2, 48, 32",
    ),
    ("c_skip", lambda x: x[:, 1:], ValueError, r"c_skip must have shape .*N=48.*got \[2, 47, 24\]"),
    ("c", lambda x: x[:1], ValueError, r"c must have shape \[B=2, .*got \[1, 48, 24\]"),
    ("c", lambda x: x.half(), TypeError, r"c must be torch\.float64.*got torch\.float16"),
    ("s", lambda x: x[..., 1:], ValueError, r"s must have shape .*c_token=20\], got \[2, 13, 19\]"),
    ("z", lambda x: x[:, 1:], ValueError, r"z must have shape .*R=13, R=13.*got \[2, 12, 13, 14\]"),
    ("z", lambda x: x.to("meta"), ValueError, "z must be on cpu.*got meta"),
    ("tok_idx", lambda x: x[:5], ValueError, r"tok_idx must have shape \[N=48\] or \[B=2, N=48\], got \[5\]"),
    ("tok_idx", lambda x: x + 20, ValueError, r"tok_idx must be below the number of residues R=13, got 31"),
    ("tok_idx", lambda x: -x, ValueError, "tok_idx must not be negative, got -11"),
]


@pytest.mark.parametrize(("name", "change", "kind", "message"), ENCODER_ERRORS)
def test_encoder_refuses(name: str, change: Change, kind: type[Exception], message: str) -> None:
    arguments = cases.encoder_inputs()
    with pytest.raises(kind, match=message):
        cases.encoder()(**arguments | {name: change(arguments[name])})


@pytest.mark.parametrize(("name", "change", "kind", "message"), DECODER_ERRORS)
def test_decoder_refuses(name: str, change: Change, kind: type[Exception], message: str) -> None:
    arguments = cases.decoder_inputs()
    with pytest.raises(kind, match=message):
        cases.decoder()(**arguments | {name: change(arguments[name])})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AtomTransformerBlock(30, 6, 4), "c_atom must be a multiple of n_heads, got c_atom=30 and n_heads=4"),
        (lambda: AtomTransformerBlock(32, 6, 0), "n_heads must be at least 1, got 0"),
        (lambda: AtomTransformerBlock(32, 6, 4, 0), "window_size must be at least 1, got 0"),
        (lambda: AtomTransformer(30, 6), "c_atom must be a multiple of n_heads, got c_atom=30 and n_heads=4"),
        (lambda: AtomTransformer(32, 6, n_blocks=0), "n_blocks must be at least 1, got 0"),
        (lambda: AtomFeatureEncoder(2, 4, 4, 4, 4, 8, 1, 2), "f_ref_dim must be at least 3, got 2"),
        (lambda: AtomFeatureEncoder(3, 4, 4, 3, 4, 8, 1, 3), "c_atom must be a multiple of n_heads, got c_atom=8"),
        (lambda: AtomFeatureEncoder(3, 4, 4, 4, 4, 8, 1, 2, -1), "window_size must be at least 1, got -1"),
        (lambda: AtomAttentionDecoder(4, 4, 8, 4, window_size=0), "window_size must be at least 1, got 0"),
        (lambda: AtomAttentionDecoder(4, 4, 8, 4, n_heads=5), "c_atom must be a multiple of n_heads"),
    ],
)
def test_constructors_refuse(make: Callable[[], torch.nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
