"""The record of every shipped kernel at every size: of the tiles that are shipped now, and none of them spills."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("triton")

from benchmarks.commands.inspect import ARCHITECTURES, Job
from tests import ROOT
from variants.triton.inspect import KERNELS, SIZES

FOLDER = ROOT / "reports" / "2026-11-27-kernels"
BY = ("kernel", "arch", "dtype", "size", "config")


def rows(dtype: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / f"{dtype}.jsonl").read_text().splitlines()]


def key(row: dict[str, Any]) -> str:
    return json.dumps([row[name] for name in BY])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_kernel_that_is_shipped_is_there_and_no_other(dtype: str) -> None:
    """Another triton or another source is the record's to say; another tile is another kernel."""
    jobs = [Job(kernel, int(arch), dtype, size) for kernel in KERNELS for size in SIZES for arch in ARCHITECTURES]
    shipped, recorded = {key(job.labels()) for job in jobs}, [key(row) for row in rows(dtype)]
    assert len(recorded) == len(set(recorded)) == len(shipped)
    assert shipped - set(recorded) == set()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_none_spills_and_all_launch_and_multiply_on_tensor_cores(dtype: str) -> None:
    bad = [
        row
        for row in rows(dtype)
        if row.get("error") or row["spills"] or row["stack_bytes"] or row["ctas_per_sm"] < 1 or not row["tensor_core"]
    ]
    assert bad == []
