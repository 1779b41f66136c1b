"""What a level declares, and the arithmetic that all levels share: bytes, FLOPs and memory from shapes.

Shapes are written in letters, ``B N K c_atompair``: see :data:`LETTERS`. Sizes come from the problem.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..reference.expected import Expected
    from ..reference.inputs import Draw, Inputs
    from ..schema.problem import Problem
    from ..workload.workloads import Workload

# The letters of a shape, and the problem's field that says how long that axis is; any other word is a width by the
# problem's own name (``c_atom``), or a number.
LETTERS = {"B": "batch", "N": "n_atom", "R": "n_res", "K": "n_neighbor", "H": "heads", "D": "head_dim"}
SCORE_STD = 0.8  # of queries and keys
FEED_FORWARD = 4  # hidden width of a block's feed-forward, in c_atom
OPTIMIZER = 5  # weights' worth that a step moves beside weight and gradient: two moments in, three tensors out
_ITEMSIZE = {"int64": 8, "bool": 1}
# The most atoms of a residue: an amino acid's, with the oxygen at a chain's end.
_RESIDUE_ATOMS = {"backbone": 4, "heavy": 15, "atom14": 14}


@dataclass(frozen=True)
class Operand:
    """A tensor that a level is given or returns.

    ``shape``: its axes in letters. ``dtype``: None for the problem's; an index, a mask or residues' numbers have their
    own and take no gradient. ``std`` of the normal numbers that are drawn for it. ``keys``: row m is read for the atoms
    that see atom m, where other rows are read for themselves. ``attended``: read by the attention alone, so by nobody
    where no pair is live.
    """

    name: str
    shape: str
    dtype: str | None = None
    std: float = 1.0
    keys: bool = False
    attended: bool = False

    @property
    def axes(self) -> tuple[str, ...]:
        return tuple(self.shape.split())

    def sizes(self, p: Problem) -> tuple[int, ...]:
        """The shape of this tensor in a problem."""
        return tuple(int(axis) if axis.isdigit() else getattr(p, LETTERS.get(axis, axis)) for axis in self.axes)

    def bytes(self, p: Problem) -> int:
        return math.prod(self.sizes(p)) * (p.itemsize if self.dtype is None else _ITEMSIZE[self.dtype])


# What a level may be given that is not drawn: it follows from the atoms (``cases.inputs`` makes it).
TOK_IDX = Operand("tok_idx", "N", "int64")
REF_SPACE_UID = Operand("ref_space_uid", "N", "int64")
INDEX = (Operand("neighbor_idx", "N K", "int64"), Operand("valid_mask", "N K", "bool"))


@dataclass(frozen=True)
class Amount:
    """Numbers in a tensor, or in several: those whose value matters, and all."""

    read: int
    whole: int

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.read + other.read, self.whole + other.whole)


@dataclass(frozen=True)
class Work:
    """FLOPs, bytes and exponentials of one call; adds up."""

    flops: int
    bytes: int
    exponentials: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes, self.exponentials + other.exponentials)


@dataclass(frozen=True)
class AsvGrid:
    """What asv measures of a level: the lists in which its grid differs from ``asv/grid.py``'s, and its default subset.

    ``pivots``: by device, the problems that are always in the subset, by what differs from the usual one; ``drawn``: by
    device, how many more are drawn.
    """

    lists: Mapping[str, list[Any]] = field(default_factory=dict)
    pivots: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)
    drawn: Mapping[str, int] = field(default_factory=dict)
    every_backend: bool = False  # above the seam backends differ by less and cost more: those slow there are left out


class Level(ABC):
    """One level of the model. Subclasses state their facts as class attributes; the file ends in ``LEVEL``."""

    about: ClassVar[str]  # a sentence
    order: ClassVar[int]  # among the levels, as the model nests
    weight: ClassVar[float]  # rough work of a call per byte of inputs and pairs, to put the small first
    inputs: ClassVar[tuple[Operand, ...]]  # may take a gradient
    given: ClassVar[tuple[Operand, ...]]  # may not
    outputs: ClassVar[tuple[Operand, ...]]
    asv: ClassVar[AsvGrid | None] = None

    has_blocks: ClassVar[bool] = False  # runs ``n_blocks`` blocks; one otherwise
    builds_index: ClassVar[bool] = False  # in every call, from residues and window alone
    within_chains: ClassVar[bool] = True  # a pair's atoms are of one chain
    differentiable: ClassVar[bool] = True
    is_seam: ClassVar[bool] = False  # all of it is the backend's own
    sole_backend: ClassVar[str | None] = None  # what does it where no backend takes part
    trained: ClassVar[tuple[str, ...]] = ("",)  # prefixes of the module's weights that it uses

    error_factor: ClassVar[float]  # of the seam's tolerances: roundings pile up, layer after layer
    slope_factor: ClassVar[float] = 1.0
    has_relu: ClassVar[bool] = True  # whose derivative jumps (``gate.errors`` says what that allows)

    # -- the layer itself --------------------------------------------------------------------------

    @abstractmethod
    def module(self, p: Problem) -> nn.Module:
        """The plain layer."""

    def tensors(self, p: Problem, work: Workload, draw: Draw) -> dict[str, Tensor]:
        """The inputs, drawn; what has a slot a pair first, while memory is free."""
        first = sorted(self.inputs, key=lambda o: self.builds_index or "K" not in o.axes)
        drawn = {o.name: draw.normal(*o.sizes(p), std=o.std) for o in first}
        return {o.name: drawn[o.name] for o in self.inputs}

    def forward(self, p: Problem, module: nn.Module, tensors: dict[str, Tensor]) -> Callable[..., tuple[Tensor, ...]]:
        """The timed call: one forward pass as a function of what is given by name, always a tuple of outputs."""
        if len(self.outputs) == 1:
            return lambda **given: (module(**tensors, **given),)
        return lambda **given: tuple(module(**tensors, **given))

    def seam_call(self, module: nn.Module, x: Mapping[str, Tensor]) -> tuple[Any, ...] | None:
        """(block, Q, K, V, p, index, mask) like those of the seam inside; None where the index is made inside too."""
        return None

    # -- what is right -----------------------------------------------------------------------------

    @abstractmethod
    def reference(
        self, p: Problem, x: dict[str, Tensor], w: dict[str, Tensor], given: dict[str, Tensor]
    ) -> tuple[Tensor, ...]:
        """The outputs in float64 (``variants/_op.py``), from inputs, weights and what is given, whole or cut out."""

    def expected(self, built: Inputs, *, max_pairs: int) -> Expected:
        """The reference of a built problem, of all of it or of a sample of about ``max_pairs`` pairs."""
        from ..reference import rows, runs

        reference = functools.partial(self.reference, built.problem)
        if self.builds_index:
            return runs.expect(built, reference, max_pairs=max_pairs)
        return rows.expect(built, reference, [o.name for o in self.inputs if o.keys], max_pairs=max_pairs)

    # -- the least work ----------------------------------------------------------------------------

    @abstractmethod
    def multiply_adds(self, p: Problem) -> int:
        """Of all products of a forward pass."""

    @abstractmethod
    def weights(self, p: Problem) -> Amount:
        """A level's weights; those of the attention and its pairs are read where there is a live pair."""

    def backends(self, asked: tuple[str, ...]) -> tuple[str, ...]:
        """What is measured where these are asked for."""
        return asked if self.sole_backend is None else (self.sole_backend,)

    def blocks(self, p: Problem) -> int:
        return p.n_blocks if self.has_blocks else 1

    def floor(self, p: Problem) -> Work:
        """FLOPs, bytes and exponentials that a call cannot do without (``cases.limits`` says what is counted)."""
        inputs, outputs, weights = self._amount(p, self.inputs), self._amount(p, self.outputs), self.weights(p)
        moved = inputs.read + outputs.whole + weights.read
        if p.mode != "fwd":
            moved += outputs.read + inputs.whole + weights.whole
        if p.mode == "train":
            moved += OPTIMIZER * weights.whole
        products = 2 if p.mode == "fwd" else 6  # Y = X W; dX = dY Wᵀ and dW = Xᵀ dY; two FLOPs a multiply-add
        return Work(products * self.multiply_adds(p), moved * p.itemsize, p.live_pairs * p.heads * self.blocks(p))

    def residue_pairs(self, p: Problem) -> int:
        """Residue pairs that a window sees, ``|i - j| < W // 2``, over the batch.

        Where they must be of one chain too, a problem does not say where chains end: no fewer than ``live / a²``, a
        residue having at most a atoms.
        """
        reach = min(p.window // 2, p.n_res)
        in_window = p.batch * (p.n_res + (reach - 1) * (2 * p.n_res - reach)) if reach else 0
        if not self.within_chains:
            return in_window
        return min(in_window, -(-p.live_pairs // _RESIDUE_ATOMS[p.atoms] ** 2))

    def _amount(self, p: Problem, operands: Iterable[Operand]) -> Amount:
        total = Amount(0, 0)
        for o in operands:
            sizes = o.sizes(p)
            whole = read = math.prod(sizes)
            if "K" in o.axes:
                read = p.live_pairs * math.prod(sizes[3:])
            elif o.axes[1:3] == ("R", "R"):
                read = self.residue_pairs(p) * math.prod(sizes[3:])
            elif o.attended and not p.live_pairs:
                read = 0
            total += Amount(read, whole)
        return total

    # -- memory ------------------------------------------------------------------------------------

    def input_bytes(self, p: Problem) -> int:
        """Everything that is passed in: inputs, index, mask; and the cotangents where a gradient is taken."""
        cotangents = self.outputs if p.mode != "fwd" else ()
        return sum(o.bytes(p) for o in (*self.inputs, *self.given, *cotangents))

    @abstractmethod
    def peak_bytes(self, p: Problem, seam_peak: int) -> int:
        """The most that one call allocates above its inputs, given what the seam's backend does (``seam_peak``)."""


# -- a block of the model, which most levels hold ----------------------------------------------------------------------


def pair_bytes(p: Problem) -> int:
    """The pair tensor p, ``[B, N, K, c_atompair]``."""
    return p.batch * p.n_atom * p.n_neighbor * p.c_atompair * p.itemsize


def index_bytes(p: Problem) -> int:
    """``neighbor_idx`` and ``valid_mask``."""
    return sum(o.bytes(p) for o in INDEX)


def seam_multiply_adds(p: Problem) -> int:
    """Q Kᵀ, A V and the pair bias."""
    return p.live_pairs * p.heads * (2 * p.head_dim + p.c_atompair)


def seam_weights(p: Problem) -> Amount:
    """``pair_bias`` and the norm before it."""
    return of_pairs(p, p.c_atompair * p.heads + 2 * p.c_atompair)


def block_multiply_adds(p: Problem) -> int:
    """The seam, its four projections and the feed-forward."""
    projections = 4 if p.live_pairs else 0
    return seam_multiply_adds(p) + p.batch * p.n_atom * (projections + 2 * FEED_FORWARD) * p.c_atom**2


def block_weights(p: Problem) -> Amount:
    """The seam's; to_q, to_k, to_v, to_out, norm_q, norm_c; ff1, ff2, norm_ff."""
    rest = 2 * FEED_FORWARD * p.c_atom**2 + 2 * p.c_atom
    return seam_weights(p) + of_pairs(p, 4 * p.c_atom**2 + 4 * p.c_atom) + Amount(rest, rest)


def of_pairs(p: Problem, numbers: int) -> Amount:
    """Weights that nobody reads where no pair is live."""
    return Amount(numbers if p.live_pairs else 0, numbers)


def block_bytes(p: Problem, seam_peak: int) -> int:
    """Norms, Q K V O, the feed-forward and what autograd keeps, beside what the seam allocates."""
    atom = p.batch * p.n_atom * p.c_atom * p.itemsize
    return atom * (28 if p.mode != "fwd" else 8) + seam_peak


def stack_bytes(p: Problem, seam_peak: int) -> int:
    """Autograd keeps each block's own; the gradient of p is summed, so it stands twice and not once a block."""
    block, pairs = block_bytes(p, seam_peak), pair_bytes(p)
    return block if p.mode == "fwd" else p.n_blocks * max(block - pairs, 0) + 2 * pairs
