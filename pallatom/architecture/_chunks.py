"""Pair tensors made a chunk of rows at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

PAIR_CHUNK = {"cpu": 2**15, "cuda": 2**22}
"""Slots of the pair tensors that are made at once where no gradient is wanted: what a cache holds; what fills a GPU."""


def by_rows(make: Callable[[slice], tuple[Tensor, ...]], neighbor_idx: Tensor) -> tuple[Tensor, ...]:
    """``make(rows)``, tensors [B, rows, K, ...], for all N rows.

    Row by row nothing depends on other rows, so without gradients (which would keep everything anyway) it is done chunk
    by chunk, and what a chunk makes on its way never leaves the cache. A graph is compiled for all rows at once.
    """
    n_atom, n_slot = neighbor_idx.shape
    step = max(1, PAIR_CHUNK.get(neighbor_idx.device.type, n_atom * n_slot) // max(1, n_slot))
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or step >= n_atom:
        return make(slice(0, n_atom))
    whole: tuple[Tensor, ...] = ()
    for low in range(0, n_atom, step):
        part = make(slice(low, low + step))
        whole = whole or tuple(x.new_empty(len(x), n_atom, *x.shape[2:]) for x in part)
        for target, x in zip(whole, part):
            target[:, low : low + step] = x
    return whole
