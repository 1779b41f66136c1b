"""How much memory a cell will take, before anything of it is built.

A cell that does not fit must never start: on a CPU the kernel's OOM killer takes the whole process,
and often its neighbours. So the inputs are counted exactly, a backend's peak is its own cost model's,
and what the levels above the seam add is counted in the tensors that they are known to hold.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from ..levels import level_of
from ..schema.problem import Problem

if TYPE_CHECKING:
    from variants import Shape

MARGIN = 1.1  # allocator rounding and fragmentation
# The runtime itself: interpreter, libraries, thread stacks; on CUDA the context and library workspaces.
BASE_BYTES = {"cpu": 400 << 20, "cuda": 1 << 30}


def shape_of(problem: Problem) -> Shape:
    """The seam's call of this problem, as the backends' cost models take it."""
    from variants import Shape

    sizes = {
        "batch": problem.batch,
        "n_atom": problem.n_atom,
        "n_neighbor": problem.n_neighbor,
        "heads": problem.heads,
        "head_dim": problem.head_dim,
        "c_pair": problem.c_atompair,
        "live_pairs": problem.live_pairs,
        "itemsize": problem.itemsize,
        "pair_itemsize": problem.itemsize,
        "device": problem.device,
    }
    known = {field.name for field in fields(Shape)}  # the code under test may be older than a size
    return Shape(**{name: size for name, size in sizes.items() if name in known})


def needed_bytes(problem: Problem, seam_peak: int) -> int:
    """Inputs, peak, margin and the runtime: what must be available for the cell to be started."""
    level = level_of(problem.level)
    total = level.input_bytes(problem) + level.peak_bytes(problem, seam_peak)
    return int(MARGIN * total) + BASE_BYTES[problem.device]
