"""What the layers refuse, and how they say so: the argument, what was expected, what came.

Shapes, dtypes and devices are compared on every call, which costs microseconds. Index *values* need a pass over
[N, K] (and a device synchronisation), so one (index, mask) pair is passed once and then remembered.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

if TYPE_CHECKING:
    from pallatom.architecture.atom_transformers import AtomAttentionDecoder, AtomFeatureEncoder, AtomTransformerBlock

# neighbor_idx -> (its version, its mask, the mask's version) of the last pair found good. Weak on both sides.
_good_pairs: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def check_count(name: str, value: int, minimum: int = 1) -> int:
    """`value` as an int of at least `minimum`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}") from None
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {number}")
    return number


def check_heads(c_atom: int, n_heads: int) -> int:
    """The head dimension D = c_atom / n_heads."""
    if check_count("c_atom", c_atom) % check_count("n_heads", n_heads):
        raise ValueError(f"c_atom must be a multiple of n_heads, got c_atom={c_atom} and n_heads={n_heads}")
    return c_atom // n_heads


def check_shapes(sizes: Mapping[str, int], **arguments: tuple[Tensor, str]) -> dict[str, int]:
    """Compare each tensor with its axis names, in order; a name not in `sizes` takes the first length it meets.

    ``check_shapes({"C": 16}, q=(q, "B N C"))`` returns the sizes with B and N filled in.
    """
    known = dict(sizes)
    for name, (tensor, axes) in arguments.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        letters = axes.split()
        if tensor.ndim == len(letters):
            for letter, length in zip(letters, tensor.shape, strict=True):
                known.setdefault(letter, length)
            if all(known[letter] == length for letter, length in zip(letters, tensor.shape, strict=True)):
                continue
        wanted = ", ".join(f"{letter}={known[letter]}" if letter in known else letter for letter in letters)
        raise ValueError(f"{name} must have shape [{wanted}], got {list(tensor.shape)}")
    return known


def check_floats(weight: Tensor, **tensors: Tensor) -> None:
    """The parameters' device for all; the parameters' dtype for all, or any floating dtype under autocast."""
    check_device(weight, **tensors)
    kind = weight.device.type
    autocast = kind != "meta" and torch.is_autocast_enabled(kind)
    for name, tensor in tensors.items():
        if not tensor.dtype.is_floating_point:
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
        if not autocast and tensor.dtype != weight.dtype:
            raise TypeError(f"{name} must be {weight.dtype}, as the parameters are (no autocast), got {tensor.dtype}")


def check_device(weight: Tensor, **tensors: Tensor) -> None:
    """The parameters' device for all."""
    for name, tensor in tensors.items():
        if tensor.device != weight.device:
            raise ValueError(f"{name} must be on {weight.device}, where the parameters are, got {tensor.device}")


def check_integers(**tensors: Tensor) -> None:
    """Integer dtypes; float and bool indices are refused rather than rounded."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool:
            raise TypeError(f"{name} must hold integers, got {tensor.dtype}")


def check_per_atom(batch: int, n_atom: int, **labels: Tensor) -> None:
    """Integers, [N] or [B, N]."""
    check_integers(**labels)
    for name, label in labels.items():
        if label.shape not in ((n_atom,), (batch, n_atom)):
            raise ValueError(f"{name} must have shape [N={n_atom}] or [B={batch}, N={n_atom}], got {list(label.shape)}")


def check_tok_idx(tok_idx: Tensor, n_res: int | None = None) -> Tensor:
    """`tok_idx` [N] or [B, N] as int64 [N]: equal rows, nothing negative, all below `n_res` where that is given."""
    check_integers(tok_idx=tok_idx)
    if tok_idx.ndim not in (1, 2) or (tok_idx.ndim == 2 and not len(tok_idx)):
        raise ValueError(f"tok_idx must have shape [N] or [B, N] with B >= 1, got {list(tok_idx.shape)}")
    if tok_idx.ndim == 2:
        differing = (tok_idx != tok_idx[:1]).any(1).nonzero()
        if len(differing):
            row = int(differing[0])
            raise ValueError(f"tok_idx must be the same for all batch items, but row {row} differs from row 0")
        tok_idx = tok_idx[0]
    if tok_idx.numel():
        low, high = (int(bound) for bound in tok_idx.aminmax())
        if low < 0:
            raise ValueError(f"tok_idx must not be negative, got {low}")
        if n_res is not None and high >= n_res:
            raise ValueError(f"tok_idx must be below the number of residues R={n_res}, got {high}")
    return tok_idx.long()


def check_neighbors(neighbor_idx: Tensor, valid_mask: Tensor, *, batch: int, n_atom: int, n_slot: int) -> None:
    """`neighbor_idx` int64 [N, K]; `valid_mask` bool [N, K] or [B, N, K]."""
    check_shapes({"N": n_atom, "K": n_slot}, neighbor_idx=(neighbor_idx, "N K"))
    if neighbor_idx.dtype != torch.int64:
        raise TypeError(f"neighbor_idx must be torch.int64, got {neighbor_idx.dtype}")
    axes = "B N K" if isinstance(valid_mask, Tensor) and valid_mask.ndim == 3 else "N K"
    check_shapes({"B": batch, "N": n_atom, "K": n_slot}, valid_mask=(valid_mask, axes))
    if valid_mask.dtype != torch.bool:
        raise TypeError(f"valid_mask must be torch.bool, got {valid_mask.dtype}")


def check_live_indices(neighbor_idx: Tensor, valid_mask: Tensor, *, n_atom: int) -> None:
    """Entries of `neighbor_idx` lie in [0, N) wherever the mask is set; looked at once per (index, mask)."""
    if torch.compiler.is_compiling() or neighbor_idx.is_meta:
        return  # no values to look at
    if neighbor_idx.is_cuda and torch.cuda.is_current_stream_capturing():
        return  # looking would end the capture
    # Inference tensors count no versions: a change would go unseen, so they are looked at each time.
    countable = not (neighbor_idx.is_inference() or valid_mask.is_inference())
    if countable and (good := _good_pairs.get(neighbor_idx)) is not None:
        version, mask, mask_version = good
        if mask() is valid_mask and version == neighbor_idx._version and mask_version == valid_mask._version:
            return
    wrong = _out_of_range(neighbor_idx, valid_mask, n_atom)
    if wrong.any():
        atom, slot = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"neighbor_idx must lie in [0, N={n_atom}) wherever valid_mask is set, "
            f"got {int(neighbor_idx[atom, slot])} at [{atom}, {slot}]"
        )
    if countable:
        _good_pairs[neighbor_idx] = (neighbor_idx._version, weakref.ref(valid_mask), valid_mask._version)


def _out_of_range(neighbor_idx: Tensor, valid_mask: Tensor, n_atom: int) -> Tensor:
    """Slots [N, K] that are live for some batch item and name no atom."""
    live = valid_mask.any(0) if valid_mask.ndim == 3 else valid_mask
    return (neighbor_idx < 0).logical_or_(neighbor_idx >= n_atom).logical_and_(live)


def check_block(
    block: AtomTransformerBlock, q: Tensor, c: Tensor, p: Tensor, neighbor_idx: Tensor, valid_mask: Tensor
) -> None:
    """The arguments of a block's ``forward``."""
    sizes = check_shapes(
        {"c_atom": block.to_q.in_features, "c_atompair": block.pair_bias.in_features},
        q=(q, "B N c_atom"),
        c=(c, "B N c_atom"),
        p=(p, "B N K c_atompair"),
    )
    check_floats(block.to_q.weight, q=q, c=c, p=p)
    check_neighbors(neighbor_idx, valid_mask, batch=sizes["B"], n_atom=sizes["N"], n_slot=sizes["K"])
    check_device(block.to_q.weight, neighbor_idx=neighbor_idx, valid_mask=valid_mask)
    check_live_indices(neighbor_idx, valid_mask, n_atom=sizes["N"])


def check_encoder(
    encoder: AtomFeatureEncoder,
    ref_pos: Tensor,
    ref_element: Tensor,
    ref_space_uid: Tensor,
    s_input: Tensor,
    z_input: Tensor,
    r_scaled: Tensor,
    tok_idx: Tensor,
) -> None:
    """The arguments of the encoder's ``forward``; the values of `tok_idx` are looked at where the index is built."""
    sizes = check_shapes(
        {
            "xyz": 3,
            "E": encoder.proj_fref_c.in_features - 3,
            "c_token": encoder.proj_s_init.in_features,
            "c_pair": encoder.proj_z_init.in_features,
        },
        ref_pos=(ref_pos, "B N xyz"),
        ref_element=(ref_element, "B N E"),
        s_input=(s_input, "B R c_token"),
        z_input=(z_input, "B R R c_pair"),
        r_scaled=(r_scaled, "B N xyz"),
    )
    weight = encoder.proj_fref_c.weight
    check_floats(weight, ref_pos=ref_pos, ref_element=ref_element, s_input=s_input, z_input=z_input, r_scaled=r_scaled)
    check_per_atom(sizes["B"], sizes["N"], ref_space_uid=ref_space_uid, tok_idx=tok_idx)
    check_device(weight, ref_space_uid=ref_space_uid, tok_idx=tok_idx)


def check_decoder(
    decoder: AtomAttentionDecoder,
    q_skip: Tensor,
    p_skip: Tensor,
    c_skip: Tensor,
    c: Tensor,
    s: Tensor,
    z: Tensor,
    tok_idx: Tensor,
) -> None:
    """The arguments of the decoder's ``forward``; K and the values of `tok_idx` wait until the index is built."""
    sizes = check_shapes(
        {
            "c_atom": decoder.proj_s_q.out_features,
            "c_atompair": decoder.proj_z.out_features,
            "c_token": decoder.proj_s_q.in_features,
            "c_pair": decoder.proj_z.in_features,
        },
        q_skip=(q_skip, "B N c_atom"),
        p_skip=(p_skip, "B N K c_atompair"),
        c_skip=(c_skip, "B N c_atom"),
        c=(c, "B N c_atom"),
        s=(s, "B R c_token"),
        z=(z, "B R R c_pair"),
    )
    weight = decoder.proj_s_q.weight
    check_floats(weight, q_skip=q_skip, p_skip=p_skip, c_skip=c_skip, c=c, s=s, z=z)
    check_per_atom(sizes["B"], sizes["N"], tok_idx=tok_idx)
    check_device(weight, tok_idx=tok_idx)
