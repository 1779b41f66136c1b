"""Calls of the attention seam drawn at random, and when an answer to one is wrong."""

from __future__ import annotations

from dataclasses import dataclass

import hypothesis.strategies as st
import torch
from torch import Tensor

from pallatom.architecture.atom_transformers import AtomTransformerBlock, build_sparse_pairs
from tests.variants.variant_cases import INPUTS, PARAMETERS
from variants._op import attention_reference

# A few roundings of the dtype; sums over all pairs in the weights' gradients cancel more in half precision.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 5e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}
WEIGHT_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-1, torch.float16: 1e-1}
LAYERS_OWN = 5.0  # how many times the layer's own error is no error: what the dtype cannot hold, nobody can

# Their library takes a bias of Q's dtype alone; the layer adds a wider one as it is.
ROUNDS_BIAS = ("dense", "sdpa_tiles", "xformers_fmha")
INDEX = ("window", "capped", "jumping", "scattered", "repeated")
MASK = ("shared", "per item", "holes", "dead rows", "dead item", "all dead")
LAYOUT = ("contiguous", "strided", "expanded")
MODE = ("grad", "no_grad", "inference")


@dataclass(frozen=True)
class Draw:
    """One call. ``qk, pairs, offset, weight``: sizes of Q and K, of p, of p's mean beside its size, of the weights.

    ``batch`` counts entries of p, each shared by ``samples`` items of Q; ``own``: every item has K, V and a mask of its
    own, else every entry. ``wide_pairs``: p and the parameters in float32 beside narrower activations, as under
    autocast.
    """

    n: int = 40
    slots: int = 12
    batch: int = 2
    samples: int = 1
    own: bool = True
    heads: int = 2
    dim: int = 16
    channels: int = 8
    index: str = "window"
    mask: str = "per item"
    layout: str = "contiguous"
    mode: str = "grad"
    dtype: torch.dtype = torch.float32
    wide_pairs: bool = False
    qk: float = 1.0
    pairs: float = 1.0
    offset: float = 0.0
    weight: float = 0.5
    affine: bool = True
    eps: float = 1e-5
    seed: int = 0


@st.composite
def draws(draw) -> Draw:
    return Draw(
        n=draw(st.integers(1, 70)),
        slots=draw(st.integers(1, 24)),
        batch=draw(st.integers(1, 3)),
        samples=draw(st.sampled_from([1, 1, 2, 3])),
        own=draw(st.booleans()),
        heads=draw(st.integers(1, 5)),
        dim=draw(st.sampled_from([1, 3, 8, 16, 24, 32, 48, 64])),
        channels=draw(st.sampled_from([1, 2, 5, 8, 16, 17, 32])),
        index=draw(st.sampled_from(INDEX)),
        mask=draw(st.sampled_from(MASK)),
        layout=draw(st.sampled_from(LAYOUT)),
        mode=draw(st.sampled_from(MODE)),
        dtype=draw(st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16])),
        wide_pairs=draw(st.booleans()),
        qk=draw(st.sampled_from([1.0, 1.0, 1e-6, 5.0, 30.0])),
        pairs=draw(st.sampled_from([1.0, 1.0, 1e-4, 30.0, 1e4, 1e18, 1e20])),
        offset=draw(st.sampled_from([0.0, 0.0, 1.0, 100.0, -1000.0])),
        weight=draw(st.sampled_from([0.5, 0.5, 1e-3, 5.0])),
        affine=draw(st.booleans()),
        eps=draw(st.sampled_from([1e-5, 1e-5, 1e-3, 0.3])),
        seed=draw(st.integers(0, 2**31)),
    )


@dataclass(frozen=True, eq=False)
class Call:
    """A draw's tensors; the block is the layer's own."""

    draw: Draw
    block: AtomTransformerBlock
    inputs: tuple[Tensor, ...]
    neighbor_idx: Tensor
    valid_mask: Tensor
    grad_out: Tensor


def call_of(draw: Draw) -> Call:
    """Drawn in float64, rounded to the dtype; what a padding slot holds is NaN or far off."""
    g = torch.Generator().manual_seed(draw.seed)
    idx, mask = _index(draw, g)
    mask = _mask(draw, mask, g)
    n, slots = idx.shape

    def values(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    items, keys = draw.batch * draw.samples, _keys(draw)
    q, k = (draw.qk * values(count, n, draw.heads, draw.dim) for count in (items, keys))
    v, grad = (values(count, n, draw.heads, draw.dim) for count in (keys, items))
    p = draw.pairs * (values(draw.batch, n, slots, draw.channels) + draw.offset)
    pair_dtype = torch.promote_types(draw.dtype, torch.float32) if draw.wide_pairs else draw.dtype
    block = AtomTransformerBlock(draw.heads * draw.dim, draw.channels, draw.heads)
    block.norm_pair = torch.nn.LayerNorm(draw.channels, eps=draw.eps, elementwise_affine=draw.affine)
    with torch.no_grad():
        block.pair_bias.weight.copy_(draw.weight * values(draw.heads, draw.channels))
        for parameter, mean in zip(block.norm_pair.parameters(), (1.0, 0.0)):
            parameter.copy_(mean + 0.3 * values(draw.channels))
    live = (
        mask.expand(keys, n, slots).reshape(draw.batch, keys // draw.batch, n, slots).any(1)
    )  # for any of its samples
    p = p.clamp(-torch.finfo(pair_dtype).max, torch.finfo(pair_dtype).max)
    p = p.masked_fill(~live[..., None], torch.nan)
    tensors = [x.to(draw.dtype) for x in (q, k, v)] + [p.to(pair_dtype)]
    inputs = [_laid_out(x, draw.layout) for x in tensors]
    if draw.layout == "expanded":
        grad = grad[:, :, :1, :1].expand_as(grad)
        if mask.dim() == 3 and draw.batch > 1:  # p is one for all items, so padding is padding in all of them
            inputs[3] = inputs[3].nan_to_num(nan=1.0)
    if draw.mode == "inference":
        with torch.inference_mode():
            idx, mask = idx.clone(), mask.clone()
    return Call(draw, block.to(pair_dtype), tuple(inputs), idx, mask, grad.to(draw.dtype))


def _keys(draw: Draw) -> int:
    """The batch of K, V and the mask."""
    return draw.batch * (draw.samples if draw.own else 1)


def _index(draw: Draw, g: torch.Generator) -> tuple[Tensor, Tensor]:
    n, slots = draw.n, draw.slots
    if draw.index == "window":
        sizes = torch.randint(0, 7, (n,), generator=g)
        sizes[0] = max(1, int(sizes[0]))
        residues = torch.repeat_interleave(torch.arange(n), sizes)
        residues = torch.nn.functional.pad(residues, (0, max(0, n - len(residues))), value=n)[:n]
        return build_sparse_pairs(residues, 2 * int(torch.randint(1, 4, (), generator=g)))
    slots = min(slots, n)
    if draw.index in ("capped", "jumping"):
        start = (torch.arange(n) - slots // 2).clamp(0, n - slots)
        if draw.index == "jumping":
            start = start[torch.randperm(n, generator=g)]
        idx = start[:, None] + torch.arange(slots)
    else:
        idx = torch.rand(n, n, generator=g).argsort(1)[:, :slots]
        if draw.index == "repeated" and slots > 1:
            idx[:, 1] = idx[:, 0]
    return idx, torch.ones(n, slots, dtype=torch.bool)


def _mask(draw: Draw, mask: Tensor, g: torch.Generator) -> Tensor:
    if draw.mask == "shared":
        return mask
    mask = mask.expand(_keys(draw), -1, -1).clone()
    if draw.mask == "holes":
        return mask & (torch.rand(mask.shape, generator=g) > 0.3)
    if draw.mask == "dead rows":
        return mask & (torch.rand(mask.shape[:2], generator=g) > 0.3)[..., None]
    if draw.mask == "dead item":
        mask[-1] = False
    if draw.mask == "all dead":
        mask[:] = False
    return mask


def _laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "strided":
        return x.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)
    return x[:1].expand_as(x) if layout == "expanded" else x


def answer(block: torch.nn.Module, call: Call, *, backward: bool) -> dict[str, Tensor]:
    """O, and in mode ``grad`` the gradient of <O, dO> for every input and parameter."""
    inputs = [x.detach().requires_grad_(backward) for x in call.inputs]
    trained = {name: held for name in PARAMETERS if (held := dict(block.named_parameters()).get(name)) is not None}
    with torch.set_grad_enabled(backward), torch.inference_mode(call.draw.mode == "inference"):
        out = block._attend(*inputs, call.neighbor_idx, call.valid_mask)
    if not backward:
        return {"O": out.detach().clone()}
    wanted = dict(zip(INPUTS, inputs)) | trained
    found = torch.autograd.grad(out, list(wanted.values()), call.grad_out, materialize_grads=True)
    return {"O": out.detach()} | {f"d{name}": x for name, x in zip(wanted, found)}


def reference(call: Call, *, backward: bool) -> dict[str, Tensor]:
    """The float64 answer to the call as rounded."""
    norm, channels = call.block.norm_pair, call.draw.channels
    held = (norm.weight, norm.bias) if call.draw.affine else (torch.ones(channels), torch.zeros(channels))
    wide = [x.detach().double().requires_grad_() for x in (*call.inputs, *held, call.block.pair_bias.weight)]
    out = attention_reference(*wide, call.neighbor_idx.clone(), call.valid_mask.clone(), eps=norm.eps)
    if not backward:
        return {"O": out.detach()}
    found = torch.autograd.grad(out, wide, call.grad_out.double(), materialize_grads=True)
    named = zip((*INPUTS, *PARAMETERS), found)
    return {"O": out.detach()} | {f"d{name}": x.detach() for name, x in named}


def faults(
    got: dict[str, Tensor], layer: dict[str, Tensor], want: dict[str, Tensor], call: Call, name: str = ""
) -> dict[str, str]:
    """What is wrong in an answer: a number that is finite and off, or one that is not finite where the layer's are.

    A tensor may be off by the dtype's tolerance, by what sums in float32 lose of large scores and offsets, and by a few
    times what the layer itself is off; and the backend ``name`` by what a bias loses that must have Q's dtype. It may
    be not finite where the squares of a pair overflow: torch's LayerNorm then gives NaN, or at some sizes 0.
    """
    found = {}
    rounded = _rounded_bias(call) if name in ROUNDS_BIAS else 0.0
    for tensor, x in got.items():
        if layer[tensor].isfinite().all() and not x.isfinite().all() and not overflows(call):
            found[tensor] = "not finite"
            continue
        weights = tensor.removeprefix("d") in PARAMETERS
        limit = (WEIGHT_TOLERANCE if weights else TOLERANCE)[call.draw.dtype] + _lost(call.draw) + rounded
        scale = max(float(want[tensor].norm()), _terms(tensor, want, call))
        error, own = (_distance(y, want[tensor]) for y in (x, layer[tensor]))
        if not error <= limit * scale + LAYERS_OWN * own:
            found[tensor] = f"off by {error:.1e}, the layer by {own:.1e}, of {scale:.1e}"
    return found


def _lost(draw: Draw) -> float:
    """Relative error of an exponential whose argument is rounded: ε times the size of the scores, and of p's mean."""
    eps = torch.finfo(torch.promote_types(draw.dtype, torch.float32)).eps
    return eps * (draw.qk**2 * draw.dim**0.5 + 3 * abs(draw.offset) * max(1.0, 2 * draw.weight))


def _rounded_bias(call: Call) -> float:
    """Relative error of a weight whose bias was rounded to Q's dtype: half its spacing there."""
    p, norm = call.inputs[3].detach().double().nan_to_num(), call.block.norm_pair
    held = [None if x is None else x.detach().double() for x in (norm.weight, norm.bias)]
    bias = torch.nn.functional.layer_norm(p, p.shape[-1:], *held, norm.eps) @ call.block.pair_bias.weight.double().mT
    return torch.finfo(call.draw.dtype).eps / 2 * float(bias.detach().abs().nan_to_num(0.0, 0.0, 0.0).amax())


def overflows(call: Call) -> bool:
    """Whether float32, or the wider dtype of p, cannot hold the sum of a live pair's squares."""
    p = call.inputs[3].detach()
    most = torch.finfo(torch.promote_types(p.dtype, torch.float32)).max
    return bool((p.double().nan_to_num().square().sum(-1) > most).any())


def _distance(x: Tensor, want: Tensor) -> float:
    """Over the numbers that are finite."""
    return float(torch.where(x.isfinite(), x.double() - want, 0).norm())


def _terms(name: str, want: dict[str, Tensor], call: Call) -> float:
    """A tenth of the size of what a gradient is a sum of: it cancels where a softmax is saturated."""
    if name == "O":
        return 0.0
    Q, K, V, p = (x.detach().double().nan_to_num() for x in call.inputs)
    dS = float(call.grad_out.double().norm()) * _rms(V) * V.shape[-1] ** 0.5
    weight = _rms(call.block.pair_bias.weight.detach().double())
    rstd = _rms((p.var(-1, correction=0) + call.draw.eps).rsqrt())
    gamma = _rms(call.block.norm_pair.weight.detach().double()) if call.draw.affine else 1.0
    sizes = {
        "dQ": _rms(K) * V.shape[-1] ** -0.5,
        "dK": _rms(Q) * V.shape[-1] ** -0.5,
        "dV": 0.0,
        "dp": weight * gamma * rstd,
        "dpair_bias.weight": gamma,
        "dnorm_pair.weight": weight,
        "dnorm_pair.bias": weight,
    }
    return 0.1 * dS * sizes[name]


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt()) if x.numel() else 0.0
