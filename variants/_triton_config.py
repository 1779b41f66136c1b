"""Tile configurations: shipped defaults per kernel, architecture and dtype, and the cache of tuned ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Config:
    """``rows`` queries x ``cols`` keys per tile.

    ``max_registers`` holds the compiler to what lets one more program share a multiprocessor.
    """

    rows: int
    cols: int
    num_warps: int
    num_stages: int
    max_registers: int | None = None
    edge_stages: int = 1

    def options(self) -> dict[str, int]:
        """What the compiler takes."""
        limit = {} if self.max_registers is None else {"maxnreg": self.max_registers}
        return {"num_warps": self.num_warps, "num_stages": self.num_stages} | limit


def forward_config(dtype: torch.dtype, p_dtype: torch.dtype, heads: int, head_dim: int, c_pair: int) -> Config:
    """The shipped forward configuration."""
    if torch.float32 in (dtype, p_dtype):
        return Config(16, 16, 4, 1)
    return Config(16, 16, 2, 3)


def backward_config(dtype: torch.dtype, p_dtype: torch.dtype, heads: int, head_dim: int, c_pair: int) -> Config:
    """The shipped backward configuration."""
    if torch.float32 in (dtype, p_dtype):
        return Config(16, 16, 4, 1)
    return Config(16, 16, 4, 3)
