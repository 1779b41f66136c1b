"""A problem: everything that decides the arithmetic, and the bounded types that records are made of. Free of torch."""

from __future__ import annotations

import hashlib
import json
import math
from datetime import datetime
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from .jsonl import BadLine as BadLine
from .jsonl import CannotRecord as CannotRecord
from .jsonl import MalformedRecord as MalformedRecord
from .jsonl import append as append
from .jsonl import scan_lines as scan_lines

Level = Literal["attention", "block", "stack", "encoder", "decoder", "index"]


Mode = Literal["fwd", "fwdbwd", "train"]


DType = Literal["float32", "float64", "bfloat16", "float16"]


AtomSet = Literal["backbone", "heavy", "atom14"]


WindowStyle = Literal["residues", "blocks"]


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


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Problem(_Frozen):
    """Everything that decides the arithmetic, and nothing about who does it.

    ``n_atom``, ``n_res`` and ``n_neighbor`` (K) are the resolved sizes; ``workload`` names where
    they came from (a protein, ``synthetic``, or a file's name).
    """

    level: Level
    mode: Mode
    device: Literal["cpu", "cuda"]
    dtype: DType
    workload: str
    atoms: AtomSet
    n_atom: Positive
    n_res: Positive
    window: Positive
    window_style: WindowStyle = "residues"
    k_cap: Positive | None = None
    n_neighbor: Count
    live_pairs: Count
    batch: Positive = 1
    heads: Positive = 4
    c_atom: Positive = 128
    c_atompair: Positive = 16
    n_blocks: Positive = 1
    c_token: Positive = 384
    c_pair: Positive = 128
    seed: Seed = 0

    @property
    def head_dim(self) -> int:
        return self.c_atom // self.heads

    @property
    def key(self) -> str:
        """A short stable name of this problem: equal problems have equal keys on every machine."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


LEVELS: tuple[str, ...] = get_args(Level)


MODES: tuple[str, ...] = get_args(Mode)


DTYPES: tuple[str, ...] = get_args(DType)


ATOM_SETS: tuple[str, ...] = get_args(AtomSet)


WINDOW_STYLES: tuple[str, ...] = get_args(WindowStyle)


ITEMSIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


SYNTHETIC = "synthetic"


LARGEST = 2**31 - 1  # of any number on an axis


# The index has no backend: it is built by the layer itself.
INDEX_BACKEND = "build_sparse_pairs"


STACKED = ("stack", "encoder", "decoder")  # levels of more than one block


WIDTHS = ("c_atom", "c_atompair", "c_token", "c_pair")


# Encoder and decoder build their index themselves, from tok_idx and the window alone.
OWN_INDEX = ("encoder", "decoder")
