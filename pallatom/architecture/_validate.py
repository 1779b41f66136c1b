"""What the layers refuse, and how they say so: the argument, what was expected, what came.

Shapes, dtypes and devices are compared on every call, which costs microseconds. Index *values* need a pass over
[N, K] (and a device synchronisation), so each (index, mask) pair is checked once and then remembered. Each backend
checks them at the seam, together with its plan of the index: a check before that would cost time at every call.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pallatom.architecture._remember import remembered

if TYPE_CHECKING:
    from pallatom.architecture.atom_transformers import AtomAttentionDecoder, AtomFeatureEncoder, AtomTransformerBlock


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

    ``check_shapes({"C": 16}, q=(q, "B N C"))`` returns the sizes with B and N filled in. ``B|B_p``: either
    of two that are known.
    """
    known = dict(sizes)
    for name, (tensor, axes) in arguments.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        letters = axes.split()
        if tensor.ndim == len(letters):
            for letter, length in zip(letters, tensor.shape, strict=True):
                if "|" not in letter:
                    known.setdefault(letter, length)
            if all(length in _lengths(letter, known) for letter, length in zip(letters, tensor.shape, strict=True)):
                continue
        wanted = ", ".join(_named(letter, known) for letter in letters)
        raise ValueError(f"{name} must have shape [{wanted}], got {list(tensor.shape)}")
    return known


def _named(letter: str, known: Mapping[str, int]) -> str:
    return " or ".join(f"{name}={length}" for length, name in _lengths(letter, known).items()) or letter


def _lengths(letter: str, known: Mapping[str, int]) -> dict[int, str]:
    """What an axis may measure, each with the first of its names that is known to."""
    found: dict[int, str] = {}
    for one in letter.split("|"):
        if one in known:
            found.setdefault(known[one], one)
    return found


def check_samples(sizes: Mapping[str, int], *, own: str, shared: str) -> None:
    """The batch B of `own` holds M samples of each of the B_p entries of `shared`."""
    batch, entries = sizes["B"], sizes["B_p"]
    if batch % entries if entries else batch:
        raise ValueError(
            f"{own} must have a batch B that is a multiple of {shared}'s, each entry of which so many samples share: "
            f"a multiple of B_p={entries} was expected, got B={batch}"
        )


def _plain_sizes(**axes: int | None) -> dict[str, int]:
    """The sizes that are known."""
    return {axis: size for axis, size in axes.items() if size is not None}


def _width_in(child: nn.Module, less: int = 0) -> int | None:
    """Channels that a linear takes; None for a child that is no linear (any more) and checks its input itself."""
    return child.in_features - less if isinstance(child, nn.Linear) else None


def _width_out(child: nn.Module) -> int | None:
    """Channels that a linear gives; None for another child."""
    return child.out_features if isinstance(child, nn.Linear) else None


def _float_weight(module: nn.Module, *first: nn.Module) -> Tensor | None:
    """A linear's weight, of `first` if one has it, that says which device and dtype arguments must have.

    None where no child has one: adapters and quantised linears decide themselves what they take.
    """
    for child in (*first, *module.children()):
        if isinstance(child, nn.Linear) and isinstance(weight := child.weight, Tensor) and weight.is_floating_point():
            return weight
    return None


def check_floats(weight: Tensor | None, **tensors: Tensor) -> None:
    """The parameters' device for all; the parameters' dtype for all, or any floating dtype under autocast."""
    check_device(weight, **tensors)
    kind = "meta" if weight is None else weight.device.type
    autocast = kind != "meta" and torch.is_autocast_enabled(kind)
    for name, tensor in tensors.items():
        if not tensor.dtype.is_floating_point:
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
        if weight is not None and not autocast and tensor.dtype != weight.dtype:
            raise TypeError(f"{name} must be {weight.dtype}, as the parameters are (no autocast), got {tensor.dtype}")


def check_device(weight: Tensor | None, **tensors: Tensor) -> None:
    """The parameters' device for all."""
    for name, tensor in tensors.items():
        if weight is not None and tensor.device != weight.device:
            raise ValueError(f"{name} must be on {weight.device}, where the parameters are, got {tensor.device}")


def check_integers(**tensors: Tensor) -> None:
    """Integer dtypes; float and bool indices are refused rather than rounded."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool:
            raise TypeError(f"{name} must hold integers, got {tensor.dtype}")


def check_per_atom(sizes: Mapping[str, int], axis: str, **labels: Tensor) -> None:
    """Integers, [N] or, with `axis` as of ``check_shapes``, [B, N]."""
    check_integers(**labels)
    n_atom = sizes["N"]
    for name, label in labels.items():
        if label.shape not in ((n_atom,), *((batch, n_atom) for batch in _lengths(axis, sizes))):
            wanted = f"[N={n_atom}] or [{_named(axis, sizes)}, N={n_atom}]"
            raise ValueError(f"{name} must have shape {wanted}, got {list(label.shape)}")


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


def check_neighbors(neighbor_idx: Tensor, valid_mask: Tensor, sizes: Mapping[str, int]) -> None:
    """`neighbor_idx` int64 [N, K]; `valid_mask` bool [N, K], [B, N, K] or [B_p, N, K]."""
    check_shapes(sizes, neighbor_idx=(neighbor_idx, "N K"))
    if neighbor_idx.dtype != torch.int64:
        raise TypeError(f"neighbor_idx must be torch.int64, got {neighbor_idx.dtype}")
    axes = "B|B_p N K" if isinstance(valid_mask, Tensor) and valid_mask.ndim == 3 else "N K"
    check_shapes(sizes, valid_mask=(valid_mask, axes))
    if valid_mask.dtype != torch.bool:
        raise TypeError(f"valid_mask must be torch.bool, got {valid_mask.dtype}")


def check_live_indices(neighbor_idx: Tensor, valid_mask: Tensor) -> None:
    """Entries of `neighbor_idx` lie in [0, N) wherever the mask is set.

    Checked once per (index, mask), by the contract of `_remember`; on a GPU that first check waits for the device.
    """
    if torch.compiler.is_compiling() or neighbor_idx.is_meta or not neighbor_idx.numel():
        return  # there are no values to check
    if neighbor_idx.is_cuda and torch.cuda.is_current_stream_capturing():
        return  # looking would end the capture
    _in_range(neighbor_idx, valid_mask)


@remembered
def _in_range(neighbor_idx: Tensor, valid_mask: Tensor) -> bool:
    refuse_out_of_range(neighbor_idx, valid_mask)
    return True


def refuse_out_of_range(neighbor_idx: Tensor, valid_mask: Tensor) -> None:
    """Raise a `ValueError` that names the first live slot which holds no atom."""
    n_atom = len(neighbor_idx)
    wrong = _out_of_range(neighbor_idx, valid_mask, n_atom)
    if wrong.any():
        atom, slot = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"neighbor_idx must lie in [0, N={n_atom}) wherever valid_mask is set, "
            f"got {int(neighbor_idx[atom, slot])} at [{atom}, {slot}]"
        )


def _out_of_range(neighbor_idx: Tensor, valid_mask: Tensor, n_atom: int) -> Tensor:
    """Slots [N, K] that are live for some batch item and name no atom."""
    live = valid_mask.any(0) if valid_mask.ndim == 3 else valid_mask
    return (neighbor_idx < 0).logical_or_(neighbor_idx >= n_atom).logical_and_(live)


def check_block(
    block: AtomTransformerBlock, q: Tensor, c: Tensor, p: Tensor, neighbor_idx: Tensor, valid_mask: Tensor
) -> None:
    """The arguments of a block's ``forward``."""
    sizes = check_shapes(
        _plain_sizes(c_atom=block.n_heads * block.head_dim, c_atompair=_width_in(block.pair_bias)),
        q=(q, "B N c_atom"),
        p=(p, "B_p N K c_atompair"),
    )
    check_samples(sizes, own="q", shared="p")
    check_shapes(sizes, c=(c, "B|B_p N c_atom"))
    weight = _float_weight(block, block.to_q)
    check_floats(weight, q=q, c=c, p=p)
    check_neighbors(neighbor_idx, valid_mask, sizes)
    check_device(weight, neighbor_idx=neighbor_idx, valid_mask=valid_mask)


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
    """The arguments of the encoder's ``forward``; the values of `tok_idx` are checked where the index is built."""
    sizes = check_shapes(
        _plain_sizes(
            xyz=3,
            E=_width_in(encoder.proj_fref_c, less=3),
            c_token=_width_in(encoder.proj_s_init),
            c_pair=_width_in(encoder.proj_z_init),
        ),
        ref_pos=(ref_pos, "B_p N xyz"),
        ref_element=(ref_element, "B_p N E"),
        r_scaled=(r_scaled, "B N xyz"),
    )
    check_samples(sizes, own="r_scaled", shared="ref_pos")
    check_shapes(sizes, s_input=(s_input, "B|B_p R c_token"), z_input=(z_input, "B|B_p R R c_pair"))
    weight = _float_weight(encoder, encoder.proj_fref_c)
    check_floats(weight, ref_pos=ref_pos, ref_element=ref_element, s_input=s_input, z_input=z_input, r_scaled=r_scaled)
    check_per_atom(sizes, "B_p", ref_space_uid=ref_space_uid)
    check_per_atom(sizes, "B|B_p", tok_idx=tok_idx)
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
        _plain_sizes(
            c_atom=_width_out(decoder.proj_s_q),
            c_atompair=_width_out(decoder.proj_z),
            c_token=_width_in(decoder.proj_s_q),
            c_pair=_width_in(decoder.proj_z),
        ),
        q_skip=(q_skip, "B N c_atom"),
        p_skip=(p_skip, "B_p N K c_atompair"),
    )
    check_samples(sizes, own="q_skip", shared="p_skip")
    check_shapes(
        sizes,
        c_skip=(c_skip, "B|B_p N c_atom"),
        c=(c, "B|B_p N c_atom"),
        s=(s, "B|B_p R c_token"),
        z=(z, "B|B_p R R c_pair"),
    )
    weight = _float_weight(decoder, decoder.proj_s_q)
    check_floats(weight, q_skip=q_skip, p_skip=p_skip, c_skip=c_skip, c=c, s=s, z=z)
    check_per_atom(sizes, "B|B_p", tok_idx=tok_idx)
    check_device(weight, tok_idx=tok_idx)
