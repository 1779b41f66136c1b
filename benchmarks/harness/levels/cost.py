"""The least work that a problem asks for, whoever does it, and how near a measured time comes to it.

``floor = max(bytes / bandwidth, FLOPs / matrix rate, exponentials / their rate)``, every rate measured on the device
(:mod:`.ceilings`); ``% of limit = 100 * floor / measured``. Nothing that is right may beat it: :func:`beyond`.

Bytes: what goes in once, what comes out once, the weights once, at every level and in every mode; with s bytes a number

* ``fwd``: ``s * (sum of inputs + sum of outputs + weights)``
* ``fwdbwd``: that, the outputs' gradients in, the inputs' and weights' gradients out. What the backward needs again, p
  too, could have stayed on chip (a cache holds all of a small problem) and is not counted twice.
* ``train``: that, AdamW's two moments in, they and the weights out: five weights' worth more.

An input is read where it matters: p (and the gradient of an output p) in its live pairs, z in the residue pairs that a
window sees; nothing of the attention where no pair is live. A result is written whole: p, dp, dz. What lies between
counts 0: Q, K, V outside the seam, activations, the encoder's own p, what one block hands the next. Index, mask and
the atoms' residues count 0 too, since a band is told in O(N) numbers that outlive a call; they are level ``index``.

FLOPs: two a multiply-add of every product, over all blocks and live pairs, three times that with a backward (dX, dW):

* seam: ``live * H * (4 D + 2 C)`` for Q Kᵀ, A V and the pair bias
* block: ``2 * B N * 12 c²`` for to_q, to_k, to_v, to_out and the feed-forward
* encoder, decoder: each linear over its atoms, residues, live pairs (the pair MLP, four C x C) or residue pairs (z's)

Norms, softmax and other element-wise work are not counted, but for its exponentials: one a live pair, head and block.
A backward can keep them and needs none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..ruler.ceilings import Ceilings
from ..schema.problem import ITEMSIZE, OWN_INDEX, Problem
from ..schema.record import Limit
from .footprint import ELEMENTS, INDEX_BYTES, MASK_BYTES

FEED_FORWARD = 4  # hidden width of a block's feed-forward, in c_atom
MLP_LAYERS = 4
OPTIMIZER = 5  # weights' worth that a step moves beside weight and gradient: two moments in, three tensors out
# The most atoms of a residue: an amino acid's, with the oxygen at a chain's end.
_RESIDUE_ATOMS = {"backbone": 4, "heavy": 15, "atom14": 14}
Bound = Literal["bytes", "flops", "exponentials"]
_NAMES: dict[Bound, str] = {"bytes": "bytes to move", "flops": "FLOPs", "exponentials": "exponentials"}


@dataclass(frozen=True)
class Work:
    """FLOPs, bytes and exponentials of one call; adds up."""

    flops: int
    bytes: int
    exponentials: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes, self.exponentials + other.exponentials)


def limit(problem: Problem, ceilings: Ceilings, measured_ms: float | None) -> Limit:
    """The problem's floor on a device with these ceilings, what binds it, and how near ``measured_ms`` comes to it.

    A rate of exponentials that could not be measured binds nothing.
    """
    work = floor(problem)
    memory = ceilings.memory(work.bytes)
    exponentials = ceilings.rate_exponentials_per_s
    bound, floor_ms = binding(work, memory.bytes_per_s, ceilings.rate_flops_per_s, exponentials)
    spreads = {
        "bytes": memory.spread,
        "flops": ceilings.flops_spread,
        "exponentials": ceilings.exponentials_spread,
    }
    return Limit(
        floor_bytes=work.bytes,
        floor_flops=work.flops,
        floor_exponentials=work.exponentials,
        bandwidth_bytes_per_s=memory.bytes_per_s,
        working_set_bytes=memory.working_set_bytes or None,
        read_bytes_per_s=memory.read_bytes_per_s,
        copy_bytes_per_s=memory.copy_bytes_per_s,
        rate_flops_per_s=ceilings.rate_flops_per_s,
        rate_exponentials_per_s=exponentials,
        spread=spreads[bound],
        floor_ms=floor_ms,
        bound=bound,
        percent=100 * floor_ms / measured_ms if measured_ms else None,
        definition=2,
    )


def binding(
    work: Work, bytes_per_s: float, flops_per_s: float, exponentials_per_s: float | None
) -> tuple[Bound, float]:
    """Which of the three takes longest at these rates, and its milliseconds; without a rate it takes no time."""
    took: dict[Bound, float] = {
        "bytes": 1e3 * work.bytes / bytes_per_s,
        "flops": 1e3 * work.flops / flops_per_s,
        "exponentials": 1e3 * work.exponentials / exponentials_per_s if exponentials_per_s else 0.0,
    }
    bound = max(took, key=lambda name: took[name])
    return bound, took[bound]


def beyond(found: Limit) -> str | None:
    """Why this percentage cannot be, in a sentence; None where it can.

    More than 100, and by more than the ceiling differed from itself while it was measured, is no speed: less was done
    than the problem asks for, or the clock missed some of it.
    """
    spread = found.spread or 0.0
    if found.percent is None or found.percent <= 100 * (1 + spread):
        return None
    amount, rate, unit = {
        "bytes": (found.floor_bytes, found.bandwidth_bytes_per_s, "B/s"),
        "flops": (found.floor_flops, found.rate_flops_per_s, "FLOP/s"),
        "exponentials": (found.floor_exponentials or 0, found.rate_exponentials_per_s or 0.0, "/s"),
    }[found.bound]
    measured_ms = 100 * found.floor_ms / found.percent
    known = "its spread not recorded" if found.spread is None else f"which differed from itself by {100 * spread:.2g}%"
    return (
        f"impossible: {found.percent:,.4g}% of the limit; {measured_ms:.4g} ms were measured, and {amount:,} "
        f"{_NAMES[found.bound]} take {found.floor_ms:.4g} ms at {rate:.4g} {unit}, the most that this device reached, "
        f"{known}"
    )


def floor(problem: Problem) -> Work:
    """FLOPs, bytes and exponentials of the operation at the problem's level and in its mode."""
    p = problem
    if p.level == "index":
        return Work(0, INDEX_BYTES * p.n_atom + (INDEX_BYTES + MASK_BYTES) * p.n_atom * p.n_neighbor)
    inputs, outputs = _operands(p)
    weights = _weights(p)
    moved = sum(t.read for t in inputs) + sum(t.whole for t in outputs) + weights.read
    if p.mode != "fwd":
        moved += sum(t.read for t in outputs) + sum(t.whole for t in inputs) + weights.whole
    if p.mode == "train":
        moved += OPTIMIZER * weights.whole
    products = 2 if p.mode == "fwd" else 6  # Y = X W; dX = dY Wᵀ and dW = Xᵀ dY; two FLOPs a multiply-add
    return Work(products * _multiply_adds(p), moved * ITEMSIZE[p.dtype], p.live_pairs * p.heads * _blocks(p))


def weight_bytes(p: Problem) -> int:
    """Bytes of all weights that a level trains."""
    return _weights(p).whole * ITEMSIZE[p.dtype]


@dataclass(frozen=True)
class _Operand:
    """Numbers in a tensor: those whose value matters, and all."""

    read: int
    whole: int


def _operands(p: Problem) -> tuple[list[_Operand], list[_Operand]]:
    """What a level is given and what it returns."""
    atoms, slots = p.batch * p.n_atom, p.batch * p.n_atom * p.n_neighbor
    atom, token = _all(atoms * p.c_atom), _all(p.batch * p.n_res * p.c_token)
    seen = atom if p.live_pairs else _Operand(0, atom.whole)  # read by the attention alone
    pair = _Operand(p.live_pairs * p.c_atompair, slots * p.c_atompair)
    z = _Operand(_residue_pairs(p) * p.c_pair, p.batch * p.n_res**2 * p.c_pair)
    match p.level:
        case "attention":
            return [seen, seen, seen, pair], [seen]  # Q, K, V, p; O
        case "block" | "stack":
            return [atom, seen, pair], [atom]  # q, c, p; q
        case "encoder":
            raw = _all(atoms * (3 + ELEMENTS + 3))  # ref_pos, ref_element, r_scaled
            return [raw, token, z], [token, atom, atom, pair, atom]  # and s, z; s_i, q_skip, c_skip, p_skip, c_l
        case "decoder":
            update = _all(atoms * 3)
            return [atom, atom, seen, pair, token, z], [atom, pair, update, atom]  # q, c_skip, c, p, s, z; q, p, r, c
        case _:
            raise ValueError(f"level: expected one with tensors of numbers, got {p.level!r}")


def _all(numbers: int) -> _Operand:
    return _Operand(numbers, numbers)


def _blocks(p: Problem) -> int:
    return 1 if p.level in ("attention", "block") else p.n_blocks


def _residue_pairs(p: Problem) -> int:
    """Residue pairs that a window sees, ``|i - j| < W // 2``, over the batch.

    The encoder's must be of one chain too, and a problem does not say where chains end: no fewer than
    ``live / a²``, a residue having at most a atoms.
    """
    reach = min(p.window // 2, p.n_res)
    in_window = p.batch * (p.n_res + (reach - 1) * (2 * p.n_res - reach)) if reach else 0
    if p.level != "encoder":
        return in_window
    return min(in_window, -(-p.live_pairs // _RESIDUE_ATOMS[p.atoms] ** 2))


def _weights(p: Problem) -> _Operand:
    """A level's weights; those of the attention and its pairs are read where there is a live pair."""
    c, d = p.c_atom, p.c_atompair
    bias = d * p.heads + 2 * d  # pair_bias and the norm before it
    if p.level == "attention":
        return _Operand(bias if p.live_pairs else 0, bias)
    attention = _blocks(p) * (4 * c * c + bias + 4 * c)  # to_q, to_k, to_v, to_out; norm_q, norm_c
    rest = _blocks(p) * (2 * FEED_FORWARD * c * c + 2 * c)  # ff1, ff2, norm_ff
    if p.level in OWN_INDEX:
        attention += MLP_LAYERS * d * d + p.c_pair * d + 2 * p.c_pair  # mlp_p, z's projection and its norm
    if p.level == "encoder":
        attention += 5 * d + 2 * c * d  # proj_d_vec, proj_inv_sq, proj_v; proj_cl_pair, proj_cm_pair
        rest += (3 + ELEMENTS + 3) * c + 2 * c * p.c_token + 2 * p.c_token  # proj_fref_c, proj_r_scaled; s in and out
    if p.level == "decoder":
        rest += 2 * c * p.c_token + 4 * p.c_token + 3 * c + 2 * c  # proj_s_q, proj_s_c, their norms; proj_r, norm_q_out
    return _Operand(rest + (attention if p.live_pairs else 0), attention + rest)


def _multiply_adds(p: Problem) -> int:
    """Of all products of a forward pass."""
    c, d, atoms, residues = p.c_atom, p.c_atompair, p.batch * p.n_atom, p.batch * p.n_res
    seam = p.live_pairs * p.heads * (2 * p.head_dim + d)
    if p.level == "attention":
        return seam
    projections = 4 if p.live_pairs else 0
    total = _blocks(p) * (seam + atoms * (projections + 2 * FEED_FORWARD) * c * c)
    if p.level in OWN_INDEX:
        total += p.live_pairs * MLP_LAYERS * d * d + _residue_pairs(p) * p.c_pair * d
    if p.level == "encoder":
        to_pairs = 2 * c * d if p.live_pairs else 0
        per_atom = (3 + ELEMENTS + 3) * c + to_pairs + c * p.c_token
        total += atoms * per_atom + residues * p.c_token * c
        total += p.live_pairs * 4 * d  # proj_d_vec, proj_inv_sq; proj_v of a 0 or 1 is a choice
    if p.level == "decoder":
        total += atoms * 3 * c + residues * 2 * p.c_token * c
    return total
