"""What a backend declares about itself: limits, needs and costs. Free of torch at import."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

    from pallatom.architecture.atom_transformers import AtomAttentionDecoder, AtomFeatureEncoder, AtomTransformerBlock

Mode = Literal["fwd", "fwdbwd"]


class UnsupportedError(RuntimeError):
    """A backend was asked for what it does not do; ``reasons`` holds every reason, not the first."""

    reasons: tuple[str, ...]

    def __init__(self, reasons: Iterable[str], *, who: str = "this backend") -> None:
        self.reasons = tuple(reasons)
        super().__init__(f"{who} cannot run: " + "; ".join(self.reasons))


@dataclass(frozen=True)
class Shape:
    """One call of the attention seam. ``live_pairs`` counts over the whole batch; sizes in bytes per element."""

    batch: int
    n_atom: int
    n_neighbor: int
    heads: int
    head_dim: int
    c_pair: int
    live_pairs: int
    itemsize: int  # of Q, K, V, O
    pair_itemsize: int  # of p
    device: str = "cpu"  # a backend may tile, and so allocate, by device
    samples: int = 1  # M: how many items of the batch share an entry of p

    @property
    def entries(self) -> int:
        """B_p: the batch of the pair tensor."""
        return self.batch // self.samples

    @property
    def n_pairs(self) -> int:
        """Slots of the pair tensor, B_p * N * K, padding included."""
        return self.entries * self.n_atom * self.n_neighbor

    @property
    def p_bytes(self) -> int:
        return self.n_pairs * self.c_pair * self.pair_itemsize

    @property
    def atom_bytes(self) -> int:
        """One of Q, K, V, O: B * N * H * D elements."""
        return self.batch * self.n_atom * self.heads * self.head_dim * self.itemsize


@dataclass(frozen=True)
class Cost:
    """One call of ``_attend`` (and its backward in mode ``fwdbwd``).

    ``flops`` counts the products, two per multiply-add; ``bytes`` is the traffic with main memory, what fits the
    cache not counted; ``peak_bytes`` is the most that is allocated at once above the inputs, outputs included.
    """

    flops: int
    bytes: int
    peak_bytes: int


@dataclass(frozen=True, eq=False)
class Backend:
    """The declaration that ends every backend's file.

    ``cost`` maps (shape, mode) to a :class:`Cost`; ``backward`` lists the devices that have one; ``requires`` names
    foreign modules, imported where they are used and nowhere else; ``probe(device)`` returns further reasons why not,
    asked only where the device is there and ``requires`` imports. ``reads_weights``: the pair bias is made from the
    weights of ``norm_pair`` and ``pair_bias``, so these must be plain (see ``_require``); else they are called, and may
    be any module. ``samples``: several items of Q may share an entry of p (see the seam); else each has one of its own.
    ``compiles``: the first call of each kind (shapes, dtypes) runs a compiler and takes seconds.
    ``everyday``: quick enough to be measured in a block, a stack and an encoder at every commit.
    ``tuning_ms``: what tuning, where it was asked for, has taken in this process so far; a first call that tunes is
    timed without it. ``path(block, Q, K, V, p, neighbor_idx, valid_mask)``: which of its algorithms such a call takes,
    in a word or a phrase; None where it has one (see :func:`variants.path`). ``encoder``, ``decoder``: subclasses that
    override ``_pairs`` and no more; None where the layer makes the pairs. They read weights, so the children that
    these belong to must be plain (see ``_require``).
    """

    block: type[AtomTransformerBlock]
    summary: str
    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    cost: Callable[[Shape, Mode], Cost]
    backward: tuple[str, ...] = ("cpu", "cuda")
    requires: tuple[str, ...] = ()
    min_capability: tuple[int, int] | None = None
    needs_band: bool = False
    needs_unique: bool = False
    reads_weights: bool = False
    samples: bool = False
    compiles: bool = False
    everyday: bool = False
    probe: Callable[[str], list[str]] | None = None
    tuning_ms: Callable[[], float] | None = None
    path: Callable[..., str] | None = None
    encoder: type[AtomFeatureEncoder] | None = None
    decoder: type[AtomAttentionDecoder] | None = None
