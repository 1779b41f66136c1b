"""The page in a real browser, with no network: nothing missing, nothing fetched, nothing sticking out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from reports.__main__ import app
from tests import records_factory as make
from tests.browser import Visit, unavailable


def test_a_missing_browser_skips_here_and_fails_where_one_is_required(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("REQUIRE_BROWSER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="found none"):
        unavailable("found none")
    monkeypatch.setenv("REQUIRE_BROWSER", "1")
    with pytest.raises(pytest.fail.Exception, match="required here"):
        unavailable("found none")


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("page")
    gpu = [
        r for r in make.cuda_sweep(["attention"], ["fwd"]) if r.problem.window == 32 and r.problem.dtype != "float32"
    ]
    records = [*make.cpu_sweep(["fwd"]), *gpu]
    make.write(folder / "r.jsonl", records)
    result = CliRunner().invoke(app, [str(folder / "r.jsonl"), "--out", str(folder / "out")])
    assert result.exit_code == 0, result.output
    return (folder / "out" / "index.html").as_uri()


@pytest.fixture
def visit(browser, url) -> Iterator:
    visits: list[Visit] = []

    def go(**options: object) -> Visit:
        visits.append(Visit(browser, url, **options))
        return visits[-1]

    yield go
    for v in visits:
        v.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 390, 1440])
def test_renders_offline_without_complaint_or_overflow(visit, url, width, scheme):
    v = visit(width=width, scheme=scheme)
    assert v.complaints == []
    assert [r for r in v.requests if not r.startswith(("file://", "data:"))] == []
    assert [r for r in v.requests if r.startswith("file://")] == [url]
    assert v.page.evaluate("document.documentElement.scrollWidth") <= width
    sticking_out = v.sticking_out()
    assert sticking_out == []
    background = v.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}[scheme]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_follow_the_scheme_and_their_texts_stay_inside(visit, scheme):
    v = visit(scheme=scheme)
    found = v.figures()
    assert len(found) >= 12
    assert [f for f in found if f["out"]] == []
    assert all(f["name"] and f["width"] > 300 and f["height"] > 100 for f in found)
    assert {f["ground"] for f in found} == {{"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}[scheme]}


def test_labels_in_figures_do_not_overlap(visit):
    v = visit()
    overlaps = v.overlaps()
    assert overlaps == []


def column(table, index: int) -> list[str]:
    return table.locator(f"tbody tr:not([hidden]) td:nth-child({index})").all_inner_texts()


def test_tables_sort_by_number_and_by_word(visit):
    v = visit()
    table = v.page.locator("#m1-ratios table, #m2-ratios table").first
    heads = [h.split("\n")[0].strip() for h in table.locator("th").all_inner_texts()]
    ratio = heads.index("ratio") + 1
    before = column(table, ratio)
    button = table.locator(f"th:nth-child({ratio}) button")
    button.click()
    up = [float(t.rstrip("×").replace(",", "")) for t in column(table, ratio)]
    assert up == sorted(up)
    assert len(up) == len(before)
    assert table.locator(f"th:nth-child({ratio})").get_attribute("aria-sort") == "ascending"
    button.click()
    down = [float(t.rstrip("×").replace(",", "")) for t in column(table, ratio)]
    assert down == sorted(down, reverse=True)
    faster = heads.index("faster") + 1
    table.locator(f"th:nth-child({faster}) button").click()
    words = column(table, faster)
    assert words == sorted(words)
    assert len(set(words)) > 1


def test_tables_sort_across_units_and_leave_missing_values_last(visit):
    v = visit()
    table = v.page.locator("#m2-starts table")
    heads = [h.split("\n")[0].strip() for h in table.locator("th").all_inner_texts()]
    scale = {"µs": 1e-3, "ms": 1.0, "s": 1e3}

    def in_ms(text: str) -> float:
        amount, unit = text.split()
        return float(amount.replace(",", "")) * scale[unit]

    for name in ("steady state", "plan"):
        index = heads.index(name) + 1
        table.locator(f"th:nth-child({index}) button").click()
        shown = column(table, index)
        given = [in_ms(t) for t in shown if t != "–"]
        assert given == sorted(given)
        assert len({t.split()[1] for t in shown if t != "–"}) > 1 or name == "plan"
        assert all(t == "–" for t in shown[len(given) :])
    assert "–" in shown


def test_tables_filter(visit):
    v = visit()
    section = v.page.locator("#m1-starts")
    everything = len(column(section.locator("table"), 6))
    section.locator("input[type=search]").fill("attention dense")
    kept = column(section.locator("table"), 6)
    assert 0 < len(kept) < everything
    assert all("dense" in text for text in kept)


def test_theme_button_and_backend_buttons(visit):
    v = visit(scheme="light")
    v.page.locator("nav button").click()
    assert v.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
    shown = "[...document.querySelectorAll('figure [data-b=dense]')].filter(g => g.style.display !== 'none').length"
    assert v.page.evaluate(shown) > 0
    v.page.locator("#keys button", has_text="dense").click()
    assert v.page.evaluate(shown) == 0
    assert v.page.evaluate(shown.replace("dense", "gather")) > 0


def test_prints_dark_on_light(visit):
    v = visit(scheme="dark")
    v.page.emulate_media(media="print", color_scheme="dark")
    assert v.page.evaluate("getComputedStyle(document.querySelector('figure path')).fill") == "rgb(255, 255, 255)"
    assert v.page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"


def test_readable_without_javascript(visit):
    v = visit(java_script_enabled=False)
    assert v.complaints == []
    assert v.page.locator("table").count() > 8
    assert v.page.locator("button, input").count() == 0
    assert "Use" in v.page.locator("#answer .say").first.inner_text()
