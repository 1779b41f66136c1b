"""What a page may say: like against like, both times, nothing that cannot be, and what is missing as missing."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from benchmarks.harness.schema.record import Record
from reports import markup
from reports.__main__ import app
from reports.find import analyse
from reports.find.rivals import strongest
from reports.read.load import Collection, load, setting_labels
from reports.say import answer
from tests import records_factory as make

SIZES = (4096, 16384, 65536)


def collect(tmp_path: Path, records: list[Record]) -> Collection:
    make.write(tmp_path / "r.jsonl", records)
    return load([tmp_path / "r.jsonl"])


def page(tmp_path: Path, records: list[Record]) -> tuple[str, str]:
    make.write(tmp_path / "in" / "r.jsonl", records)
    result = CliRunner().invoke(app, [str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    return tuple((tmp_path / "out" / name).read_text(encoding="utf-8") for name in ("index.html", "report.md"))  # type: ignore[return-value]


def contests(c: Collection) -> list[analyse.Contest]:
    return analyse.contests(c, analyse.pairs(c))


def headline(c: Collection) -> str:
    return markup.plain(" ".join(answer.headline(c.places[0], contests(c), setting_labels(c))))


def gpu(n_atom: int, **changes: object) -> make.Problem:
    return make.problem(device="cuda", dtype="bfloat16", n_atom=n_atom, **changes)


def without(records: list[Record], backend: str, n_atom: int) -> list[Record]:
    return [r for r in records if (r.backend, r.problem.n_atom) != (backend, n_atom)]


# --- like with like ---


def sweep(*backends: str, sizes: tuple[int, ...] = SIZES) -> list[Record]:
    return [r for n in sizes for r in make.group(make.CUDA, gpu(n), backends=backends)]


def test_a_rival_that_did_not_run_at_the_largest_size_is_still_the_one_named(tmp_path):
    c = collect(tmp_path, without(sweep("triton_fused", "banded", "flex", "gather"), "flex", SIZES[-1]))
    largest = contests(c)[-1]
    assert largest.problem.n_atom == SIZES[-1]
    assert largest.ranked[1].record.backend == "banded", "the plant: the next best there is the weaker one"
    said = headline(c)
    assert "strongest rival, flex" in said
    assert "at N = 16,384" in said
    assert "banded" not in said
    assert "gather" not in said


def test_the_row_of_the_answer_says_where_it_was_compared(tmp_path):
    _, markdown = page(tmp_path, without(sweep("triton_fused", "banded", "flex", "gather"), "flex", SIZES[-1]))
    row = next(line for line in markdown.splitlines() if line.startswith("| attention, forward, bf16"))
    assert "faster than flex; at N 16,384" in row
    assert "at N 65,536" in row  # gather, the yardstick, ran there


def test_a_row_without_the_strongest_rival_says_so(tmp_path):
    other = make.group(make.CUDA, gpu(16384, level="block"), backends=["triton_fused", "banded"])
    _, markdown = page(tmp_path, [*sweep("triton_fused", "banded", "flex"), *other])
    row = next(line for line in markdown.splitlines() if line.startswith("| block, forward, bf16"))
    assert "faster than banded; flex did not run here" in row
    row = next(line for line in markdown.splitlines() if line.startswith("| attention, forward, bf16"))
    assert "faster than flex" in row
    assert "did not run here" not in row


def slower(record: Record, backend: str, factor: float) -> Record:
    """The same samples, ``factor`` times as long, of another backend."""
    assert record.timing is not None
    times = {k: getattr(record.timing, k) * factor for k in ("median_ms", "ci_low_ms", "ci_high_ms")}
    times["samples_ms"] = [t * factor for t in record.timing.samples_ms]
    timing = record.timing.model_copy(update=times | {"aa_samples_ms": None})
    return record.model_copy(update={"backend": backend, "timing": timing})


def test_a_rival_run_at_a_small_size_alone_does_not_pass_for_the_strongest(tmp_path):
    """At the small size all are near, and there the other one is nearer still."""
    first = {n: make.group(make.CUDA, gpu(n), backends=["triton_fused"])[0] for n in (1024, *SIZES)}
    records = list(first.values())
    records += [slower(r, "flex", 1.2 if n == 1024 else 3.5) for n, r in first.items()]
    records.append(slower(first[1024], "gather_compiled", 1.4))
    found = strongest(contests(collect(tmp_path, records)), "triton_fused")
    assert found is not None
    assert (found.name, found.contest.problem.n_atom, found.shared) == ("flex", SIZES[-1], 4)
    assert found.ratio.ratio == pytest.approx(3.5)


def test_alone_with_the_baseline_the_baseline_is_the_rival(tmp_path):
    assert "strongest rival, gather" in headline(collect(tmp_path, sweep("triton_fused", "gather")))


# --- device and wall ---


def test_both_times_stand_wherever_a_time_is_shown(tmp_path):
    records = [make.recent(r) for r in sweep("triton_fused", "flex", "gather")]
    html, markdown = page(tmp_path, records)
    said = markdown.split("## The answer")[1]
    assert "on the device" in said
    assert "of wall time" in said
    assert "by wall time" in said
    for column in ("device time", "wall time", "graph"):
        assert f"{column}</th>" in html or f">{column}<" in html
    cells = pd.read_csv(tmp_path / "out" / "cells.csv")
    assert (cells["wall_ms"] > cells["device_ms"]).all()
    assert (cells["device_ms"] == cells["median_ms"]).all()
    assert cells["host_bound"].any()
    figures = [p.read_text(encoding="utf-8") for p in (tmp_path / "out" / "figures").glob("time-n-*.svg")]
    assert figures
    assert all("wall time" in f and "of wall time" in f for f in figures)


def test_host_bound_is_said_where_the_device_idles_for_more_than_half(tmp_path):
    html, markdown = page(tmp_path, [make.recent(r, host_ms=50.0) for r in sweep("triton_fused", "flex")])
    assert "(host-bound)" in markdown
    assert "host-bound" in html
    _, markdown = page(tmp_path, [make.recent(r, host_ms=1e-4) for r in sweep("triton_fused", "flex")])
    assert "(host-bound)" not in markdown


def test_another_winner_by_wall_time_is_told(tmp_path):
    quick = [make.recent(r, host_ms=0.01 if r.backend == "flex" else 5.0) for r in sweep("triton_fused", "flex")]
    assert "By wall time another backend is ahead in 3 of 3 problems: flex in 3." in headline(collect(tmp_path, quick))


def test_a_cpu_has_one_time(tmp_path):
    html, markdown = page(tmp_path, make.group(make.CPU, make.problem()))
    assert "wall time" not in markdown.split("## Figures")[0]
    assert "device time" not in html.split('id="method"')[0]


# --- what old records lack ---


def test_what_an_old_record_lacks_is_said_not_to_be_recorded(tmp_path):
    html, markdown = page(tmp_path, sweep("triton_fused", "flex"))
    assert "wall time not recorded" in markdown
    gates = markdown.split("### Gate errors")[1].split("###")[0]
    assert "Not recorded by any of these: worst slope, timed calls checked, small trial." in gates
    assert "all-zero output" in gates
    starts = markdown.split("### First call and plan")[1].split("###")[0]
    assert "Not recorded by any of these: wall time, graph, again." in starts
    assert "not recorded" in html


def test_beside_new_records_an_old_one_says_what_it_lacks(tmp_path):
    records = sweep("triton_fused", "flex")
    _, markdown = page(tmp_path, [make.recent(records[0]), *records[1:]])
    gates = markdown.split("### Gate errors")[1].split("###")[0].splitlines()
    heads = [h.strip() for h in next(line for line in gates if line.startswith("| problem")).split("|")]
    row = [c.strip() for c in [line for line in gates if line.startswith("| attention")][1].split("|")]
    for name in ("worst slope", "timed calls checked", "small trial"):
        assert row[heads.index(name)] == "not recorded"


def test_what_a_new_record_holds_of_its_gate_is_shown(tmp_path):
    _, markdown = page(tmp_path, [make.recent(r) for r in sweep("triton_fused", "flex")])
    gates = markdown.split("### Gate errors")[1].split("###")[0]
    row = next(line for line in gates.splitlines() if line.startswith("| attention"))
    for expected in ("+1.0e-04", "passed, fp32", "worst error 3.0e-07", "0.31 (a neighbour a row left out)", "| 3 |"):
        assert expected in row
    starts = markdown.split("### First call and plan")[1].split("###")[0]
    assert "captures nothing" in starts


def test_the_way_back_to_a_cell_stands_beside_its_number(tmp_path):
    records = [make.recent(r) for r in sweep("triton_fused", "flex")]
    html, markdown = page(tmp_path, records)
    for r in records:
        assert r.again is not None
        assert f"<code>{r.again}</code>" in html
        assert f"`{r.again}`" in markdown
    assert sorted(pd.read_csv(tmp_path / "out" / "cells.csv")["again"]) == sorted(r.again or "" for r in records)


# --- what cannot be ---


def cheat(tmp_path: Path, record: Record, *, percent: float, peak: int | None = None) -> Record:
    """A copy that beats everything: at ``percent`` of the page's limit, with a peak that may be another."""
    honest = collect(tmp_path, [record]).cells[0].record.limit
    assert record.timing is not None
    assert record.memory is not None
    assert honest is not None
    assert honest.percent is not None
    memory = record.memory.model_copy(update={} if peak is None else {"peak_bytes": peak})
    return slower(record, "cheat", honest.percent / percent).model_copy(update={"memory": memory})


@pytest.mark.parametrize(
    ("plant", "why"),
    [
        ({"percent": 1498.0}, "of the limit"),
        ({"percent": 99.0, "peak": 0}, "a peak of 0 B"),
        ({"percent": 99.0, "peak": 4096}, "a peak of"),
    ],
)
def test_what_cannot_be_is_never_recommended(tmp_path, plant, why):
    records = make.group(make.CPU, make.problem(), backends=["banded", "gather"])
    html, markdown = page(tmp_path, [*records, cheat(tmp_path, records[0], **plant)])
    told = markdown.split("## Figures")[0]
    assert "**Use `banded`.**" in told
    assert "`cheat`" not in told.replace("What will fit", "").split("### What")[0]
    assert "1 impossible" in told
    unavailable = markdown.split("### What was not available, and why")[1].split("###")[0]
    assert "| `cheat` | impossible |" in unavailable
    assert why in unavailable
    assert not re.search(r"pairs.*cheat", (tmp_path / "out" / "pairs.csv").read_text(encoding="utf-8"))
    assert "cheat" in html


def test_the_fastest_that_can_be_is_recommended(tmp_path):
    records = make.group(make.CPU, make.problem(), backends=["banded", "gather"])
    _, markdown = page(tmp_path, [*records, cheat(tmp_path, records[0], percent=99.0)])
    assert "**Use `cheat`" in markdown
