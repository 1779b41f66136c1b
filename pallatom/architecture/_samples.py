"""Samples that share what they are made of: item b M + i of a batch B = B_p M uses entry b of what is shared.

A diffusion model denoises M samples of one system at a time: their pairs, masks and conditioning are the same, so these
have a batch of B_p and the samples' own tensors one of B. Nothing shared is repeated M times; gradients of what is
shared are summed over the samples in float32 at least.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def once(x: Tensor) -> Tensor:
    """The one entry ``[1, ...]`` of an x that is expanded over the batch (stride 0), unless its gradient is wanted:
    each item of an expanded tensor has a gradient of its own."""
    wanted = x.requires_grad and torch.is_grad_enabled()
    return x[:1] if len(x) > 1 and x.stride(0) == 0 and not wanted else x


def repeated(x: Tensor, batch: int) -> Tensor:
    """x with each of its entries as often, one after the other, as makes ``batch`` of them."""
    if len(x) == batch:
        return x
    return x[:, None].expand(-1, batch // len(x), *x.shape[1:]).flatten(0, 1)


def matched(x: Tensor, Q: Tensor, p: Tensor) -> Tensor:
    """x as one of Q's batch or p's: itself, as a rule; p may have turned out to be one entry (:func:`once`)."""
    return x if len(x) in (len(Q), len(p)) else repeated(x, len(Q))


def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y, where one may have a multiple of the other's batch."""
    if len(x) == len(y):
        return x + y
    many, few = (x, y) if len(x) > len(y) else (y, x)
    return (many.unflatten(0, (len(few), len(many) // len(few))) + few[:, None]).flatten(0, 1)


def live_in_any(live: Tensor, entries: int) -> Tensor:
    """The slots that some sample of an entry sees: ``live [B, N, K]`` per entry; another is itself."""
    if live.ndim == 2 or len(live) <= max(entries, 1):
        return live
    return live.unflatten(0, (entries, len(live) // entries)).any(1)


def one_by_one(attend: Attend, Q: Tensor, K: Tensor, V: Tensor, bias: Tensor, live: Tensor) -> Tensor:
    """``attend(Q, K, V, bias, live)`` where all have one batch; sample by sample where Q has M times that of ``bias``.

    Q ``[B, ...]``; K, V ``[B or B_p, ...]``; bias ``[B_p, ...]``, made once and read by every sample; live
    ``[1, B_p or B, ...]``. What a sample makes on its way is gone before the next one starts: with gradients it is made
    again in the backward, so that memory does not grow by M scores.
    """
    batch, entries = len(Q), len(bias)
    if batch == entries:
        return attend(Q, K, V, bias, live)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (Q, K, V, bias)):
        from torch.utils.checkpoint import checkpoint

        attend = partial(checkpoint, attend, use_reentrant=False, preserve_rng_state=False)
    given = [of_samples(x, batch, entries) for x in (Q, K, V, bias, live)]
    return torch.stack([attend(*(of(i) for of in given)) for i in range(batch // entries)], 1).flatten(0, 1)


def of_samples(x: Tensor, batch: int, entries: int) -> Callable[[int], Tensor]:
    """i → what of x sample i of every entry uses. The gradients of a shared x meet in float32 at least."""
    if len(x) in (1, entries):
        if not x.requires_grad:
            return lambda i: x
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return lambda i: wide.to(x.dtype)
    own = repeated(x, batch).unflatten(0, (entries, batch // entries)).unbind(1)
    return lambda i: own[i]
