"""What ``asv publish`` writes with our plugin, in a real browser that has no network."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

asv = pytest.importorskip("asv")

from reports import offline  # noqa: E402
from tests import ROOT  # noqa: E402
from tests.browser import Visit  # noqa: E402
from tests.reports import asv_factory as make  # noqa: E402

INDEX = (Path(asv.__file__).parent / "www" / "index.html").read_text(encoding="utf-8")


def publish(folder: Path, **environment: str) -> str:
    """``asv publish`` in ``folder``, as a person calls it; what it said."""
    command = [sys.executable, "-m", "asv", "publish"]
    result = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def project(folder: Path) -> Path:
    make.write(folder, make.repository(folder / "repo", 8), suites=("block",))
    make.configuration(folder, [".reports.offline"])
    (folder / "reports").symlink_to(ROOT / "reports")  # the plugin is found from where asv.conf.json lies
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder of pages of two machines and eight commits, its libraries from the registry or the user's cache."""
    folder = project(tmp_path_factory.mktemp("site"))
    said = publish(folder)
    if "needs a network" in said:  # a browser can be asked for (REQUIRE_BROWSER), the registry cannot
        pytest.skip(said)
    return folder / "html"


@pytest.fixture(params=["file", "http"])
def address(request, site) -> Iterator[str]:
    if request.param == "file":
        yield (site / "index.html").as_uri()
        return
    handler = functools.partial(Silent, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


INK = """() => [...document.querySelectorAll("canvas")].filter(canvas => {
    if (!canvas.width || !canvas.height || !canvas.offsetParent) return false;
    const shown = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return shown.some((value, i) => i % 4 === 3 && value > 0);
}).length"""


def test_every_page_draws_without_a_network(browser, address):
    """The grid's plots, the list with its values, the planted regressions, and one benchmark's graph over commits."""
    offline_browser = address.startswith("file")
    visit = Visit(browser, address, offline=offline_browser)
    page = visit.page
    page.wait_for_function(f"() => ({INK})() >= {len(make.UNITS)}")
    page.goto(address + "#summarylist")
    page.wait_for_selector("#summarylist-body tbody tr")
    assert page.locator("#summarylist-body tbody tr").count() > 50
    page.goto(address + "#regressions")
    page.wait_for_selector("#regressions-body tbody tr")
    told = page.locator("#regressions-body tbody").first.inner_text()
    assert "track_latency('cuda', 'banded'" in told
    assert "track_peak_memory('cpu', 'gather'" in told
    page.goto(address + "#block.Block.track_latency")
    page.wait_for_selector("#main-graph canvas")
    page.wait_for_function(f"() => ({INK})() >= 2")
    assert page.locator("#main-graph .legend tr").count() >= len(make.BACKENDS) - 2
    page.locator("#log-scale").click()
    page.wait_for_function(f"() => ({INK})() >= 2")
    own = "Canvas2D: Multiple readback"  # said to the look at the ink above
    assert [c for c in visit.complaints if not c.startswith(own)] == []
    home = address.rpartition("/")[0]
    assert [r for r in visit.requests if not r.startswith((home, "data:"))] == []
    assert page.locator("#error").is_hidden()
    visit.close()


@pytest.mark.parametrize("name", ["asv.conf.json", "asv.hermetic.conf.json"])
def test_this_projects_own_pages_open_offline(name):
    from asv.util import load_json

    assert ".reports.offline" in load_json(str(ROOT / name), js_comments=True)["plugins"]


def test_the_page_names_nothing_of_another_server(site):
    page = (site / "index.html").read_text(encoding="utf-8")
    assert list(offline.libraries(INDEX))
    assert list(offline.libraries(page)) == []
    for path in (site / "libraries").iterdir():
        assert path.stat().st_size > 500


def test_every_json_file_has_its_script(site):
    written = list(site.rglob("*.json"))
    assert len(written) > 10
    for path in written:
        text = path.with_name(path.name + ".js").read_text(encoding="utf-8")
        held = text.removeprefix("asvData(").removesuffix(");\n")
        assert json.loads(held) == json.loads(path.read_text(encoding="utf-8"))


def test_without_npm_cache_or_network_it_says_so_and_leaves_asvs_own_page(tmp_path):
    """Offline here: no npm on PATH, an empty cache, and a proxy that nobody answers at."""
    folder = project(tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "git").symlink_to(shutil.which("git") or "git")
    dead = "http://127.0.0.1:9"
    said = publish(folder, PATH=str(tools), XDG_CACHE_HOME=str(tmp_path / "cache"), https_proxy=dead, http_proxy=dead,
                   HTTPS_PROXY=dead, no_proxy="", NO_PROXY="")  # fmt: skip
    assert "needs a network to open" in said
    assert "no npm on PATH" in said
    assert str(tmp_path / "cache" / "pallatom-bench") in said
    assert (folder / "html" / "index.html").read_text(encoding="utf-8") == INDEX


def test_another_file_under_a_librarys_name_is_refused(tmp_path, monkeypatch):
    """A poisoned cache or registry: content is believed by its hash alone."""
    library = next(x for x in offline.libraries(INDEX) if x.name == "jquery-3.3.1.min.js")
    (tmp_path / library.name).write_bytes(b"alert(1)")
    monkeypatch.setattr(offline, "_from_npm", lambda missing: iter([(missing[0].name, b"alert(2)")]))
    monkeypatch.setattr(offline, "_from_address", lambda missing: iter([(missing[0].name, b"alert(3)")]))
    with pytest.raises(offline.OfflineError) as refused:
        offline.obtain([library], tmp_path)
    assert str(refused.value).count("has another hash than expected") == 3
    assert (tmp_path / library.name).read_bytes() == b"alert(1)"


def test_a_library_without_a_hash_is_refused(tmp_path, monkeypatch):
    element = '<script src="https://example.org/new.js"></script>'
    (library,) = offline.libraries(element)
    monkeypatch.setattr(offline, "_from_address", lambda missing: iter([(missing[0].name, b"anything")]))
    with pytest.raises(offline.OfflineError, match="another hash than expected"):
        offline.obtain([library], tmp_path)
