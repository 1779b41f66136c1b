"""Nothing in a record can break or dirty what shows it: page, drawing, Markdown, tables, terminal."""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from typer.testing import CliRunner

from benchmarks.harness.schema.record import Record
from reports import markup
from reports.__main__ import app
from tests import records_factory as make

NASTY = "a|b<script>alert(1)</script>&`c`[d](javascript:e)**f**_g_\n# h\x1b[31mi\x00\x07\u202ej\u2066$k$\u2028l"
UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def with_text(record: Record, text: str, *, backend: bool) -> Record:
    """``text`` wherever a record has room for it."""
    origin = record.provenance.model_copy(update={
        "machine": text, "cpu": text, "gpu": record.provenance.gpu and text, "commit": text, "driver": text,
        "versions": {"torch": text, text: "1"}, "argv": [text],
        "environment": {text: text, "structure": text, "before": {text: [text]}},
    })  # fmt: skip
    return record.model_copy(update={
        "provenance": origin, "backend": f"{record.backend}{text}" if backend else record.backend, "again": text,
        "problem": record.problem.model_copy(update={"workload": text}), "run": text, "group": record.group + text,
        "reason": text if record.status != "ok" else None, "error": f"{text}\n{text}", "path": text,
    })  # fmt: skip


def hostile(text: str, *, backend: bool) -> list[Record]:
    records = [r for n in (2048, 4096) for r in make.group(make.CPU, make.problem(n_atom=n))]
    records += make.group(make.CUDA, make.problem(device="cuda", dtype="bfloat16"))
    records.append(make.cell(make.CPU, "dense", make.problem(), group="g", status="crashed", reason="died"))
    return [with_text(make.recent(r), text, backend=backend) for r in records]


def run(tmp_path: Path, records: list[Record]) -> str:
    folder = tmp_path / "in"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "r.jsonl").write_text("".join(json.dumps(r.model_dump()) + "\n" for r in records), encoding="utf-8")
    result = CliRunner().invoke(app, [str(folder), "--out", str(tmp_path / "out"), "--strict"])
    assert result.exit_code == 0, result.output
    return result.output


class Structure(HTMLParser):
    """The tags of a page, and the texts that scripts and links hold."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("href", "src")]
        assert not [k for k, _ in attrs if k.startswith("on")]


@pytest.fixture(scope="module", params=[False, True], ids=["names", "backends too"])
def made(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    output = run(folder, hostile(NASTY, backend=request.param))
    assert not [c for c in output if unicodedata.category(c) in UNSEEN and c != "\n"]
    return folder / "out"


def test_no_unseen_character_reaches_a_file(made):
    files = [p for p in made.rglob("*") if p.suffix in (".html", ".md", ".csv", ".svg")]
    assert len(files) > 10
    for path in files:
        found = {c for c in path.read_text(encoding="utf-8") if unicodedata.category(c) in UNSEEN}
        assert found <= {"\n"}, path


def test_the_page_holds_no_tag_and_no_link_of_a_record(made):
    page = Structure()
    page.feed((made / "index.html").read_text(encoding="utf-8"))
    assert page.tags.count("script") == 1
    assert page.tags.count("h1") == 1
    assert not [link for link in page.links if "javascript" in link]


def test_drawings_parse_and_hold_no_script(made):
    drawings = sorted((made / "figures").glob("*.svg"))
    assert drawings
    for path in drawings:
        assert not [e for e in ElementTree.parse(path).iter() if e.tag.endswith("script")], path


def test_markdown_keeps_its_tables_and_shows_marks_as_text(made):
    text = (made / "report.md").read_text(encoding="utf-8")
    assert "<script" not in text
    assert not re.search(r"(?<!\\)\]\(javascript", text)
    assert "\n# h" not in text
    assert r"\*\*f\*\*" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table[:400]


def test_tables_for_other_programs_have_a_row_a_record(made):
    n = len(hostile(NASTY, backend=False))
    cells = pd.read_csv(made / "cells.csv")
    assert len(cells) == n
    assert len(pd.read_parquet(made / "cells.parquet")) == n
    assert not cells["machine"].str.contains("\n").any()


def test_no_cell_of_a_csv_file_is_a_formula_and_numbers_stay_numbers(tmp_path):
    folder = tmp_path / "formula"
    records = hostile("=1+1", backend=True)
    gate = records[0].gate
    assert gate is not None
    below = gate.model_copy(update={"slopes": dict.fromkeys(gate.slopes, -1e-4), "slopes_after": {}})
    run(folder, [records[0].model_copy(update={"gate": below}), *records[1:]])
    for name in ("cells.csv", "pairs.csv"):
        with (folder / "out" / name).open(encoding="utf-8", newline="") as file:
            entries = {entry for row in csv.reader(file) for entry in row}
        assert any(entry.startswith("'=1+1") for entry in entries), name
        assert not [e for e in entries if e.startswith(("=", "+", "@")) or (e.startswith("-") and not _is_number(e))]
    cells = pd.read_csv(folder / "out" / "cells.csv")
    assert (cells["worst_slope"].dropna() < 0).any()
    assert pd.api.types.is_numeric_dtype(cells["worst_slope"])


def _is_number(entry: str) -> bool:
    try:
        float(entry)
    except ValueError:
        return False
    return True


def test_places_whose_names_have_nothing_for_a_file_keep_figures_of_their_own(tmp_path):
    records = []
    for machine in ("機械", "別の"):
        records += [r.model_copy(update={"provenance": make.provenance().model_copy(update={"machine": machine})})
                    for n in (1024, 2048) for r in make.group(make.CPU, make.problem(n_atom=n))]  # fmt: skip
    run(tmp_path, records)
    html = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    figures = re.findall(r'href="(figures/[^"]+\.svg)"', html)
    assert len(figures) == len(set(figures)) > 4
    assert not [f for f in figures if re.search(r"-[2-9]\.svg$", f)], "told apart by order alone"
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_a_name_of_ten_thousand_letters_makes_a_page(tmp_path):
    run(tmp_path, hostile("x" * 10_000, backend=False))
    assert (tmp_path / "out" / "index.html").is_file()


def test_the_largest_numbers_that_a_record_may_hold_make_every_file(tmp_path):
    records = []
    for r in make.group(make.CPU, make.problem(), backends=["banded", "gather"]):
        assert r.memory is not None
        assert r.timing is not None
        most = r.memory.model_copy(update={"peak_bytes": 2**62, "model_bytes": 2**62, "input_bytes": 2**62})
        long = dict.fromkeys(("median_ms", "ci_low_ms", "ci_high_ms"), 1000000000000.0) | {"samples_ms": [1e12] * 24}
        timing = r.timing.model_copy(update=long)
        records.append(r.model_copy(update={"memory": most, "timing": timing, "first_call_ms": 1e12}))
    run(tmp_path, records)
    assert set(pd.read_parquet(tmp_path / "out" / "cells.parquet")["peak_bytes"]) == {2**62}


def of_timing(record: Record, **changes: object) -> Record:
    return record if record.timing is None else record.model_copy(
        update={"timing": record.timing.model_copy(update=changes)}
    )  # fmt: skip


def of_limit(record: Record, **changes: object) -> Record:
    return record if record.limit is None else record.model_copy(
        update={"limit": record.limit.model_copy(update=changes)}
    )  # fmt: skip


def of_problem(record: Record, **changes: object) -> Record:
    return record.model_copy(update={"problem": record.problem.model_copy(update=changes)})


@pytest.mark.parametrize(
    "plant",
    [
        lambda r: of_timing(r, median_ms=0.0, ci_low_ms=0.0, ci_high_ms=0.0),
        lambda r: of_timing(r, samples_ms=[1e-300] * 24, median_ms=1e-300, ci_low_ms=0.0, ci_high_ms=1e-300),
        lambda r: of_timing(r, wall_ms=0.0, wall_samples_ms=[1e-300]),
        lambda r: of_limit(r, bandwidth_bytes_per_s=1e-300, rate_flops_per_s=1e-300),
        lambda r: of_limit(r, bandwidth_bytes_per_s=1e300, rate_flops_per_s=1e300),
        lambda r: of_problem(r, n_atom=2**62, n_neighbor=2**62, window=2**62, live_pairs=2**62),
    ],
    ids=["no time", "no time in any sample", "no wall time", "no rate", "any rate", "largest sizes"],
)
def test_numbers_that_no_machine_gives_make_a_page(tmp_path, plant):
    records = [make.recent(r) for n in (1024, 4096)
               for r in make.group(make.CUDA, make.problem(device="cuda", dtype="bfloat16", n_atom=n))]  # fmt: skip
    run(tmp_path, [plant(r) for r in records])
    assert (tmp_path / "out" / "report.md").stat().st_size > 1000


def test_an_integer_too_long_to_read_is_a_line_left_out(tmp_path):
    good = make.group(make.CPU, make.problem(), backends=["banded", "gather"])
    make.write(tmp_path / "r.jsonl", good)
    with open(tmp_path / "r.jsonl", "a", encoding="utf-8") as f:
        f.write('{"schema_version":1,"plan_ms":' + "9" * 5000 + "}\n" + "[" * 100_000 + "\n")
    result = CliRunner().invoke(app, [str(tmp_path / "r.jsonl"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert result.output.count("left out: r.jsonl:") == 2


def test_marks_of_a_record_are_text():
    assert markup.as_markdown("a\\|b*c_ <d> `e` [f] ~g~") == r"a\\\|b\*c\_ &lt;d&gt; \`e\` \[f\] \~g\~"
    assert markup.as_markdown(markup.code("a`b|c")) == r"a\`b\|c"
