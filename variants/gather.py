"""Gather K neighbours, eagerly: the layer as it is, and the baseline of every comparison.

Idea: K and V are gathered to [B, N, K, H, D], so every score and every weighted value is a plain product. Nothing is
assumed about the index. The cost is memory: two gathered tensors of H·D channels per pair, 8 times p each in the usual
shape.

Limit: in bfloat16 the weights are rounded before they meet V, so where scores of hundreds saturate the softmax, dQ (a
difference of nearly equal terms there) is off by all of its norm; other backends sum it in float32.
"""

from __future__ import annotations

import torch

from pallatom.architecture.atom_transformers import AtomTransformerBlock

from ._backend import Backend, Cost, Mode, Shape


def cost(shape: Shape, mode: Mode) -> Cost:
    """All slots are computed, padding too; gathered K and V, the normalised p and the scores pass through memory.

    Forward: p is read, its norm written and read; gathered K and V are written and read; scores are rewritten by scale,
    bias, mask and softmax. Backward reads all of that again and writes a gradient of each. Samples that share p are
    computed one by one: what one makes is gone before the next.
    """
    project = shape.n_pairs * shape.heads * 2 * shape.c_pair
    products = shape.samples * shape.n_pairs * shape.heads * 4 * shape.head_dim
    gathered = shape.n_pairs * shape.heads * shape.head_dim * shape.itemsize
    scores = shape.n_pairs * shape.heads * max(shape.itemsize, shape.pair_itemsize)
    each = 4 * gathered + 8 * scores
    traffic = 3 * shape.p_bytes + shape.samples * each + 4 * shape.atom_bytes
    if mode == "fwd":
        return Cost(project + products, traffic, 2 * gathered + 4 * scores + shape.p_bytes + shape.atom_bytes)
    again = shape.samples > 1  # a sample's scores are then made a second time
    flops, moved = 3 * project + (3 + again) * products, 3 * traffic + again * shape.samples * each
    return Cost(flops, moved, 3 * gathered + 6 * scores + 2 * shape.p_bytes + 8 * shape.atom_bytes)


BACKEND = Backend(
    block=AtomTransformerBlock,
    summary="gather K neighbours, eager: what the layer itself does",
    devices=("cpu", "cuda"),
    dtypes=(torch.float32, torch.float64, torch.bfloat16, torch.float16),
    cost=cost,
    samples=True,
)
