"""The pair bias of one tile of p and its gradient, by GEMMs over the tile's flattened pairs x [T·K, C].

    bias_h = rstd · <Wc_h, x>,   Wc = W·γ centred over c,   rstd = (E[x²] − E[x]² + ε)^−½

Centring the weights instead of x makes the mean drop out. W·β is the same for all slots of a row, so it drops out of
the softmax and is left out here. E[x²] − E[x]² cancels where the mean is large: such a tile is centred first, to which
LayerNorm is invariant. A pair whose squares overflow has NaN for a bias. With G = dBias, t = Σ_h G_h·bias_h and
u = rstd²·t/C:

    dx = rstd · Wcᵀ·G − u · (x − mean),        dW·γ-side moment  M[h,c] = Σ G_h · rstd · (x_c − mean)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .batches import Batch
from .tiles import Tile

_CANCELLATION = 64.0  # E[x²] / Var beyond which a tile is centred first: the variance then loses at most 6 bits


class Pairs(NamedTuple):
    """One tile in slot coordinates; views of scratch, valid until the next tile is loaded."""

    x: Tensor  # [T·K, C], up to a shift per pair
    bias: Tensor  # [H, T·K]
    mean: Tensor  # [T·K], of x
    rstd: Tensor  # [T·K]


class PairBias:
    """LayerNorm and projection of p [B, N, K, C], tile by tile, in scratch that is allocated once.

    ``mask`` is [1 or B, N, K]; what dead slots of p hold, NaN and inf too, reaches neither the bias nor a gradient.
    """

    def __init__(
        self, p: Tensor, gamma: Tensor, weight: Tensor, eps: float, mask: Tensor, max_pairs: int, dtype: torch.dtype
    ) -> None:
        self.p, self.eps, self.mask = p, eps, mask
        self.n_neighbor, self.channels = p.shape[2:]
        self.heads = weight.shape[0]
        self.gamma, self.weight = gamma.to(dtype), weight.to(dtype)
        folded = self.gamma * self.weight
        self._folded = folded - folded.mean(1, keepdim=True)
        ones = folded.new_ones(1, self.channels)
        self._project = torch.cat([self._folded, ones / self.channels])
        self._unproject = torch.cat([self._folded, ones])
        self._mean_of_squares = ones[0] / self.channels
        self.moment = torch.zeros_like(folded)
        pairs = max_pairs
        self._in_place = p.dtype == dtype and p.is_contiguous()
        self._x = folded.new_empty(0 if self._in_place else pairs, self.channels)
        self._squares = folded.new_empty(pairs * max(self.channels, self.heads + 1))
        self._z = folded.new_empty((self.heads + 1) * pairs)
        self._square_mean, self._rstd = folded.new_empty(2, pairs)

    def load(self, b: int, tile: Tile | Batch) -> Pairs:
        """Read the tile's pairs and normalise: the only pass over p. ``tile`` may be a batch of tiles.

        On CUDA every tile is centred, because testing whether that is needed would synchronise.
        """
        x = self._read(b, tile)
        if not x.is_cuda:
            pairs, accurate = self._normalise(x)
        if x.is_cuda or not accurate:
            pairs, _ = self._normalise(self._centred(x, self.live(b, tile)))
        pairs.bias.mul_(pairs.rstd)
        return pairs

    def backward(self, b: int, tile: Tile | Batch, pairs: Pairs, dscores: Tensor, dp: Tensor | None) -> None:
        """Add the tile to ``moment`` and write its part of ``dp``; overwrites ``pairs``."""
        x, bias, mean, rstd = pairs
        size = len(mean)
        grad = self._squares[: (self.heads + 1) * size].view(self.heads + 1, size)
        dbias = grad[:-1]
        tile.to_slots(dscores, dbias)
        minus_u = torch.sum(bias.mul_(dbias), 0, out=self._square_mean[:size])
        minus_u.mul_(rstd).mul_(rstd).mul_(-1 / self.channels)
        dbias.mul_(rstd)
        self.moment += dbias @ x - (dbias @ mean)[:, None]
        if dp is None:
            return
        torch.mul(minus_u, mean, out=grad[-1]).neg_()
        rows = dp[b, tile.rows].view(size, self.channels)
        out = rows if self._in_place else self._x[:size]
        torch.mul(x, minus_u[:, None], out=out).addmm_(grad.t(), self._unproject)
        if out is not rows:
            rows.copy_(out)

    def weight_gradients(self) -> tuple[Tensor, Tensor]:
        """(dγ [C], dW [H, C]); β's part of dW is Σ_k dS = 0."""
        return (self.weight * self.moment).sum(0), self.gamma * self.moment

    def _read(self, b: int, tile: Tile | Batch) -> Tensor:
        rows = self.p[b, tile.rows]
        if self._in_place:
            return rows.view(-1, self.channels)
        x = self._x[: tile.n_rows * self.n_neighbor]
        x.view(rows.shape).copy_(rows)
        return x

    def live(self, b: int, tile: Tile | Batch) -> Tensor:
        """Bool [T·K]."""
        return self.mask[b % len(self.mask), tile.rows].reshape(-1)

    def _normalise(self, x: Tensor) -> tuple[Pairs, bool]:
        """The pairs, their bias not yet scaled by rstd, and whether the variance is accurate.

        It is not where it cancels, nor where any slot of the tile, dead ones included, is not finite. CUDA does not
        test this and always says yes. There, and where the variance is not accurate, an infinite variance becomes NaN,
        because rstd = 0 would give a bias of 0.
        """
        size = len(x)
        z = self._z[: (self.heads + 1) * size].view(self.heads + 1, size)
        torch.mm(self._project, x.t(), out=z)
        squares = torch.mul(x, x, out=self._squares[: x.numel()].view(x.shape))
        square_mean = torch.mv(squares, self._mean_of_squares, out=self._square_mean[:size])
        mean, rstd = z[-1], self._rstd[:size]
        torch.addcmul(square_mean, mean, mean, value=-1, out=rstd)
        accurate = x.is_cuda or bool(square_mean.sub_(rstd, alpha=_CANCELLATION).max() <= 0)
        if x.is_cuda or not accurate:
            rstd.add_(rstd, alpha=0)
        rstd.add_(self.eps).rsqrt_()
        return Pairs(x, z[:-1], mean, rstd), accurate

    @staticmethod
    def _centred(x: Tensor, live: Tensor) -> Tensor:
        """x − mean over the channels, 0 in dead slots."""
        clean = torch.where(live[:, None], x, 0)
        return clean.sub_(clean.mean(1, keepdim=True))
