"""Tile configurations, and the defaults that are shipped."""

from __future__ import annotations

from dataclasses import dataclass

import torch

SPLITS = (4, 8, 16)
"""Heads per program of a split backward; also the numbers that heads are padded to."""

PAIRS_A_PROGRAM = 8192
"""Pairs per program of the pass that makes a split backward's dp; each program writes one partial sum of dW."""


@dataclass(frozen=True)
class Sizes:
    """What a kernel is compiled for, beside its tile: dtypes and the sizes that do not grow with the system."""

    dtype: torch.dtype
    pair_dtype: torch.dtype
    heads: int
    head_dim: int
    channels: int

    def padded(self) -> dict[str, int]:
        """Sizes as they are, and padded to what tensor-core products take: powers of two, at least 4, 16 and 16."""
        h, d, c = self.heads, self.head_dim, self.channels
        return {"H": h, "D": d, "C": c, "HP": max(4, pow2(h)), "DH": max(16, pow2(d)), "CP": max(16, pow2(c))}

    @property
    def whole(self) -> bool:
        """Whether heads, head_dim and channels fill what they are padded to: then no tile has a mask for them."""
        padded = self.padded()
        return all(padded[name] == padded[filled] for name, filled in (("H", "HP"), ("D", "DH"), ("C", "CP")))

    @property
    def small(self) -> bool:
        """Whether two warps hold a tile of 16 x 16 pairs: up to 8 heads, 256 channels, 16 aligned pair channels."""
        padded = self.padded()
        aligned = self.channels == pow2(self.channels) <= 16
        return padded["HP"] <= 8 and padded["HP"] * padded["DH"] <= 256 and aligned

    @property
    def single(self) -> bool:
        """Whether some product has fp32 operands: three tf32 products on tensor cores, and twice the registers."""
        return torch.float32 in (self.dtype, self.pair_dtype)


@dataclass(frozen=True)
class Config:
    """``rows`` queries x ``cols`` keys per tile.

    ``max_registers``: the compiler's limit per thread, instead of its own guess at how many programs should share a
    multiprocessor. ``edge_stages``: ``num_stages`` of the backward's loops over edge tiles. ``split_heads``, one of
    SPLITS: heads per program, where all of them would need more registers than there are; the backward then makes dp
    and dW in a second pass.
    """

    rows: int
    cols: int
    num_warps: int
    num_stages: int
    max_registers: int | None = None
    edge_stages: int = 1
    split_heads: int | None = None

    def options(self) -> dict[str, int]:
        """The arguments of a launch that the compiler takes."""
        limit = {} if self.max_registers is None else {"maxnreg": self.max_registers}
        return {"num_warps": self.num_warps, "num_stages": self.num_stages} | limit

    def forward_constants(self) -> dict[str, int]:
        return {"BM": self.rows, "BN": self.cols, "PARTS": self.num_warps}

    def backward_constants(self) -> dict[str, int]:
        """Includes HP only if ``split_heads`` replaces the padded number of heads."""
        heads = {} if self.split_heads is None else {"HP": self.split_heads}
        return self.forward_constants() | {"EDGE_STAGES": self.edge_stages, "SPLIT": bool(heads)} | heads

    def gather_backward_constants(self) -> dict[str, int]:
        return self.gather_constants() | {"SPLIT": self.split_heads is not None}

    def pairs_constants(self) -> dict[str, int]:
        return {"BP": self.cols, "TILES": PAIRS_A_PROGRAM // self.cols, "PARTS": self.num_warps}

    def gather_constants(self) -> dict[str, int]:
        """A tile is ``cols`` slots of one row; warps divide the products with p if each gets 16 slots or more."""
        parts = {"BN": self.cols, "PARTS": self.num_warps if self.cols >= 16 * self.num_warps else 1}
        return parts | ({} if self.split_heads is None else {"HP": self.split_heads})


def forward_config(sizes: Sizes, arch: int) -> Config:
    """The forward's configuration on ``sm_<arch>``."""
    if sizes.single:
        return Config(16, 16, 4 if sizes.small else 8, 1)
    padded = sizes.padded()
    wide, pair = padded["HP"] * padded["DH"], padded["CP"]
    whole = pair == sizes.channels  # else its p is loaded under a mask, and in narrow pieces where C is odd
    if sizes.small and wide <= 128:  # the fewer warps, the fewer barriers; four programs share a multiprocessor
        return Config(16, 16, 2, 3, None if wide == 128 else 192)  # without a limit the compiler spills to fit six
    # 255, all registers: without that limit the compiler spills a few so that one more program fits
    if pair == 64:
        if arch < 90 or wide > 128:
            return Config(16, 16, 8, 1 if arch < 90 or wide == 1024 else 2)
        return Config(16, 16, 4, 2, None if arch < 100 else 255)
    if padded["HP"] * pair <= 256 and wide < 512:
        if not whole or (pair == 32 and wide == 256):
            unbound = padded["HP"] == 4 if arch >= 100 else arch >= 90 and padded["HP"] * pair == 256 and not whole
            return Config(16, 16, 4, 1, 255 if unbound else None)
        return Config(16, 16, 4, 3 if pair == 16 or arch >= 90 else 2)
    if pair == 16:
        return Config(16, 16, 8, 2, 255 if arch >= 100 else None)
    return Config(16, 16, 8, 2 if wide * pair < 2**15 else 1, None if whole else 255)


def backward_config(sizes: Sizes, arch: int) -> Config:
    """The backward's configuration on ``sm_<arch>``."""
    padded = sizes.padded()
    if sizes.single:  # 8 warps end the spills at HP DH = 64; at 128 they cost less than the work that 8 repeat
        return Config(16, 16, 4 if sizes.small and padded["HP"] * padded["DH"] == 128 else 8, 1)
    if sizes.small and padded["HP"] == 4 and padded["DH"] <= 32:
        return Config(16, 16, 4, 2)
    if not _one_backward_kernel(sizes, arch):
        # the stages were chosen by trial: deeper pipelines spill; under masks all tiles are edge tiles
        inner = 2 if arch < 90 and sizes.whole and padded["DH"] == padded["CP"] == 64 else 1
        edge = 2 if arch >= 90 and not sizes.whole else 1
        heads = min(padded["HP"], _heads_a_program(sizes, arch))
        return Config(16, 16, 8, inner, edge_stages=edge, split_heads=heads)
    return Config(16, 16, 8, 2 if padded["CP"] == 16 else 1)


def shared_bytes(direction: str, sizes: Sizes) -> int:
    """Lower bound of a band tile's shared memory, as compiled for sm_90; 0 where any multiprocessor has enough.

    Only tiles with fp32 operands can be too large: those in half precision take at most 160 KiB.
    """
    padded = sizes.padded()
    wide = padded["HP"] * padded["DH"]
    if not sizes.single or wide < 256:
        return 0
    if direction == "backward":
        return 480 * wide
    return wide * (192 if padded["CP"] < 64 else 384 if wide < 1024 else 256)


def _one_backward_kernel(sizes: Sizes, arch: int) -> bool:
    """Whether the registers of 256 threads, 255 each, hold dK, dV, dW and a tile's p, x and dp in fp32."""
    padded = sizes.padded()
    elements = padded["HP"] * padded["DH"] * padded["CP"]
    if not sizes.whole:  # the masks of what is padded are in registers too
        return padded["DH"] == 16 and elements <= 2048
    if arch < 90 and padded["CP"] == 32 <= padded["DH"]:
        return False
    if arch >= 100 and (padded["DH"] == 64 or padded["HP"] == 16):
        return False
    return padded["CP"] <= 32 and elements <= 4096


def _heads_a_program(sizes: Sizes, arch: int) -> int:
    """Heads per program of a split backward: as many as leave enough registers beside their dK and dV."""
    padded = sizes.padded()
    if padded["DH"] == 64:
        return 8 if sizes.whole and (padded["CP"] < 64 or arch < 100) else 4
    if arch < 90 and not sizes.whole and padded["DH"] == 32 <= padded["CP"]:
        return 4
    return 16 if sizes.whole and padded["DH"] == 16 else 8


def pairs_config(sizes: Sizes) -> Config:
    """The configuration of the pass that makes a split backward's dp: a tile is ``cols`` consecutive pairs."""
    if sizes.single:
        return Config(1, 128, 8, 1)
    padded = sizes.padded()
    if padded["CP"] == 64:
        return Config(1, 64, 4, 3) if padded["HP"] < 16 else Config(1, 32, 2, 3)
    return Config(1, 128, 4, 3, 168 if padded["HP"] == 4 and not sizes.whole else None)


def gather_config(direction: str, sizes: Sizes, arch: int) -> Config:
    """The gather kernels' configuration, the same for every ``arch``; "keys": the deterministic backward's second one.

    A program has at most 256 elements of a row of K. A tile is 16 slots, in the forward up to 64, as many as make 4,096
    elements of K. ``max_registers``: without it the compiler spills two words so that one more program fits.
    """
    padded = sizes.padded()
    wide = padded["HP"] * padded["DH"]
    if sizes.single:
        elements = 4096 if direction == "forward" else 2048
        return Config(1, max(16, min(64, elements // wide)), 4 if wide < 1024 else 8, 1)
    split = min(8, 256 // padded["DH"]) if wide > 256 else None
    wide = min(wide, 256)
    if direction == "forward":
        limit = None if sizes.whole and split is None else 168
        return Config(1, max(16, min(64, 4096 // wide)), 4, 1, limit, split_heads=split)
    if direction == "backward" and (wide == 256 or padded["HP"] == 16):
        split = min(padded["HP"], 8, 256 // padded["DH"])
    warps = 8 if wide == 256 or (padded["CP"] == 64 and padded["HP"] >= 8) else 4
    limit = None if sizes.whole and padded["HP"] < 16 else 255
    return Config(1, 16, warps, 1, limit, split_heads=split)


def pow2(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return 1 << (n - 1).bit_length()
