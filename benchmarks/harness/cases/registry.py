"""Backends as the bench knows them: by name from ``variants``, or from a file of the user's own.

``--backend gather,./mine.py`` measures a file beside the registered ones: it is loaded from its path, must end
in a ``BACKEND`` like any other, and is named by its stem.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..levels import level_of, sole_backends
from ..schema.problem import Problem
from .problems import is_text

if TYPE_CHECKING:
    from torch import nn

    from variants import Backend

    from .case import Case


class UnknownBackend(ValueError):
    """No such backend: names the option, the names that there are, and what came."""


def is_file(spec: str) -> bool:
    """Whether a backend is given as a path to its file."""
    return spec.endswith(".py")


def name_of(spec: str) -> str:
    """The backend's name in records: its own, or the stem of its file."""
    return Path(spec).stem if is_file(spec) else spec


def expand(specs: list[str]) -> tuple[str, ...]:
    """``all`` becomes every registered name; files become absolute; unknown ones are refused."""
    import variants

    known = variants.names()
    specs_of: dict[str, str] = {}
    for spec in specs:
        for one in known if spec == "all" else (spec,):
            if is_file(one) and not Path(one).is_file():
                raise UnknownBackend(f"--backend: expected a backend's file, {one} does not exist")
            if not is_text(name_of(one)):
                raise UnknownBackend(f"--backend: expected a file whose name is UTF-8, got {one!r}")
            if is_file(one) and name_of(one) in known:
                raise UnknownBackend(f"--backend: {one} is named like the registered {name_of(one)}; rename the file")
            if not is_file(one) and one not in known:
                raise UnknownBackend(f"--backend: expected one of {', '.join(known)}, a .py file, or all; got {one!r}")
            specs_of.setdefault(name_of(one), str(Path(one).resolve()) if is_file(one) else one)
    return tuple(specs_of.values())


@functools.lru_cache(maxsize=64)
def load(spec: str) -> Backend:
    """The declaration of a backend."""
    import variants

    if not is_file(spec):
        return variants.load(spec)
    name = f"atom_bench_backend_{name_of(spec)}"
    module_spec = importlib.util.spec_from_file_location(name, spec)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    module_spec.loader.exec_module(module)
    return module.BACKEND


def unavailable(spec: str, problem: Problem) -> list[str]:
    """Every reason why the backend does not run on this problem's device, dtype and mode; a file's are found by
    running it."""
    import variants

    if is_file(spec) or spec in sole_backends():
        return []
    if spec not in variants.names():  # asv's list of backends is today's, the code may be older
        return [f"backend: {spec} is required, this code has {', '.join(variants.names())}"]
    return variants.why_unavailable(
        spec, device=problem.device, dtype=problem.dtype, backward=problem.mode != "fwd", band=True
    )


def converted(spec: str, module: nn.Module) -> nn.Module:
    """The same parameters on another backend."""
    import variants
    from pallatom.architecture.atom_transformers import AtomTransformerBlock

    if spec in sole_backends():
        return module
    if not is_file(spec):
        return variants.convert(module, spec)
    twin = variants.convert(module, variants.names()[0])
    for block in twin.modules():
        if isinstance(block, AtomTransformerBlock):
            block.__class__ = load(spec).block
    return twin


def path(spec: str, case: Case) -> str | None:
    """Which of its algorithms the backend takes for this case's seam; None where it, or older code, does not say."""
    import variants

    ask = getattr(variants, "path", None)
    if ask is None or spec in sole_backends() or is_file(spec):
        return None
    call = level_of(case.inputs.problem.level).seam_call(case.module, case.inputs.tensors | case.inputs.fixed)
    return None if call is None else ask(*call)


def tuning_ms(spec: str) -> float:
    """What the backend's tuning has taken in this process so far; 0 for one that does not tune (nor knows the word)."""
    spent = None if spec in sole_backends() else getattr(load(spec), "tuning_ms", None)
    return 0.0 if spent is None else spent()


def seam_peak_bytes(spec: str, problem: Problem) -> int:
    """What the backend's own model says that one call of the seam allocates above its inputs."""
    from .footprint import shape_of

    if spec in sole_backends():
        return 0
    return load(spec).cost(shape_of(problem), "fwd" if problem.mode == "fwd" else "fwdbwd").peak_bytes
