"""The pairs of residues that a window sees: a band of the trunk's z, and z's gradient from the band's."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


def residue_band(z: Float[Tensor, "b r r c"], window_size: int) -> Float[Tensor, "b r w c"]:
    """What a window sees of z, the only part of it that need be normed and projected.

    ::

        band[b, r, o] = z[b, r, (r + o - half) mod R],   half = window_size // 2 - 1,   w = 2 half + 1

    No place of z is taken twice, so that its gradient is written once and nothing is added up. Columns that leave the
    chain come in again at its other end, where no live pair looks. A window that spans all residues sees z itself.
    """
    half = max(0, window_size // 2 - 1)
    if 2 * half + 1 >= z.shape[1]:
        return z
    if torch.compiler.is_compiling():  # torch's compiler takes no function that has a tangent map, and needs no help
        return z[:, *_places(z.shape[1], half, z.device)]
    return _take(z, half)


def band_columns(own: Int[Tensor, "*#x"], other: Int[Tensor, "*#x"], band: Tensor) -> Int[Tensor, "*x"]:
    """The columns of the band in whose rows `own` the residues `other` stand; any column, where they do not."""
    n_res, width = band.shape[1:3]
    return other if width == n_res else (other - own + width // 2).clamp_(0, width - 1)


class _Take(torch.autograd.Function):
    """The band of z, every other place of which has gradient 0. Linear, so it is its own tangent map."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, half: int) -> Tensor:
        return z[:, *_places(z.shape[1], half, z.device)]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.half = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _put(grad, ctx.half), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _take(tangent, ctx.half)


class _Put(torch.autograd.Function):
    """The adjoint: a band written into zeros [B, R, R, C]."""

    generate_vmap_rule = True

    @staticmethod
    def forward(band: Tensor, half: int) -> Tensor:
        batch, n_res, _, channels = band.shape
        z = band.new_zeros(batch, n_res, n_res, channels)
        z[:, *_places(n_res, half, band.device)] = band
        return z

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.half = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _take(grad, ctx.half), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _put(tangent, ctx.half)


def _take(z: Tensor, half: int) -> Tensor:
    return _Take.apply(z, half)  # pyright: ignore[reportReturnType]


def _put(band: Tensor, half: int) -> Tensor:
    return _Put.apply(band, half)  # pyright: ignore[reportReturnType]


def _places(n_res: int, half: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows [R, 1] and columns [R, 2 half + 1] of z in the band's order."""
    row = torch.arange(n_res, device=device)[:, None]
    return row, (row + torch.arange(-half, half + 1, device=device)) % n_res
