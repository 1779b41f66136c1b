"""What every backend checks at the start of a call: its declared limits, and that the children it reads are plain.

A kernel that has LayerNorm and projection inside never calls ``norm_pair`` and ``pair_bias``. That is the same only
where these are plain: of torch's own class (or the layer's), unhooked, of the call's sizes. Wrapped by LoRA, replaced,
parametrised, quantised or hooked they compute something else, which the layer and the backends that call them honour.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _torch_modules

from pallatom.architecture.atom_transformers import (
    AtomAttentionDecoder,
    AtomFeatureEncoder,
    AtomTransformerBlock,
    LinearNoBias,
)

from ._backend import Backend, UnsupportedError
from ._registry import call_reasons, limit_reasons

_NORMS = (nn.LayerNorm,)
_LINEARS = (LinearNoBias, nn.Linear)
_TENSORS = (nn.Parameter, Tensor)
_MLP_PARTS = 7  # four linears, three ReLUs
_HOOKS = {
    "_forward_hooks": "forward hook",
    "_forward_pre_hooks": "forward pre-hook",
    "_backward_hooks": "backward hook",
    "_backward_pre_hooks": "backward pre-hook",
}
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in _HOOKS)


def require(backend: Backend, block: AtomTransformerBlock, Q: Tensor, K: Tensor, V: Tensor, p: Tensor) -> None:
    """Raise :class:`UnsupportedError` with every reason why ``backend`` cannot attend over these, if there is one.

    Reasons are looked up by what they depend on: a call that runs pays a few microseconds.
    """
    device, dtypes = Q.device, (Q.dtype, K.dtype, V.dtype, p.dtype)
    backward = device.type not in backend.backward and torch.is_grad_enabled() and _wants_gradient(block, Q, K, V, p)
    if torch.compiler.is_compiling():
        found = limit_reasons(backend, str(device), dtypes, backward)
    else:
        found = call_reasons(backend, device, dtypes, backward)
    if len(Q) != len(p) and not backend.samples:
        found = [*found, f"samples: an entry of p for each item is required, {len(p)} for {len(Q)} were found"]
    heads, channels = Q.shape[2], p.shape[3]
    plain = not backend.reads_weights or are_plain(block, heads, channels)
    if found or not plain:
        reasons = [*found, *([] if plain else child_reasons(block, heads, channels))]
        raise UnsupportedError(reasons, who=type(block).__name__)


def _wants_gradient(block: AtomTransformerBlock, *tensors: Tensor) -> bool:
    trained = (*block.norm_pair.parameters(), *block.pair_bias.parameters())
    return any(t.requires_grad for t in (*tensors, *trained))


class PairWeights(NamedTuple):
    """What LayerNorm and projection are made of: ``gamma, beta [C]``, ``weight [H, C]``, and LayerNorm's ε."""

    gamma: Tensor
    beta: Tensor
    weight: Tensor
    eps: float


def pair_weights(block: AtomTransformerBlock) -> PairWeights:
    """The plain children's weights; ones and zeros where a norm has none."""
    norm: Any = block._modules["norm_pair"]
    weight, gamma, beta = _held(block._modules["pair_bias"], "weight"), _held(norm, "weight"), _held(norm, "bias")
    assert weight is not None  # it was found plain
    if gamma is None:
        gamma = weight.new_ones(weight.shape[1])
    if beta is None:
        beta = weight.new_zeros(weight.shape[1])
    return PairWeights(gamma, beta, weight, norm.eps)


def _held(child: nn.Module | None, name: str) -> Any:
    """``child.name``, without a module's slow attribute look-up where it is a parameter."""
    held = child._parameters.get(name)  # pyright: ignore[reportOptionalMemberAccess]
    return getattr(child, name) if held is None else held


def are_plain(block: AtomTransformerBlock, heads: int, channels: int) -> bool:
    """Whether :func:`child_reasons` finds nothing, in a few microseconds."""
    norm: Any = block._modules["norm_pair"]
    linear: Any = block._modules["pair_bias"]
    if type(norm) not in _NORMS or type(linear) not in _LINEARS:
        return False
    a, b = norm.__dict__, linear.__dict__
    if (
        a["_forward_hooks"]
        or a["_forward_pre_hooks"]
        or a["_backward_hooks"]
        or a["_backward_pre_hooks"]
        or b["_forward_hooks"]
        or b["_forward_pre_hooks"]
        or b["_backward_hooks"]
        or b["_backward_pre_hooks"]
        or "forward" in a
        or "forward" in b
        or _torch_modules._global_forward_hooks
        or _torch_modules._global_forward_pre_hooks
        or _torch_modules._global_backward_hooks
        or _torch_modules._global_backward_pre_hooks
    ):
        return False
    weight, gamma, beta = _held(linear, "weight"), _held(norm, "weight"), _held(norm, "bias")
    return (
        type(weight) in _TENSORS
        and weight.shape == (heads, channels)
        and _held(linear, "bias") is None
        and norm.normalized_shape == (channels,)
        and (gamma is None or type(gamma) in _TENSORS)
        and (beta is None or type(beta) in _TENSORS)
    )


def child_reasons(block: AtomTransformerBlock, heads: int | None = None, channels: int | None = None) -> list[str]:
    """Every way in which the children are not plain, by name, with what is required and what was found.

    Sizes are those of the call; None where there is none yet, as in :func:`variants.convert`.
    """
    norm, linear = block.norm_pair, block.pair_bias
    reasons = [*_module_reasons("norm_pair", norm, _NORMS), *_module_reasons("pair_bias", linear, _LINEARS)]
    reasons += _global_hook_reasons()
    if type(norm) in _NORMS and channels is not None and norm.normalized_shape != (channels,):
        reasons.append(f"norm_pair: the last axis of p, {channels}, is required, {norm.normalized_shape} was found")
    return reasons + _linear_reasons("pair_bias", linear, {"H": heads, "C": channels})


def require_pairs(backend: Backend, model: AtomFeatureEncoder | AtomAttentionDecoder, *tensors: Tensor) -> None:
    """As :func:`require`, for ``_pairs``: `tensors` are all floating ones, the last of them [..., C]."""
    device, dtypes = tensors[0].device, tuple(t.dtype for t in tensors)
    wanted = any(t.requires_grad for t in (*tensors, *model.parameters()))
    backward = device.type not in backend.backward and torch.is_grad_enabled() and wanted
    reasons = [*call_reasons(backend, device, dtypes, backward), *pairs_child_reasons(model, tensors[-1].shape[-1])]
    if reasons:
        raise UnsupportedError(reasons, who=type(model).__name__)


def pairs_child_reasons(model: AtomFeatureEncoder | AtomAttentionDecoder, channels: int | None = None) -> list[str]:
    """As :func:`child_reasons`, for the children that make the pairs of an encoder or decoder."""
    widths = {"proj_d_vec": 3, "proj_inv_sq": 1, "proj_v": 1} if isinstance(model, AtomFeatureEncoder) else {}
    linears = {name: (getattr(model, name), width) for name, width in widths.items()}
    mlp, reasons = model.mlp_p, _module_reasons("mlp_p", model.mlp_p, (nn.Sequential,))
    if not reasons:
        kinds = [type(part) for part in mlp]
        if len(kinds) != _MLP_PARTS or any(kind is not nn.ReLU for kind in kinds[1::2]):
            found = ", ".join(kind.__name__ for kind in kinds)
            return [f"mlp_p: four linears with ReLU between them are required, {found} were found"]
        for i, part in enumerate(mlp):
            if i % 2:
                reasons += _module_reasons(f"mlp_p.{i}", part, (nn.ReLU,))
            else:
                linears[f"mlp_p.{i}"] = (part, channels)  # pyright: ignore[reportArgumentType]
    for name, (linear, width) in linears.items():
        reasons += _module_reasons(name, linear, _LINEARS) + _linear_reasons(name, linear, {"C": channels, "": width})
    return reasons + _global_hook_reasons()


def _linear_reasons(name: str, linear: nn.Module, sizes: dict[str, int | None]) -> list[str]:
    """What a linear, whose class was looked at before, has beside a weight of these sizes; None is any."""
    if type(linear) not in _LINEARS:
        return []
    assert isinstance(linear, nn.Linear)
    reasons = [] if linear.bias is None else [f"{name}: no bias is required, one was found"]
    if None not in sizes.values() and linear.weight.shape != tuple(sizes.values()):
        wanted = ", ".join(f"{axis}={size}".lstrip("=") for axis, size in sizes.items())
        reasons.append(f"{name}: a weight [{wanted}] is required, {list(linear.weight.shape)} was found")
    return reasons


def _global_hook_reasons() -> list[str]:
    return [
        f"modules: no hook on all modules is required, a {name[len('_global_') : -1].replace('_', ' ')} was found"
        for name in _GLOBAL_HOOKS
        if getattr(_torch_modules, name)
    ]


def backward_hook_reasons(block: AtomTransformerBlock) -> list[str]:
    """Backward hooks on the children, or on all modules."""
    children = {"norm_pair": block.norm_pair, "pair_bias": block.pair_bias}
    reasons = [
        f"{name}: no {_HOOKS[held]} is required, one was found"
        for name, child in children.items()
        for part in child.modules()
        for held in ("_backward_hooks", "_backward_pre_hooks")
        if part.__dict__[held]
    ]
    if _torch_modules._global_backward_hooks or _torch_modules._global_backward_pre_hooks:
        reasons.append("modules: no hook on all modules is required, a backward hook was found")
    return reasons


def _module_reasons(name: str, child: nn.Module, classes: tuple[type, ...]) -> list[str]:
    """Class, hooks, a forward of its own, and tensors that are more than tensors."""
    if type(child) not in classes:
        wanted = " or ".join(c.__name__ for c in classes)
        return [f"{name}: a plain {wanted} is required, as its weights are read; {type(child).__qualname__} was found"]
    reasons = [
        f"{name}: no {what} is required, as it is not called; one was found"
        for held, what in _HOOKS.items()
        if child.__dict__[held]
    ]
    if "forward" in child.__dict__:
        reasons.append(f"{name}: its class's own forward is required, one put on the module was found")
    for part in ("weight", "bias"):
        held = getattr(child, part, None)
        if held is not None and type(held) not in _TENSORS:
            reasons.append(f"{name}: a plain tensor as {part} is required, {type(held).__qualname__} was found")
    return reasons
