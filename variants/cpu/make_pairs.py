"""The pairs of encoder and decoder in one fused pass each way: see ``make_pairs.h`` and ``make_pairs_backward.h``.

Forward, p is written as it leaves the registers and nothing else of its size is made. Backward, the activations of a
few slots are made anew while they are in cache, and every gradient is summed without atomics: a thread has all rows of
its residues, so its part of z's band is its own. The same call with as many threads gives the same bits.
"""

from __future__ import annotations

from ctypes import byref
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pallatom.architecture import _samples

from .library import Pairs, library
from .once import once_differentiable

_PAD = 16  # channels are padded to a multiple, which is one of every vector's lanes too


def encoder_pairs(
    ref_pos: Tensor, own: Tensor, other: Tensor, z: Tensor, linears: list[Tensor], mlp: nn.Sequential, *index: Tensor
) -> tuple[Tensor, Tensor]:
    """(p_skip, p) from positions [B, N, 3], projections [B, N, d] and z's band [B, R, w, d].

    `linears` are the weights of v, 1 / (1 + |v|²) and 1; `index` is (tok, neighbor_idx, valid_mask). z and p may have M
    times the batch of all else.
    """
    like, batch, entries = (own.dtype, z.shape[-1]), len(z), len(own)
    ref_pos, own, other = (_samples.repeated(x, batch) for x in (ref_pos.float(), _padded(own), _padded(other)))
    weights = (_padded(torch.cat(linears, 1).T), _weights(mlp))
    p_skip, p = _EncoderPairs.apply(ref_pos, own, other, _padded(z), *weights, *like, *_each(batch, *index))
    return p_skip[:: batch // entries] if batch > entries else p_skip, p


def decoder_pairs(p_skip: Tensor, z: Tensor, mlp: nn.Sequential, *index: Tensor) -> Tensor:
    """p from p_skip [B, N, K, d] and z's band."""
    p_skip = _repeated_pairs(p_skip.to(torch.promote_types(p_skip.dtype, z.dtype)), len(z))
    return _DecoderPairs.apply(p_skip, _padded(z), _weights(mlp), *index)  # pyright: ignore[reportReturnType]


def _each(batch: int, tok: Tensor, neighbor_idx: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The index of that many samples, where each entry may have a mask of its own."""
    return tok, neighbor_idx, _samples.repeated(mask, batch) if mask.dim() == 3 else mask


def _repeated_pairs(p_skip: Tensor, batch: int) -> Tensor:
    """p_skip for samples that have a z of their own, as large as their p; gradients meet in float32 at least."""
    if len(p_skip) == batch:
        return p_skip
    wide = p_skip.to(torch.promote_types(p_skip.dtype, torch.float32))
    return _samples.repeated(wide, batch).to(p_skip.dtype)


def _padded(x: Tensor) -> Tensor:
    """In float32, with zeros behind the last channel."""
    return F.pad(x.float(), (0, -x.shape[-1] % _PAD))


def _weights(mlp: nn.Sequential) -> Tensor:
    """[4, P, P]."""
    weight = torch.stack([mlp.get_submodule(str(i)).weight for i in (0, 2, 4, 6)]).float()  # pyright: ignore
    return F.pad(weight, (0, -weight.shape[1] % _PAD, 0, -weight.shape[1] % _PAD))


class _EncoderPairs(torch.autograd.Function):
    """p_skip and p; no tensor of their size is kept."""

    @staticmethod
    def forward(ctx: Any, position, own, other, band, geometry, weights, dtype, channels, tok, neighbor_idx, mask):
        skip, out = (torch.empty(len(own), *neighbor_idx.shape, channels, dtype=dtype) for _ in range(2))
        given = (position, own, other, band, geometry, weights)
        _run(False, *given, tok, neighbor_idx, mask, skip=skip, out=out)
        ctx.save_for_backward(*given, tok, neighbor_idx, mask)
        ctx.set_materialize_grads(False)
        return skip, out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_skip: Tensor | None, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # read once: a checkpoint makes them anew for each reading
        made = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in saved[:6]]
        names = ("d_position", "d_own", "d_other", "d_band", "d_geometry", "d_weights")
        tensors = {
            "grad_skip": _contiguous(grad_skip),
            "grad": _contiguous(grad),
            **dict(zip(names, made, strict=True)),
        }
        _run(True, *saved, **tensors)
        return (*made, None, None, None, None, None)


class _DecoderPairs(torch.autograd.Function):
    """p; p_skip is kept."""

    @staticmethod
    def forward(ctx: Any, p_skip, band, weights, tok, neighbor_idx, mask):
        out = torch.empty(p_skip.shape, dtype=p_skip.dtype)
        _run(False, None, None, None, band, None, weights, tok, neighbor_idx, mask, skip=p_skip.contiguous(), out=out)
        ctx.save_for_backward(p_skip, band, weights, tok, neighbor_idx, mask)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        p_skip, band, weights, tok, neighbor_idx, mask = ctx.saved_tensors
        d_skip = torch.empty(p_skip.shape, dtype=p_skip.dtype) if ctx.needs_input_grad[0] else None
        made = {"d_band": torch.empty(band.shape), "d_weights": torch.empty(weights.shape), "d_skip": d_skip}
        tensors = {"skip": p_skip.contiguous(), "grad": grad.contiguous(), **made}
        _run(True, None, None, None, band, None, weights, tok, neighbor_idx, mask, **tensors)
        return d_skip, made["d_band"], made["d_weights"], None, None, None


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _run(
    backward: bool,
    position: Tensor | None,
    own: Tensor | None,
    other: Tensor | None,
    band: Tensor,
    geometry: Tensor | None,
    weights: Tensor,
    *index: Tensor,
    **others: Tensor | None,
) -> None:
    """Call the kernel; `others`, contiguous, by their names in ``Pairs``."""
    tok, neighbor_idx, mask = index
    items = mask if mask.dim() == 3 else mask[None]
    tensors = {
        **{"index": neighbor_idx, "residue": tok, "mask": items, "band": band, "weights": weights},
        **{"transposed": weights.mT, "position": position, "own": own, "other": other, "geometry": geometry},
        **(_residue_order(tok, band.shape[1]) if backward else {}),
    }
    tensors = {name: _contiguous(x) for name, x in tensors.items()} | others
    n_atom, slots = neighbor_idx.shape
    assert all(len(x) == len(band) for x in (position, own, other, others.get("skip")) if x is not None)
    kind = next(x for x in (others.get("skip"), others.get("grad"), others.get("grad_skip"), band) if x is not None)
    sizes = (len(band), n_atom, slots, *band.shape[1:3], kind.shape[-1], band.shape[3])
    call = Pairs(*sizes, max(1, min(torch.get_num_threads(), n_atom)), len(items))
    for name, tensor in tensors.items():
        setattr(call, name, None if tensor is None else tensor.data_ptr())
    call.is_bfloat16, call.is_encoder = kind.dtype == torch.bfloat16, position is not None
    kernels = library()
    work = torch.empty(kernels.pairs_work_floats(byref(call), backward))
    call.work = work.data_ptr()
    kernels.run_pairs(byref(call), backward)


def _residue_order(tok: Tensor, n_res: int) -> dict[str, Tensor]:
    """Atoms by residue, each atom's place in that order, and the place of each residue's first [R + 1]."""
    order = tok.argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(tok))
    first = torch.searchsorted(tok[order], torch.arange(n_res + 1))
    return {"order": order, "rank": rank, "first": first}
