"""The least work that a problem asks for, whoever does it: its floor in time.

``floor = max(bytes / bandwidth, FLOPs / rate)``, ``% of limit = 100 * floor / measured``.

The seam's share is ``variants.operation_floor``. Around it, per level:

* FLOPs: ``2 * rows * in * out`` for every linear layer, rows being atoms (q, k, v, out, feed-forward),
  residues (token projections), live pairs (the pair MLP) or residue pairs within the window (the
  trunk's projection); three times that with a backward pass (dX and dW). Norms, softmax and other
  element-wise work are not counted.
* bytes: every input read once, every output written once, weights once, pair tensors over live pairs
  where they are read; what lies between (Q, K, V, activations) could stay on chip and is not counted.
  A block of a stack reads and writes like a block by itself. Backward reads the inputs and the
  outputs' gradients and writes the inputs' and weights'; an optimizer step moves seven weights'
  worth (weight, gradient and two moments in, all but the gradient out).

So the floor is a bound that no implementation beats while its operands come from main memory; above
100% they came from a cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from .cases import ITEMSIZE
from .ceilings import Ceilings
from .footprint import ELEMENTS, shape_of
from .record import Limit, Problem

FEED_FORWARD = 4  # hidden width of a block's feed-forward, in c_atom
MLP_LAYERS = 4


@dataclass(frozen=True)
class Work:
    """FLOPs and bytes of one call; adds up."""

    flops: int
    bytes: int

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)


def limit(problem: Problem, ceilings: Ceilings, measured_ms: float | None) -> Limit:
    """The problem's floor on a device with these ceilings, and how near ``measured_ms`` comes to it."""
    work = floor(problem)
    by_bytes = 1e3 * work.bytes / ceilings.bandwidth_bytes_per_s
    by_flops = 1e3 * work.flops / ceilings.rate_flops_per_s
    floor_ms = max(by_bytes, by_flops)
    return Limit(
        floor_bytes=work.bytes,
        floor_flops=work.flops,
        bandwidth_bytes_per_s=ceilings.bandwidth_bytes_per_s,
        rate_flops_per_s=ceilings.rate_flops_per_s,
        floor_ms=floor_ms,
        bound="bytes" if by_bytes >= by_flops else "flops",
        percent=100 * floor_ms / measured_ms if measured_ms else None,
    )


def floor(problem: Problem) -> Work:
    """FLOPs and bytes of the operation at the problem's level and in its mode."""
    if problem.level == "index":
        slots = problem.n_atom * problem.n_neighbor
        return Work(0, 8 * problem.n_atom + 9 * slots)  # int64 residues in, int64 neighbours and bool mask out
    work = _LEVELS[problem.level](problem)
    if problem.mode == "train":
        work += Work(0, 7 * weight_bytes(problem))
    return work


@dataclass(frozen=True)
class _Sizes:
    """Bytes of the tensors that the levels pass around, and how many residue pairs a window touches."""

    atom: int  # B * N * c_atom
    token: int  # B * R * c_token
    pair: int  # B * N * K * C
    pair_live: int
    trunk: int  # B * R * R * c_pair
    trunk_live: int
    residue_pairs: int


def _sizes(p: Problem) -> _Sizes:
    size = ITEMSIZE[p.dtype]
    reach = min(p.n_res, 2 * (p.window // 2) - 1) if p.window > 1 else 0
    residue_pairs = p.batch * p.n_res * reach
    return _Sizes(
        atom=p.batch * p.n_atom * p.c_atom * size,
        token=p.batch * p.n_res * p.c_token * size,
        pair=p.batch * p.n_atom * p.n_neighbor * p.c_atompair * size,
        pair_live=p.live_pairs * p.c_atompair * size,
        trunk=p.batch * p.n_res**2 * p.c_pair * size,
        trunk_live=residue_pairs * p.c_pair * size,
        residue_pairs=residue_pairs,
    )


def _attention(p: Problem) -> Work:
    from variants import operation_floor

    return Work(*operation_floor(shape_of(p), "fwd" if p.mode == "fwd" else "fwdbwd"))


def _block(p: Problem) -> Work:
    s, weights = _sizes(p), _block_weights(p) * ITEMSIZE[p.dtype]
    flops = _attention(p).flops + _passes(p) * 2 * p.batch * p.n_atom * _block_linear(p)
    if p.mode == "fwd":
        return Work(flops, 3 * s.atom + s.pair_live + weights)  # q, c in; q out
    return Work(flops, 8 * s.atom + 2 * s.pair_live + s.pair + 3 * weights)  # and q, c, dq' in; dq, dc out


def _stack(p: Problem) -> Work:
    block = _block(p)
    return Work(p.n_blocks * block.flops, p.n_blocks * block.bytes)


def _encoder(p: Problem) -> Work:
    s, size = _sizes(p), ITEMSIZE[p.dtype]
    raw = p.batch * p.n_atom * (6 + ELEMENTS) * size  # ref_pos, r_scaled, ref_element
    moved = raw + s.token + s.trunk_live + 3 * s.atom + s.token + s.pair + s.pair_live  # inputs; outputs and p
    if p.mode != "fwd":
        moved += 2 * (raw + s.token) + s.trunk_live + s.trunk  # inputs again, and their gradients
        moved += 3 * s.atom + s.token + s.pair + s.pair_live  # the outputs' gradients, and p again
    return Work(_passes(p) * _encoder_linear(p), moved) + _stack(p)


def _decoder(p: Problem) -> Work:
    s, size = _sizes(p), ITEMSIZE[p.dtype]
    update = p.batch * p.n_atom * 3 * size
    moved = 2 * s.atom + s.pair_live + s.token + s.trunk_live  # q_skip, c_skip, p_skip, s, z
    moved += s.pair + update + s.atom  # p, r_update, c_out
    if p.mode != "fwd":
        moved += 4 * s.atom + s.pair_live + s.pair + 2 * s.token + s.trunk_live + s.trunk
        moved += s.pair + update + s.atom
    return Work(_passes(p) * _decoder_linear(p), moved) + _stack(p)


_LEVELS = {"attention": _attention, "block": _block, "stack": _stack, "encoder": _encoder, "decoder": _decoder}


def _passes(p: Problem) -> int:
    """A linear layer's products: X W forward; dY Wᵀ and Xᵀ dY backward."""
    return 1 if p.mode == "fwd" else 3


def _block_linear(p: Problem) -> int:
    """Multiply-adds per atom of a block's linears outside the seam: to_q, to_k, to_v, to_out, ff1, ff2."""
    return (4 + 2 * FEED_FORWARD) * p.c_atom**2


def _block_weights(p: Problem) -> int:
    """Elements of a block's weights; the norms' are two vectors each."""
    norms = 2 * (3 * p.c_atom + p.c_atompair)
    return _block_linear(p) + p.c_atompair * p.heads + norms


def _pair_linear(p: Problem) -> int:
    """FLOPs of the pair MLP over live pairs and of the trunk's projection over residue pairs."""
    return 2 * (p.live_pairs * MLP_LAYERS * p.c_atompair**2 + _sizes(p).residue_pairs * p.c_pair * p.c_atompair)


def _encoder_linear(p: Problem) -> int:
    atoms, residues, c, d = p.batch * p.n_atom, p.batch * p.n_res, p.c_atom, p.c_atompair
    per_atom = (3 + ELEMENTS) * c + 3 * c + 2 * c * d + c * p.c_token  # proj_fref_c r_scaled cl_pair cm_pair agg
    per_pair = 4 * d  # proj_d_vec, proj_inv_sq; proj_v of a 0 or 1 is a choice
    return 2 * (atoms * per_atom + residues * p.c_token * c + p.live_pairs * per_pair) + _pair_linear(p)


def _decoder_linear(p: Problem) -> int:
    atoms, residues, c = p.batch * p.n_atom, p.batch * p.n_res, p.c_atom
    return 2 * (atoms * c * 3 + 2 * residues * p.c_token * c) + _pair_linear(p)


def weight_bytes(p: Problem) -> int:
    """Bytes of all weights that a level trains."""
    c, d = p.c_atom, p.c_atompair
    blocks = p.n_blocks * _block_weights(p)
    pair = MLP_LAYERS * d * d + p.c_pair * d + 2 * p.c_pair  # mlp_p, the trunk's projection and its norm
    elements = {
        "attention": d * p.heads + 2 * d,
        "block": _block_weights(p),
        "stack": blocks,
        "encoder": blocks + pair + (6 + ELEMENTS) * c + 5 * d + 2 * c * d + 2 * c * p.c_token + 2 * p.c_token,
        "decoder": blocks + pair + 2 * c * p.c_token + 4 * p.c_token + 3 * c + 2 * c,
        "index": 0,
    }
    return elements[p.level] * ITEMSIZE[p.dtype]
