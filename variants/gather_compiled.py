"""The layer's own gather, compiled: what ``torch.compile`` makes of it without any change to the mathematics.

Idea: Inductor fuses gather, product, scale, bias, mask and softmax into a few loops, so the gathered K and V need not
pass through memory. Ansel et al., PyTorch 2 (ASPLOS 2024, doi:10.1145/3620665.3640366). Any index, any device.

Compiled once per kind of call (shapes, dtypes, gradients); the first call of each kind pays for it. On the CPU a C++
compiler is needed at run time, on CUDA Triton and a C compiler. Inside a model that is being compiled, the block runs
the layer's own code, which the outer compilation includes. Its limit in bfloat16 is that of ``gather``.

Cost model: the FLOPs of the gather. Forward: p is read, its norm is written and read, the scores pass through memory a
few times, K and V rows are read through the cache. With gradients the gathered rows are kept after all, and the
gradient of K and V is a scatter of as much.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pallatom.architecture import _samples
from pallatom.architecture._validate import check_live_indices
from pallatom.architecture.atom_transformers import AtomTransformerBlock

from ._backend import Backend, Cost, Mode, Shape, UnsupportedError
from ._require import backward_hook_reasons, require
from .libraries.torch_compile import compiled, compiler_reasons, nan_where_squares_overflow


def _plain(
    block: AtomTransformerBlock, Q: Tensor, K: Tensor, V: Tensor, p: Tensor, neighbor_idx: Tensor, valid_mask: Tensor
) -> Tensor:
    p = nan_where_squares_overflow(p)
    return AtomTransformerBlock._attend(block, Q, K, V, p, neighbor_idx, valid_mask)


def _bias(block: AtomTransformerBlock, p: Tensor, seen: Tensor) -> Tensor:
    return block.pair_bias(block.norm_pair(nan_where_squares_overflow(p).masked_fill(~seen[..., None], 0)))


def _sample(block: AtomTransformerBlock, idx: Tensor, *sample: Tensor) -> Tensor:
    return block._gather(idx, *sample)


class GatherCompiledBlock(AtomTransformerBlock):
    """The base block with its attention seam under ``torch.compile(fullgraph=True, dynamic=False)``."""

    def _attend(self, Q: Tensor, K: Tensor, V: Tensor, p: Tensor, neighbor_idx: Tensor, valid_mask: Tensor) -> Tensor:
        require(BACKEND, self, Q, K, V, p)
        if torch.compiler.is_compiling():
            return _plain(self, Q, K, V, p, neighbor_idx, valid_mask)
        if reasons := backward_hook_reasons(self):
            raise UnsupportedError(reasons, who=type(self).__name__)  # Dynamo compiles forward hooks only
        check_live_indices(neighbor_idx, valid_mask)  # a compiled program cannot
        p = _samples.once(p)
        if len(Q) > len(p):
            return self._attend_samples(Q, K, V, p, neighbor_idx, valid_mask)
        inputs = (Q, K, V, p, neighbor_idx, valid_mask)
        return compiled(_plain, *inputs, *self.parameters(), static=self.n_heads)(self, *inputs)

    def _attend_samples(self, Q: Tensor, K: Tensor, V: Tensor, p: Tensor, idx: Tensor, valid_mask: Tensor) -> Tensor:
        """A program for the bias and one for a sample of every entry, which so many samples run in turn."""
        live = valid_mask if valid_mask.dim() == 3 else valid_mask[None]
        given = (p, _samples.live_in_any(live, len(p)))
        bias = compiled(_bias, *given, *self.parameters(), static=self.n_heads)(self, *given)
        idx = idx.masked_fill(~live.any(0), 0)

        def attend(*sample: Tensor) -> Tensor:
            return compiled(_sample, idx, *sample, static=self.n_heads)(self, idx, *sample)

        return _samples.one_by_one(attend, Q, K, V, bias, live)


def cost(shape: Shape, mode: Mode) -> Cost:
    """See the module's docstring. Peak: the normalised p and the scores; with gradients the gathered K and V too, and
    on CUDA one of them in the forward already."""
    m = shape.samples
    flops = shape.n_pairs * shape.heads * (4 * m * shape.head_dim + 2 * shape.c_pair)
    scores = shape.n_pairs * shape.heads * max(shape.itemsize, shape.pair_itemsize)
    gathered = shape.n_pairs * shape.heads * shape.head_dim * shape.itemsize
    traffic = 3 * shape.p_bytes + 6 * m * scores + 4 * shape.atom_bytes
    if mode == "fwd":
        forward = shape.p_bytes + 2 * scores + 2 * shape.atom_bytes
        return Cost(flops, traffic, forward + (gathered if shape.device == "cuda" else 0))
    back = 5 * shape.p_bytes + m * (8 * scores + 8 * gathered) + 8 * shape.atom_bytes
    return Cost(3 * flops, traffic + back, shape.p_bytes + 5 * scores + 2 * gathered + 8 * shape.atom_bytes)


BACKEND = Backend(
    block=GatherCompiledBlock,
    summary="the same gather under torch.compile",
    devices=("cpu", "cuda"),
    dtypes=(torch.float32, torch.float64, torch.bfloat16, torch.float16),
    cost=cost,
    min_capability=(7, 0),
    samples=True,
    probe=compiler_reasons,
    compiles=True,
)
