"""How the fused backend launches: device, streams, grids and captures, with stand-ins where there is no GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

import variants
from tests.variants.seam import scattered, seam
from variants import UnsupportedError, triton_fused
from variants.band.plan import band_plan
from variants.triton import launch, plans
from variants.triton.config import Sizes, shared_bytes

INT_AXIS, LAST_AXES = 2**31 - 1, 65_535
"""The most programs on a grid's first axis, and on its others."""


class Kernels:
    """Every kernel of a module: what it was launched with, and on which device, is kept, and nothing is run."""

    def __init__(self) -> None:
        self.grids: dict[str, tuple[int, ...]] = {}

    def __getattr__(self, name: str) -> Any:
        class Launcher:
            def __getitem__(_, grid: tuple[int, ...]) -> Any:
                self.grids[name] = grid
                return lambda *arguments, **constants: None

        return Launcher()


@pytest.fixture
def kernels(monkeypatch) -> Kernels:
    made = Kernels()
    monkeypatch.setattr(launch, "_kernels", lambda part: made)
    return made


def _problem(batch: int) -> tuple[launch.Problem, Any]:
    made = seam(3, 2, batch=batch, heads=1, head_dim=16, channels=4)
    q, k, v, p = made.inputs
    norm, weight = made.block.norm_pair.weight.detach(), made.block.pair_bias.weight.detach()
    return launch.Problem(q, k, v, p, norm, weight, made.valid_mask.view(torch.uint8), 1e-5), made


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_batch_is_on_the_axis_that_holds_it(kernels: Kernels, deterministic: bool) -> None:
    problem, made = _problem(70_001)
    plan, idx = band_plan(made.neighbor_idx, made.valid_mask), made.neighbor_idx
    o, low, lse = launch.forward(problem, plan)
    launch.backward(problem, plan, o, low, lse, o, deterministic=deterministic)
    launch.forward_gather(problem, idx)
    holders = plans.holders_of(idx, made.valid_mask) if deterministic else None
    launch.backward_gather(problem, idx, o, low, lse, o, holders=holders)
    assert {"forward_band", "backward_prepare", "backward_band", "backward_finish"} <= kernels.grids.keys()
    assert {"forward_gather", "backward_gather"} <= kernels.grids.keys()
    assert ("backward_gather_keys" in kernels.grids) == deterministic
    for name, (first, *others) in kernels.grids.items():
        assert first <= INT_AXIS
        assert max(others, default=1) <= LAST_AXES, name
        assert name == "weight_gradients" or first >= 70_001


def test_a_batch_that_no_grid_holds_is_refused_by_name() -> None:
    """A tensor of that many rows that takes no memory."""
    rows = torch.zeros(1, 1, 1, 16).expand(2**16, 2**15, 1, 16)
    with pytest.raises(UnsupportedError, match=r"B N < 2\*\*31 is required, 2147483648 was found"):
        triton_fused._require_sizes(rows, rows, rows, rows)


def test_kernels_run_on_the_device_of_their_tensors(monkeypatch) -> None:
    """The second device while the first is current, and the first again behind it."""
    current = [0]

    class Device:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def __enter__(self) -> None:
            self.before, current[0] = current[0], self.device.index

        def __exit__(self, *_: object) -> None:
            current[0] = self.before

    monkeypatch.setattr(torch.cuda, "device", Device)
    found = []
    monkeypatch.setattr(launch, "forward_gather", lambda *_, **__: found.append(current[0]) or "made")
    monkeypatch.setattr(launch, "backward_gather", lambda *_, **__: found.append(current[0]) or "made")
    monkeypatch.setattr(triton_fused, "_band_or_none", lambda *_: found.append(current[0]))
    with FakeTensorMode():
        q, p = torch.empty(1, 3, 1, 16, device="cuda:1"), torch.empty(1, 3, 2, 4, device="cuda:1")
        gamma, weight = torch.empty(4, device="cuda:1"), torch.empty(1, 4, device="cuda:1")
        idx = torch.empty(3, 2, dtype=torch.int64, device="cuda:1")
        index = (idx, torch.empty(3, 2, dtype=torch.bool, device="cuda:1"))
        triton_fused.atom_attention._init_fn(q, q, q, p, gamma, gamma, weight, *index, 1e-5, False)
        triton_fused.atom_attention_backward._init_fn(q, q, q, q, q, q, q, p, gamma, weight, *index, 1e-5)
    assert found == [1, 1, 1, 1]
    assert current == [0]


class Stream:
    def __init__(self, number: int) -> None:
        self.cuda_stream, self.waits = number, 0

    def synchronize(self) -> None:
        self.waits += 1


class OnGpu(SimpleNamespace):
    """A tensor of a GPU that is not there; it keeps the streams that it was told of."""

    def record_stream(self, stream: Stream) -> None:
        self.streams.append(stream.cuda_stream)


def test_what_is_shared_is_complete_and_known_to_every_stream_that_reads_it(monkeypatch) -> None:
    streams = [Stream(7), Stream(8)]
    tensor = OnGpu(is_cuda=True, device=torch.device("cuda:1"), streams=[])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[0])
    shared = plans.Shared.of(tensor)  # pyright: ignore[reportArgumentType]
    assert streams[0].waits == 1
    shared.here()
    assert tensor.streams == []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[1])
    assert shared.here() == (tensor,)
    shared.here()
    assert tensor.streams == [8]
    assert streams[1].waits == 0


def test_what_a_capture_cannot_have_is_refused_by_name(monkeypatch) -> None:
    device = torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device", lambda device: launch.on(torch.device("cpu")))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(UnsupportedError, match="graph capture: one call with the same index, mask and sizes"):
        plans.refuse_in_capture(device, "the plan")
    plans.refuse_in_capture(torch.device("cpu"), "the plan")
    with pytest.raises(UnsupportedError, match=r"graph capture: .* was not there yet"), launch.on(device):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
    with pytest.raises(RuntimeError, match="something else"), launch.on(device):
        raise RuntimeError("something else")


def test_what_does_not_fit_is_gathered_and_said(monkeypatch) -> None:
    """By what is known of fp32 tiles before any launch, and else from the first launch on."""
    limits = {80: 166_912, 90: 232_448}
    wide = [
        Sizes(torch.float32, torch.float32, *size) for size in ((4, 32, 16), (8, 32, 16), (16, 32, 16), (16, 64, 64))
    ]
    fits = {
        arch: [[shared_bytes(d, s) <= limit for s in wide] for d in ("forward", "backward")]
        for arch, limit in limits.items()
    }
    assert fits == {90: [[True, True, True, False], [True, True, False, False]],
                    80: [[True, True, True, False], [True, True, False, False]]}  # fmt: skip
    assert shared_bytes("backward", Sizes(torch.bfloat16, torch.bfloat16, 16, 64, 64)) == 0

    from triton.runtime.errors import OutOfResources

    def too_large() -> None:
        raise OutOfResources(262_144, 232_448, "shared memory")

    problem, made = _problem(1)
    plan = band_plan(made.neighbor_idx, made.valid_mask)
    assert launch.if_a_tile_fits("forward", problem, plan) is plan
    with pytest.warns(UserWarning, match="forward's tile does not fit"):
        assert launch.if_it_fits("forward", problem, plan, too_large) is None
    assert launch.if_a_tile_fits("forward", problem, plan) is None
    assert launch.if_a_tile_fits("backward", problem, plan) is plan


@pytest.mark.parametrize("trained", [False, True])
def test_paths(trained: bool, monkeypatch) -> None:
    def path(made: Any) -> str:
        block = variants.convert(made.block, "triton_fused")
        inputs = [x.detach().requires_grad_(trained) for x in made.inputs]
        with torch.set_grad_enabled(trained):
            return triton_fused.path(block, *inputs, made.neighbor_idx, made.valid_mask)

    usual: dict[str, Any] = {"heads": 4, "head_dim": 32, "channels": 16}
    assert path(seam(37, 21, **usual)) == "band"
    assert path(seam(37, 21, item_masks=True, **usual)) == "band with holes"
    assert path(seam(37, 21, index=scattered, **usual)) == "gather"
    half = seam(37, 21, heads=16, head_dim=64, channels=64, dtype=torch.bfloat16)
    assert path(half) == ("band, split" if trained else "band")
    many = seam(37, 21, index=scattered, heads=16, head_dim=64, channels=16, dtype=torch.bfloat16)
    assert path(many) == "gather, split"
    monkeypatch.setattr(launch, "if_a_tile_fits", lambda d, problem, plan: plan if d == "forward" else None)
    assert path(seam(37, 21, **usual)) == ("band, backward gather" if trained else "band")
