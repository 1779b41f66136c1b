"""One table of axes: what a row more brings, what records without it still are, and where the batch is seen."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.asv import grid as asv_grid
from benchmarks.commands import check
from benchmarks.commands import console as show
from benchmarks.harness.cases.problems import Axes, BadAxis, resolve
from benchmarks.harness.schema import cells
from benchmarks.harness.schema.axes import AXES, LARGEST
from benchmarks.harness.schema.problem import Problem
from benchmarks.harness.schema.record import read
from reports.page import build, page
from reports.read.load import load
from tests import ROOT
from tests import records_factory as made

RECORDS = ROOT / "reports/2026-11-27-cpu/records.jsonl"


# -- what stands as it was -----------------------------------------------------------------------------


def test_keys_of_records_on_file_stand() -> None:
    """A sweep that goes on, ``--again`` and a report's newest record find cells by these."""
    keys = [record.problem.key for record in read(RECORDS)]
    assert keys[0] == "28ffa84a2e2829f3"
    assert hashlib.sha256(" ".join(keys).encode()).hexdigest()[:16] == "dfe3abf143cfb076"


def test_asv_names_its_parameters_as_it_did() -> None:
    assert cells.PARAMETERS[:7] == ("device", "backend", "n_atom", "window", "k", "dtype", "mode")
    assert list(asv_grid.GRIDS["attention"]) == list(cells.PARAMETERS)
    record = next(record for record in read(RECORDS) if record.problem.k_cap is None)
    p = record.problem
    cell = cells.cell_of(record.backend, p.model_dump())
    assert cell == (p.device, record.backend, p.n_atom, p.window, "all", p.dtype, p.mode)
    assert resolve(Axes(**cells.axes_of("attention", ("cpu", "banded", 64, 8, 16, "float32", "fwd"))))[0].k_cap == 16


# -- a row's fields ------------------------------------------------------------------------------------


def test_every_row_is_a_field_of_what_is_asked_and_of_what_is_recorded() -> None:
    for row in AXES:
        assert row.name in Problem.model_fields
        assert row.name in Axes.__dataclass_fields__
        assert getattr(Axes(), row.name) == row.default
    letters = [row.letter for row in AXES if row.letter]
    assert len(set(letters)) == len(letters)
    assert len({row.parameter for row in AXES}) == len(AXES)


@pytest.mark.parametrize("row", [row for row in AXES if row.name != "workload"], ids=lambda row: row.name)
def test_a_value_that_no_problem_can_have_is_refused_by_its_option(row) -> None:
    for bad in ["nonsense"] if row.choices else [row.least - 1, LARGEST + 1]:
        with pytest.raises(BadAxis, match=f"^{row.flags[0]}: expected .*{re.escape(str(bad))}"):
            resolve(Axes(**{"n_atom": 32, row.name: bad}))


# -- the batch is seen ---------------------------------------------------------------------------------

BATCHES = (1, 3, 8)


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, build.Report]:
    """A report of the same problems at three batch sizes."""
    folder = tmp_path_factory.mktemp("batches")
    problems = [made.problem(n_atom=n, batch=b) for n in (512, 1024, 2048) for b in BATCHES]
    records = [
        made.recent(r) for p in problems for r in made.group(made.CPU, p, backends=["gather", "banded", "dense"])
    ]
    apart = made.cell(made.CPU, "flex", problems[-1], group="elsewhere")
    missing = made.cell(made.CPU, "gather_compiled", problems[-1], group="g", status="crashed", reason="died")
    made.write(folder / "records.jsonl", [*records, apart, missing])
    report = build.build(load([folder / "records.jsonl"]), title="t", folder=folder)
    page.write(report, folder)
    return folder, report


def test_rows_of_two_batches_differ_in_every_table(batches: tuple[Path, build.Report]) -> None:
    for table in batches[1].tables:
        labels = [column.label for column in table.columns]
        if "B" in labels:
            assert {row[labels.index("B")].text for row in table.rows} == {str(b) for b in BATCHES}, table.title
        else:
            said = " ".join(f"{td.text} {td.detail}" for row in table.rows for td in row)
            found = set(re.findall(r"\bB (?:= )?(\d+)", said)) | ({"1", "3", "8"} if "along" in labels else set())
            assert not table.rows or "8" in found, table.title
    titled = {table.title for table in batches[1].tables if "B" in [column.label for column in table.columns]}
    assert {"Memory, measured and modelled", "All paired ratios", "Gate errors", "How noisy it was"} < titled


def test_there_is_a_curve_along_the_batch(batches: tuple[Path, build.Report]) -> None:
    folder, report = batches
    (exponents,) = [table for table in report.tables if table.title == "Fitted exponents"]
    along = [[td.text for td in row[:3]] for row in exponents.rows if row[0].text == "B"]
    assert len(along) == 9  # three sizes, three backends
    assert all("B =" not in where and "N = " in where for _, where, _ in along)
    titles = [drawing.title for gallery in report.galleries for drawing in gallery.drawings]
    assert "Time against batch B: attention, fwd, fp32" in titles
    assert {f"Time against N: attention, fwd, fp32, B = {b}" for b in BATCHES} < set(titles)
    names = {path.name for path in (folder / "figures").glob("*.svg")}
    assert any(name.startswith("time-b-attention") for name in names)
    assert any(name.startswith("time-n-attention-forward-fp32-b-3-") for name in names)
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "Time against batch B" in text
    assert "Everything but B held fixed." in text


def test_a_terminal_tells_batches_apart() -> None:
    records = [r for b in BATCHES for r in made.group(made.CPU, made.problem(batch=b), backends=["gather", "banded"])]
    for table in (show.table(records), check.table(records)):
        labels = [str(column.header) for column in table.columns]
        assert list(dict.fromkeys(table.columns[labels.index("B")].cells)) == ["1", "3", "8"]
    assert show.title(records[-1].problem).endswith("  B = 8")
    assert "B = " not in show.title(records[0].problem)


# -- a row more, and nothing else ----------------------------------------------------------------------

ROW = """    Axis("samples", "Samples M that share one pair tensor.", "model", 1, letter="M", words="samples", most=64,
         curve=True, asv=(1, 5), added=True),
    Axis("seed","""

LOOK = """
import json, sys
from pathlib import Path
from benchmarks.asv import grid
from benchmarks.harness.schema import cells
from benchmarks.harness.schema.record import Record, read
from benchmarks.harness.sweep import again
from benchmarks.harness.cases.problems import Axes, resolve
from reports.find.history import Problem as Tracked
from tests import records_factory as made

old = next(r for r in read(Path(sys.argv[1])) if r.problem.k_cap is None)
five, _ = resolve(Axes(n_atom=64, samples=5))
problems = [made.problem(n_atom=n, samples=m) for n in (512, 1024) for m in (1, 5, 48)]
records = [r for p in problems for r in made.group(made.CPU, p, backends=["gather", "dense"])]
made.write(Path("in/records.jsonl"), records)
p = old.problem
print(json.dumps({
    "old": [p.samples, p.key, cells.cell_of(old.backend, json.loads(old.model_dump_json())["problem"])],
    "before": cells.cell_of("banded", {k: v for k, v in p.model_dump().items() if k != "samples"}),
    "keys": len({x.key for x in problems}),
    "recorded": Record.model_validate_json(old.model_copy(update={"problem": five}).model_dump_json()).problem.samples,
    "words": again.axes_words(five),
    "recalled": again.recall(five).samples,
    "parameters": cells.PARAMETERS,
    "cell": cells.cell_of("banded", five.model_dump()),
    "asked": cells.axes_of("attention", ("cpu", "banded", 64, 32, "all", "float32", "fwd", 5))["samples"],
    "wanted": len(grid.wanted("attention", "all samples=5 backend=banded n_atom=512 window=32 k=all dtype=float32")),
    "default": len(grid.default("attention", ["cpu"])),
    "history": Tracked("attention", (("n_atom", 512), ("samples", 5))).sizes,
}))
"""


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This project with one more row in the table: no other line differs."""
    folder = tmp_path_factory.mktemp("longer")
    left_out = shutil.ignore_patterns("__pycache__", "2026-*")
    for package in ("benchmarks", "reports", "variants", "pallatom"):
        shutil.copytree(ROOT / package, folder / package, ignore=left_out)
    (folder / "tests").mkdir()
    shutil.copy(ROOT / "tests/records_factory.py", folder / "tests")
    table = folder / "benchmarks/harness/schema/axes.py"
    text = table.read_text(encoding="utf-8")
    assert text.count('    Axis("seed",') == 1
    table.write_text(text.replace('    Axis("seed",', ROW), encoding="utf-8")
    return folder


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "160", "TERMINAL_WIDTH": "160"}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_one_more_axis_is_an_option_with_help_and_bounds(longer: Path) -> None:
    for command in ("sweep", "compare", "check", "profile", "regress"):
        told = run(longer, "-m", "benchmarks", command, "--help").stdout
        assert re.search(r"--samples .*Samples M that share one pair tensor\.", told), told
    sweep = ("-m", "benchmarks", "sweep", "--device", "cpu", "-n", "64", "-b", "gather", "--plan", "--samples")
    for bad in ("0", "65", "x"):
        refused = run(longer, *sweep, bad)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.startswith("error: --samples: expected ")
        assert bad in refused.stderr
    planned = run(longer, *sweep, "1,5").stdout.splitlines()
    assert [line.count("M = 5") for line in planned] == [0, 1]


def test_one_more_axis_reaches_records_asv_and_the_page(longer: Path) -> None:
    done = run(longer, "-c", LOOK, str(RECORDS))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    old = next(record for record in read(RECORDS) if record.problem.k_cap is None)
    seven = list(cells.cell_of(old.backend, old.problem.model_dump()))
    assert found["old"] == [1, old.problem.key, seven]
    assert found["before"][2:] == seven[2:]
    assert found["keys"] == 6
    assert found["recorded"] == found["recalled"] == found["asked"] == 5
    assert found["words"][found["words"].index("--samples") + 1] == "5"
    assert found["parameters"] == [*cells.PARAMETERS, "samples"]
    assert found["cell"][-1] == 5
    assert found["wanted"] == 4  # two devices, forward and with gradients
    assert found["default"] == len(asv_grid.default("attention", ["cpu"]))
    assert found["history"] == "N = 512, M = 5"
    drawn = run(longer, "-m", "reports", "in/records.jsonl", "--out", "out")
    assert drawn.returncode == 0, drawn.stderr
    text = (longer / "out/report.md").read_text(encoding="utf-8")
    assert "Time against samples M" in text
    assert "attention, forward, fp32, M = 48" in text
    assert re.search(r"\| N \| W \| K \| M \|", text)
    assert re.search(r"^\| M \| ", text, re.MULTILINE)  # a fitted exponent along it
    assert (longer / "out/cells.csv").read_text(encoding="utf-8").split("\n")[0].count("samples")
    names = {path.name for path in (longer / "out/figures").glob("*.svg")}
    assert any(name.startswith("time-m-") for name in names)
    assert any(name.startswith("time-n-attention-forward-fp32-m-5-") for name in names)
