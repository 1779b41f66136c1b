"""The gate tells right from wrong: planted errors turn it red, correct backends do not."""

from __future__ import annotations

import copy

import pytest
import torch

import variants
from benchmarks.harness.cases import inputs, problems, registry
from benchmarks.harness.cases.case import Case
from benchmarks.harness.gate import errors, gate
from benchmarks.harness.levels import level_of
from benchmarks.harness.reference.expected import Expected, Reference
from benchmarks.harness.ruler import poison
from pallatom.architecture.atom_transformers import AtomTransformerBlock

ALL = 1 << 30
base_attend = AtomTransformerBlock._attend


def build(max_pairs: int = ALL, **axes) -> tuple[inputs.Inputs, Expected]:
    asked = {"n_atom": 96, "window": 8, "mode": "fwdbwd", "n_blocks": 2} | axes
    if "workload" in axes:
        del asked["n_atom"]
    problem, source = problems.resolve(problems.Axes(**asked))
    built = inputs.build(problem, source)
    return built, level_of(problem.level).expected(built, max_pairs=max_pairs)


def planted(built: inputs.Inputs, attend) -> Case:
    """The plain layer with another seam."""
    twin = variants.convert(built.module, "gather")
    block = type("Planted", (AtomTransformerBlock,), {"_attend": attend})
    for module in twin.modules():
        if isinstance(module, AtomTransformerBlock):
            module.__class__ = block
    return Case(built, twin)


def judged(attend, max_pairs: int = ALL, **axes) -> gate.Gate:
    built, expected = build(max_pairs, **axes)
    return gate.check(planted(built, attend), expected)


def red_entries(result: gate.Gate, **axes) -> set[str]:
    problem = build(**axes)[0].problem
    return {n for n, e in result.errors.items() if e is None or e > errors.allowed(n, problem)}


@pytest.mark.parametrize("backend", ["gather", "banded", "dense"])
@pytest.mark.parametrize("level", ["attention", "block", "stack", "encoder", "decoder"])
def test_correct_backends_are_green(backend: str, level: str) -> None:
    built, expected = build(level=level)
    result = gate.check(Case(built, registry.converted(backend, built.module)), expected)
    assert result.passed, gate.why_red(result, built.problem)
    assert result.rows_checked == result.rows_total == 96
    assert result.control_tolerance is not None
    assert result.negative_control is not None
    assert result.control_tolerance < result.negative_control < 0.5  # one neighbour a row, of some 40
    assert result.slopes
    assert any(name.startswith("grad:weight:") for name in result.errors)
    assert ("attention" in result.errors) == (level != "attention")


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_every_dtype_has_its_tolerance(dtype: str) -> None:
    built, expected = build(dtype=dtype)
    result = gate.check(Case(built, registry.converted("banded", built.module)), expected)
    assert result.passed, gate.why_red(result, built.problem)
    assert max(e for e in result.errors.values() if e is not None) > 0  # it did compare something


@pytest.mark.parametrize("level", ["encoder", "decoder", "attention", "stack"])
def test_a_sample_of_rows_is_exact_gradients_included(level: str) -> None:
    """In float64 the sampled reference agrees to rounding: so no row's gradient is missing or counted twice."""
    built, expected = build(max_pairs=4000, workload="ubiquitin", atoms="backbone", level=level, dtype="float64")
    result = gate.check(Case(built, registry.converted("gather", built.module)), expected)
    assert result.passed, gate.why_red(result, built.problem)
    assert 0 < result.rows_checked < result.rows_total == 304
    assert max(e for e in result.errors.values() if e is not None) < 1e-12


def test_sampled_rows_hold_the_ends_and_the_chains_edges() -> None:
    built, expected = build(max_pairs=3000, workload="1a28", atoms="backbone", mode="fwd", level="attention")
    edge = int((torch.tensor(built.workload.chain).diff() != 0).nonzero()[0])
    assert {0, edge, edge + 1, built.problem.n_atom - 1} <= set(expected.rows.tolist())


@pytest.mark.parametrize("level", ["attention", "block", "stack"])
def test_a_scaled_output_is_red_even_behind_residuals(level: str) -> None:
    result = judged(lambda self, *x: base_attend(self, *x) * (1 + 1e-4), level=level)
    assert not result.passed
    seam = "output" if level == "attention" else "attention"
    assert seam in red_entries(result, level=level)


def test_zeros_are_red() -> None:
    assert not judged(lambda self, q, *x: q * 0.0).passed
    assert not judged(lambda self, q, *x: q * 0.0, level="stack").passed


def test_a_neighbour_off_by_one_is_red() -> None:
    def attend(self, q, k, v, p, idx, valid):
        return base_attend(self, q, k, v, p, torch.where(valid, (idx + 1).clamp(max=q.shape[1] - 1), idx), valid)

    assert not judged(attend).passed


def test_one_dropped_neighbour_of_one_row_is_red() -> None:
    def attend(self, q, k, v, p, idx, valid):
        valid = valid.clone()
        valid[40, 0] = False
        return base_attend(self, q, k, v, p, idx, valid)

    assert not judged(attend).passed


def test_half_precision_sums_are_red_in_float32() -> None:
    def attend(self, q, k, v, p, idx, valid):
        half = base_attend(self, q.bfloat16(), k.bfloat16(), v.bfloat16(), p, idx, valid)
        return half.to(q.dtype)

    assert not judged(attend).passed


def test_sums_kept_in_bfloat16_are_red_in_bfloat16() -> None:
    """Rounding the running sum after every neighbour is what a careless kernel does."""

    def attend(self, q, k, v, p, idx, valid):
        bias = self.pair_bias(self.norm_pair(p.masked_fill(~valid[..., None], 0)))
        scores = torch.einsum("blhd,blkhd->blkh", q, k[:, idx]) * q.shape[-1] ** -0.5 + bias
        weights = scores.float().masked_fill(~valid[..., None], -torch.inf).softmax(2).to(q.dtype)
        total = torch.zeros_like(q)
        for slot in range(idx.shape[1]):
            total = total + weights[:, :, slot, :, None] * v[:, idx[:, slot]]
        return total

    axes = {"dtype": "bfloat16", "mode": "fwd", "n_atom": 512, "window": 32}
    assert not judged(attend, **axes).passed
    assert judged(base_attend, **axes).passed


class _WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return g * 1.01


@pytest.mark.parametrize("weight", ["pair_bias.weight", "norm_pair.weight"])
def test_a_wrong_gradient_of_one_weight_is_red(weight: str) -> None:
    def attend(self, q, k, v, p, idx, valid):
        masked = p.masked_fill(~valid[..., None], 0)
        scale, shift, project = self.norm_pair.weight, self.norm_pair.bias, self.pair_bias.weight
        if weight == "pair_bias.weight":
            project = _WrongGradient.apply(project)
        else:
            scale = _WrongGradient.apply(scale)
        bias = torch.nn.functional.layer_norm(masked, (16,), scale, shift) @ project.mT
        scores = torch.einsum("blhd,blkhd->blkh", q, k[:, idx]) * q.shape[-1] ** -0.5 + bias
        weights = scores.masked_fill(~valid[..., None], -torch.inf).softmax(2)
        return torch.einsum("blkh,blkhd->blhd", weights, v[:, idx])

    result = judged(attend)
    assert not result.passed
    assert red_entries(result) == {f"grad:weight:{weight}"}


def test_a_gradient_that_never_comes_is_red() -> None:
    result = judged(lambda self, q, k, v, *x: base_attend(self, q, k, v.detach(), *x))
    assert not result.passed
    assert "grad:V" in red_entries(result)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_row_that_is_not_finite_is_red(value: float) -> None:
    def attend(self, *x):
        out = base_attend(self, *x)
        return torch.cat([out[:, :-1], torch.full_like(out[:, -1:], value)], 1)

    assert not judged(attend, mode="fwd").passed


def test_one_wrong_row_of_many_is_red_by_its_own_error() -> None:
    def attend(self, *x):
        out = base_attend(self, *x)
        out[:, 200] *= 1.3
        return out

    axes = {"n_atom": 512, "mode": "fwd", "dtype": "bfloat16"}
    result = judged(attend, **axes)
    assert red_entries(result, **axes) == {"output" + errors.ROW}


def test_a_row_outside_the_sample_is_not_vouched_for_unless_it_is_not_finite() -> None:
    built, expected = build(max_pairs=3000, n_atom=512, mode="fwd")
    missed = next(row for row in range(512) if row not in set(expected.rows.tolist()))

    def attend_with(value):
        def attend(self, *x):
            out = base_attend(self, *x)
            out[:, missed] *= value
            return out

        return attend

    finite = gate.check(planted(built, attend_with(2.0)), expected)
    assert finite.passed
    assert finite.rows_checked < finite.rows_total
    assert not gate.check(planted(built, attend_with(float("nan"))), expected).passed


def test_a_gradient_where_no_sampled_row_reaches_is_red() -> None:
    def attend(self, q, k, v, p, *x):
        leak = (p[:, 1:2].nan_to_num() - p[:, 1:2].nan_to_num().detach()).mean()
        return base_attend(self, q, k, v, p, *x) + leak

    result = judged(attend, max_pairs=3000, n_atom=512)
    assert not result.passed


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("size", [2000, 1 << 20])
def test_fresh_memory_is_poisoned_and_only_in_the_gate(dtype: str, size: int) -> None:
    problem = build(mode="fwd")[0].problem
    kind = getattr(torch, dtype)
    torch.ones(size, dtype=kind)  # what a recycled block may hold: a plausible answer
    with poison.poisoned(problem.device):
        inside = torch.empty(size, dtype=kind)
    assert bool((inside.isnan() | (inside.double().abs() > 1e30)).all())
    zeros = torch.zeros(size, dtype=kind)
    assert bool((zeros == 0).all())
    torch.ones(size, dtype=kind)
    assert not bool((torch.empty(size, dtype=kind) == inside).all())


def test_reading_the_padding_of_p_is_red() -> None:
    """It holds NaN: even where the score is masked, it gets into LayerNorm's gradients."""

    def attend(self, q, k, v, p, idx, valid):
        scores = torch.einsum("blhd,blkhd->blkh", q, k[:, idx]) * q.shape[-1] ** -0.5
        scores = scores + self.pair_bias(self.norm_pair(p))
        weights = scores.masked_fill(~valid[..., None], -torch.inf).softmax(2)
        return torch.einsum("blkh,blkhd->blhd", weights, v[:, idx])

    assert judged(attend, mode="fwd").passed
    result = judged(attend)
    assert {"grad:p", "grad:weight:norm_pair.weight", "grad:weight:pair_bias.weight"} <= red_entries(result)


def test_memory_that_is_never_written_is_red() -> None:
    """A row that is left out shows, whatever its memory held before."""
    built, expected = build(mode="fwd", n_atom=512, window=16)
    skip = False

    def attend(self, q, *x):
        right = base_attend(self, q, *x)
        out = torch.empty_like(right)
        rows = slice(0, 300 if skip else None)
        out[:, rows] = right[:, rows]
        return out

    case = planted(built, attend)
    assert gate.check(case, expected).passed
    skip = True
    assert not gate.check(case, expected).passed


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_answer_of_the_call_before_is_released_before_memory_is_poisoned(device: str) -> None:
    """Held while free memory is poisoned and then reused, it would vouch for rows that are never written again."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    built, expected = build(mode="fwd", n_atom=512, window=16, device=device)
    first = True

    def attend(self, q, *x):
        out = torch.empty_like(q)
        rows = slice(0, None if first else 300)
        out[:, rows] = base_attend(self, q, *x)[:, rows]
        return out

    case = planted(built, attend)
    case()
    assert gate.check(case, expected).passed
    case()
    first = False
    assert not gate.check(case, expected).passed


def test_a_problem_whose_answer_is_zero_cannot_be_told() -> None:
    built, expected = build(mode="fwd", window=1)  # no neighbours: every backend returns zeros, right or not
    result = gate.check(Case(built, registry.converted("gather", built.module)), expected)
    assert not result.passed
    assert "cannot tell" in gate.why_red(result, built.problem)


def test_an_output_that_drifts_after_the_first_check_is_red() -> None:
    built, expected = build()
    calls = 0

    def attend(self, *x):
        nonlocal calls
        calls += 1
        return base_attend(self, *x) * (1.0 if calls == 1 else 1.01)

    case = planted(built, attend)
    before = gate.check(case, expected)
    assert before.passed
    case()
    after = gate.check_again(expected, case.named(case.last), before)
    assert not after.passed
    assert "after timing" in gate.why_red(after, built.problem)


def test_training_steps_leave_the_weights_as_the_gate_saw_them() -> None:
    built, expected = build(mode="train", level="block")
    case = Case(built, registry.converted("banded", built.module))
    before = gate.check(case, expected)
    for _ in range(3):
        case.release()
        case()
    after = gate.check_again(expected, case.named(case.last), before)
    assert after.passed, gate.why_red(after, built.problem)
    assert case._optimizer is not None
    assert all(state["step"] == 3 for state in case._optimizer.state.values())


def test_the_index_must_agree_exactly() -> None:
    built, expected = build(level="index", workload="1a28", atoms="heavy", max_pairs=1 << 16)
    case = Case(built, built.module)
    assert gate.check(case, expected).passed
    forward = case._forwards[0]
    case._forwards[0] = lambda tok_idx: tuple(t.roll(1, 1) for t in forward(tok_idx))
    assert not gate.check(case, expected).passed


def test_a_block_in_float16_is_green_though_its_relu_jumps() -> None:
    built, expected = build(dtype="float16", level="block")
    result = gate.check(Case(built, registry.converted("gather", built.module)), expected)
    assert result.passed, gate.why_red(result, built.problem)
    gradients = [e for name, e in result.errors.items() if name.startswith("grad:") and e is not None]
    assert max(gradients) > errors.GRADIENT_TOLERANCE["float16"]  # the seam's own tolerance would not do


def test_a_small_decoder_in_float32_is_green_though_one_activation_flips() -> None:
    """Inputs found by trying ten: everything else in them is right to 2e-6."""
    built, expected = build(level="decoder", n_blocks=3, seed=2)
    result = gate.check(Case(built, registry.converted("gather", built.module)), expected)
    assert result.passed, gate.why_red(result, built.problem)
    gradients = [e for name, e in result.errors.items() if name.startswith("grad:weight:") and e is not None]
    assert max(gradients) > 4 * errors.GRADIENT_TOLERANCE["float32"]  # what a decoder's roundings may do would not do
    assert sorted(gradients)[len(gradients) // 2] < 1e-5


@pytest.mark.parametrize("level", ["attention", "block", "stack", "encoder", "decoder"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_a_lost_row_is_beyond_every_tolerance(dtype: str, level: str) -> None:
    problem = build()[0].problem.model_copy(update={"dtype": dtype, "level": level})
    for name in ("output", "grad:q", "attention"):
        assert errors.allowed(name + errors.ROW, problem) <= 0.5
        assert errors.allowed(name, problem) < 0.15


def test_it_is_the_jump_of_relu_that_float16_gradients_suffer_from(monkeypatch: pytest.MonkeyPatch) -> None:
    def error(activation) -> float:
        monkeypatch.setattr(torch.nn.functional, "relu", activation)
        built, _ = build(dtype="float16", level="block")
        rounded = Case(built, built.module).run_against(built.cotangents)["grad:weight:ff1.weight"]
        exact = copy.deepcopy(built.module).double()
        wide = [built.tensors[name].detach().double() for name in ("q", "c", "p")]
        wide[2] = torch.where(built.fixed["valid_mask"][..., None], wide[2], 0)
        out = exact(*wide, **built.fixed)
        (reference,) = torch.autograd.grad(out, exact.ff1.weight, built.cotangents["output"].double())
        assert rounded is not None
        return float((rounded.double() - reference).norm() / reference.norm())

    relu, silu = torch.nn.functional.relu, torch.nn.functional.silu
    assert error(silu) < errors.GRADIENT_TOLERANCE["float16"]
    assert error(relu) > 5 * error(silu)


def test_a_bias_gradient_that_cancels_is_held_against_the_weight_beside_it() -> None:
    _, expected = build(level="encoder")
    for norm in ("transformer.blocks.0.norm_q", "transformer.blocks.1.norm_ff", "norm_s_init"):
        bias, weight = (expected.values[f"grad:weight:{norm}.{name}"] for name in ("bias", "weight"))
        assert bias.scale == float(weight.value.norm()) > 0
        assert weight.scale == 0.0


def test_a_cancelled_gradient_forgives_rounding_and_not_its_loss() -> None:
    value = torch.tensor([0.1, -0.1], dtype=torch.float64)
    near, far = Reference(value, scale=2.0), Reference(value)
    off = value + 0.05
    assert errors.error_norms(near, off, alone=False)[""] == pytest.approx(0.05 * 2**0.5 / 2.0)
    assert errors.error_norms(far, off, alone=False)[""] == pytest.approx(0.5)
    assert errors.error_norms(near, torch.zeros(2), alone=False)[""] == pytest.approx(1.0)
    null = Reference(value * 1e-15, scale=2.0)
    assert errors.error_norms(null, torch.zeros(2), alone=False)[""] < 1e-12
