"""How near a measured time comes to the least work that a problem asks for, whoever does it.

``floor = max(bytes / bandwidth, FLOPs / matrix rate, exponentials / their rate)``, every rate measured on the device
(``ruler.ceilings``); ``% of limit = 100 * floor / measured``. Nothing that is right may beat it: :func:`beyond`.

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

from typing import Literal

from ..levels import Work, level_of
from ..ruler.ceilings import Ceilings
from ..schema.problem import Problem
from ..schema.record import Limit

Bound = Literal["bytes", "flops", "exponentials"]
_NAMES: dict[Bound, str] = {"bytes": "bytes to move", "flops": "FLOPs", "exponentials": "exponentials"}


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
    return level_of(problem.level).floor(problem)


def weight_bytes(problem: Problem) -> int:
    """Bytes of all weights that a level trains."""
    return level_of(problem.level).weights(problem).whole * problem.itemsize
