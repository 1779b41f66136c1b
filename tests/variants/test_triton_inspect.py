"""The machine code of the fused kernels, compiled offline: what a GPU would be slow for, caught without one."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("triton")

from benchmarks.commands import app
from benchmarks.commands import inspect as command
from variants.triton import inspect as inspection
from variants.triton.config import Config
from variants.triton.inspect import KERNELS, Inspection, _loops, _shortest_way, inspect_shipped, parse

# warp instructions per pair at H 4, D 32, C 16 in bf16 on sm_90, where the design sets a bound
CEILING = {"forward": 4.5, "backward": 16.0}
USUAL = (4, 32, 16)
HALF = [
    *((kernel, 90, "bfloat16", USUAL) for kernel in KERNELS),
    *(
        (kernel, arch, "bfloat16", USUAL)
        for kernel in ("forward", "backward", "gather forward", "gather backward")
        for arch in (80, 100)
    ),
    *((kernel, 90, "float16", USUAL) for kernel in ("forward", "backward")),
    # of the other sizes those that come nearest to a spill
    ("forward", 80, "bfloat16", (8, 32, 16)),
    ("forward", 80, "bfloat16", (12, 32, 16)),
    ("forward", 80, "bfloat16", (16, 64, 64)),
    ("forward, holes", 90, "bfloat16", (1, 8, 4)),
    ("forward, holes", 100, "bfloat16", (4, 32, 64)),
    ("forward, holes", 100, "float16", (8, 64, 16)),
    ("forward", 90, "float16", (3, 24, 5)),
    ("backward", 80, "bfloat16", (8, 16, 16)),
    ("forward", 100, "float16", (4, 64, 32)),
    ("backward", 90, "bfloat16", (4, 32, 32)),
    ("backward, holes", 80, "bfloat16", (7, 24, 24)),
    ("backward, deterministic", 100, "bfloat16", (3, 48, 48)),
    ("backward, deterministic", 80, "bfloat16", (8, 64, 64)),
    ("backward, pairs", 100, "float16", (16, 32, 64)),
    ("backward, pairs", 90, "bfloat16", (4, 24, 24)),
    ("gather forward", 90, "bfloat16", (7, 8, 24)),
    ("gather backward", 100, "bfloat16", (7, 48, 48)),
    ("gather backward", 90, "float16", (13, 24, 24)),
    ("gather keys", 100, "bfloat16", (13, 24, 24)),
]
SINGLE = [("forward", 90, USUAL), ("backward", 90, (4, 16, 16))]


@functools.cache
def shipped(kernel: str, arch: int, dtype: str, size: tuple[int, int, int] = USUAL) -> Inspection:
    heads, head_dim, channels = size
    return inspect_shipped(**KERNELS[kernel], arch=arch, dtype=dtype, heads=heads, head_dim=head_dim, channels=channels)


def faults(found: Inspection, ceiling: float = float("inf")) -> list[str]:
    """What would make the kernel slow, or fail to launch, on the GPU that it was compiled for."""
    checks = {
        f"{found.stack_bytes} bytes of stack": found.stack_bytes > 0,
        f"{found.spills} spills": found.spills > 0,
        f"{found.shared_bytes} bytes of shared memory and {found.registers} registers": not found.launches,
        f"{found.tensor_core} tensor-core instructions": found.tensor_core == 0,
        f"{found.wide_loads} wide loads": found.wide_loads == 0,
        f"{found.per_pair:.2f} instructions per pair": found.per_pair > ceiling,
    }
    return [fault for fault, there in checks.items() if there]


@pytest.mark.parametrize("kernel", CEILING)
def test_instructions_per_pair_stay_under_the_ceiling(kernel: str) -> None:
    assert faults(shipped(kernel, 90, "bfloat16"), CEILING[kernel]) == []


@pytest.mark.parametrize(("kernel", "arch", "dtype", "size"), HALF)
def test_half_precision_does_not_spill(kernel: str, arch: int, dtype: str, size: tuple[int, int, int]) -> None:
    assert faults(shipped(kernel, arch, dtype, size)) == []


@pytest.mark.parametrize("kernel", CEILING)
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_tiles_of_the_band_are_products_and_wide_loads(kernel: str, arch: int) -> None:
    found = shipped(kernel, arch, "bfloat16")
    assert found.ctas_per_sm >= 2
    assert found.tensor_core >= 40
    assert found.wide_loads >= 14


@pytest.mark.parametrize(("kernel", "arch", "size"), SINGLE)
def test_single_precision_has_a_size_that_does_not_spill(kernel: str, arch: int, size: tuple[int, int, int]) -> None:
    assert faults(shipped(kernel, arch, "float32", size)) == []


@pytest.mark.parametrize(
    ("kernel", "planted", "fault"),
    [
        ("forward", {"num_warps": 1}, "spills"),
        ("backward", {"max_registers": 128}, "spills"),
        ("forward", {"num_warps": 8, "num_stages": 2}, "instructions per pair"),
    ],
)
def test_a_worse_default_turns_the_check_red(kernel: str, planted: dict[str, int], fault: str, monkeypatch) -> None:
    """It is the shipped defaults that are looked at: plant another there, and see."""
    name = f"{kernel}_config"
    choose = getattr(inspection, name)
    monkeypatch.setattr(inspection, name, lambda sizes, arch: replace(choose(sizes, arch), **planted))
    found = faults(inspect_shipped(**KERNELS[kernel]), CEILING[kernel])
    assert any(fault in text for text in found), found


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["inspect", "--jobs", "1", *arguments])


def test_what_was_compiled_is_kept_and_not_compiled_again(tmp_path: Path, monkeypatch) -> None:
    """Cut off by a kill, with one more architecture, with another configuration, with a kernel that did not compile."""
    out, compiled = tmp_path / "new" / "rows.jsonl", []
    figures = dict.fromkeys(command.COLUMNS, 0)

    def pretend(job: command.Job) -> dict[str, Any]:
        compiled.append((job.kernel, job.arch))
        return job.labels() | ({"error": "planted"} if failing and job.kernel == "backward" else figures)

    monkeypatch.setattr(command, "_inspected", pretend)
    failing = False
    assert invoke("--arch", "90", "--out", str(out)).exit_code == 0
    assert compiled == [("forward", 90), ("backward", 90)]
    whole = out.read_text()
    assert invoke("--arch", "90,100", "--out", str(out)).exit_code == 0
    assert compiled[2:] == [("forward", 100), ("backward", 100)]
    assert out.read_text().startswith(whole)

    out.write_text(whole[:-40])  # the last line cut off
    assert invoke("--arch", "90", "--out", str(out)).exit_code == 0
    assert compiled[4:] == [("backward", 90)]
    assert out.read_text().startswith(whole[:-40] + "\n")
    assert invoke("--arch", "90", "--out", str(out)).exit_code == 0
    assert len(compiled) == 5

    monkeypatch.setattr(inspection, "forward_config", lambda sizes, arch: Config(16, 16, 8, 1))
    failing = True
    assert invoke("--arch", "90", "--out", str(out)).exit_code == 0  # what is kept compiled before
    assert compiled[5:] == [("forward", 90)]
    result = invoke("--arch", "80", "--out", str(out))
    assert result.exit_code == 1
    assert "1 that did not compile" in result.output
    assert invoke("--arch", "80", "--out", str(out)).exit_code == 1
    assert compiled[-1] == ("backward", 80) == compiled[-2]


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(command, "_inspected", lambda job: pytest.fail("nothing is to be compiled"))
    out = tmp_path / "notes.txt"
    out.write_text("not mine\n")
    result = invoke("--arch", "90", "--out", str(out))
    assert result.exit_code == 2
    assert "--out" in result.output
    assert "'not mine'" in result.output
    assert out.read_text() == "not mine\n"


def test_a_spill_is_an_exit_code(monkeypatch) -> None:
    figures = dict.fromkeys(command.COLUMNS, 0) | {"spills": 2}
    monkeypatch.setattr(command, "_inspected", lambda job: job.labels() | figures)
    result = invoke("--arch", "90")
    assert result.exit_code == 1
    assert "2 with spills" in result.output


def test_many_kernels_are_shown_by_their_ranges_and_those_at_fault_one_by_one(monkeypatch) -> None:
    def pretend(job: command.Job) -> dict[str, Any]:
        at_fault = (job.kernel, job.size, job.arch) == ("backward", (13, 48, 24), 80)
        figures = dict.fromkeys(command.COLUMNS, 0) | {"registers": 200 + job.size[0], "spills": 7 * at_fault}
        return job.labels() | figures

    monkeypatch.setattr(command, "_inspected", pretend)
    result = invoke("--every-size")
    assert result.exit_code == 1
    assert result.output.count("203 to 216") == 2
    assert [line for line in result.output.splitlines() if "H13 D48 C24" in line and "sm_80" in line]
    assert "H13 D48 C24" not in result.output.replace("H13 D48 C24", "", 1)
    assert "324 compiled kernels: 1 with spills, none that did not compile." in result.output


def test_a_program_too_large_for_a_multiprocessor_is_a_fault() -> None:
    sound = Inspection("k", 80, 4, 256, 128, 0, 166_000, 1, {"HMMA.1": 3, "LDG.E.128": 1}, ({"FMUL": 640},))
    assert faults(sound) == []
    assert faults(replace(sound, ctas_per_sm=inspection._ctas_per_sm(80, 128, 180_224, 4))) != []
    assert inspection._ctas_per_sm(80, 128, 166_000, 4) == 1


LOOP = """
/*0000*/ MOV R1, c[0x0][0x28] ;
/*0010*/ IADD3 R2, R2, 0x10, RZ ;
/*0020*/ @P0 BRA 0x60 ;
/*0030*/ FADD R3, R3, R3 ;
/*0040*/ FADD R3, R3, R3 ;
/*0050*/ BRA 0x60 ;
/*0060*/ FMUL R4, R3, R3 ;
/*0070*/ @!P1 BRA 0x90 ;
/*0080*/ EXIT ;
/*0090*/ LDL R5, [R1] ;
/*5000*/ @P2 BRA 0x10 ;
/*5010*/ EXIT ;
"""


def test_the_shortest_way_skips_what_a_branch_skips() -> None:
    code = parse(LOOP)
    way = _shortest_way(code, 0x10, 0x5000)
    assert way == {"IADD3": 1, "BRA": 3, "FMUL": 1, "LDL": 1}
    assert _loops(code) == (way,)


def test_figures_come_from_the_code() -> None:
    found = Inspection(
        "k", 90, 4, 256, 128, 0, 40_000, 4, {"LDL.64": 2, "STL": 1, "HMMA.16816.F32": 3}, ({"FMUL": 640},)
    )
    assert (found.spills, found.tensor_core, found.per_pair, found.occupancy) == (3, 3, 10.0, 0.25)
    assert found.summary()["warp_instructions_per_pair"] == 10.0
