"""Finds backends by file name, says why one does not run here, and swaps them inside a model."""

from __future__ import annotations

import copy
import functools
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._backend import Backend, UnsupportedError

if TYPE_CHECKING:
    import torch

    from pallatom.architecture.atom_transformers import AtomTransformerBlock

_OWN = ("variants", "pallatom")


def names() -> tuple[str, ...]:
    """Every backend, by file stem, in alphabetical order; imports none of them."""
    return tuple(sorted(f.stem for f in Path(__file__).parent.glob("*.py") if not f.stem.startswith("_")))


def load(name: str) -> Backend:
    """Import the backend's file and return its declaration. An unknown name raises a ``ValueError`` listing all."""
    if name not in names():
        raise ValueError(f"name: expected one of {', '.join(names())}; got {name!r}")
    return importlib.import_module(f"{__package__}.{name}").BACKEND


def why_unavailable(
    name: str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = "float32",
    backward: bool = False,
    band: bool = True,
) -> list[str]:
    """Every reason why the backend does not run so, each with what is required and what was found; empty if it runs.

    ``band=False`` asks about an index that is not a band. Missing foreign modules and shared libraries that do not
    load are reasons; an error in our own code is a bug and is raised.
    """
    import torch

    backend = load(name)
    device = str(device)
    wanted: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    reasons = limit_reasons(backend, device, (wanted,), backward) + _environment_reasons(backend, device)
    if backend.needs_band and not band:
        reasons.append("index: a band (one contiguous run of atoms per row) is required, another index was asked about")
    return reasons


def path(
    block: AtomTransformerBlock,
    Q: torch.Tensor,
    K: torch.Tensor,
    V: torch.Tensor,
    p: torch.Tensor,
    neighbor_idx: torch.Tensor,
    valid_mask: torch.Tensor,
) -> str:
    """Which of its backend's algorithms ``block._attend`` takes for these arguments, in a stable word or phrase.

    A backend with one algorithm answers with its own name. "layer" is the layer's own sum: of nothing, where no slot is
    live. Nothing is computed but the index's plan, which is remembered for the call. A call that the backend refuses by
    its declaration or by its index is refused here with the same :class:`UnsupportedError`.
    """
    from ._require import require

    own = next((c for c in type(block).__mro__ if "_attend" in vars(c)), type(block))  # FSDP, say, makes a subclass
    name = _backend_name(own)
    if name is None or "_attend" in vars(block):
        raise TypeError(f"block: expected a backend's block, got {type(block).__module__}.{type(block).__qualname__}")
    backend = load(name)
    require(backend, block, Q, K, V, p)
    return name if backend.path is None else backend.path(block, Q, K, V, p, neighbor_idx, valid_mask)


@functools.lru_cache(maxsize=256)
def call_reasons(
    backend: Backend, device: torch.device, dtypes: tuple[torch.dtype, ...], backward: bool
) -> tuple[str, ...]:
    """As :func:`why_unavailable`, for every call of ``_attend``: the machine does not change while a process runs."""
    return (*limit_reasons(backend, str(device), dtypes, backward), *_environment_reasons(backend, str(device)))


def limit_reasons(backend: Backend, device: str, dtypes: tuple[torch.dtype, ...], backward: bool) -> list[str]:
    """Declared limits against what is asked: device kind, dtypes, backward."""
    kind = device.partition(":")[0]
    reasons = []
    if kind not in backend.devices:
        reasons.append(f"device: {' or '.join(backend.devices)} is required, {kind} was asked for")
    known = ", ".join(_short(d) for d in backend.dtypes)
    unknown = dict.fromkeys(d for d in dtypes if d not in backend.dtypes)
    reasons += [f"dtype: one of {known} is required, {_short(d)} was found" for d in unknown]
    if backward and kind not in backend.backward:
        where = " or ".join(backend.backward) or "no device"
        reasons.append(f"backward: it has one on {where}, a gradient was asked for on {kind}")
    return reasons


def _environment_reasons(backend: Backend, device: str) -> list[str]:
    """What the machine lacks: the device, its compute capability, foreign modules, and what the probe finds."""
    there = _device_reasons(backend, device)
    missing = [reason for module in backend.requires if (reason := _import_reason(module))]
    if not there and not missing and backend.probe is not None and device.partition(":")[0] in backend.devices:
        return backend.probe(device)
    return there + missing


def _device_reasons(backend: Backend, device: str) -> list[str]:
    import torch

    kind, _, index = device.partition(":")
    if kind == "cpu":
        return []
    try:
        module = torch.get_device_module(kind)
        count = module.device_count() if module.is_available() else 0
    except RuntimeError as e:
        return [f"device: {device} is required, this torch ({torch.__version__}) does not know it ({e})"]
    if count <= int(index or 0):
        return [f"device: {device} is required, torch {torch.__version__} finds {count} {kind} devices"]
    if kind != "cuda" or backend.min_capability is None:
        return []
    found = torch.cuda.get_device_capability(device)
    if found >= backend.min_capability:
        return []
    return [f"compute capability: {_dotted(backend.min_capability)} or later is required, {_dotted(found)} was found"]


def _import_reason(module: str) -> str | None:
    """Why a foreign module cannot be imported; None if it can. A failure to import one of our own is raised."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] in _OWN:
            raise
        return f"module: {module} is required, {e.name or module} is not installed"
    except (ImportError, OSError) as e:
        if (getattr(e, "name", None) or "").partition(".")[0] in _OWN:
            raise
        return f"module: {module} is required, it is installed but does not load ({type(e).__name__}: {e})"
    return None


def convert(module: torch.nn.Module, name: str) -> torch.nn.Module:
    """A new module tree on backend ``name`` that shares every parameter and buffer with ``module``.

    ``module`` itself stays as it is. Raises ``ValueError`` for an unknown name or a tree without an
    ``AtomTransformerBlock``, ``TypeError`` for a block whose class is neither the layer's own nor a backend's (an
    encoder or decoder likewise, where the backend makes their pairs), and :class:`UnsupportedError` where the backend
    reads the weights of children that are not plain (wrapped, hooked, replaced). Every call checks this again, because
    children may be changed later.

    A backend remembers what it made of an index and mask. On the CPU any edit of these is seen; on a GPU those are that
    torch counts (not through ``.data``, DLPack or a kernel of one's own): see :mod:`pallatom.architecture._remember`.
    """
    import torch

    from pallatom.architecture.atom_transformers import AtomTransformerBlock

    from ._require import child_reasons, pairs_child_reasons

    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    backend = load(name)
    if not any(isinstance(part, AtomTransformerBlock) for part in module.modules()):
        raise ValueError(f"module: expected an AtomTransformerBlock in the tree, {type(module).__name__} has none")
    found: list[str] = []
    part: Any
    for path, part in module.named_modules():
        becomes, reasons = _becomes(part, backend), []
        if becomes is backend.block and backend.reads_weights:
            reasons = child_reasons(part)
        elif becomes is not None and becomes in (backend.encoder, backend.decoder):
            reasons = pairs_child_reasons(part)
        found += [f"{path}.{reason}".lstrip(".") for reason in reasons]
    if found:
        raise UnsupportedError(found, who=f"module: {name}")
    shared = {id(t): t for m in module.modules() for t in _tensors(m)}
    twin = copy.deepcopy(module, shared)
    for part in twin.modules():
        part.__class__ = _becomes(part, backend) or type(part)
    return twin


def _becomes(part: torch.nn.Module, backend: Backend) -> type | None:
    """The class of ``part`` on ``backend``; None for what has no seam, or one that the backend leaves to the layer.

    Raises ``TypeError`` for a class of the caller's whose own behaviour would be replaced.
    """
    from pallatom.architecture.atom_transformers import AtomAttentionDecoder, AtomFeatureEncoder, AtomTransformerBlock

    for base, made, seam in (
        (AtomTransformerBlock, backend.block, "_attend"),
        (AtomFeatureEncoder, backend.encoder, "_pairs"),
        (AtomAttentionDecoder, backend.decoder, "_pairs"),
    ):
        if not isinstance(part, base):
            continue
        if _backend_name(type(part)) is not None and seam not in vars(part):
            return made or base
        if made is not None or any(_backend_name(c) not in (None, "gather") for c in type(part).__mro__):
            raise TypeError(
                f"module: expected {base.__name__}s of that class or of a backend's, got {type(part).__module__}."
                f"{type(part).__qualname__}, whose own behaviour a backend would replace"
            )
    return None


def _tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    """Parameters, buffers and plain tensor attributes that the module itself holds."""
    import torch

    held = (*module._parameters.values(), *module._buffers.values(), *vars(module).values())
    return [t for t in held if isinstance(t, torch.Tensor)]


def _backend_name(cls: type) -> str | None:
    """The backend that ``cls`` is a class of; "gather" for the layer's own, None for any other class."""
    from pallatom.architecture.atom_transformers import AtomAttentionDecoder, AtomFeatureEncoder, AtomTransformerBlock

    if cls in (AtomTransformerBlock, AtomFeatureEncoder, AtomAttentionDecoder):
        return "gather"
    package, _, stem = cls.__module__.rpartition(".")
    if package != __package__ or stem not in names():
        return None
    backend = load(stem)
    return stem if cls in (backend.block, backend.encoder, backend.decoder) else None


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
