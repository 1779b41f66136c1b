"""Problems at the attention seam that every backend must get right, and the float64 answer to each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pallatom.architecture.atom_transformers import AtomTransformerBlock, build_sparse_pairs
from variants._op import attention_reference

HEADS, DIM, CHANNELS = 2, 16, 8
PARAMETERS = ("norm_pair.weight", "norm_pair.bias", "pair_bias.weight")
INPUTS = ("Q", "K", "V", "p")


@dataclass(frozen=True, eq=False)
class Problem:
    """A seam call: ``block`` (the layer's own class, in the problem's dtype), its inputs, and dO."""

    block: AtomTransformerBlock
    inputs: tuple[Tensor, Tensor, Tensor, Tensor]
    neighbor_idx: Tensor
    valid_mask: Tensor
    grad_out: Tensor


@dataclass(frozen=True)
class Case:
    """How to make a problem: index and mask, whether the index is a band, and what is special about p.

    ``half``: a backend that rounds its bias to half precision can get it right. ``canonical`` cases share every shape,
    so that a backend which compiles per shape compiles once for all of them.
    """

    index: Callable[[torch.Generator], tuple[Tensor, Tensor]]
    band: bool = True
    batch: int = 2
    offset: float = 0.0
    weight: float = 0.5
    junk: float | None = None
    half: bool = True
    canonical: bool = True


N, SLOTS, BATCH = 70, 40, 2


def _residues(g: torch.Generator) -> Tensor:
    """Ragged residues, some of them empty, N atoms in all."""
    counts = torch.randint(0, 9, (60,), generator=g)
    return torch.repeat_interleave(torch.arange(60), counts)[:N]


def _padded(idx: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The same neighbours in SLOTS slots under a mask per item, junk in the padding of the index."""
    extra = SLOTS - idx.shape[1]
    assert extra >= 0, "the canonical shape is too narrow for this case"
    idx = torch.nn.functional.pad(idx, (0, extra), value=-1)
    mask = torch.nn.functional.pad(mask, (0, extra), value=False).expand(BATCH, -1, -1).clone()
    idx[~mask.any(0)] = 10**9
    return idx, mask


def _window(g: torch.Generator) -> tuple[Tensor, Tensor]:
    return build_sparse_pairs(_residues(g), 8)


def _ragged(g: torch.Generator) -> tuple[Tensor, Tensor]:
    return _padded(*_window(g))


def _chains(g: torch.Generator) -> tuple[Tensor, Tensor]:
    idx, mask = _window(g)
    chain = torch.bucketize(torch.arange(N), torch.tensor([23, 24, 51]))
    return _padded(idx, mask & (chain[:, None] == chain[idx]))


def _unsorted(g: torch.Generator) -> tuple[Tensor, Tensor]:
    tok = _residues(g)
    return _padded(*build_sparse_pairs(tok[torch.randperm(N, generator=g)], 8))


def _dead(g: torch.Generator) -> tuple[Tensor, Tensor]:
    idx, mask = _padded(*_window(g))
    mask[:, [0, 30, 31, 69]] = False
    mask[1, 40:50] = False
    return idx, mask


def _all_dead(g: torch.Generator) -> tuple[Tensor, Tensor]:
    idx, mask = _ragged(g)
    return idx, torch.zeros_like(mask)


def _holes(g: torch.Generator) -> tuple[Tensor, Tensor]:
    idx, mask = _padded(*_window(g))
    return idx, mask & (torch.rand(mask.shape, generator=g) > 0.4)


def _capped(g: torch.Generator) -> tuple[Tensor, Tensor]:
    """The 21 nearest atoms along the chain: every row its own start, clipped at both ends."""
    start = (torch.arange(N) - 10).clamp(0, N - 21)
    return _padded(start[:, None] + torch.arange(21), torch.ones(N, 21, dtype=torch.bool))


def _jumps(g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Residues in shuffled order, each row still one run: starts go up and down."""
    start = torch.randint(0, N - 12, (14,), generator=g).repeat_interleave(5)
    return _padded(start[:, None] + torch.arange(12), torch.ones(N, 12, dtype=torch.bool))


def _atom_blocks(g: torch.Generator) -> tuple[Tensor, Tensor]:
    """32 queries see 128 keys around them, keys beyond the ends masked."""
    n = 150
    idx = 32 * (torch.arange(n) // 32)[:, None] - 48 + torch.arange(128)
    live = (idx >= 0) & (idx < n)
    return idx, live


def _atom14(g: torch.Generator) -> tuple[Tensor, Tensor]:
    return build_sparse_pairs(torch.arange(300) // 14, 8)


CASES: dict[str, Case] = {
    "ragged": Case(_ragged),
    "two_chains": Case(_chains),
    "dead_rows": Case(_dead),
    "all_dead": Case(_all_dead),
    "random_holes": Case(_holes),
    "nan_in_padding": Case(_holes, junk=float("nan")),
    "inf_in_padding": Case(_chains, junk=float("inf")),
    "huge_in_padding": Case(_chains, junk=3e4),
    "k_capped": Case(_capped),
    "jumping_starts": Case(_jumps),
    "unsorted": Case(_unsorted, band=False),
    "large_offset": Case(_ragged, offset=100.0, half=False),
    "large_bias": Case(_ragged, weight=30.0, half=False),
    "shared_mask": Case(_window, canonical=False),
    "single_item": Case(_window, batch=1, canonical=False),
    "own_residue_only": Case(lambda g: build_sparse_pairs(_residues(g), 2), batch=1, canonical=False),
    "no_slots": Case(lambda g: build_sparse_pairs(_residues(g), 1), canonical=False),
    "everyone": Case(lambda g: build_sparse_pairs(_residues(g), 1000), batch=1, canonical=False),
    "one_atom": Case(lambda g: build_sparse_pairs(torch.zeros(1, dtype=torch.int64), 32), canonical=False),
    "no_atoms": Case(
        lambda g: (torch.zeros(0, 5, dtype=torch.int64), torch.zeros(0, 5, dtype=torch.bool)), canonical=False
    ),
    "atom_blocks": Case(_atom_blocks, batch=1, canonical=False),
    "several_tiles": Case(_atom14, batch=1, canonical=False),
}


@functools.cache
def problem(name: str, dtype: torch.dtype, device: str = "cpu") -> Problem:
    """The same numbers every time and everywhere, drawn in float64 and rounded to ``dtype``."""
    case = CASES[name]
    g = torch.Generator().manual_seed(sum(map(ord, name)))
    idx, mask = case.index(g)
    n, slots = idx.shape

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    p = draw(case.batch, n, slots, CHANNELS) + case.offset
    if case.junk is not None:
        p[~mask.expand(case.batch, n, slots)] = case.junk
    inputs = (*(draw(case.batch, n, HEADS, DIM) for _ in range(3)), p)
    block = AtomTransformerBlock(HEADS * DIM, CHANNELS, HEADS).double()
    with torch.no_grad():
        block.norm_pair.weight.copy_(1 + 0.3 * draw(CHANNELS))
        block.norm_pair.bias.copy_(0.3 * draw(CHANNELS))
        block.pair_bias.weight.copy_(case.weight * draw(HEADS, CHANNELS))
    q, k, v, p = (x.to(device, dtype) for x in inputs)
    grad_out = draw(case.batch, n, HEADS, DIM).to(device, dtype)
    return Problem(block.to(device, dtype), (q, k, v, p), idx.to(device), mask.to(device), grad_out)


def answer(block: AtomTransformerBlock, given: Problem) -> dict[str, Tensor]:
    """What ``block`` makes of a problem: O, and the gradient of <O, dO> for every input and parameter."""
    inputs = [x.detach().clone().requires_grad_() for x in given.inputs]
    wanted = [*inputs, *(block.get_parameter(name) for name in PARAMETERS)]
    out = block._attend(*inputs, given.neighbor_idx, given.valid_mask)
    return _named(out, torch.autograd.grad(out, wanted, given.grad_out, materialize_grads=True))


@functools.cache
def reference(name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The float64 answer to the problem as rounded to ``dtype``."""
    given = problem(name, dtype)
    wanted = [x.detach().double().requires_grad_() for x in given.inputs]
    wanted += [given.block.get_parameter(name).detach().double().requires_grad_() for name in PARAMETERS]
    out = attention_reference(*wanted, given.neighbor_idx, given.valid_mask)
    return _named(out, torch.autograd.grad(out, wanted, given.grad_out.double(), materialize_grads=True))


def _named(out: Tensor, gradients: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return {"O": out.detach()} | {f"d{name}": x for name, x in zip((*INPUTS, *PARAMETERS), gradients, strict=True)}


def errors(got: dict[str, Tensor], ref: dict[str, Tensor]) -> dict[str, float]:
    """Relative error norms. β's gradient is 0 whatever p is: it is held against the norm of the other weights'."""
    weights = torch.cat([ref[f"d{name}"].flatten() for name in PARAMETERS if f"d{name}" in ref] or [torch.zeros(1)])
    found = {}
    for name, x in got.items():
        scale = weights.norm() if name == "dnorm_pair.bias" else ref[name].norm()
        distance = (x.double().cpu() - ref[name]).norm()
        found[name] = float(distance / scale) if scale > 0 else float(distance)
    return found
