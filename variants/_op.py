"""The definition of the operation: what every backend must compute, in float64, as plainly as it can be written.

Attention of atom l over its K neighbour slots, with a bias made from its pairs (B batch, N atoms, H heads of D
channels, C pair channels; ``idx`` is neighbor_idx [N, K], ``live`` is valid_mask [N, K] or [B, N, K])::

    S[b,l,k,h] = <Q[b,l,h], K[b,idx[l,k],h]> / sqrt(D) + (LayerNorm(p[b,l,k]) · pair_weight[h])
    A[b,l,k,h] = exp(S[b,l,k,h]) / sum over live k' of exp(S[b,l,k',h])    where live, else 0; a row with none is all 0
    O[b,l,h]   = sum over k of A[b,l,k,h] V[b,idx[l,k],h]

Samples that share pairs: where Q has a batch B = B_p M, ``p`` may have B_p, ``K`` and ``V`` B or B_p, and ``live`` B or
B_p. Item i then reads entry ``i // M`` of what has B_p: items b M … b M + M − 1 share entry b, the sample runs fastest.
Gradients of a shared tensor are the sums over its samples. So it is at every level: what has a smaller batch is shared.

Around it the block, the stack, the encoder and the decoder of the layer. Nothing here comes from ``pallatom`` or from a
backend. Every function takes tensors of any floating dtype, computes in float64 and is differentiable, so that its
gradients are the reference of gradients. ``state`` maps the layer's parameter names to tensors: the module's
``state_dict()``, or ``dict(module.named_parameters())`` where their gradients are wanted. ::

    attention_reference(Q, K, V, p, norm_weight, norm_bias, pair_weight, neighbor_idx, valid_mask) -> O
    block_reference(state, q, c, p, neighbor_idx, valid_mask, n_heads, rows=None) -> q
    stack_reference(state, q, c, p, neighbor_idx, valid_mask, n_heads, rows=None) -> q
    encoder_reference(state, ref_pos, ref_element, ref_space_uid, s_input, z_input, r_scaled, tok_idx, window_size,
        n_heads) -> (s_i, q_skip, c_skip, p_skip, c_l)
    decoder_reference(state, q_skip, p_skip, c_skip, c, s, z, tok_idx, window_size, n_heads) -> (q, p, r_update, c_out)
    index_reference(tok_idx, window_size) -> (neighbor_idx, valid_mask)
    restrict(neighbor_idx, valid_mask, rows) -> Restriction(rows, keys, neighbor_idx, valid_mask)

**Rows are independent.** Keys and values come from c, which no block changes; so the output of atom l, after any number
of blocks, depends on q[l], p[l] and the c of the atoms that l sees, and on nothing else. The reference of a few rows of
a problem that does not fit whole is therefore exact, gradients included, from those rows alone. Either give a block or
stack all its inputs and ``rows``, or restrict them by hand::

    part = restrict(neighbor_idx, valid_mask, rows)
    O_rows = attention_reference(
        Q[:, rows], K[:, part.keys], V[:, part.keys], p[:, rows], ..., part.neighbor_idx, part.valid_mask
    )
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

State = Mapping[str, Tensor]

_CHUNK_ELEMENTS = 2**16
"""Slots of all batch items that are computed at once: few enough to stay in cache, many enough for a real product."""


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """(x − mean) / sqrt(var + eps) · weight + bias over the last axis, the variance being the mean square."""
    x = x.double()
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    return centred / (variance + eps).sqrt() * weight.double() + bias.double()


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ."""
    return x.double() @ weight.double().mT


def each(x: Tensor, batch: int) -> Tensor:
    """x [B_p, ...] for every one of ``batch`` items: entry i // M for item i."""
    return x if len(x) == batch else x.repeat_interleave(batch // len(x), 0)


def attention_reference(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    p: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    pair_weight: Tensor,
    neighbor_idx: Tensor,
    valid_mask: Tensor,
    eps: float = 1e-5,
) -> Tensor:
    """O [B, L, H, D] of the equations above, for L query rows over N keys (L = N for the whole problem).

    Q [B, L, H, D]; K, V [B or B_p, N, H, D]; p [B_p, L, K, C]; norm_weight, norm_bias [C]; pair_weight [H, C];
    neighbor_idx [L, K] into the N keys; valid_mask [L, K], [B, L, K] or [B_p, L, K]. Row chunks, where there are
    several, are recomputed in the backward pass, so memory stays a few times p's.
    """
    batch, n_row = Q.shape[:2]
    live = each(valid_mask if valid_mask.ndim == 3 else valid_mask.expand(batch, -1, -1), batch)
    K, V = each(K, batch), each(V, batch)
    step = max(16, _CHUNK_ELEMENTS // max(1, batch * neighbor_idx.shape[1]))
    # One chunk has nothing to gain from being computed twice, and checkpoint imports all of torch's compiler.
    recomputed = torch.is_grad_enabled() and n_row > step
    attend = partial(checkpoint, _attention_rows, use_reentrant=False) if recomputed else _attention_rows
    parts = [
        attend(
            Q[:, low : low + step],
            K,
            V,
            p[:, low : low + step],
            (norm_weight, norm_bias, pair_weight),
            neighbor_idx[low : low + step],
            live[:, low : low + step],
            eps,
        )
        for low in range(0, n_row, step)
    ]
    return torch.cat(parts, 1) if parts else Q.double()


def _attention_rows(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    p: Tensor,
    pair: tuple[Tensor, Tensor, Tensor],
    idx: Tensor,
    live: Tensor,
    eps: float,
) -> Tensor:
    norm_weight, norm_bias, pair_weight = pair
    Q, K, V = Q.double(), K.double(), V.double()
    on = live[..., None]  # [B, L, K, 1]
    # padding may hold anything: it is replaced before anything is made of it
    p = torch.where(on, each(p.double(), len(Q)), 0.0)
    keys, slot = torch.where(live.any(0), idx, 0).unique(return_inverse=True)  # the M keys of these rows

    bias = linear(layer_norm(p, norm_weight, norm_bias, eps), pair_weight)  # [B, L, K, H]
    every = torch.einsum("blhd,bmhd->blmh", Q, K[:, keys]) / Q.shape[-1] ** 0.5  # [B, L, M, H]
    slot = slot[None, :, :, None].expand_as(bias)
    S = every.gather(2, slot) + bias
    peak = torch.where(on, S, -torch.inf).amax(2, keepdim=True).detach() if S.shape[2] else 0.0
    weight = torch.where(on, torch.exp(torch.where(on, S - peak, 0.0)), 0.0)
    total = weight.sum(2, keepdim=True)
    A = weight / torch.where(total > 0, total, 1.0)
    return torch.einsum("blmh,bmhd->blhd", torch.zeros_like(every).scatter_add(2, slot, A), V[:, keys])


@dataclass(frozen=True)
class Restriction:
    """What the rows of a problem see: their `keys` [M], ascending, and their index and mask in terms of those."""

    rows: Tensor
    keys: Tensor
    neighbor_idx: Tensor
    valid_mask: Tensor


def restrict(neighbor_idx: Tensor, valid_mask: Tensor, rows: Tensor) -> Restriction:
    """Keep query `rows` (int64 [L]) and the keys that any of them sees in any batch item."""
    idx, live = neighbor_idx[rows], valid_mask[..., rows, :]
    seen = live.any(0) if live.ndim == 3 else live
    keys = idx[seen].unique() if seen.any() else idx.new_zeros(1)  # never none, so that padding can point somewhere
    local = torch.zeros_like(idx)
    local[seen] = torch.searchsorted(keys, idx[seen])
    return Restriction(rows, keys, local, live)


def block_reference(
    state: State,
    q: Tensor,
    c: Tensor,
    p: Tensor,
    neighbor_idx: Tensor,
    valid_mask: Tensor,
    n_heads: int,
    rows: Tensor | None = None,
) -> Tensor:
    """q + to_out(attention), then q + ff2(relu(ff1(norm_ff(q)))); only at `rows` where given, else at all atoms."""
    return _blocks([state], q, c, p, neighbor_idx, valid_mask, n_heads, rows)


def _blocks(
    states: Sequence[State],
    q: Tensor,
    c: Tensor,
    p: Tensor,
    neighbor_idx: Tensor,
    valid_mask: Tensor,
    n_heads: int,
    rows: Tensor | None,
) -> Tensor:
    if rows is not None:
        part = restrict(neighbor_idx, valid_mask, rows)
        q, p, c = q[:, rows], p[:, rows], c[:, part.keys]
        neighbor_idx, valid_mask = part.neighbor_idx, part.valid_mask
    for state in states:
        q = _block(state, q, c, p, neighbor_idx, valid_mask, n_heads)
    return q


def _block(
    state: State, q: Tensor, c: Tensor, p: Tensor, neighbor_idx: Tensor, valid_mask: Tensor, n_heads: int
) -> Tensor:
    def split(x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], n_heads, x.shape[-1] // n_heads)

    q = q.double()
    q_hat, c_hat = _norm(state, "norm_q", q), _norm(state, "norm_c", c)
    attended = attention_reference(
        split(linear(q_hat, state["to_q.weight"])),
        split(linear(c_hat, state["to_k.weight"])),
        split(linear(c_hat, state["to_v.weight"])),
        p,
        state["norm_pair.weight"],
        state["norm_pair.bias"],
        state["pair_bias.weight"],
        neighbor_idx,
        valid_mask,
    )
    q = q + linear(attended.reshape(q.shape), state["to_out.weight"])
    hidden = linear(_norm(state, "norm_ff", q), state["ff1.weight"]).clamp(min=0)
    return q + linear(hidden, state["ff2.weight"])


def stack_reference(
    state: State,
    q: Tensor,
    c: Tensor,
    p: Tensor,
    neighbor_idx: Tensor,
    valid_mask: Tensor,
    n_heads: int,
    rows: Tensor | None = None,
) -> Tensor:
    """The blocks ``blocks.0``, ``blocks.1``, … in turn, with the same c and p; only at `rows` where given."""
    n_blocks = 1 + max(int(name.split(".")[1]) for name in state)
    states = [_inside(state, f"blocks.{i}") for i in range(n_blocks)]
    return _blocks(states, q, c, p, neighbor_idx, valid_mask, n_heads, rows)


def index_reference(tok_idx: Tensor, window_size: int) -> tuple[Tensor, Tensor]:
    """All pairs compared: atoms m with |tok_l − tok_m| < window_size // 2, ascending; K the most of any atom. O(N²)."""
    near = (tok_idx[:, None] - tok_idx[None, :]).abs() < window_size // 2
    count = near.sum(1)
    most = int(count.max()) if len(tok_idx) else 0
    neighbor_idx = torch.zeros(len(tok_idx), most, dtype=torch.int64, device=tok_idx.device)
    valid_mask = torch.zeros(len(tok_idx), most, dtype=torch.bool, device=tok_idx.device)
    for atom in range(len(tok_idx)):
        neighbor_idx[atom, : int(count[atom])] = near[atom].nonzero()[:, 0]
        valid_mask[atom, : int(count[atom])] = True
    return neighbor_idx, valid_mask


def encoder_reference(
    state: State,
    ref_pos: Tensor,
    ref_element: Tensor,
    ref_space_uid: Tensor,
    s_input: Tensor,
    z_input: Tensor,
    r_scaled: Tensor,
    tok_idx: Tensor,
    window_size: int,
    n_heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(s_i, q_skip, c_skip, p_skip, c_l), with tok_idx and ref_space_uid [N] or [B, N]."""
    tok = tok_idx if tok_idx.ndim == 1 else tok_idx[0]
    uid = ref_space_uid.expand(len(ref_pos), -1)
    idx, window = index_reference(tok, window_size)
    same = (uid[:, :, None] == uid[:, idx])[..., None].double()  # [B, N, K, 1]
    valid = window & (same[..., 0] > 0)

    c_skip = linear(torch.cat([ref_pos, ref_element], -1), state["proj_fref_c.weight"])
    d = ref_pos.double()[:, :, None] - ref_pos.double()[:, idx]
    batch = len(r_scaled)
    h = c_skip.clamp(min=0)
    p = linear(d, state["proj_d_vec.weight"]) * same
    p = p + linear(1 / (1 + (d * d).sum(-1, keepdim=True)), state["proj_inv_sq.weight"]) * same
    p = p + linear(same, state["proj_v.weight"]) * same
    p = p + linear(h, state["proj_cl_pair.weight"])[:, :, None] + linear(h, state["proj_cm_pair.weight"])[:, idx]
    p_skip = p * valid[..., None]

    q0 = each(c_skip, batch) + linear(r_scaled, state["proj_r_scaled.weight"])
    s = linear(_norm(state, "norm_s_init", s_input), state["proj_s_init.weight"])[:, tok]
    c_l = each(c_skip, len(s)) + s
    z = linear(_norm(state, "norm_z_init", z_input), state["proj_z_init.weight"])
    p = each(p_skip, len(z)) + z[:, tok[:, None], tok[idx]]
    p = p + _mlp(_inside(state, "mlp_p"), p)
    q_skip = stack_reference(_inside(state, "transformer"), q0, c_l, p, idx, valid, n_heads)

    h = linear(q_skip, state["proj_agg.weight"]).clamp(min=0)
    s_i = torch.stack(
        [h[:, tok == r].mean(1) if (tok == r).any() else torch.zeros_like(h.sum(1)) for r in range(s_input.shape[1])], 1
    )
    return s_i, q_skip, c_skip, p_skip, c_l


def decoder_reference(
    state: State,
    q_skip: Tensor,
    p_skip: Tensor,
    c_skip: Tensor,
    c: Tensor,
    s: Tensor,
    z: Tensor,
    tok_idx: Tensor,
    window_size: int,
    n_heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(q, p, r_update, c_out), with tok_idx [N] or [B, N]."""
    tok = tok_idx if tok_idx.ndim == 1 else tok_idx[0]
    idx, valid = index_reference(tok, window_size)

    q = q_skip.double() + each(linear(_norm(state, "norm_s_q", s), state["proj_s_q.weight"])[:, tok], len(q_skip))
    z = linear(_norm(state, "norm_z", z), state["proj_z.weight"])
    most = max(len(p_skip), len(z))
    p = each(torch.where(valid[..., None], p_skip.double(), 0.0), most) + each(z[:, tok[:, None], tok[idx]], most)
    p = (p + _mlp(_inside(state, "mlp_p"), p)) * valid[..., None]
    q = stack_reference(_inside(state, "transformer"), q, c, p, idx, valid, n_heads)

    r_update = linear(_norm(state, "norm_q_out", q), state["proj_r.weight"])
    s = linear(_norm(state, "norm_s_c", s), state["proj_s_c.weight"])[:, tok]
    most = max(len(c_skip), len(s))
    return q, p, r_update, each(c_skip.double(), most) + each(s, most)


def _norm(state: State, name: str, x: Tensor) -> Tensor:
    return layer_norm(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _mlp(state: State, x: Tensor) -> Tensor:
    for layer in ("0", "2", "4"):
        x = linear(x, state[f"{layer}.weight"]).clamp(min=0)
    return linear(x, state["6.weight"])


def _inside(state: State, name: str) -> dict[str, Tensor]:
    """The parameters of the submodule `name`, under their own names."""
    return {key[len(name) + 1 :]: value for key, value in state.items() if key.startswith(f"{name}.")}
