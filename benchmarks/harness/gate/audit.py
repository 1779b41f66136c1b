"""What a backend may not do to be fast: touch what it was given, or answer with something else.

Inputs, weights, index and mask are shared by all backends of a group; whoever edits one makes the honest ones beside it
wrong. So everything given is fingerprinted: by torch's own edit counters, which cost nothing, and by two sums over the
bits, the second weighted by position, which see what a kernel writes past torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .failures import WrongResult

if TYPE_CHECKING:
    from torch import Tensor

    from ..cases.case import Case, Made
    from ..reference.inputs import Inputs

_ROW = 256  # words that are summed before they are weighted by their place
_CHUNK_ROWS = 1 << 16
_SECOND = " (second set)"
CHEAP_BYTES = 64 << 20  # what is summed after every timed sample; more only now and then


class Fingerprints:
    """Everything that the backends of a group are given, and how it looked when it was built."""

    def __init__(self, turns: Sequence[Inputs]) -> None:
        self._tensors: dict[str, Tensor] = {}
        steps = turns[0].problem.mode == "train"  # an optimizer writes to weights, with the values that they have
        for turn in turns:
            mark = "" if turn is turns[0] else _SECOND
            given = turn.tensors | turn.fixed | {f"gradient of {name}": t for name, t in turn.cotangents.items()}
            self._tensors |= {f"{name}{mark}": tensor for name, tensor in given.items()}
            self._tensors |= {f"weight {name}": w for name, w in turn.module.named_parameters()}
        self._counted = {n: t for n, t in self._tensors.items() if not (steps and n.startswith("weight "))}
        self.cheap = sum(t.nbytes for t in self._tensors.values()) <= CHEAP_BYTES
        self.renew()

    def renew(self) -> None:
        """Take what is there now as what must stay."""
        self._sums = {name: checksum(tensor) for name, tensor in self._tensors.items()}
        self._versions = {name: tensor._version for name, tensor in self._counted.items()}

    def swap(self, names: Sequence[str]) -> None:
        """The two sets have exchanged what they hold under these names."""
        for name in names:
            other = name + _SECOND
            self._sums[name], self._sums[other] = self._sums[other], self._sums[name]
            self._versions |= {one: self._tensors[one]._version for one in (name, other)}

    def edited(self) -> list[str]:
        """What torch has counted an edit of."""
        return [name for name, tensor in self._counted.items() if tensor._version != self._versions[name]]

    def changed(self) -> list[str]:
        """What holds other bits."""
        return [name for name, tensor in self._tensors.items() if checksum(tensor) != self._sums[name]]

    def require(self, *, whole: bool) -> None:
        """Raise :class:`WrongResult` if anything was edited, or, looking at all of it, changed."""
        touched = self.edited() or (self.changed() if whole else [])
        if touched:
            raise WrongResult(f"it changed what it was given: {', '.join(touched)}")


def checksum(tensor: Tensor) -> tuple[int, int]:
    """The sum of a tensor's words and their sum weighted by place, modulo 2**64; NaNs count by their bits."""
    import torch

    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    whole = flat.numel() - flat.numel() % (8 * _ROW)
    rest = flat[whole:].to(torch.int64)
    plain = int(rest.sum())
    placed = int((rest * torch.arange(1, len(rest) + 1, device=flat.device)).sum())
    rows = flat[:whole].view(torch.int64).view(-1, _ROW)
    weight = torch.arange(1, 2 * _ROW, 2, device=flat.device)
    for low in range(0, len(rows), _CHUNK_ROWS):
        part = rows[low : low + _CHUNK_ROWS]
        number = torch.arange(low + 1, low + 1 + len(part), device=flat.device)
        plain += int(part.sum())
        placed += int(((part * weight).sum(1) * (2 * number + 1)).sum())
    return plain % 2**64, placed % 2**64


def require_own(of: Case, made: Made) -> None:
    """Raise :class:`WrongResult` unless a call's results are plain tensors of the expected kind that it made itself."""
    import torch

    inputs = of.turns[made.turn]
    given = {t.untyped_storage().data_ptr(): n for n, t in (inputs.leaves | inputs.fixed).items() if t.numel()}
    dtype = getattr(torch, inputs.problem.dtype)
    for name, tensor in of.named(made).items():
        if tensor is None:
            continue  # the comparison says so
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise WrongResult(f"{name} is no plain tensor but a {type(tensor).__name__}: it may not be computed yet")
        if inputs.problem.level != "index" and tensor.dtype != dtype:
            raise WrongResult(f"{name} is {tensor.dtype}, expected {dtype}")
        if tensor.device.type != inputs.problem.device:
            raise WrongResult(f"{name} is on {tensor.device}, expected {inputs.problem.device}")
        if tensor.numel() and tensor.untyped_storage().data_ptr() in given:
            raise WrongResult(f"{name} lies in the memory of {given[tensor.untyped_storage().data_ptr()]}")


def returned_bytes(of: Case, made: Made) -> int:
    """Bytes of what a call made and handed over, tensors that share memory once, what it was given not at all."""
    inputs = of.turns[made.turn]
    given = {t.untyped_storage().data_ptr() for t in [*inputs.leaves.values(), *inputs.cotangents.values()]}
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in of.named(made).values() if t is not None
    }
    return sum(size for place, size in storages.items() if place not in given)
