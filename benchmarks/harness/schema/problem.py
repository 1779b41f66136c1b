"""A problem: everything that decides the arithmetic, and the bounded types that records are made of. Free of torch."""

from __future__ import annotations

import hashlib
import json
import math
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from .axes import AXES, AtomSet, Axis, Device, DType, Mode, WindowStyle, absent

# Bounded, so that whatever shows a record (a 64-bit column, an axis) can hold what is in it.
_MOST, _LONGEST_MS, _DEEPEST = 2**62, 1e12, 8


def _a_fact(value: object, depth: int = _DEEPEST) -> object:
    """What a fact may be: JSON, its numbers finite and bounded, not nested without end."""
    match value:
        case None | bool() | str():
            return value
        case int() if abs(value) <= _MOST:
            return value
        case float() if math.isfinite(value):
            return value
        case dict() | list() | tuple() if depth:
            for inner in (*value, *value.values()) if isinstance(value, dict) else value:
                _a_fact(inner, depth - 1)
            return value
    what = "too deeply nested" if isinstance(value, dict | list | tuple) else f"{type(value).__name__} {value!r:.40}"
    raise ValueError(f"expected JSON with finite numbers up to 2**62, at most {_DEEPEST} deep, got {what}")


def _a_moment(text: str) -> str:
    datetime.fromisoformat(text)  # raises
    return text


Count = Annotated[int, Field(ge=0, le=_MOST)]


Positive = Annotated[int, Field(ge=1, le=_MOST)]


Seed = Annotated[int, Field(ge=-_MOST, le=_MOST)]


Moment = Annotated[str, AfterValidator(_a_moment)]  # ISO 8601


Facts = Annotated[dict[str, object], AfterValidator(_a_fact)]


Milliseconds = Annotated[float, Field(ge=0, le=_LONGEST_MS, allow_inf_nan=False)]


Finite = Annotated[float, Field(allow_inf_nan=False)]


Sample = Annotated[float, Field(gt=0, le=_LONGEST_MS, allow_inf_nan=False)]  # a time of 0 was not measured


Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


# A name: old records may hold a level that is no longer here; ``cases.problems`` refuses one that is not.
Level = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Model = TypeVar("Model", bound=type[BaseModel])


def with_every_axis(model: Model) -> Model:
    """The model with a field for each row of ``AXES`` that it does not name: it names those that are read by name."""
    more: dict[str, Any] = {a.name: (_type(a), a.absent) for a in AXES if a.name not in model.model_fields}
    return create_model(model.__name__, __base__=model, __module__=model.__module__, **more) if more else model  # type: ignore[return-value]


def _type(axis: Axis) -> Any:
    """What a record may hold of an axis."""
    kind: Any = Literal[axis.choices] if axis.choices else Annotated[int, Field(ge=axis.least, le=_MOST)]  # type: ignore[valid-type]
    return kind if axis.absent is not None else kind | None


@with_every_axis
class Problem(_Frozen):
    """Everything that decides the arithmetic, and nothing about who does it: a field per axis, and what came of them.

    ``n_atom``, ``n_res`` and ``n_neighbor`` (K) are the resolved sizes; ``workload`` names where
    they came from (a protein, ``synthetic``, or a file's name).
    """

    level: Level
    mode: Mode
    device: Device
    dtype: DType
    workload: str
    atoms: AtomSet
    n_atom: Positive
    n_res: Positive
    window: Positive
    window_style: WindowStyle = absent("window_style")
    k_cap: Positive | None = absent("k_cap")
    n_neighbor: Count
    live_pairs: Count
    batch: Positive = absent("batch")
    heads: Positive = absent("heads")
    c_atom: Positive = absent("c_atom")
    c_atompair: Positive = absent("c_atompair")
    n_blocks: Positive = absent("n_blocks")
    c_token: Positive = absent("c_token")
    c_pair: Positive = absent("c_pair")
    seed: Seed = absent("seed")

    @property
    def head_dim(self) -> int:
        return self.c_atom // self.heads

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return ITEMSIZE[self.dtype]

    @property
    def key(self) -> str:
        """A short stable name of this problem: equal problems have equal keys on every machine. An axis that came when
        there were records is left out at its default, so that their keys stand."""
        held = self.model_dump(mode="json")
        for axis in AXES:
            if axis.added and held[axis.name] == axis.absent:
                del held[axis.name]
        text = json.dumps(held, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


ITEMSIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
