"""The compiled gather: right, compiled once per kind of call, never quietly eager."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from tests.variants.seam import errors, seam
from variants import convert, why_unavailable
from variants import gather_compiled as backend
from variants.libraries.torch_compile import compiled

pytestmark = pytest.mark.skipif(bool(why_unavailable("gather_compiled")), reason="nothing to compile with")


def graphs() -> int:
    """Graphs that Dynamo has compiled so far in this process."""
    return counters["stats"]["unique_graphs"]


def test_it_agrees_with_the_reference_forward_and_backward() -> None:
    problem = seam(40, 12, batch=2, item_masks=True)
    assert max(errors("gather_compiled", problem, backward=True).values()) < 1e-5


def test_blocks_and_indices_of_one_shape_share_one_program() -> None:
    problem = seam(33, 9)
    first, second = (convert(problem.block, "gather_compiled") for _ in range(2))
    before = graphs()
    with torch.no_grad():
        for block, index in ((first, problem), (second, problem), (first, problem.index(seed=5))):
            block._attend(*problem.inputs, index.neighbor_idx, index.valid_mask)
    assert graphs() == before + 1


def test_more_kinds_of_call_than_dynamo_keeps_are_all_compiled() -> None:
    """One program per code object is all that Dynamo may keep here; a third shape is compiled all the same."""

    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if torch.compiler.is_compiling() else x * 0

    before = graphs()
    with torch._dynamo.config.patch(recompile_limit=1):
        for n in (2, 3, 4):
            x = torch.ones(n)
            assert torch.equal(compiled(double, x)(x), x * 2)
            assert torch.equal(compiled(double, x)(x), x * 2)
    assert graphs() == before + 3


def test_what_cannot_be_compiled_is_an_error_not_an_eager_run() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x

    x = torch.ones(2)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(broken, x)(x)


def test_inside_an_outer_compilation_it_is_taken_in() -> None:
    problem = seam(20, 5)
    block = convert(problem.block, "gather_compiled")
    attend = torch.compile(block._attend, backend="eager", fullgraph=True)
    with torch.no_grad():
        got = attend(*problem.inputs, problem.neighbor_idx, problem.valid_mask)
        want = problem.block._attend(*problem.inputs, problem.neighbor_idx, problem.valid_mask)
    torch.testing.assert_close(got, want)


def test_a_missing_compiler_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder, exc

    def none_found() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none_found)
    assert any("C++ compiler" in reason for reason in why_unavailable("gather_compiled"))
    monkeypatch.setattr("sysconfig.get_path", lambda *_: "/nonexistent")
    assert len(backend.compiler_reasons("cpu")) == 2
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert any("C compiler" in reason for reason in backend.compiler_reasons("cuda"))
