"""Of the trunk's z the model touches what a window sees: values, gradients, transforms, memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.harness.ruler.memory import peak_memory
from pallatom.architecture import atom_transformers as layer
from pallatom.architecture._residues import band_columns, residue_band
from tests.pallatom import model_cases as cases
from variants import _op

PARTS = pytest.mark.parametrize("part", ["encoder", "decoder"])
SIZES = pytest.mark.parametrize(("n_res", "window"), [(1, 1), (1, 8), (2, 1), (7, 2), (7, 6), (7, 8), (8, 9), (9, 40)])


def trunk(n_res: int, *, channels: int = 3, batch: int = 2) -> Tensor:
    rng = torch.Generator().manual_seed(n_res)
    return torch.randn(batch, n_res, n_res, channels, generator=rng, dtype=torch.float64)


@SIZES
def test_every_pair_in_the_window_is_found(n_res: int, window: int) -> None:
    """And any pair outside has some column, so that a dead slot reads what is there."""
    z = trunk(n_res)
    band = residue_band(z, window)
    assert band.shape[2] == n_res or band.shape[2] == max(1, 2 * (window // 2) - 1) < n_res
    own, other = torch.meshgrid(torch.arange(n_res), torch.arange(n_res), indexing="ij")
    found = band[:, own, band_columns(own, other, band)]
    near = (own - other).abs() < window // 2
    assert torch.equal(found[:, near], z[:, near])


@SIZES
def test_its_gradient_is_written_where_it_came_from(n_res: int, window: int) -> None:
    """Each place of z at most once: the gradient of the sum is 1 there and 0 elsewhere."""
    z = trunk(n_res).requires_grad_()
    (grad,) = torch.autograd.grad(residue_band(z, window).sum(), z)
    near = (torch.arange(n_res)[:, None] - torch.arange(n_res)).abs() < max(1, window // 2)
    assert grad[:, near].eq(1).all()
    assert set(grad.unique().tolist()) <= {0.0, 1.0}
    assert torch.autograd.gradcheck(lambda z: residue_band(z, window) ** 2, z, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda z: residue_band(z, window) ** 3, z)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels first": lambda z: z.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    "expanded": lambda z: z[:1].expand(2, -1, -1, -1),
    "symmetric view": lambda z: z.transpose(1, 2),
    "every other": lambda z: torch.stack([z, z], -1)[..., 0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str) -> None:
    z = LAYOUTS[layout](trunk(9))
    assert not z.is_contiguous()
    want = z.contiguous().requires_grad_()
    got = z.detach().requires_grad_()
    of_got, of_want = (torch.autograd.grad((residue_band(leaf, 6) ** 2).sum(), leaf)[0] for leaf in (got, want))
    assert torch.equal(of_got, of_want)


@PARTS
def test_the_same_whatever_lies_outside_the_window(part: str) -> None:
    """Finite values there reach no output; the gradient is 0 there, and bit for bit the same elsewhere."""
    module = getattr(cases, part)()
    results = []
    name = "z_input" if part == "encoder" else "z"
    residue = torch.arange(cases.N_RES)
    far = (residue[:, None] - residue).abs() >= cases.WINDOW // 2
    for value in (0.0, 1e3):
        inputs = getattr(cases, f"{part}_inputs")()
        inputs[name][:, far] = value
        leaves = cases.with_gradients(inputs)
        outputs = module(**leaves)
        gradients = cases.pull_back(outputs, {**leaves, **dict(module.named_parameters())})
        assert gradients[name][:, far].eq(0).all()
        results.append([*outputs[:3], *gradients.values()])
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@PARTS
def test_transforms_see_through_it(part: str) -> None:
    """vmap over proteins, and forward mode against reverse mode, through z."""
    module = getattr(cases, part)()
    inputs = getattr(cases, f"{part}_inputs")()
    if part == "decoder":
        inputs["p_skip"] = inputs["p_skip"].nan_to_num()
    name = "z_input" if part == "encoder" else "z"
    z = inputs.pop(name)
    index = {k: v for k, v in inputs.items() if not v.is_floating_point()}
    items = {k: v for k, v in inputs.items() if v.is_floating_point()}

    def one(z: Tensor, items: dict[str, Tensor]) -> Tensor:
        return module(**{k: v[None] for k, v in items.items()}, **index, **{name: z[None]})[1][0]

    together = module(**items, **index, **{name: z})[1]
    assert cases.error(torch.func.vmap(one)(z, items), together) < 1e-13

    def of_z(z: Tensor) -> Tensor:
        return module(**items, **index, **{name: z})[1]

    tangent = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=z.dtype)
    forward = torch.func.jvp(of_z, (z,), (tangent,))[1]
    backward = torch.func.grad(lambda z: of_z(z).sum())(z)
    per_item = torch.func.vmap(torch.func.grad(lambda z, items: one(z, items).sum()))(z, items)
    assert forward.sum().item() == pytest.approx((backward * tangent).sum().item(), rel=1e-10)
    assert cases.error(per_item, backward) < 1e-12


class Band(nn.Module):
    """The band alone, normed: what compilers are given whole."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(3, dtype=torch.float64)

    def forward(self, z: Tensor) -> Tensor:
        return self.norm(residue_band(z, 6))


def test_compiles_whole_and_exports() -> None:
    torch.compiler.reset()
    module = Band()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for n_res in (9, 12, 4):
        results: list[dict[str, Tensor]] = []
        for run in (module, compiled):
            leaf = trunk(n_res).requires_grad_()
            output = run(leaf)
            results.append({"band": output, "d z": torch.autograd.grad(output.pow(3).sum(), leaf)[0]})
        cases.assert_agree(results[1], results[0], 1e-14)
    for strict in (True, False):
        program: Any = torch.export.export(module, (trunk(9),), strict=strict)
        assert torch.equal(program.module()(trunk(9)), module(trunk(9)))


def of_many_residues(part: str, n_res: int, n_atom: int) -> tuple[nn.Module, dict[str, Tensor], int]:
    """A model and inputs in which z is by far the largest thing, and its bytes."""
    tok = torch.arange(n_atom) * (n_res // n_atom)
    d, m, c_pair = 4, 8, 16
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(1, *shape, generator=rng)

    z, s = normal(n_res, n_res, c_pair), normal(n_res, 8)
    if part == "encoder":
        module: nn.Module = layer.AtomFeatureEncoder(8, 8, c_pair, 8, d, m, 1, 2)
        inputs = {x: normal(n_atom, 3) for x in ("ref_pos", "r_scaled")} | {"ref_element": normal(n_atom, 5)}
        inputs |= {"ref_space_uid": torch.zeros_like(tok), "s_input": s, "z_input": z}
    else:
        slots = layer.build_sparse_pairs(tok)[0].shape[1]
        module = layer.AtomAttentionDecoder(8, c_pair, m, d, 1, 2)
        inputs = {x: normal(n_atom, m) for x in ("q_skip", "c_skip", "c")}
        inputs |= {"p_skip": normal(n_atom, slots, d), "s": s, "z": z}
    return module, inputs | {"tok_idx": tok}, z.nbytes


@PARTS
def test_nothing_of_all_residue_pairs_but_z_and_its_gradient(part: str) -> None:
    """R = 2,000: forward a few bands beside z (31 of 2,000 columns); with gradients dz once, and no more."""
    module, inputs, z_bytes = of_many_residues(part, 2000, 500)

    def forward() -> object:
        with torch.no_grad():
            return module(**inputs)

    def with_gradients() -> object:
        leaves = {k: v.detach().requires_grad_(v.is_floating_point()) for k, v in inputs.items()}
        wanted = [v for v in leaves.values() if v.requires_grad]
        return torch.autograd.grad([x.sum() for x in module(**leaves)], wanted)

    forward()
    assert peak_memory(forward, "cpu")[0] < 0.25 * z_bytes
    with_gradients()
    assert 1.0 <= peak_memory(with_gradients, "cpu")[0] / z_bytes < 1.4


@PARTS
@pytest.mark.parametrize("n_res", [cases.N_RES, 40])
def test_residues_without_atoms_at_the_end(part: str, n_res: int) -> None:
    """More residues than atoms reach: all gradients as in float64, 0 for what nobody sees."""
    module, inputs = getattr(cases, part)(), getattr(cases, f"{part}_inputs")("shuffled", batch=2)
    names = ("s_input", "z_input") if part == "encoder" else ("s", "z")
    rng = torch.Generator().manual_seed(4)
    inputs[names[0]] = torch.randn(2, n_res, cases.C_TOKEN, generator=rng, dtype=torch.float64)
    inputs[names[1]] = torch.randn(2, n_res, n_res, cases.C_PAIR, generator=rng, dtype=torch.float64)
    results = []
    for run in (module, getattr(_op, f"{part}_reference")):
        leaves, state = cases.with_gradients(inputs), cases.with_gradients(module.state_dict())
        state = dict(module.named_parameters()) if run is module else state
        sizes = {"window_size": cases.WINDOW, "n_heads": cases.HEADS}
        outputs = run(**leaves) if run is module else run(state, **leaves, **sizes)
        gradients = cases.pull_back(outputs, {**leaves, **state})
        results.append({str(i): o for i, o in enumerate(outputs)} | gradients)
    cases.assert_agree(results[0], results[1], 1e-9)
