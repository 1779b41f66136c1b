"""Every way to a number that is not one, planted: the cheat is named, and the honest backends beside it stay green.

A planted backend is a file like a user's own: the plain layer's seam with something in its place. The cheats are those
met in public benches (an answer cached by id, address or shape; lazy tensors; patched timers; work left behind) and
those tried on this one.
"""

from __future__ import annotations

import textwrap
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.cases import problems
from benchmarks.harness.gate import audit, tampering
from benchmarks.harness.ruler import ceilings, clock
from benchmarks.harness.worker import measure
from benchmarks.harness.worker.measure import Group
from benchmarks.harness.worker.options import Options

FILE = """
import inspect, threading, time
from dataclasses import replace
import torch
from variants.gather import BACKEND as HONEST

def right(self, *x):
    return HONEST.block._attend(self, *x)

def on_stack(*names):
    return any(frame.function in names for frame in inspect.stack())

class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return g * ctx.factor, None

known = {{}}
{before}

class Block(HONEST.block):
    def _attend(self, Q, K, V, p, idx, valid):
{body}

BACKEND = replace(HONEST, block=Block, path=None)
"""
OPTIONS = Options(budget_s=0.1, min_blocks=4, max_blocks=6, memory=False)
HONEST = ("gather", "banded")


def planted(folder: Path, body: str, before: str = "") -> str:
    path = folder / "planted.py"
    path.write_text(FILE.format(body=textwrap.indent(textwrap.dedent(body).strip(), " " * 8), before=before))
    return str(path)


def outcomes(spec: str, *, options: Options = OPTIONS, honest: tuple[str, ...] = HONEST, **axes: Any) -> dict[str, Any]:
    """Each backend's cell; the planted one under its own name."""
    asked = {"n_atom": 96, "window": 8, "mode": "fwd"} | axes
    problem, source = problems.resolve(problems.Axes(**asked))
    cells: dict[str, Any] = {}

    def emit(event: dict[str, Any]) -> None:
        cells.update({cell["backend"]: cell for cell in event.get("cells", [])})

    Group(problem, source, options, None, emit, lambda name, phase: None).run((spec, *honest))
    return {"planted": cells.pop(spec)} | cells


def expect_caught(cells: dict[str, Any], *words: str) -> None:
    assert cells["planted"]["status"] == "wrong", cells["planted"]
    for word in words:
        assert word in cells["planted"]["reason"], cells["planted"]["reason"]
    for name in cells:
        if name != "planted":
            assert cells[name]["status"] == "ok", cells[name]


def test_the_harness_finds_nothing_wrong_with_an_honest_file(tmp_path: Path) -> None:
    spec = planted(tmp_path, "return right(self, Q, K, V, p, idx, valid)")
    cells = outcomes(spec, options=Options(budget_s=60.0, min_blocks=3, max_blocks=3), mode="fwdbwd")
    assert {cell["status"] for cell in cells.values()} == {"ok"}
    timing = cells["planted"]["timing"]
    assert timing["input_sets"] == 2
    assert timing["calls_checked"] >= len(timing["samples_ms"])
    assert all(cell["timing"]["aa_samples_ms"] for cell in cells.values())
    assert cells["planted"]["gate"]["trial"]["passed"]
    assert cells["banded"]["path"]


WHILE_TIMED = {
    "zeros where no gate is on the stack": """
        out = right(self, Q, K, V, p, idx, valid)
        return out if on_stack("check", "of") else out * 0
        """,
    "zeros where a clock is on the stack": """
        out = right(self, Q, K, V, p, idx, valid)
        return out * 0 if on_stack("sample") else out
        """,
    "half of the calls wrong": """
        known["n"] = known.get("n", 0) + 1
        out = right(self, Q, K, V, p, idx, valid)
        return out if known["n"] < 6 or known["n"] % 2 else out * 0
        """,
    "cached by shape": """
        if Q.shape not in known or on_stack("check", "of"):
            known[Q.shape] = right(self, Q, K, V, p, idx, valid).clone()
        return known[Q.shape].clone()
        """,
    "cached by the id of the pairs, and copied": """
        if id(p) not in known or on_stack("check", "of"):
            known[id(p)] = right(self, Q, K, V, p, idx, valid)
        return known[id(p)].clone()
        """,
    "the pairs' part cached by their address": """
        if p.data_ptr() not in known or on_stack("check", "of"):
            known[p.data_ptr()] = p.detach().clone()
        return right(self, Q, K, V, known[p.data_ptr()], idx, valid)
        """,
    "cached by the address of the index": """
        if idx.data_ptr() not in known or on_stack("check", "of"):
            known[idx.data_ptr()] = right(self, Q, K, V, p, idx, valid)
        return known[idx.data_ptr()].clone()
        """,
    "finished by a thread after the call": """
        if on_stack("check", "of", "_plan_ms"):
            return right(self, Q, K, V, p, idx, valid)
        out, answer = torch.zeros_like(Q), right(self, Q, K, V, p, idx, valid)
        threading.Thread(target=lambda: (time.sleep(0.5), out.copy_(answer))).start()
        return out
        """,
}


@pytest.mark.parametrize("budget_s", [0.0, 60.0], ids=["fewest blocks", "all blocks"])
@pytest.mark.parametrize("cheat", WHILE_TIMED)
def test_what_is_timed_is_what_is_checked(cheat: str, budget_s: float, tmp_path: Path) -> None:
    """Whether the machine has time for three blocks of one call each or for six of two."""
    options = replace(OPTIONS, budget_s=budget_s)
    expect_caught(outcomes(planted(tmp_path, WHILE_TIMED[cheat]), options=options), "while timed")


def test_an_answer_cached_by_the_id_of_an_input_is_wrong(tmp_path: Path) -> None:
    """Two sets take turns, so an address stands for one answer; it is asked for again with other contents there."""
    body = """
        if id(p) not in known:
            known[id(p)] = right(self, Q, K, V, p, idx, valid)
        return known[id(p)]
        """
    cells = outcomes(planted(tmp_path, body), options=Options(budget_s=0.1, min_blocks=4, max_blocks=6))
    expect_caught(cells, "returned", "allocated")


EDITS = {
    "Q": "Q.mul_(1.0).add_(1.0)",
    "V past torch's count": "V.data.mul_(2.0)",
    "p's padding cleaned in place": "p.nan_to_num_()",
    "the mask": "valid[3] = False",
    "the index": "idx[5, 0] = 7",
    "a weight": "self.pair_bias.weight.data.mul_(0.5)",
}


@pytest.mark.parametrize("when", ["always", "while timed"])
@pytest.mark.parametrize("edit", EDITS)
def test_who_edits_what_all_share_is_named_and_nobody_else(edit: str, when: str, tmp_path: Path) -> None:
    body = f"""
        out = right(self, Q, K, V, p, idx, valid)
        if {"on_stack('sample')" if when == "while timed" else "not on_stack('of')"}:
            {EDITS[edit]}
        return out
        """
    expect_caught(outcomes(planted(tmp_path, body)), "it changed what it was given")


def test_what_two_sets_share_is_put_back_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no room for a second p, both sets hold the first's."""
    monkeypatch.setattr(Group, "_room_for_another", lambda self, wanted: False)
    body = """
        out = right(self, Q, K, V, p, idx, valid)
        p.data.mul_(2.0)
        return out
        """
    expect_caught(outcomes(planted(tmp_path, body)), "it changed what it was given")


def test_who_edited_unseen_is_found_by_running_each_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all bits are too many to look at after every sample, the change may show while another runs."""
    monkeypatch.setattr(audit, "CHEAP_BYTES", 0)
    body = """
        out = right(self, Q, K, V, p, idx, valid)
        if not on_stack("check", "of", "_prepare"):
            V.data.view(torch.uint8).numpy().reshape(-1)[:4] ^= 1
        return out
        """
    assert outcomes(planted(tmp_path, body))["planted"]["status"] == "wrong"


FORMS = {
    "a lazy subclass": ("return right(self, Q, K, V, p, idx, valid).as_subclass(Lazy)", "no plain tensor"),
    "float64 for float32": ("return right(self, Q.double(), K.double(), V.double(), p, idx, valid)", "float64"),
    "an input's memory": ("return Q.detach().set_(Q.untyped_storage(), 0, Q.shape, Q.stride())", "in the memory of Q"),
}


@pytest.mark.parametrize("form", FORMS)
def test_results_are_plain_tensors_of_their_own(form: str, tmp_path: Path) -> None:
    body, word = FORMS[form]
    expect_caught(outcomes(planted(tmp_path, body, before="class Lazy(torch.Tensor): pass")), word)


PATCHES = {
    "the clock's sample": (
        "from benchmarks.harness.ruler import clock as c\nc.CpuClock.sample = lambda self, fn, calls=1: 1e-6"
    ),
    "the comparison": "from benchmarks.harness.gate import errors\nerrors.error_norms = lambda *a, **k: {'': 0.0}",
    "a tolerance": "from benchmarks.harness.gate.errors import allowed\nallowed.__code__ = (lambda *a: 9.9).__code__",
    "a comparison as another module has it": (
        "from benchmarks.harness.gate import gate\ngate.error_norms = lambda *a, **k: {'': 0.0}"
    ),
    "a table of tolerances": "from benchmarks.harness.gate import errors\nerrors.SLOPE['float32'] = 9.9",
    "a default of the ruler's": "from benchmarks.harness.gate import gate\ngate.glance.__defaults__ = (0,)",
    "a level's tolerance": "from benchmarks.harness import levels\nlevels.level_of('attention').error_factor = 9.9",
    "a level's reference": (
        "from benchmarks.harness.levels.attention import Attention\nAttention.reference = lambda self, *a: None"
    ),
    "the floor": "from benchmarks.harness.cases import limits\nlimits.beyond = lambda found: None",
    "the timer": "import time as t\nt.perf_counter = lambda: 0.0",
}


@pytest.mark.parametrize("patch", PATCHES)
def test_who_moves_the_ruler_is_named_and_it_is_put_back(patch: str, tmp_path: Path) -> None:
    before = (clock.CpuClock.sample, time.perf_counter)
    body = "return right(self, Q, K, V, p, idx, valid)"
    expect_caught(outcomes(planted(tmp_path, body, before=PATCHES[patch])), "replaced parts of what measures it")
    assert (clock.CpuClock.sample, time.perf_counter) == before
    assert tampering.moved() == []


def test_a_result_that_was_not_allocated_in_its_call_is_from_elsewhere() -> None:
    from benchmarks.harness.cases import inputs
    from benchmarks.harness.cases.case import Case

    problem, source = problems.resolve(problems.Axes(n_atom=96, window=8))
    case = Case(inputs.build(problem, source), inputs.build(problem, source).module)
    case()
    assert case.last is not None
    assert audit.returned_bytes(case, case.last) == 96 * 128 * 4


def test_more_than_the_limit_is_no_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings of a machine a million times slower, measured again before anyone is accused."""
    slow = ceilings.Ceilings(bandwidth_bytes_per_s=1e3, rate_flops_per_s=1e3, source="planted", bandwidth_spread=0.1)
    measured_again: list[str] = []

    def again(device: str, dtype: str) -> ceilings.Ceilings:
        measured_again.append(device)
        return slow

    monkeypatch.setattr(measure, "ceilings", again)
    spec = planted(tmp_path, "return right(self, Q, K, V, p, idx, valid)")
    problem, source = problems.resolve(problems.Axes(n_atom=96, window=8))
    cells: list[dict[str, Any]] = []
    group = Group(problem, source, OPTIONS, asdict(slow), lambda e: cells.extend(e.get("cells", [])), lambda *x: None)
    group.run((spec,))
    assert [cell["status"] for cell in cells] == ["wrong"]
    assert "impossible" in cells[0]["reason"]
    assert measured_again == ["cpu"]


MUTANTS = {
    "output x 1.01": "return right(self, Q, K, V, p, idx, valid) * 1.01",
    "scale off by 1 %": "return right(self, Q * 1.01, K, V, p, idx, valid)",
    "LayerNorm eps 1e-2": """
        self.norm_pair.eps = 1e-2
        try:
            return right(self, Q, K, V, p, idx, valid)
        finally:
            self.norm_pair.eps = 1e-5
        """,
    "a neighbour dropped in one row of 16": """
        valid = valid.clone()
        valid[..., ::16, 2] = False
        return right(self, Q, K, V, p, idx, valid)
        """,
    "gradients x 0.97": "return Scale.apply(right(self, Q, K, V, p, idx, valid), 0.97)",
    "one weight's gradient x 0.55": """
        weight = self.norm_pair.weight
        bias = torch.nn.functional.layer_norm(
            p.masked_fill(~(valid if valid.ndim == 3 else valid[None])[..., None], 0), (p.shape[-1],),
            Scale.apply(weight, 0.55), self.norm_pair.bias, self.norm_pair.eps
        ) @ self.pair_bias.weight.mT
        live = (valid if valid.ndim == 3 else valid[None])[..., None]
        at = idx.masked_fill(~live[..., 0].any(0), 0)
        S = (torch.einsum("blhd,blkhd->blkh", Q * self.head_dim**-0.5, K[:, at]).float() + bias)
        A = S.masked_fill(~live & live.any(2, keepdim=True), -torch.inf).softmax(2).masked_fill(~live, 0).to(V.dtype)
        return torch.einsum("blkh,blkhd->blhd", A, V[:, at])
        """,
    "the mask of item 0 for all": """
        valid = valid[:1].expand_as(valid) if valid.ndim == 3 else valid
        return right(self, Q, K, V, p.nan_to_num(), idx, valid)
        """,
    "the pairs of item 0 for all": "return right(self, Q, K, V, p[:1].expand_as(p), idx, valid)",
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_gate_sees_one_percent(mutant: str, dtype: str, tmp_path: Path) -> None:
    spec = planted(tmp_path, MUTANTS[mutant])
    gated = Options(speed=False)
    cells = outcomes(spec, options=gated, honest=("banded",), dtype=dtype, mode="fwdbwd", n_atom=160, window=16)
    expect_caught(cells)
