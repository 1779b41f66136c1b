"""The report from record files: what is compared, what is said, and what bad input does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

import variants
from benchmarks.harness.schema.record import read
from reports import markup
from reports.__main__ import app
from reports.draw import theme
from reports.find import analyse, curves, regions
from reports.page import page
from reports.read.load import Collection, InputError, load
from reports.tables import evidence
from tests import ROOT
from tests import records_factory as make


def collect(tmp_path: Path, records) -> Collection:
    make.write(tmp_path / "r.jsonl", records)
    return load([tmp_path / "r.jsonl"])


def run(tmp_path: Path, records=None, *extra: str):
    if records is not None:
        make.write(tmp_path / "in" / "r.jsonl", records)
    return CliRunner().invoke(app, [str(tmp_path / "in"), "--out", str(tmp_path / "out"), *extra])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The report of a CPU sweep and a GPU sweep together."""
    folder = tmp_path_factory.mktemp("report")
    make.write(folder / "in" / "cpu.jsonl", make.cpu_sweep())
    make.write(folder / "in" / "gpu.jsonl", make.cuda_sweep(["attention"], ["fwd"]))
    result = CliRunner().invoke(app, [str(folder / "in"), "--out", str(folder / "out")])
    assert result.exit_code == 0, result.output
    return folder / "out"


def test_page_is_one_self_contained_file(whole):
    html = (whole / "index.html").read_text(encoding="utf-8")
    fetched = re.findall(
        r"(?:src|srcset|data|poster)=[\"']([^\"']+)|<link[^>]+href=[\"']([^\"']+)|url\(([^)]+)\)|@import", html
    )
    outside = [x for found in fetched for x in found if x and not x.startswith(("#", "data:"))]
    assert outside == []
    assert len(html) < 1_900_000
    for anchor in re.findall(r'href="#([^"]+)"', html):
        assert f'id="{anchor}"' in html, f"#{anchor} leads nowhere"
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_every_linked_file_exists(whole):
    html = (whole / "index.html").read_text(encoding="utf-8")
    markdown = (whole / "report.md").read_text(encoding="utf-8")
    links = re.findall(r'<a href="([^"#]+)"', html) + re.findall(r"!\[[^\]]*\]\(([^)]+)\)", markdown)
    assert len(links) > 20
    assert [link for link in links if not (whole / link).is_file()] == []


def test_figures_come_in_both_grounds_and_formats(whole):
    drawn = sorted((whole / "figures").glob("*.svg"))
    names = {path.stem.removesuffix("-dark") for path in drawn}
    assert len(drawn) == 2 * len(names) > 20
    for name in names:
        for suffix, ground in (("", (255, 255, 255)), ("-dark", (20, 23, 28))):
            with Image.open(whole / "figures" / f"{name}{suffix}.png") as png:
                assert png.convert("RGB").getpixel((0, 0)) == ground
                assert png.width > 800
            text = (whole / "figures" / f"{name}{suffix}.svg").read_text(encoding="utf-8")
            root = ElementTree.fromstring(text)
            assert root.get("role") == "img"
            assert root.get("width")
            light_left = [c for c in theme.css_variables(False).values() if c in text]
            assert (light_left == []) == bool(suffix)
            assert "clip-path" not in text


def test_colours_can_be_told_from_the_ground_and_from_each_other():
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(a: str, b: str) -> float:
        high, low = sorted((luminance(a), luminance(b)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for dark in (False, True):
        ground = theme.ROLES["ground"][dark]
        assert all(contrast(colour[dark], ground) >= 3 for colour in theme.COLOURS)
        assert all(contrast(theme.ROLES[role][dark], ground) >= 4.5 for role in ("ink", "soft", "alarm"))
    assert len(set(theme.MARKERS)) == len(theme.MARKERS) == len(theme.COLOURS)


def test_no_two_backends_share_a_colour_and_a_marker_and_none_of_ours_changes_with_the_others():
    shipped = variants.names()
    alone = [theme.slots([name])[name] for name in shipped]
    assert list(theme.slots(shipped).values()) == alone
    assert len({slot % len(theme.COLOURS) for slot in alone}) == len(shipped) <= len(theme.COLOURS)
    many = [*shipped, *(f"new_{i}" for i in range(90))]
    look = theme.Theme(False, theme.slots(many))
    assert len({(look.colour(name), look.marker(name)) for name in many}) == len(many)
    few = theme.slots(["gather", "flex", "new_0"])
    assert few["new_0"] == theme.slots(["new_0"])["new_0"]


def test_tables_agree_between_page_markdown_and_csv(whole):
    html = (whole / "index.html").read_text(encoding="utf-8")
    markdown = (whole / "report.md").read_text(encoding="utf-8")
    pairs = pd.read_csv(whole / "pairs.csv")
    cells = pd.read_csv(whole / "cells.csv")
    assert len(cells) == len(make.cpu_sweep()) + len(make.cuda_sweep(["attention"], ["fwd"]))
    rows = len(re.findall(r'<tr><td>(?:attention|block) [^<]*<td.*?<span class="v">(?:faster|same|unresolved)', html))
    assert rows == len(pairs)
    best = pairs.loc[pairs["ratio"].idxmax()]
    shown = f"{best['ratio']:.3g}×"
    assert shown in html
    assert shown in markdown


def test_answer_names_the_fastest_of_the_made_up_machines(whole):
    markdown = (whole / "report.md").read_text(encoding="utf-8")
    gpu, cpu = markdown.split("## The answer:")[1:3]
    assert "NVIDIA H200" in gpu
    assert "**Use `triton_fused`.**" in gpu
    assert "EPYC" in cpu
    assert "**Use `banded`.**" in cpu


def test_missing_values_are_dashes_with_a_reason(whole):
    html = (whole / "index.html").read_text(encoding="utf-8")
    for title, said in re.findall(r'<td class="na"(?: title="([^"]*)")?[^>]*>([^<]*)', html):
        assert title or said.strip() == "not recorded"
    assert not re.search(r">(nan|None|inf)<", html)


def test_ratios_pair_by_block_within_a_group_only(tmp_path):
    p = make.problem()
    one = make.group(make.CPU, p, backends=["gather", "banded"], run="run-1")
    two = make.group(make.CPU, p, backends=["dense"], run="run-2")
    c = collect(tmp_path, one + two)
    pairs = analyse.pairs(c)
    assert [(x.fast, x.slow) for x in pairs] == [("banded", "gather")]
    (contest,) = analyse.contests(c, pairs)
    assert [x.record.backend for x in contest.apart] == ["dense"]
    assert "dense" in evidence.rank_note([contest])[0]


def test_machines_and_commits_never_meet(tmp_path):
    p = make.problem()
    here = make.group(make.CPU, p, backends=["gather"])
    elsewhere = make.provenance().model_copy(update={"machine": "other"})
    there = [r.model_copy(update={"provenance": elsewhere})
             for r in make.group(make.CPU, p, backends=["banded"])]  # fmt: skip
    later = make.group(make.CPU, p, backends=["dense"], commit="ffffffffffff")
    c = collect(tmp_path, here + there + later)
    assert len({r.group for r in here + there + later}) == 1
    assert analyse.pairs(c) == []
    assert len(c.places) == 3


def test_other_thread_counts_are_another_place(tmp_path):
    p = make.problem()
    two = make.group(make.CPU, p, backends=["gather", "banded"])
    one = [
        r.model_copy(update={"provenance": make.provenance(environment={"threads": 1})})
        for r in make.group(make.CPU, p, backends=["gather", "banded"], seed=1)
    ]
    c = collect(tmp_path, two + one)
    assert sorted(place.hardware for place in c.places) == [f"{make.CPU.cpu}, 1 thread", f"{make.CPU.cpu}, 2 threads"]
    assert len(c.current) == 4
    assert len(analyse.pairs(c)) == 2


def test_newest_record_of_a_cell_wins_and_the_older_is_flagged(tmp_path):
    p = make.problem()
    new = make.group(make.CPU, p, seed=1, run="b", utc="2026-11-22T19:00:00Z")
    old = make.group(make.CPU, p, seed=2, run="a", utc="2026-11-21T19:00:00Z")
    c = collect(tmp_path, new + old)
    assert {x.record.run for x in c.current} == {"b"}
    result = run(tmp_path, new + old)
    assert result.exit_code == 0, result.output
    cells = pd.read_csv(tmp_path / "out" / "cells.csv")
    assert cells.groupby("run")["superseded"].all().to_dict() == {"a": True, "b": False}


def test_a_pair_survives_when_only_one_side_was_measured_again(tmp_path):
    p = make.problem()
    old = make.group(make.CPU, p, backends=["gather", "banded"], run="a", utc="2026-11-21T19:00:00Z")
    new = make.group(make.CPU, p, backends=["gather", "flex"], run="b", utc="2026-11-22T19:00:00Z")
    found = {frozenset((x.fast, x.slow)): x.group[0] for x in analyse.pairs(collect(tmp_path, old + new))}
    assert found == {frozenset(("gather", "banded")): "a", frozenset(("gather", "flex")): "b"}


def test_runs_of_one_pair_are_compared_with_each_other(tmp_path):
    p = make.problem()
    runs = [make.group(make.CPU, p, backends=["gather", "banded"], seed=i, run=f"run-{i}") for i in range(3)]
    c = collect(tmp_path, [r for run in runs for r in run])
    (repeat,) = analyse.repeats(c, analyse.pairs(c))
    assert len(repeat.ratios) == 3
    truth = make.true_ms(make.CPU, "gather", p) / make.true_ms(make.CPU, "banded", p)
    assert min(repeat.ratios) < truth * 1.05
    assert max(repeat.ratios) > truth / 1.05
    assert 0 < repeat.spread < 0.2
    assert run(tmp_path, [r for run in runs for r in run]).exit_code == 0
    assert "Between runs" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_equal_backends_are_not_called_faster(tmp_path):
    p = make.problem()
    first = make.group(make.CPU, p, backends=["banded"])[0]
    twin = first.model_copy(update={
        "backend": "twin",
        "timing": first.timing.model_copy(update={"samples_ms": first.timing.aa_samples_ms, "aa_samples_ms": None}),
    })  # fmt: skip
    c = collect(tmp_path, [first, twin])
    (pair,) = analyse.pairs(c)
    assert pair.verdict in ("same", "unresolved")
    (contest,) = analyse.contests(c, [pair])
    assert contest.tied
    (region,) = regions.regions([contest])
    assert region.resolved == 0
    assert region.alternatives


def test_an_unproven_but_large_lead_is_no_tie(tmp_path):
    c = collect(tmp_path, make.group(make.CPU, make.problem(), backends=["gather", "flex"]))  # no A/A arm: no proof
    (contest,) = analyse.contests(c, analyse.pairs(c))
    (region,) = regions.regions([contest])
    assert contest.tied == ("gather",)
    assert region.resolved == 0
    assert region.alternatives == []


def test_without_an_aa_arm_nothing_is_called_faster(tmp_path):
    c = collect(tmp_path, make.group(make.CPU, make.problem(), backends=["gather", "flex"]))
    (pair,) = analyse.pairs(c)
    assert pair.noise is None
    assert pair.verdict == "unresolved"


def test_a_pair_is_judged_by_the_noisier_of_its_two_arms(tmp_path):
    """Slow arms have floors of their own; what the fastest shows against itself says nothing of them."""
    rng = np.random.default_rng(0)

    def timed(record, level, spread):
        a, aa = (level * np.exp(rng.normal(0, spread, 60)) for _ in range(2))
        timing = record.timing.model_copy(update={"samples_ms": a.tolist(), "aa_samples_ms": aa.tolist()})
        return record.model_copy(update={"timing": timing})

    made = make.group(make.CPU, make.problem(), backends=["banded", "dense", "gather"])
    records = [timed(r, level, spread) for r, (level, spread) in zip(made, ((1, 0.001), (1.2, 0.3), (2, 0.001)))]
    pairs = {frozenset((p.fast, p.slow)): p for p in analyse.pairs(collect(tmp_path / "all", records))}
    assert pairs[frozenset(("banded", "gather"))].noise < 0.01
    assert pairs[frozenset(("banded", "gather"))].verdict == "faster"
    for other in ("banded", "gather"):
        assert pairs[frozenset((other, "dense"))].noise > 0.05
    bare = [r if r.backend == "dense" else make_bare(r) for r in records]
    noise = [p.noise for p in analyse.pairs(collect(tmp_path / "one", bare))]
    assert min(noise) == max(noise) > 0.05  # the only floor of the group serves all its pairs


def make_bare(record):
    return record.model_copy(update={"timing": record.timing.model_copy(update={"aa_samples_ms": None})})


def test_exponents_and_crossover_of_known_laws(tmp_path):
    sizes = (4096, 8192, 16384, 32768, 65536, 131072)
    records = [
        r for n in sizes for r in make.group(make.CPU, make.problem(n_atom=n), backends=["dense", "gather", "banded"])
    ]
    c = collect(tmp_path, records)
    (curve,) = curves.curves(c, "N")
    slope = {f.backend: f.all_sizes for f in curves.fits(curve)}
    assert slope["gather"].exponent == pytest.approx(1.0, abs=0.05)
    assert slope["gather"].low < 1.0 < slope["gather"].high + 0.05
    assert slope["dense"].exponent == pytest.approx(2.0, abs=0.05)
    crossings = [x for x in curves.crossings(curve, analyse.pairs(c)) if {x.a, x.b} == {"dense", "gather"}]
    truth = 4096 * make.CPU_SPEEDS["gather"].ms_per_pair / make.CPU_SPEEDS["dense"].ms_per_pair
    if any(n > truth for n in {r.problem.n_atom for r in records if r.backend == "dense" and r.status == "ok"}):
        assert crossings[0].at.n == pytest.approx(truth, rel=0.1)


def test_capacity_tells_predicted_observed_and_extrapolated(tmp_path):
    sizes = (4096, 16384, 65536, 262144)
    records = [r for n in sizes for r in make.group(make.CUDA, make.problem(device="cuda", dtype="bfloat16", n_atom=n))]
    (curve,) = curves.curves(collect(tmp_path, records), "N")
    found = {x.backend: x for x in curves.capacities(curve)}
    dense, fused = found["dense"], found["triton_fused"]
    assert dense.largest.record.problem.n_atom < dense.first_oom.record.problem.n_atom
    assert dense.predicted == ("predicted" in dense.first_oom.record.reason)
    assert dense.extrapolated_n is None
    peak, _, inputs = make.peak_bytes(
        make.CUDA, "triton_fused", make.problem(device="cuda", dtype="bfloat16", n_atom=262144)
    )
    expected = 262144 * make.CUDA.gpu_memory_bytes / (peak + inputs)
    assert fused.extrapolated_n == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    "records",
    [
        pytest.param(make.group(make.CPU, make.problem(), backends=["gather"]), id="one cell"),
        pytest.param(
            [r for n in (512, 1024) for r in make.group(make.CPU, make.problem(n_atom=n), backends=["banded"])],
            id="one backend"),
        pytest.param([make.cell(make.CPU, b, make.problem(), group="g", status="crashed", reason="died by signal 11")
                      for b in ("gather", "flex")], id="only failures"),
        pytest.param(make.group(make.CPU, make.problem(), blocks=1), id="one block"),
        pytest.param(make.group(make.CPU, make.problem(n_atom=1, window=1, n_neighbor=0, live_pairs=0)), id="no pairs"),
    ],
)  # fmt: skip
def test_small_inputs_still_make_a_page(tmp_path, records):
    result = run(tmp_path, records)
    assert result.exit_code == 0, result.output
    html = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert records[0].backend in html
    assert not re.search(r">(nan|None|inf)<", html)


def test_garbage_lines_are_listed_and_the_page_is_made(tmp_path):
    good = make.group(make.CPU, make.problem(), backends=["gather", "banded"])
    make.write(tmp_path / "in" / "r.jsonl", good)
    future = json.loads(good[0].model_dump_json()) | {"schema_version": 2}
    with open(tmp_path / "in" / "r.jsonl", "a", encoding="utf-8") as f:
        f.write('{"half": \nnot json\n{"a": 1}\n' + json.dumps(future) + "\n")
    result = run(tmp_path)
    assert result.exit_code == 0, result.output
    html = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert html.count("Left out:") == 4
    assert "schema version 2, expected 1" in html
    strict = run(tmp_path, None, "--strict")
    assert strict.exit_code == 2
    assert "r.jsonl:3" in strict.output


def test_an_unfinished_line_is_no_fault_but_is_noticed(tmp_path):
    """One behaviour for whoever reads: ``read`` passes over it, and so does ``--strict``."""
    path = tmp_path / "in" / "r.jsonl"
    make.write(path, make.group(make.CPU, make.problem(), backends=["gather", "banded"]))
    with path.open("a") as f:
        f.write('{"schema_version":1,"run":"cut off by a ki')
    assert len(list(read(path))) == 2
    result = run(tmp_path, None, "--strict")
    assert result.exit_code == 0, result.output
    assert "left out: r.jsonl:3: a record cut off" in result.output


def test_places_that_look_the_same_keep_their_figures_apart(tmp_path):
    p = make.problem()
    here = make.group(make.CPU, p, backends=["gather", "banded"])
    old = make.provenance(versions={"torch": "2.12.0"})
    there = [r.model_copy(update={"provenance": old}) for r in make.group(make.CPU, p, backends=["gather", "banded"])]
    result = run(tmp_path, here + there)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "torch 2.12.0" in page
    alone = run(tmp_path, here)
    assert alone.exit_code == 0
    drawn = len(list((tmp_path / "out" / "figures").glob("*.svg")))
    both = run(tmp_path, here + there)
    assert both.exit_code == 0
    assert len(list((tmp_path / "out" / "figures").glob("*.svg"))) == 2 * drawn > 0


def test_input_without_a_record_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "words.jsonl").write_text("hello\n")
    for given, expected in (("empty.jsonl", "at least one record"), ("folder", "none"), ("absent", "nothing there"),
                            ("words.jsonl", "not JSON")):  # fmt: skip
        with pytest.raises(InputError, match=expected):
            load([tmp_path / given])
        result = CliRunner().invoke(app, [str(tmp_path / given), "--out", str(tmp_path / "out")])
        assert result.exit_code == 2, result.output
        assert "error:" in result.output
        assert "Traceback" not in result.output


def test_text_from_records_is_escaped(tmp_path):
    records = make.group(make.CPU, make.problem(workload="<script>alert(1)</script>"), backends=["gather", "banded"])
    records.append(
        make.cell(make.CPU, "flex", records[0].problem, group="g", status="crashed", reason="<img src=x> | pipe")
    )
    assert run(tmp_path, records).exit_code == 0
    html = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in html
    assert "<img src=x>" not in html
    for svg in (tmp_path / "out" / "figures").glob("*.svg"):
        assert "<script" not in svg.read_text(encoding="utf-8")
    assert "\\| pipe" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_reports_do_not_import_torch():
    code = "import sys, reports.__main__; print([m for m in ('torch', 'variants', 'pallatom') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_mark_up_escapes_and_marks():
    said = f"{markup.bold('a')} < {markup.code('o&r')} **b** `c`"
    assert str(page.mark_up(said, {"gather": 0})) == "<strong>a</strong> &lt; <code>o&amp;r</code> **b** `c`"
    assert 'class="k k0"' in page.mark_up(markup.code("gather"), {"gather": 0})
    assert markup.as_markdown(said) == r"**a** &lt; o&amp;r \*\*b\*\* \`c\`"
    assert (
        markup.as_markdown(markup.code("gather_compiled") + " gather_compiled") == "`gather_compiled` gather_compiled"
    )
    assert markup.plain(said) == "a < o&r **b** `c`"
