"""The fused backend without a GPU: what it declares, and its tuned configurations."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import variants
from tests import ROOT
from tests.variants.seam import floor_of, seam
from variants._backend import Shape, UnsupportedError
from variants.triton.config import Sizes, backward_config, forward_config

USUAL = Sizes(torch.bfloat16, torch.bfloat16, 4, 32, 16)


def _python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    env.pop("PYTEST_XDIST_WORKER", None)
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=2000)


def test_a_cpu_without_the_interpreter_is_refused() -> None:
    pytest.importorskip("triton")
    made = seam(11, 6)
    block = variants.convert(made.block, "triton_fused")
    with pytest.raises(UnsupportedError, match="TRITON_INTERPRET=1"):
        block._attend(*made.inputs, made.neighbor_idx, made.valid_mask)
    assert any("interpreter" in reason for reason in variants.why_unavailable("triton_fused", device="cpu"))


def test_the_declaration_needs_no_triton() -> None:
    code = "import sys, variants; sys.modules['triton'] = None; print(variants.why_unavailable('triton_fused'))"
    done = _python("-c", code)
    assert done.returncode == 0, done.stderr
    assert "module: triton is required" in done.stdout


def test_extra_forward_memory_is_a_few_percent_of_p() -> None:
    shape = Shape(1, 16384, 434, 4, 32, 16, 16384 * 434, 2, 2)
    assert variants.load("triton_fused").cost(shape, "fwd").peak_bytes <= 0.05 * shape.p_bytes


def test_traffic_is_the_operations_floor_and_little_else() -> None:
    """Of what goes in, the backward reads all but the outputs' gradients a second time, and O."""
    shape = Shape(1, 16384, 434, 4, 32, 16, 16384 * 434, 2, 2)
    cost = variants.load("triton_fused").cost
    assert cost(shape, "fwd").bytes <= 1.15 * floor_of(shape, "fwd").bytes
    again = shape.p_bytes + 4 * shape.atom_bytes
    assert cost(shape, "fwdbwd").bytes <= 1.15 * (floor_of(shape, "fwdbwd").bytes + again)


def test_a_split_backward_costs_its_own_traffic_and_memory() -> None:
    """Read once more than the floor: p by the backward, and for each of two groups of 8 heads; and g, a quarter of p,
    written, read and held."""
    wide = Shape(1, 4096, 434, 16, 64, 64, 4096 * 434, 2, 2)
    assert backward_config(Sizes(torch.bfloat16, torch.bfloat16, 16, 64, 64), 90).split_heads == 8
    floor, found = floor_of(wide, "fwdbwd").bytes, variants.load("triton_fused").cost(wide, "fwdbwd")
    atoms = 16 * wide.atom_bytes
    assert found.bytes - floor == pytest.approx(3.5 * wide.p_bytes, abs=atoms)
    assert found.peak_bytes == pytest.approx(1.25 * wide.p_bytes, abs=atoms)


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_defaults_do_not_depend_on_what_was_not_tuned(arch: int) -> None:
    """Half precision pipelines its loads; fp32 operands leave no registers for that."""
    for choose in (forward_config, backward_config):
        assert choose(USUAL, arch).num_stages >= 2
        assert choose(Sizes(torch.float32, torch.float32, 4, 32, 16), arch).num_stages == 1


def test_the_lowest_score_has_an_exact_product_with_every_scale() -> None:
    """What the interpreter cannot show: GPUs fuse ``s * scale - max * scale``, whose first product is then unrounded.

    Where the second one is rounded, a row of dead slots has exp2 of 1e22: NaN, at head dims 16 and 64 with -1e30.
    """
    common = pytest.importorskip("variants.triton.common")
    lowest = np.float32(common.LOWEST.value)
    scales = [np.float32(np.float32(d**-0.5) * np.float32(common.LOG2_E.value)) for d in range(1, 257)]
    assert all(float(lowest * scale) == float(lowest) * float(scale) for scale in scales)
    assert np.float32(lowest + np.float32(1e6)) == lowest  # a score on top of it is lost in it
