"""The atom transformer: attention in which an atom sees the atoms of nearby residues, with a bias on every live pair.

Shapes: B batch, N atoms, R residues, K neighbour slots per atom, H heads of D channels (H * D = c_atom), C channels of
a pair. ``p[b, l, k]`` holds the pair of atom l and atom ``neighbor_idx[l, k]``; only slots where ``valid_mask`` is set
are live, and what any other slot holds (in the index or in p, NaN included) changes no output and no gradient.

A backend is a subclass of :class:`AtomTransformerBlock` that overrides ``_attend``; it may also have subclasses of
encoder and decoder that override ``_pairs``. All else stays as it is here.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pallatom.architecture import _samples, _validate
from pallatom.architecture._chunks import by_rows
from pallatom.architecture._index import WINDOW_SIZE, atom_pairs, build_sparse_pairs
from pallatom.architecture._residues import band_columns, residue_band

__all__ = [
    "WINDOW_SIZE",
    "AtomAttentionDecoder",
    "AtomFeatureEncoder",
    "AtomTransformer",
    "AtomTransformerBlock",
    "LinearNoBias",
    "build_sparse_pairs",
]


class LinearNoBias(nn.Linear):
    """y = x Wᵀ."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)


def _pair_mlp(c: int) -> nn.Sequential:
    """Four c x c linears with ReLU between them; maps 0 to 0, so dead pairs stay 0."""
    return nn.Sequential(
        LinearNoBias(c, c), nn.ReLU(), LinearNoBias(c, c), nn.ReLU(), LinearNoBias(c, c), nn.ReLU(), LinearNoBias(c, c)
    )


def _for_pairs(c: Tensor, p: Tensor, neighbor_idx: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A transformer's arguments where each sample has pairs of its own while c or the mask is still shared."""
    c = _samples.repeated(c, max(len(c), len(p)))
    return c, p, neighbor_idx, _samples.repeated(valid, len(p)) if valid.ndim == 3 else valid


class AtomTransformerBlock(nn.Module):
    """One block: local attention with pair bias, conditioned by c, then a feed-forward layer; both residual.

    ::

        Q = to_q(norm_q(q));  K = to_k(norm_c(c));  V = to_v(norm_c(c))
        q = q + to_out(attend(Q, K, V, p));  q = q + ff2(relu(ff1(norm_ff(q))))
    """

    def __init__(self, c_atom: int, c_atompair: int, n_heads: int, window_size: int = WINDOW_SIZE) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.head_dim = _validate.check_heads(c_atom, n_heads)
        self.window_size = _validate.check_count("window_size", window_size)
        self.norm_q = nn.LayerNorm(c_atom)
        self.norm_c = nn.LayerNorm(c_atom)
        self.norm_pair = nn.LayerNorm(c_atompair)
        self.norm_ff = nn.LayerNorm(c_atom)
        self.to_q = LinearNoBias(c_atom, c_atom)
        self.to_k = LinearNoBias(c_atom, c_atom)
        self.to_v = LinearNoBias(c_atom, c_atom)
        self.to_out = LinearNoBias(c_atom, c_atom)
        self.pair_bias = LinearNoBias(c_atompair, n_heads)
        self.ff1 = LinearNoBias(c_atom, 4 * c_atom)
        self.ff2 = LinearNoBias(4 * c_atom, c_atom)

    def forward(
        self,
        q: Float[Tensor, "b n c_atom"],
        c: Float[Tensor, "bc n c_atom"],
        p: Float[Tensor, "bp n k c_atompair"],
        neighbor_idx: Int[Tensor, "n k"],
        valid_mask: Bool[Tensor, "n k"] | Bool[Tensor, "bm n k"],
    ) -> Float[Tensor, "b n c_atom"]:
        """Update the atoms q given their conditioning c and their pairs p. A mask [B, N, K] may differ per item.

        p has a batch B_p that divides B; c and the mask have either (see the module's docstring). K and V are made once
        for each entry of c.
        """
        _validate.check_block(self, q, c, p, neighbor_idx, valid_mask)
        heads = (self.n_heads, self.head_dim)
        c = self.norm_c(_samples.once(c))
        Q = self.to_q(self.norm_q(q)).unflatten(-1, heads)
        K, V = (_samples.repeated(x.unflatten(-1, heads), max(len(x), len(p))) for x in (self.to_k(c), self.to_v(c)))
        q = q + self.to_out(self._attend(Q, K, V, p, neighbor_idx, valid_mask).flatten(-2))
        return q + self.ff2(F.relu(self.ff1(self.norm_ff(q))))

    def _attend(
        self,
        Q: Float[Tensor, "b n h d"],
        K: Float[Tensor, "bc n h d"],
        V: Float[Tensor, "bc n h d"],
        p: Float[Tensor, "bp n k c"],
        neighbor_idx: Int[Tensor, "n k"],
        valid_mask: Bool[Tensor, "n k"] | Bool[Tensor, "bm n k"],
    ) -> Float[Tensor, "b n h d"]:
        """The seam for backends: here, gather K neighbours and attend to them.

        ::

            S[l, k] = <Q[l], K[idx[l, k]]> / sqrt(D) + pair_bias(norm_pair(p))[l, k]      per batch item and head
            O[l] = sum_k softmax_k(S)[l, k] V[idx[l, k]]             over live slots; 0 where an atom has none

        Q, K and V may be narrower than p (autocast). The softmax is taken in float32 at least.

        Batches: Q has B = B_p M, p has B_p, K and V both have B or both B_p, a mask [N, K] is everybody's and one with
        a batch has B or B_p. With x any of them, item i of Q uses ``x[i // (B / len(x))]``: the sample index runs
        fastest. A slot that is live for some samples of an entry has p for these; dead for all, it may hold anything.
        The gradients of K, V and p are sums over the samples that use an entry, taken in float32 at least. No tensor of
        p's size is repeated M times. A p that is expanded over its batch (stride 0) is read as its one entry; where its
        gradient is wanted each item gets its own, for which a backend that calls ``norm_pair`` on p, as this one, needs
        a copy. M = 1 is the plain case.
        """
        _validate.check_live_indices(neighbor_idx, valid_mask)
        p = _samples.once(p)
        live = valid_mask if valid_mask.ndim == 3 else valid_mask[None]
        idx = neighbor_idx.masked_fill(~live.any(0), 0)
        bias = self.pair_bias(self.norm_pair(p.masked_fill(~_samples.live_in_any(live, len(p))[..., None], 0)))
        return _samples.one_by_one(partial(self._gather, idx), Q, K, V, bias, live)

    def _shared(self, p: Float[Tensor, "bp n k c"]) -> Float[Tensor, "bp n k c"]:
        """p as a stack hands it to all its blocks: a backend may sum their gradients of it itself."""
        return p

    def _gather(self, idx: Tensor, Q: Tensor, K: Tensor, V: Tensor, bias: Tensor, live: Tensor) -> Tensor:
        """O of the seam's equations, over one batch, from its bias [B, N, K, H]; ``live`` is [1 or B, N, K]."""
        S = torch.einsum("blhd,blkhd->blkh", Q * self.head_dim**-0.5, K[:, idx])
        S = S.to(torch.promote_types(S.dtype, torch.float32)) + bias
        # A row without live slots keeps finite scores, so that no NaN is ever made; its weights are dropped below.
        S = S.masked_fill((~live & live.any(-1, keepdim=True))[..., None], -torch.inf)
        A = S.softmax(2).masked_fill(~live[..., None], 0).to(V.dtype)
        return torch.einsum("blkh,blkhd->blhd", A, V[:, idx])


class AtomTransformer(nn.Module):
    """The blocks in turn; c, p, the index and the mask are the same for all of them."""

    def __init__(
        self, c_atom: int, c_atompair: int, n_blocks: int = 3, n_heads: int = 4, window_size: int = WINDOW_SIZE
    ) -> None:
        super().__init__()
        _validate.check_count("n_blocks", n_blocks)
        self.window_size = _validate.check_count("window_size", window_size)
        self.blocks = nn.ModuleList(
            AtomTransformerBlock(c_atom, c_atompair, n_heads, window_size) for _ in range(n_blocks)
        )

    def forward(
        self,
        q: Float[Tensor, "b n c_atom"],
        c: Float[Tensor, "bc n c_atom"],
        p: Float[Tensor, "bp n k c_atompair"],
        neighbor_idx: Int[Tensor, "n k"],
        valid_mask: Bool[Tensor, "n k"] | Bool[Tensor, "bm n k"],
    ) -> Float[Tensor, "b n c_atom"]:
        """As a block's, through all blocks."""
        first = self.blocks[0]
        p = first._shared(p) if isinstance(first, AtomTransformerBlock) else p
        for block in self.blocks:
            q = block(q, c, p, neighbor_idx, valid_mask)
        return q


class AtomFeatureEncoder(nn.Module):
    """From reference conformers, noised positions and the trunk to atoms, pairs and residues.

    Parameters
    ----------
    f_ref_dim : 3 + E, a reference position and E element features.
    c_token, c_pair : channels of the trunk's s and z.
    c, d, m : channels of the residues returned, of atom pairs, and of atoms.
    n_blocks, n_heads, window_size : of the transformer.
    """

    def __init__(
        self,
        f_ref_dim: int,
        c_token: int,
        c_pair: int,
        c: int,
        d: int,
        m: int,
        n_blocks: int,
        n_heads: int,
        window_size: int = WINDOW_SIZE,
    ) -> None:
        super().__init__()
        _validate.check_count("f_ref_dim", f_ref_dim, minimum=3)
        self.m = m
        self.window_size = _validate.check_count("window_size", window_size)
        self.proj_fref_c = LinearNoBias(f_ref_dim, m)
        self.proj_d_vec = LinearNoBias(3, d)
        self.proj_inv_sq = LinearNoBias(1, d)
        self.proj_v = LinearNoBias(1, d)
        self.proj_cl_pair = LinearNoBias(m, d)
        self.proj_cm_pair = LinearNoBias(m, d)
        self.proj_r_scaled = LinearNoBias(3, m)
        self.norm_s_init = nn.LayerNorm(c_token)
        self.proj_s_init = LinearNoBias(c_token, m)
        self.norm_z_init = nn.LayerNorm(c_pair)
        self.proj_z_init = LinearNoBias(c_pair, d)
        self.mlp_p = _pair_mlp(d)
        self.transformer = AtomTransformer(m, d, n_blocks, n_heads, window_size)
        self.proj_agg = LinearNoBias(m, c)

    def forward(
        self,
        ref_pos: Float[Tensor, "bp n 3"],
        ref_element: Float[Tensor, "bp n e"],
        ref_space_uid: Int[Tensor, " n"] | Int[Tensor, "bp n"],
        s_input: Float[Tensor, "bs r c_token"],
        z_input: Float[Tensor, "bz r r c_pair"],
        r_scaled: Float[Tensor, "b n 3"],
        tok_idx: Int[Tensor, " n"] | Int[Tensor, "bt n"],
    ) -> tuple[
        Float[Tensor, "b r c"],
        Float[Tensor, "b n m"],
        Float[Tensor, "bp n m"],
        Float[Tensor, "bp n k d"],
        Float[Tensor, "bs n m"],
    ]:
        """Return (s_i, q_skip, c_skip, p_skip, c_l): residues, atoms, and what the decoder's skips need.

        Atoms see each other within the window and where `ref_space_uid` is equal; p_skip is 0 elsewhere.

        r_scaled may have a batch B = B_p M, M noised samples of each of the B_p reference conformers; s_input and
        z_input have either. s_i and q_skip have B, c_skip and p_skip B_p, c_l the batch of s_input. What only depends
        on the B_p is made once for all its samples.
        """
        _validate.check_encoder(self, ref_pos, ref_element, ref_space_uid, s_input, z_input, r_scaled, tok_idx)
        n_res = s_input.shape[1]
        tok, neighbor_idx, valid = atom_pairs(tok_idx, n_res, self.window_size, ref_space_uid)

        c_skip = self.proj_fref_c(torch.cat([ref_pos, ref_element], -1))
        c_l = _samples.add(c_skip, self.proj_s_init(self.norm_s_init(s_input))[:, tok])

        # Norm and projection act per residue pair that a window sees: never on [B, N, K, c_pair], nor on all of z.
        z = self.proj_z_init(self.norm_z_init(residue_band(z_input, self.window_size)))
        h = F.relu(c_skip)
        own, other = self.proj_cl_pair(h), self.proj_cm_pair(h)
        p_skip, p = self._pairs(ref_pos, own, other, z, tok, neighbor_idx, valid)
        q = _samples.add(c_skip, self.proj_r_scaled(r_scaled))
        q_skip = self.transformer(q, *_for_pairs(c_l, p, neighbor_idx, valid))
        return self._residue_mean(F.relu(self.proj_agg(q_skip)), tok, n_res), q_skip, c_skip, p_skip, c_l

    def _pairs(
        self,
        ref_pos: Float[Tensor, "b n 3"],
        own: Float[Tensor, "b n d"],
        other: Float[Tensor, "b n d"],
        z: Float[Tensor, "bz r w d"],
        tok: Int[Tensor, " n"],
        neighbor_idx: Int[Tensor, "n k"],
        valid_mask: Bool[Tensor, "n k"] | Bool[Tensor, "b n k"],
    ) -> tuple[Float[Tensor, "b n k d"], Float[Tensor, "bz n k d"]]:
        """The seam of the pairs for backends: (p_skip, p), here chunk by chunk as the equations stand.

        ::

            v = ref_pos[l] - ref_pos[m];  m = neighbor_idx[l, k]
            p_skip[l, k] = proj_d_vec(v) + proj_inv_sq(1 / (1 + |v|^2)) + proj_v(1) + own[l] + other[m]     0 where dead
            x = p_skip[l, k] + z[tok[l], column of tok[m]];  p[l, k] = x + mlp_p(x)                anything where dead

        `own` and `other` are the projections of relu(c_skip), `z` the projected band; which column: ``band_columns``.
        p has z's batch, which may be M times that of all else where each sample has a z of its own.
        """

        def pairs(rows: slice) -> tuple[Tensor, Tensor]:
            atoms = neighbor_idx[rows]
            p_skip = self._reference_pairs(ref_pos[:, rows], ref_pos[:, atoms], own[:, rows], other[:, atoms])
            p_skip = p_skip.masked_fill(~valid_mask[..., rows, :, None], 0)
            residue = tok[rows, None]
            p = _samples.add(p_skip, z[:, residue, band_columns(residue, tok[atoms], z)])
            return p_skip, p + self.mlp_p(p)

        p_skip, p = by_rows(pairs, neighbor_idx)
        return p_skip, p

    def _reference_pairs(self, pos_l: Tensor, pos_m: Tensor, own: Tensor, other: Tensor) -> Tensor:
        """p_skip [B, n, K, d] of live pairs (l, m), from their positions and from the projections of relu(c_skip).

        The equation's factor `same` is 1 on every live pair and p_skip is 0 on all others, so it never appears; sums
        are in place because each term is as large as p.
        """
        offset = pos_l[:, :, None] - pos_m
        p = self.proj_d_vec(offset)
        p += self.proj_inv_sq(1 / (1 + offset.square().sum(-1, keepdim=True)))
        p += self.proj_v(offset.new_ones(1)) + own[:, :, None]
        p += other
        return p

    def _residue_mean(self, h: Tensor, tok: Tensor, n_res: int) -> Tensor:
        """Mean of h [B, N, c] over the atoms of each residue, summed in float32 at least; 0 for a residue without."""
        wide = h.to(torch.promote_types(h.dtype, torch.float32))
        total = wide.new_zeros(len(h), n_res, h.shape[-1]).index_add(1, tok, wide)
        n_atom = wide.new_zeros(n_res).index_add(0, tok, wide.new_ones(len(tok)))
        return (total / n_atom.clamp(min=1)[:, None]).to(h.dtype)


class AtomAttentionDecoder(nn.Module):
    """From the encoder's skips and the trunk's s and z to an update of the atoms' positions."""

    def __init__(
        self,
        c_token: int,
        c_pair: int,
        c_atom: int,
        c_atompair: int,
        n_blocks: int = 3,
        n_heads: int = 4,
        window_size: int = WINDOW_SIZE,
    ) -> None:
        super().__init__()
        self.window_size = _validate.check_count("window_size", window_size)
        self.norm_s_q = nn.LayerNorm(c_token)
        self.proj_s_q = LinearNoBias(c_token, c_atom)
        self.norm_z = nn.LayerNorm(c_pair)
        self.proj_z = LinearNoBias(c_pair, c_atompair)
        self.mlp_p = _pair_mlp(c_atompair)
        self.transformer = AtomTransformer(c_atom, c_atompair, n_blocks, n_heads, window_size)
        self.norm_q_out = nn.LayerNorm(c_atom)
        self.proj_r = LinearNoBias(c_atom, 3)
        self.norm_s_c = nn.LayerNorm(c_token)
        self.proj_s_c = LinearNoBias(c_token, c_atom)

    def forward(
        self,
        q_skip: Float[Tensor, "b n c_atom"],
        p_skip: Float[Tensor, "bp n k c_atompair"],
        c_skip: Float[Tensor, "bk n c_atom"],
        c: Float[Tensor, "bc n c_atom"],
        s: Float[Tensor, "bs r c_token"],
        z: Float[Tensor, "bz r r c_pair"],
        tok_idx: Int[Tensor, " n"] | Int[Tensor, "bt n"],
    ) -> tuple[
        Float[Tensor, "b n c_atom"],
        Float[Tensor, "bo n k c_atompair"],
        Float[Tensor, "b n 3"],
        Float[Tensor, "bo2 n c_atom"],
    ]:
        """Return (q, p, r_update, c_out). Atoms see each other within the window; p is 0 elsewhere.

        q_skip may have a batch B = B_p M, M samples of each of p_skip's B_p entries; all else has either. q and
        r_update have B, p that of z where it has M times p_skip's, c_out the greater of s's and c_skip's.
        """
        _validate.check_decoder(self, q_skip, p_skip, c_skip, c, s, z, tok_idx)
        tok, neighbor_idx, valid = atom_pairs(tok_idx, s.shape[1], self.window_size)
        _validate.check_shapes({"K": neighbor_idx.shape[1]}, p_skip=(p_skip, "B_p N K c_atompair"))

        q = _samples.add(q_skip, self.proj_s_q(self.norm_s_q(s))[:, tok])
        z = self.proj_z(self.norm_z(residue_band(z, self.window_size)))

        p = self._pairs(p_skip, z, tok, neighbor_idx, valid)
        q = self.transformer(q, *_for_pairs(c, p, neighbor_idx, valid))
        c_out = _samples.add(c_skip, self.proj_s_c(self.norm_s_c(s))[:, tok])
        return q, p, self.proj_r(self.norm_q_out(q)), c_out

    def _pairs(
        self,
        p_skip: Float[Tensor, "b n k c_atompair"],
        z: Float[Tensor, "bz r w c_atompair"],
        tok: Int[Tensor, " n"],
        neighbor_idx: Int[Tensor, "n k"],
        valid_mask: Bool[Tensor, "n k"],
    ) -> Float[Tensor, "bz n k c_atompair"]:
        """The seam of the pairs for backends, as the encoder's; p is 0 where dead, whatever p_skip holds there.

        ::

            x = p_skip[l, k] + z[tok[l], column of tok[m]];  p[l, k] = x + mlp_p(x)
        """

        def pairs(rows: slice) -> tuple[Tensor]:
            residue = tok[rows, None]
            p = _samples.add(p_skip[:, rows], z[:, residue, band_columns(residue, tok[neighbor_idx[rows]], z)])
            # Dead pairs are cleared before the MLP, which keeps 0 at 0: what they held must not reach its gradients.
            p = p.masked_fill(~valid_mask[rows, :, None], 0)
            return (p + self.mlp_p(p),)

        (p,) = by_rows(pairs, neighbor_idx)
        return p
