"""Small problems of the attention seam with every trap in them, and the errors of a backend against the reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.harness.cases.limits import Work, floor
from benchmarks.harness.schema.axes import Mode
from benchmarks.harness.schema.problem import Problem
from pallatom.architecture.atom_transformers import AtomTransformerBlock
from variants import Shape, convert
from variants._op import attention_reference

JUNK = 10**9


@dataclass(frozen=True)
class Seam:
    """One call of ``_attend``: a block with random parameters, and its inputs."""

    block: AtomTransformerBlock
    inputs: tuple[Tensor, ...]  # Q, K, V, p
    neighbor_idx: Tensor
    valid_mask: Tensor

    def index(self, seed: int) -> Seam:
        """The same shapes over another band."""
        n, k = self.neighbor_idx.shape
        return Seam(self.block, self.inputs, *band(n, k, seed))


def band(n: int, k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A ragged band in groups of seven rows, with one dead row where there is room, and junk in padding slots."""
    row = torch.arange(n) // 7
    start = (row * 7 - k // 2).clamp(0, max(n - k, 0))
    count = torch.randint(min(1, k), k + 1, (n,), generator=torch.Generator().manual_seed(seed))[row]
    idx = start[:, None] + torch.arange(k)
    mask = (idx < n) & (torch.arange(k) < count[:, None])
    if n > 10:
        mask[n // 3] = False
    return idx.masked_fill(~mask, JUNK), mask


def scattered(n: int, k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Any k different atoms per row, in any order, a fifth of the slots dead."""
    generator = torch.Generator().manual_seed(seed)
    idx = torch.rand(n, n, generator=generator).argsort(1)[:, :k]
    mask = torch.rand(n, k, generator=generator) < 0.8
    return idx.masked_fill(~mask, -1), mask


def seam(
    n: int, k: int, *, batch: int = 1, index: Callable[..., tuple[Tensor, Tensor]] = band, item_masks: bool = False,
    heads: int = 2, head_dim: int = 16, channels: int = 5, dtype: torch.dtype = torch.float32,
) -> Seam:  # fmt: skip
    """Random inputs; NaN in every padding slot of p. ``item_masks`` makes the mask [B, N, K], with holes."""
    torch.manual_seed(n + k)
    idx, mask = index(n, k)
    if item_masks:
        mask = mask & (torch.rand(batch, n, k) < 0.8)
    Q, K, V = (torch.randn(batch, n, heads, head_dim, dtype=dtype) for _ in range(3))
    p = torch.randn(batch, n, k, channels, dtype=dtype).masked_fill(~mask.expand(batch, n, k)[..., None], torch.nan)
    block = AtomTransformerBlock(heads * head_dim, channels, heads).to(dtype)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_()
    return Seam(block, (Q, K, V, p), idx, mask)


def errors(name: str, problem: Seam, *, backward: bool) -> dict[str, float]:
    """Relative error norms of O, and of the gradients of Q, K, V, p and the pair weights, against float64."""
    block = convert(problem.block, name)
    got = _run(problem, backward, lambda inputs: block._attend(*inputs, problem.neighbor_idx, problem.valid_mask))
    norm, weight = problem.block.norm_pair, problem.block.pair_bias.weight

    def reference(inputs: tuple[Tensor, ...]) -> Tensor:
        return attention_reference(
            *inputs, norm.weight, norm.bias, weight, problem.neighbor_idx, problem.valid_mask, norm.eps
        )

    want = _run(problem, backward, reference)
    assert got.keys() == want.keys()
    return {key: _relative(got[key], want[key]) for key in want}


def _run(problem: Seam, backward: bool, attend: Callable[[tuple[Tensor, ...]], Tensor]) -> dict[str, Tensor]:
    inputs = tuple(x.detach().requires_grad_(backward) for x in problem.inputs)
    with torch.set_grad_enabled(backward):
        out = attend(inputs)
    if not backward:
        return {"O": out}
    norm, weight = problem.block.norm_pair, problem.block.pair_bias.weight
    leaves = dict(zip(("dQ", "dK", "dV", "dp"), inputs)) | {"dgamma": norm.weight, "dweight": weight}
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return {"O": out} | dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), cotangent.to(out.dtype))))


def _relative(got: Tensor, want: Tensor) -> float:
    """Infinite where anything is not finite: ``max`` passes over a NaN that is not the first."""
    assert got.shape == want.shape
    got, want = got.detach().double(), want.detach().double()
    if not got.isfinite().all():
        return math.inf
    return float((got - want).norm() / want.norm().clamp_min(1e-6)) if want.numel() else 0.0


def floor_of(shape: Shape, mode: Mode) -> Work:
    """What the bench says that any implementation of this call needs; Q, K, V and p in one precision."""
    assert shape.itemsize == shape.pair_itemsize
    made = Problem(
        level="attention", mode=mode, device="cpu", dtype="float32" if shape.itemsize == 4 else "bfloat16",
        workload="synthetic", atoms="atom14", n_atom=shape.n_atom, n_res=-(-shape.n_atom // 14), window=32,
        n_neighbor=shape.n_neighbor, live_pairs=shape.live_pairs, batch=shape.batch, heads=shape.heads,
        c_atom=shape.heads * shape.head_dim, c_atompair=shape.c_pair,
    )  # fmt: skip
    return floor(made)
