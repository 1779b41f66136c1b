"""The page's section "Where the time goes", from made-up profiles beside made-up records."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.harness.schema.profile import PROFILES, Counters, Profile
from benchmarks.harness.worker.kernel_names import IDLE
from reports.__main__ import app
from reports.tables import profiles
from tests import browser as browsers
from tests import records_factory as made
from tests.harness.profile.test_profile import a_profile

SHARES = {"gather and scatter": 0.41, "copies and fills": 0.25, "matrix products": 0.2, "softmax": 0.004, IDLE: 0.136}


def with_kinds(one: Profile, kinds: dict[str, float], **changes: object) -> Profile:
    assert one.breakdown is not None
    broken = one.breakdown.model_copy(update={"kinds": kinds, "idle_share": kinds[IDLE], **changes})
    return one.model_copy(update={"breakdown": broken})


def on_a_gpu() -> list[Profile]:
    counted = Counters(kernel="forward_band", dram_percent=81, sm_percent=33, stalls={"long scoreboard": 4.2})
    best = a_profile("triton_fused", n_atom=16384).model_copy(update={"counters": counted, "trace": "traces/t.json.gz"})
    worst = with_kinds(a_profile("gather", n_atom=16384, utc="2026-11-22T21:00:00Z"), SHARES, call_ms=9.3, launches=31)
    lost = a_profile("gather", n_atom=16384, utc="2026-11-22T19:00:00Z", status="crashed", reason="an older crash")
    broken = a_profile("flex", n_atom=16384, mode="fwdbwd", status="crashed", reason="the worker <died>")
    return [lost, best, worst, broken]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder as the GPU run leaves it, with its page."""
    out = tmp_path_factory.mktemp("runs") / "out"
    made.write(out / "records.jsonl", made.group(made.CUDA, made.problem(device="cuda", dtype="bfloat16")))
    (out / PROFILES).write_text("".join(one.model_dump_json() + "\n" for one in on_a_gpu()) + "garbage\n")
    (out / "traces").mkdir()
    (out / "traces" / "t.json.gz").write_bytes(b"a trace")
    result = CliRunner().invoke(app, [str(out / "records.jsonl"), "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out


def test_the_page_shows_a_bar_per_backend_the_fastest_first(folder: Path) -> None:
    html = (folder / "index.html").read_text(encoding="utf-8")
    shown = html[html.index('<section id="profiles">') : html.index('<section id="tables">')]
    assert re.findall(r'role="img" aria-label="(\w+): ', shown) == ["triton_fused", "gather"]
    widths = [float(w) for w in re.findall(r"width:([\d.]+)%", shown.split('aria-label="gather')[1])]
    assert widths == [41.0, 25.0, 20.0, 0.4, 13.6]
    assert 'href="#profiles"' in html
    assert 'href="traces/t.json.gz"' in shown
    assert "stalls long scoreboard 4.2" in shown
    assert "an older crash" not in shown, "the newest profile of a backend counts"
    assert "the worker &lt;died&gt;" in shown
    assert "profiles.jsonl:5: not JSON" in shown


def test_the_markdown_says_the_same(folder: Path) -> None:
    text = (folder / "report.md").read_text(encoding="utf-8")
    said = text[text.index("## Where the time goes") : text.index("## Tables")]
    assert "`triton_fused`, 120 µs a call: 75% of the call is the fused kernel" in said
    assert "gather and scatter 41.0%, copies and fills 25.0%, matrix products 20.0%, other 0.4%, idle 13.6%." in said
    assert "`flex` has no profile: crashed, the worker &lt;died&gt;" in said


def test_profiles_are_found_beside_records_in_folders_and_by_name(folder: Path, tmp_path: Path) -> None:
    beside = [(folder / PROFILES).resolve()]
    assert profiles.split([folder / "records.jsonl"]) == ([folder / "records.jsonl"], beside)
    assert profiles.split([folder.parent]) == ([folder.parent], beside)
    apart = tmp_path / "elsewhere" / "records.jsonl"
    assert profiles.split([apart, folder / PROFILES]) == ([apart], beside)
    assert profiles.split([folder, folder / "records.jsonl"])[1] == beside


def test_without_profiles_there_is_no_section(tmp_path: Path) -> None:
    made.write(tmp_path / "records.jsonl", made.group(made.CPU, made.problem()))
    assert CliRunner().invoke(app, [str(tmp_path), "--out", str(tmp_path / "out")]).exit_code == 0
    for name in ("index.html", "report.md"):
        assert "Where the time goes" not in (tmp_path / "out" / name).read_text(encoding="utf-8")
    assert profiles.section([], None) == profiles.Section()


def test_a_trace_that_is_not_in_the_pages_folder_gets_no_link(folder: Path, tmp_path: Path) -> None:
    (shown,) = (charts for _, charts in profiles.section([folder / PROFILES], tmp_path).charts)
    assert [bar.trace for chart in shown for bar in chart.bars] == [None, None]


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1440, "light")])
def test_bars_fit_every_screen(folder: Path, width: int, scheme: str) -> None:
    path = browsers.executable()
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as p:
        started = p.chromium.launch(executable_path=path, args=list(browsers.QUIET))
        visit = browsers.Visit(started, (folder / "index.html").as_uri(), width=width, scheme=scheme)
        assert visit.complaints == []
        boxes = [bar.bounding_box() for bar in visit.page.locator(".pstack").all()]
        assert all(box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
        inside = visit.page.eval_on_selector_all(
            ".pseg", "segments => segments.filter(s => s.textContent && s.scrollWidth > s.clientWidth + 1).length"
        )
        assert inside == 0, "a label is cut off"
        visit.close()
        started.close()
