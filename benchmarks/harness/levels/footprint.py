"""How much memory a cell will take, before anything of it is built.

A cell that does not fit must never start: on a CPU the kernel's OOM killer takes the whole process,
and often its neighbours. So the inputs are counted exactly, a backend's peak is its own cost model's,
and what the levels above the seam add is counted in the tensors that they are known to hold.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from ..schema.problem import ITEMSIZE, Problem

if TYPE_CHECKING:
    from variants import Shape

INDEX_BYTES, MASK_BYTES, ELEMENTS = 8, 1, 6
_CHUNK_PAIRS = {"cpu": 2**15, "cuda": 2**22}  # that the layer makes at once without gradients
MARGIN = 1.1  # allocator rounding and fragmentation
# The runtime itself: interpreter, libraries, thread stacks; on CUDA the context and library workspaces.
BASE_BYTES = {"cpu": 400 << 20, "cuda": 1 << 30}


def shape_of(problem: Problem) -> Shape:
    """The seam's call of this problem, as the backends' cost models take it."""
    from variants import Shape

    itemsize = ITEMSIZE[problem.dtype]
    sizes = {
        "batch": problem.batch,
        "n_atom": problem.n_atom,
        "n_neighbor": problem.n_neighbor,
        "heads": problem.heads,
        "head_dim": problem.head_dim,
        "c_pair": problem.c_atompair,
        "live_pairs": problem.live_pairs,
        "itemsize": itemsize,
        "pair_itemsize": itemsize,
        "device": problem.device,
    }
    known = {field.name for field in fields(Shape)}  # the code under test may be older than a size
    return Shape(**{name: size for name, size in sizes.items() if name in known})


def _atom(problem: Problem) -> int:
    return problem.batch * problem.n_atom * problem.c_atom * ITEMSIZE[problem.dtype]


def pair_bytes(problem: Problem) -> int:
    """The pair tensor p, ``[B, N, K, C]``."""
    pairs = problem.batch * problem.n_atom * problem.n_neighbor
    return pairs * problem.c_atompair * ITEMSIZE[problem.dtype]


def index_bytes(problem: Problem) -> int:
    """``neighbor_idx`` and ``valid_mask``."""
    return problem.n_atom * problem.n_neighbor * (INDEX_BYTES + MASK_BYTES)


def _trunk(problem: Problem) -> int:
    """The residue-pair features z, ``[B, R, R, c_pair]``."""
    return problem.batch * problem.n_res**2 * problem.c_pair * ITEMSIZE[problem.dtype]


def input_bytes(problem: Problem) -> int:
    """Everything that is passed in: tensors, index, mask; and the cotangents where a gradient is taken."""
    atom, p, index, backward = _atom(problem), pair_bytes(problem), index_bytes(problem), problem.mode != "fwd"
    tokens = problem.batch * problem.n_res * problem.c_token * ITEMSIZE[problem.dtype]
    match problem.level:
        case "attention":
            return 3 * atom + p + index + backward * atom
        case "block" | "stack":
            return 2 * atom + p + index + backward * atom
        case "encoder":
            raw = problem.batch * problem.n_atom * (3 + 3 + ELEMENTS + 1) * ITEMSIZE[problem.dtype]
            return raw + tokens + _trunk(problem) + backward * (tokens + 3 * atom + p)
        case "decoder":
            return 3 * atom + p + tokens + _trunk(problem) + backward * (2 * atom + p)
        case "index":
            return problem.n_atom * INDEX_BYTES


def peak_bytes(problem: Problem, seam_peak: int) -> int:
    """The most that one call allocates above its inputs, given what the seam's backend does (``seam_peak``)."""
    atom, p, index, backward = _atom(problem), pair_bytes(problem), index_bytes(problem), problem.mode != "fwd"
    layer = atom * (28 if backward else 8) + seam_peak  # norms, Q K V O, the feed-forward and what autograd keeps
    match problem.level:
        case "attention":
            return seam_peak
        case "block":
            return layer
        case "stack" if not backward:
            return layer
        case "stack":
            return _stacked(problem, layer, p)
        case "encoder" | "decoder":
            trunk = _trunk(problem)
            band = trunk * min(problem.n_res, max(1, 2 * (problem.window // 2) - 1)) // problem.n_res
            if not backward:  # p_skip and p, a chunk of pairs on its way; z's band taken, normed and projected
                chunk = _CHUNK_PAIRS[problem.device] * problem.c_atompair * ITEMSIZE[problem.dtype]
                return index + 3 * p + 4 * min(p, chunk) + 3 * band + layer
            # The pair MLP keeps its input and three ReLUs beside p_skip and p; when dz is made, only two of these are
            # left.
            return index + 5 * band + max(6 * p + _stacked(problem, layer, p), trunk + 2 * p)
        case "index":
            return 2 * index


def _stacked(problem: Problem, layer: int, p: int) -> int:
    """Autograd keeps each block's own; the gradient of p is summed, so it stands twice and not once a block."""
    return problem.n_blocks * max(layer - p, 0) + 2 * p


def needed_bytes(problem: Problem, seam_peak: int) -> int:
    """Inputs, peak, margin and the runtime: what must be available for the cell to be started."""
    total = input_bytes(problem) + peak_bytes(problem, seam_peak)
    return int(MARGIN * total) + BASE_BYTES[problem.device]
