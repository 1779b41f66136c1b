"""What is asked for: axes become a problem with its sizes, and its memory is known before it is built.

A *problem* (:class:`~..schema.problem.Problem`) decides the arithmetic; a *group* is the backends that are
measured on it side by side. Everything here is arithmetic on sizes, free of torch: a plan of a
thousand cells costs a second.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, make_dataclass, replace
from itertools import product
from typing import Any

from pydantic import ValidationError

from .. import levels
from ..schema.axes import AXES, SYNTHETIC, AtomSet, Device, of_role, usual
from ..schema.problem import Problem
from ..workload import files, workloads
from ..workload.workloads import Workload


class BadAxis(ValueError):
    """A value on an axis that no problem can have; names the option, what was expected and what came."""


@dataclass(frozen=True)
class Group:
    """One problem and the backends to measure on it, interleaved. ``source`` is what to load the
    workload from (a name or a structure file's path); None for synthetic atoms."""

    problem: Problem
    backends: tuple[str, ...]
    source: str | None = None


def with_every_axis(asked: type) -> Any:
    """The dataclass with a field for each row of ``AXES`` that it does not name: it names those read by name."""
    more = [(a.name, Any, a.default) for a in AXES if a.name not in asked.__dataclass_fields__]
    return make_dataclass(asked.__name__, more, bases=(asked,), frozen=True) if more else asked


@with_every_axis
@dataclass(frozen=True)
class Axes:
    """One value per axis; ``workload`` is a system's name or a file's path, None for synthetic atoms."""

    level: str = usual("level")
    mode: str = usual("mode")
    device: Device = usual("device")  # noqa: RUF009  a constant
    dtype: str = usual("dtype")
    workload: str | None = usual("workload")
    n_atom: int | None = usual("n_atom")
    atoms: str = usual("atoms")
    window: int = usual("window")
    window_style: str = usual("window_style")
    k_cap: int | None = usual("k_cap")
    heads: int = usual("heads")
    batch: int = usual("batch")
    n_blocks: int = usual("n_blocks")
    c_atom: int = usual("c_atom")
    c_atompair: int = usual("c_atompair")
    c_token: int = usual("c_token")
    c_pair: int = usual("c_pair")
    seed: int = usual("seed")


def grid(base: Axes, **axes: tuple) -> Iterator[Axes]:
    """Every combination of the given axes, the last one fastest."""
    for values in product(*axes.values()):
        yield replace(base, **dict(zip(axes, values, strict=True)))


@functools.lru_cache(maxsize=8)
def workload_of(source: str | None, n_atom: int | None, atoms: AtomSet, seed: int) -> Workload:
    """The atoms of one problem, loaded or made up."""
    if source is None:
        if n_atom is None:
            raise BadAxis("--n-atom: a number of atoms or a --workload is needed, got neither")
        return workloads.synthetic(n_atom, atoms=atoms, seed=seed)
    if source in workloads.names():
        return workloads.load(source, atoms=atoms)
    return workloads.from_file(source, atoms)


def resolve(axes: Axes) -> tuple[Problem, str | None]:
    """The problem that these axes ask for, with every size filled in, and its source.

    Raises
    ------
    BadAxis, workloads.WorkloadError
    """
    _check(axes)
    level = levels.level_of(axes.level)
    if not level.differentiable:
        axes = replace(axes, mode=usual("mode"), dtype=usual("dtype"))
    atoms = axes.atoms
    work = workload_of(axes.workload, axes.n_atom, atoms, axes.seed)  # type: ignore[arg-type]
    if not is_text(work.name):
        raise BadAxis(f"--structure: expected a file whose name is UTF-8, got {work.name!r}")
    k, live = count_pairs(
        work,
        axes.window,
        k_cap=axes.k_cap,
        style=axes.window_style,
        chains=level.within_chains,
    )
    asked = {a.name: getattr(axes, a.name) for a in AXES}
    asked |= {a.name: a.elsewhere for a in of_role("model") if a.elsewhere is not None and not level.has_blocks}
    problem = _problem(
        **asked
        | {
            "workload": SYNTHETIC if axes.workload is None else work.name,
            "n_atom": work.n_atom,
            "n_res": work.n_res,
            "n_neighbor": k,
            "live_pairs": live * axes.batch,
        }
    )
    return problem, axes.workload


def resolve_all(axes: Iterable[Axes]) -> list[tuple[Problem, str | None]]:
    """:func:`resolve` for many; files of one base name are told apart by their folders.

    Raises
    ------
    BadAxis, workloads.WorkloadError
    """
    found = [resolve(one) for one in axes]
    named = files.names({source for _, source in found if source is not None and source not in workloads.names()})
    if not all(map(is_text, named.values())):
        raise BadAxis(f"--structure: expected folders whose names are UTF-8, got {list(named)!r}")
    return [
        (problem.model_copy(update={"workload": named[source]}) if source in named else problem, source)
        for problem, source in found
    ]


def is_text(name: str) -> bool:
    """Whether a file's name can be written into a record: not every name of bytes is one of characters."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _problem(**sizes: Any) -> Problem:
    try:
        return Problem(**sizes)
    except ValidationError as e:  # each axis is fine, their product has no name
        raise BadAxis(f"the axes: expected a problem that can be counted, got {e.errors()[0]['loc'][0]}") from None


def _check(axes: Axes) -> None:
    for axis in AXES:
        why = axis.wrong(getattr(axes, axis.name))
        if why is not None:
            raise BadAxis(f"{axis.flags[0]}: {why}")
    if axes.c_atom % axes.heads:
        raise BadAxis(f"--heads: expected a divisor of c_atom = {axes.c_atom}, got {axes.heads}")
    if levels.level_of(axes.level).builds_index and (axes.k_cap is not None or axes.window_style != "residues"):
        raise BadAxis(
            f"--k, --window-style: level {axes.level} builds its own index from the window, "
            f"expected neither, got --k {axes.k_cap} and --window-style {axes.window_style}"
        )


def count_pairs(
    work: Workload, window: int, *, k_cap: int | None = None, style: str = "residues", chains: bool = True
) -> tuple[int, int]:
    """``(K, live pairs)`` of the index that :func:`.workloads.attention_index` would build, in O(N)."""
    slots, start, stop = workloads.neighbour_runs(work, window, k_cap=k_cap, style=style, chains=chains)
    return slots, int((stop - start).sum())
