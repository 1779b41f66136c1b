"""What commits did: asv's results of several machines, read, analysed and reported."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

pytest.importorskip("asv")

from asv.results import Results

from reports.__main__ import app
from reports.find import history
from reports.read import asv_results
from reports.say import history as sentences
from tests import ROOT, records_factory
from tests.browser import Visit
from tests.reports import asv_factory as make

COMMITS = 10
FIGURES = 2 * 2 * 2 + 1  # problems, metrics, machines; and machine against machine
SMALL = {"n_atom": 1024, "mode": "fwd"}  # one problem, for pages whose figures are not the point
HASHES = [f"{i:07x}{'c0ffee' * 6}"[:40] for i in range(1, 60)]


def report(*paths: Path, out: Path, **options: str):
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    return CliRunner().invoke(app, [*map(str, paths), "--out", str(out), *flags])


def results(tmp_path: Path, commits: int = COMMITS, **options) -> Path:
    return make.write(tmp_path, HASHES[:commits], suites=("attention",), **options)


def only(axes: dict[str, object], values: make.Value = make.value) -> make.Value:
    """Values of the cells with these parameters alone."""

    def asked(metric, cell, host, commit, rng):
        wanted = all(cell[axis] == value for axis, value in axes.items())
        return values(metric, cell, host, commit, rng) if wanted else (math.nan, None)

    return asked


def analyse(folder: Path) -> history.History:
    return history.analyse(asv_results.read([folder]))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """Results of two machines as asv left them; tests that spoil something copy it."""
    return results(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def whole(plain) -> asv_results.AsvResults:
    return asv_results.read([plain])


@pytest.fixture
def spoiled(plain, tmp_path) -> Path:
    return shutil.copytree(plain, tmp_path / "results")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The page of a laptop's and a GPU's history, one of its files broken."""
    folder = tmp_path_factory.mktemp("site")
    asked = only({"n_atom": 4096})
    make.write(folder, make.repository(folder / "repo", COMMITS), suites=("attention",), values=asked)
    (folder / "results" / "laptop" / f"{'0' * 8}-broken.json").write_text("{", encoding="utf-8")
    result = report(folder / "results", out=folder / "out", repo=str(folder / "repo"))
    assert result.exit_code == 0, result.output
    return folder / "out"


def test_the_steps_are_the_planted_ones_and_no_other(plain):
    """On both machines and in every cell: banded slower, gather heavier, at their commits, by their factors."""
    h = analyse(plain)
    found = {(s.series.host.machine, s.series.backend, s.series.metric, s.first.hash) for s in h.steps}
    slower, heavier = HASHES[make.SLOWER_FROM], HASHES[make.HEAVIER_FROM]
    planted = {(m, *step) for m in ("laptop", "gpu-box")
               for step in (("banded", "latency", slower), ("gather", "peak_memory", heavier))}  # fmt: skip
    assert found == planted
    assert len(h.steps) == 2 * 2 * 4  # machines, plants, problems
    for s in h.steps:
        assert s.held
        assert s.worse
        assert s.ratio == pytest.approx(1.5 if s.series.backend == "banded" else 2.0, rel=0.03)
        assert s.last.position == s.first.position - 1


@pytest.mark.parametrize("commits", [2, 3, 5, 25])
def test_nothing_planted_gives_no_step(tmp_path, commits):
    def flat(metric, cell, host, commit, rng):
        return make.value(metric, cell | {"backend": "flex"}, host, 0, rng)

    assert analyse(results(tmp_path, commits, values=flat, hosts=make.HOSTS[:1])).steps == ()


def test_a_step_that_one_commit_alone_shows_is_not_called_held(tmp_path):
    """A single noisy run looks like a step up and a step down."""

    def spiked(metric, cell, host, commit, rng):
        value, samples = make.value(metric, cell | {"backend": "flex"}, host, 0, rng)
        return value, [3 * s for s in samples] if metric == "latency" and commit == 5 and samples else samples

    h = analyse(results(tmp_path, values=spiked))
    assert {(s.first.position, s.held) for s in h.steps} == {(5, False), (6, False)}


def test_a_step_over_commits_without_results_names_both_ends(tmp_path):
    def gap(metric, cell, host, commit, rng):
        value, samples = make.value(metric, cell, host, commit, rng)
        missing = metric == "latency" and commit in (make.SLOWER_FROM - 1, make.SLOWER_FROM)
        return (None, None) if missing else (value, samples)

    steps = [s for s in analyse(results(tmp_path, values=gap)).steps if s.series.metric == "latency"]
    assert steps
    assert {(s.last.position, s.first.position) for s in steps} == {(make.SLOWER_FROM - 2, make.SLOWER_FROM + 1)}


def test_commits_are_in_gits_order_and_by_date_where_git_does_not_know_them(tmp_path, monkeypatch):
    hashes = make.repository(tmp_path / "repo", 4)
    folder = make.write(tmp_path, hashes[::-1], suites=("attention",))  # asv's dates now run against git
    by_git = asv_results.read([folder], tmp_path / "repo")
    assert ([c.hash for c in by_git.commits], by_git.ordered_by) == (hashes, "git")
    other = make.repository(tmp_path / "other", 1)
    assert other
    monkeypatch.chdir(tmp_path)
    for repository in (tmp_path / "other", tmp_path / "none"):
        by_date = asv_results.read([folder], repository)
        assert ([c.hash for c in by_date.commits], by_date.ordered_by) == (hashes[::-1], "date")
    shutil.move(tmp_path / "repo" / ".git", tmp_path / ".git")
    assert asv_results.read([folder]).ordered_by == "git"  # the repository around the results


def test_not_asked_for_not_available_and_failed_stay_apart(tmp_path):
    """asv's NaN and null; neither is a 0, in the table, its files or a figure's points."""

    def values(metric, cell, host, commit, rng):
        value, samples = make.value(metric, cell, host, commit, rng)
        broken = metric == "latency" and cell["backend"] == "flex" and commit == 3 and samples
        return (None, None) if broken else (value, samples)

    folder = results(tmp_path, values=values)
    frame = asv_results.read([folder]).frame
    assert set(frame["window"]) == {32}  # nobody asked for 16
    assert (frame["machine"] == "laptop").eq(frame["device"] == "cpu").all()
    failed = frame[frame["found"] == asv_results.FAILED]
    assert set(zip(failed["backend"], failed["metric"], failed["commit"], strict=True)) == {
        ("flex", "latency", HASHES[3])
    }
    absent = frame[(frame["found"] == asv_results.NOT_AVAILABLE) & (frame["metric"] == "latency")]
    assert set(absent["status"]) == {"unsupported", "oom"}
    assert set(absent[absent["status"] == "oom"]["backend"]) == {"dense"}
    for rows in (failed, absent):
        assert rows["value"].isna().all()
    assert (frame[frame["metric"] != "status"]["value"].dropna() > 0).all()
    h = analyse(folder)
    series = next(s for s in h.series if s.backend == "flex" and s.metric == "latency")
    assert [p.value for p in series.points].index(None) == 3
    assert series.points[3].status == "failed"


def test_a_benchmark_that_broke_as_a_whole_is_one_row(whole, spoiled):
    path = next((spoiled / "laptop").glob(f"{HASHES[2][:8]}*.json"))
    data = json.loads(path.read_text())
    data["results"]["block.Attention.track_latency"][0] = None
    path.write_text(json.dumps(data))
    frame, before = asv_results.read([spoiled]).frame, whole.frame
    broken = frame[frame["found"] == asv_results.FAILED]
    assert [tuple(r) for r in broken[["machine", "commit", "metric"]].to_numpy()] == [("laptop", HASHES[2], "latency")]
    lost = before[(before["machine"] == "laptop") & (before["commit"] == HASHES[2]) & (before["metric"] == "latency")]
    assert len(frame) == len(before) - len(lost) + 1


def test_results_of_a_smaller_grid_are_not_failures(whole, spoiled):
    """asv hands out null for a backend that a grid of that time did not have; asking for it was nobody's failure."""
    listed = json.loads((spoiled / "benchmarks.json").read_text())
    for benchmark in listed.values():
        if isinstance(benchmark, dict):
            axis = benchmark["param_names"].index("backend")
            benchmark["params"][axis].insert(0, "'younger'")
    (spoiled / "benchmarks.json").write_text(json.dumps(listed))
    found = asv_results.read([spoiled])
    assert found.rejected == ()
    keys = ["machine", "commit", "benchmark", "cell", "value", "found"]
    pd.testing.assert_frame_equal(found.frame[keys], whole.frame[keys])


def test_a_parameter_that_has_the_name_of_a_column_keeps_both(spoiled, whole):
    (spoiled / "benchmarks.json").write_text((spoiled / "benchmarks.json").read_text().replace('"mode"', '"source"'))
    frame = asv_results.read([spoiled]).frame
    assert set(frame["param_source"]) == {"fwd", "fwdbwd"}
    assert set(frame["source"]) == set(whole.frame["source"])


def test_readme_takes_records_alone(plain, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results:begin -->\nheld\n<!-- results:end -->\n")
    result = report(plain, out=tmp_path / "out", readme=str(readme))
    assert result.exit_code == 2
    assert "--readme: expected records alone" in result.output
    assert "held" in readme.read_text()


def test_the_table_holds_what_asv_holds(plain, whole):
    """Against asv's own reading of one file: values, statistics and samples, cell by cell."""
    frame = whole.frame
    path = next((plain / "gpu-box").glob(f"{HASHES[5][:8]}*.json"))
    found = Results.load(str(path))
    key = "block.Attention.track_latency"
    params = found.get_result_params(key)
    held = found.get_result_value(key, params)
    rows = frame[(frame["source"] == f"gpu-box/{path.name}") & (frame["benchmark"] == key)]
    numbers = [v for v in held if v is not None and not math.isnan(v)]
    assert sorted(rows["value"].dropna()) == sorted(numbers)
    assert len(numbers) == 4 * len(make.BACKENDS) - 2  # dense at the larger size
    one = rows.dropna(subset="value").iloc[0]
    assert one["ci_low"] <= one["value"] <= one["ci_high"]
    assert one["n_samples"] == len(one["samples"]) == 20
    assert np.median(one["samples"]) == pytest.approx(one["value"])
    assert one["unit"] == "seconds"


SPOILS = {
    "half a file": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "no json": lambda p: p.write_bytes(b"\x00\xff\xfe garbage"),
    "a list": lambda p: p.write_text("[1, 2, 3]"),
    "empty": lambda p: p.write_text(""),
    "another machine": lambda p: _change(p, lambda d: d["params"].update(machine="elsewhere")),
    "no results": lambda p: _change(p, lambda d: d.pop("results")),
    "no params": lambda p: _change(p, lambda d: d.update(params=None)),
    "a folder": lambda p: (p.unlink(), p.mkdir()),
}


def _change(path: Path, change) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_spoiled_file_is_named_and_costs_no_other(whole, spoiled, spoil):
    path = next((spoiled / "laptop").glob(f"{HASHES[4][:8]}*.json"))
    SPOILS[spoil](path)
    found = asv_results.read([spoiled])
    assert [r.source for r in found.rejected] == [f"laptop/{path.name}"]
    assert found.rejected[0].why
    assert str(spoiled) not in found.rejected[0].why
    lost = (whole.frame["machine"] == "laptop") & (whole.frame["commit"] == HASHES[4])
    assert len(found.frame) == len(whole.frame) - lost.sum()


@pytest.mark.parametrize(
    ("column", "content", "why"),
    [
        ("result", lambda old: ["slow"] * len(old), "expected numbers"),
        ("result", lambda old: [[1.0]] * len(old), "expected numbers"),
        ("result", lambda old: [float("inf")] * len(old), "finite"),
        ("result", lambda old: {"a": 1}, "form"),
        ("params", lambda old: 7, "form"),
        ("version", lambda old: "0", "another version"),
    ],
)
def test_a_spoiled_benchmark_is_named_and_costs_no_other(whole, spoiled, column, content, why):
    path = next((spoiled / "laptop").glob(f"{HASHES[4][:8]}*.json"))
    data = json.loads(path.read_text())
    row = data["results"]["block.Attention.track_latency"]
    place = data["result_columns"].index(column)
    row[place] = content(row[place])
    path.write_text(json.dumps(data))
    found = asv_results.read([spoiled])
    assert [(r.source, why in r.why) for r in found.rejected] == [(f"laptop/{path.name}", True)]
    assert "track_latency" in found.rejected[0].why
    f = whole.frame
    lost = (f["machine"] == "laptop") & (f["commit"] == HASHES[4]) & (f["metric"] == "latency")
    assert len(found.frame) == len(f) - lost.sum()


def test_a_machine_without_its_file_is_named(spoiled):
    (spoiled / "laptop" / "machine.json").write_text("{")
    found = asv_results.read([spoiled])
    assert set(found.frame["machine"]) == {"gpu-box"}
    assert len(found.rejected) == COMMITS
    assert all("machine.json" in r.why for r in found.rejected)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 2}', '{"version": 99}'])
def test_without_the_list_of_benchmarks_there_is_an_error_that_names_it(spoiled, tmp_path, content):
    (spoiled / "benchmarks.json").write_text(content)
    result = report(spoiled, out=tmp_path / "out")
    assert result.exit_code == 2
    assert "results" in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out" / "index.html").exists()


def test_a_folder_without_numbers_is_an_error(spoiled, tmp_path):
    for path in spoiled.glob("*/*-*.json"):
        path.write_text("{")
    result = report(spoiled, out=tmp_path / "out")
    assert result.exit_code == 2
    assert "found no number" in result.output


def test_strict_refuses_what_would_be_left_out(spoiled, tmp_path):
    next((spoiled / "laptop").glob(f"{HASHES[4][:8]}*.json")).write_text("{")
    result = CliRunner().invoke(app, [str(spoiled), "--out", str(tmp_path / "out"), "--strict"])
    assert result.exit_code == 2
    assert HASHES[4][:8] in result.output


def test_shards_come_together(plain, whole, tmp_path):
    """The folders of two machines, each with its own list of benchmarks; given twice, nothing counts twice."""
    for machine, other in (("laptop", "gpu-box"), ("gpu-box", "laptop")):
        shutil.copytree(plain, tmp_path / machine, ignore=shutil.ignore_patterns(other))
    together = asv_results.read([tmp_path / "laptop", tmp_path / "gpu-box", tmp_path / "laptop"])
    keys = ["machine", "commit", "benchmark", "cell", "value", "status"]
    pd.testing.assert_frame_equal(together.frame[keys], whole.frame[keys])


def test_machine_against_machine_finds_the_ratio_of_the_machines(plain):
    """The GPU is 40 times the laptop: every interval is around that, at the newest commit of both."""
    h = analyse(plain)
    assert len(h.against) == 4 * (len(make.BACKENDS) - 2) - 2  # two need the GPU, one fails at the larger size
    for a in h.against:
        assert (a.here.machine, a.there.machine) == ("gpu-box", "laptop")
        assert a.commit.hash == HASHES[COMMITS - 1]
        assert a.ratio.low is not None
        assert a.ratio.high is not None
        assert a.ratio.low < a.ratio.ratio < a.ratio.high
        assert a.ratio.ratio == pytest.approx(40, rel=0.06)


def test_machines_meet_at_a_commit_that_both_have_or_not_at_all(plain, spoiled):
    for i in range(COMMITS - 3, COMMITS):
        next((spoiled / "laptop").glob(f"{HASHES[i][:8]}*.json")).unlink()
    assert {a.commit.hash for a in analyse(spoiled).against} == {HASHES[COMMITS - 4]}
    for i in range(COMMITS - 3):
        next((spoiled / "gpu-box").glob(f"{HASHES[i][:8]}*.json")).unlink()
    assert analyse(spoiled).against == ()


def test_without_an_interval_on_one_side_there_is_none_of_the_ratio(tmp_path):
    def one_sample(metric, cell, host, commit, rng):
        value, samples = make.value(metric, cell, host, commit, rng)
        return value, samples[:1] if samples and host.gpu else samples

    against = analyse(results(tmp_path, 2, values=one_sample)).against
    assert against
    assert all(a.ratio.low is None and a.ratio.high is None for a in against)


def test_an_interval_of_few_samples_that_reaches_below_nothing(plain, spoiled):
    """asv's intervals of few samples are symmetric: no time is below 0, and no ratio follows from one that holds 0."""
    path = next((spoiled / "laptop").glob(f"{HASHES[COMMITS - 1][:8]}*.json"))
    data = json.loads(path.read_text())
    low = data["result_columns"].index("stats_ci_99_a")
    row = data["results"]["block.Attention.track_latency"]
    row[low] = [None if v is None else -v for v in row[low]]
    path.write_text(json.dumps(data))
    h = analyse(spoiled)
    assert h.against
    assert all(a.ratio.low is None and a.ratio.high is None for a in h.against)
    series = [s for s in h.series if s.metric == "latency" and s.host.machine == "laptop" and s.measured]
    assert {s.points[-1].low for s in series} == {0.0}
    assert all(s.points[0].low for s in series)


def test_what_needs_no_device_makes_no_machine_of_its_own(plain, spoiled):
    """A suite with other parameters, as the kernels have, beside the others of the same machine."""
    listed = json.loads((spoiled / "benchmarks.json").read_text())
    key, params = "kernels.Kernels.track_registers", [["'forward'"], ["90"]]
    listed[key] = make.benchmark("attention", "latency") | {
        "name": key, "params": params, "param_names": ["kernel", "arch"], "unit": "registers"}  # fmt: skip
    (spoiled / "benchmarks.json").write_text(json.dumps(listed))
    for i, path in enumerate(sorted((spoiled / "laptop").glob("*-*.json"))):
        _change(path, lambda d, i=i: d["results"].update({key: [[200 + 20 * (i > 4)], params, "1", 1, 1]}))
    h = analyse(spoiled)
    assert [x.machine for x in h.hosts] == ["gpu-box", "laptop"]
    step = next(s for s in h.steps if s.series.metric == "registers")
    assert (step.series.backend, step.series.problem.params) == ("forward", (("arch", 90),))
    assert step.ratio == pytest.approx(1.1)
    assert "forward" not in h.backends


def test_reasons_come_from_the_records_beside_the_results(plain, spoiled, tmp_path):
    problem = {"level": "attention", "device": "cpu", "n_atom": 1024, "window": 32, "k_cap": None, "dtype": "float32",
               "mode": "fwd"}  # fmt: skip
    stem = next((spoiled / "laptop").glob(f"{HASHES[9][:8]}*.json")).stem
    (spoiled / "laptop" / "records").mkdir()
    lines = ["garbage", "[1]", json.dumps({"problem": problem | {"n_atom": [1]}, "backend": {}}),
             json.dumps({"problem": problem, "backend": "triton_fused", "reason": "needs a GPU"})]  # fmt: skip
    (spoiled / "laptop" / "records" / f"{stem}.jsonl").write_text("\n".join(lines))
    frame = asv_results.read([spoiled]).frame
    told = frame[frame["reason"].notna()]
    assert set(zip(told["backend"], told["n_atom"], told["mode"], told["commit"], told["status"], strict=True)) == {
        ("triton_fused", 1024, "fwd", HASHES[9], "unsupported")
    }
    assert set(told["reason"]) == {"needs a GPU"}


def test_reading_needs_asv_and_says_so(plain, tmp_path):
    script = (
        "import sys\nsys.modules['asv'] = None\nfrom reports.__main__ import app\n"
        f"app([{str(plain)!r}, '--out', {str(tmp_path / 'out')!r}])\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "needs asv" in result.stderr
    assert "Traceback" not in result.stderr


def test_reading_history_does_not_import_torch(plain):
    script = (
        "import sys\nfrom pathlib import Path\nfrom reports.read import asv_results\nfrom reports.find import history\n"
        f"found = history.analyse(asv_results.read([Path({str(plain)!r})]))\n"
        "print(len(found.steps), [m for m in ('torch', 'variants', 'pallatom', 'triton') if m in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "16 []"


def test_the_files_hold_the_table(site):
    csv, parquet = pd.read_csv(site / "history.csv"), pd.read_parquet(site / "history.parquet")
    assert len(csv) == len(parquet) > 500
    assert csv["value"].isna().sum() == parquet["value"].isna().sum() > 0
    pd.testing.assert_series_equal(csv["value"], parquet["value"].astype("float64"), check_exact=False)
    measured = parquet[(parquet["metric"] == "latency") & parquet["value"].notna()]
    assert {len(s) for s in measured["samples"]} == {20}
    steps = pd.read_csv(site / "steps.csv")
    assert len(steps) == 2 * 2 * 2
    assert set(steps["backend"]) == {"banded", "gather"}


def test_page_and_markdown_tell_the_steps_and_the_files_left_out(site):
    html = (site / "index.html").read_text(encoding="utf-8")
    markdown = (site / "report.md").read_text(encoding="utf-8")
    steps = pd.read_csv(site / "steps.csv")
    slower = steps[steps["backend"] == "banded"]["first_after"].iloc[0][:7]
    for text in (html, markdown):
        assert "in git&#39;s order" in text or "in git's order" in text
        assert f"{'0' * 8}-broken.json" in text
        assert slower in text
        assert "× slower" in text
        assert "2.00× heavier" in text
        assert "cannot be interleaved" in text
    assert html.count("<figure>") == FIGURES
    links = re.findall(r'<a href="([^"#]+)"', html) + re.findall(r"!\[[^\]]*\]\(([^)]+)\)", markdown)
    assert [link for link in links if not (site / link).is_file()] == []
    for anchor in re.findall(r'href="#([^"]+)"', html):
        assert f'id="{anchor}"' in html
    assert "<svg" in html
    assert slower in html.split("<svg", 1)[1]


@pytest.fixture
def pages(browser, site) -> Iterator:
    visits: list[Visit] = []

    def go(**options: object) -> Visit:
        visits.append(Visit(browser, (site / "index.html").as_uri(), **options))
        return visits[-1]

    yield go
    for v in visits:
        v.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_the_page_is_whole_on_every_screen(pages, width, scheme):
    v = pages(width=width, scheme=scheme)
    assert v.complaints == []
    assert [r for r in v.requests if not r.startswith(("file://", "data:"))] == []
    assert v.page.evaluate("document.documentElement.scrollWidth") <= width
    assert v.sticking_out() == []
    assert v.overlaps() == []
    found = v.figures()
    assert len(found) == FIGURES
    assert [f for f in found if f["out"]] == []
    assert {f["ground"] for f in found} == {{"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}[scheme]}


def test_a_backend_can_be_hidden_in_all_panels(pages):
    v = pages()
    v.page.locator("#keys button", has_text="banded").click()
    shown = v.page.evaluate("""[...document.querySelectorAll('[data-b="banded"]')].map(g => g.style.display)""")
    assert len(shown) == FIGURES
    assert set(shown) == {"none"}


def _jagged(rng: np.random.Generator, at: Sequence[int]):
    """Levels that change at many commits that lie close together."""

    def values(metric, cell, host, commit, _):
        value, samples = make.value(metric, cell | {"backend": "flex"}, host, 0, rng)
        level = 1.6 ** (sum(commit >= a for a in at) % 2)
        return value, [level * s for s in samples] if metric == "latency" and samples else samples

    return values


def test_nine_backends_fifty_commits_and_steps_side_by_side_stay_readable(browser, tmp_path):
    at = (3, 6, 9, 12, 30, 33, 45, 47)
    jagged = only(SMALL, _jagged(np.random.default_rng(3), at))
    folder = results(tmp_path, 50, hosts=make.HOSTS[1:], values=jagged)
    result = report(folder, out=tmp_path / "out")
    assert result.exit_code == 0, result.output
    steps = pd.read_csv(tmp_path / "out" / "steps.csv")
    assert set(steps["first_after"]) == {HASHES[a] for a in at}
    v = Visit(browser, (tmp_path / "out" / "index.html").as_uri(), width=390)
    try:
        assert v.overlaps() == []
        assert [f for f in v.figures() if f["out"]] == []
        assert v.page.evaluate("document.querySelectorAll('figure [data-b]').length") == 2 * len(make.BACKENDS)
    finally:
        v.close()


def test_records_and_history_share_one_page(tmp_path):
    folder = results(tmp_path, 2, hosts=make.HOSTS[:1], values=only(SMALL))
    records_factory.write(tmp_path / "r.jsonl", records_factory.group(records_factory.CPU, records_factory.problem()))
    result = report(tmp_path / "r.jsonl", folder, out=tmp_path / "out")
    assert result.exit_code == 0, result.output
    html = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    for part in ("answer", "figures", "tables", "history", "machine", "method"):
        assert html.count(f'<section id="{part}">') == 1
    assert html.count('id="keys"') == 1
    names = [p.name for p in (tmp_path / "out").iterdir()]
    assert {"cells.csv", "pairs.csv", "history.csv", "steps.csv"} <= set(names)


def test_figures_of_an_earlier_history_are_swept_out(tmp_path):
    drawn = tmp_path / "out" / "figures"
    drawn.mkdir(parents=True)
    for name in ("history-of-old.png", "machines-old-dark.svg", "mine.png"):
        (drawn / name).write_text("")
    results(tmp_path, 1, values=only(SMALL))
    result = report(tmp_path / "results", out=tmp_path / "out")
    assert result.exit_code == 0, result.output
    left = {p.name for p in drawn.iterdir()}
    assert "mine.png" in left
    assert not {"history-of-old.png", "machines-old-dark.svg"} & left
    assert not any(name.startswith("history-") for name in left)  # one commit is no history
    assert any(name.startswith("machines-") for name in left)


def test_a_throttled_gpu_is_told(tmp_path):
    def hot(metric, cell, host, commit, rng):
        if metric == "throttle" and host.gpu and cell["device"] == "cuda" and cell["window"] == 32:
            return float(commit == 1) * 4, None
        return make.value(metric, cell, host, commit, rng)

    for commits, told in ((1, False), (2, True)):
        h = analyse(results(tmp_path / str(commits), commits, values=only(SMALL, hot)))
        notices = sentences.notices(h)
        assert any("held its clock back" in n for n in notices) == told
