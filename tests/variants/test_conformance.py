"""Every backend on every case: forward and all gradients agree with the definition, or all reasons are given."""

from __future__ import annotations

import pytest
import torch

import variants
from tests.variants.variant_cases import CASES, PARAMETERS, answer, errors, problem, reference
from variants import banded
from variants._backend import UnsupportedError
from variants.band.batches import batches

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 5e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}
# In half precision the sums over all pairs in the weights' gradients cancel by a factor of ten and more.
WEIGHT_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-1, torch.float16: 1e-1}


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Whatever is allocated without being written is NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(8).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def _cells():
    """Backends that compile per shape (seconds each) get the cases of one shape in one dtype."""
    for device in DEVICES:
        for name in variants.names():
            compiles = variants.load(name).compiles
            for dtype in DTYPES[1:2] if compiles else DTYPES:
                for case, kind in CASES.items():
                    if (kind.canonical or not compiles) and (kind.half or dtype.itemsize > 2):
                        label = f"{name}-{case}-{str(dtype).removeprefix('torch.')}-{device}"
                        yield pytest.param(name, case, dtype, device, id=label)


@pytest.mark.parametrize(("name", "case", "dtype", "device"), list(_cells()))
def test_conforms_or_says_why_not(name: str, case: str, dtype: torch.dtype, device: str) -> None:
    given, backend = problem(case, dtype, device), variants.load(name)
    block = variants.convert(given.block, name)
    reasons = variants.why_unavailable(name, device=device, dtype=dtype, band=CASES[case].band)
    if reasons:
        with pytest.raises(UnsupportedError) as refusal, torch.no_grad():
            block._attend(*given.inputs, given.neighbor_idx, given.valid_mask)
        assert refusal.value.reasons
        return
    if device in backend.backward:
        got = answer(block, given)
    else:
        with pytest.raises(UnsupportedError, match="backward"):
            answer(block, given)
        with torch.no_grad():
            got = {"O": block._attend(*given.inputs, given.neighbor_idx, given.valid_mask)}
    assert got["O"].dtype == dtype
    check(got, case, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", [name for name, kind in CASES.items() if kind.band])
def test_banded_conforms_in_batches_of_tiles_too(case: str, dtype: torch.dtype, monkeypatch) -> None:
    """The geometry that CUDA gets, on this machine's device."""
    monkeypatch.setattr(banded, "_tiling", lambda plan: batches(plan, 16, 700))
    given = problem(case, dtype)
    check(answer(variants.convert(given.block, "banded"), given), case, dtype)


def check(got: dict[str, torch.Tensor], case: str, dtype: torch.dtype) -> None:
    """Every tensor within its tolerance of the float64 reference, and no gradient in padding."""
    found = errors(got, reference(case, dtype))
    weights = {f"d{name}" for name in PARAMETERS}
    limits = {x: (WEIGHT_TOLERANCE if x in weights else TOLERANCE)[dtype] for x in found}
    bad = {x: f"{e:.1e} > {limits[x]:.0e}" for x, e in found.items() if not e <= limits[x]}
    assert not bad
    if "dp" in got:
        live = problem(case, dtype).valid_mask.expand(got["dp"].shape[:3])
        assert (got["dp"].cpu()[~live] == 0).all(), "a padding slot got a gradient"
