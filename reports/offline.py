"""A plugin of asv: what ``asv publish`` writes opens without a network, from a server or straight from the disk.

asv's page loads its libraries from other people's servers, each with a hash of its content, and its data as JSON, which
no browser reads from a disk. Named under ``plugins`` in asv.conf.json, this puts the libraries beside the page, checked
against those very hashes, and beside every JSON file a script that holds the same data. No library is part of this
repository: they come from the npm registry through the npm client, or from where asv's page says, and stay in a cache
of the user's. asv imports this file by itself: it must need nothing else of this project.
"""

from __future__ import annotations

import atexit
import base64
import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from asv.console import log
from asv.publishing import OutputPublisher

SHIM = Path(__file__).parent / "page" / "templates" / "asv_offline.js"
LIBRARIES = "libraries"  # the folder beside index.html
EXTERNAL = re.compile(r'<(?P<tag>script|link)\b[^>]*?\b(?:src|href)="(?P<url>https?://[^"]+)"[^>]*>')
NPM_SECONDS, DOWNLOAD_SECONDS = 180, 20
# The file at the end of asv's URL: npm package, path in it, and the hash of that file where its bytes are not those
# that asv names: the registry has Flot 0.8.3 not minified, and of stupidtable only the next release.
PACKAGES: dict[str, tuple[str, str, str | None]] = {
    "jquery-3.3.1.min.js": ("jquery@3.3.1", "dist/jquery.min.js", None),
    "jquery.flot.min.js": ("flot@0.8.3", "jquery.flot.js", "sha256-t7kx8nPDixJ3ucbB9OBcTsCYhaSHvdrzJ54tfkmjjhI="),
    "jquery.flot.time.min.js": (
        "flot@0.8.3", "jquery.flot.time.js", "sha256-pYLIMq3HE4prBar2HxbrrCdHAfG+Sv6nfnOaHDS5xBo="),
    "jquery.flot.selection.min.js": (
        "flot@0.8.3", "jquery.flot.selection.js", "sha256-5shfbB6+S02inYriOMfFBgKD8F9+8FT2uRgX0CwJKRg="),
    "jquery.flot.categories.min.js": (
        "flot@0.8.3", "jquery.flot.categories.js", "sha256-boFmSyjqeVxzSQb0qhVhRkCnWsf705mn+5CEBAaYNRo="),
    "jquery.flot.orderBars.js": ("flot-orderbars@1.0.0", "js/jquery.flot.orderBars.js", None),
    "stupidtable.min.js": (
        "stupid-table-plugin@1.1.3", "stupidtable.min.js", "sha256-RkI4Dyjr6e18rCUXk7KB74YgxDhiBdkniPmxL1zOtOA="),
    "md5.min.js": ("blueimp-md5@2.19.0", "js/md5.min.js", None),
    "bootstrap.min.js": ("bootstrap@3.1.1", "dist/js/bootstrap.min.js", None),
    "bootstrap.min.css": ("bootstrap@3.1.1", "dist/css/bootstrap.min.css", None),
}  # fmt: skip


class OfflineError(Exception):
    """The page cannot be made to open offline; the message says what is missing and what would help."""


@dataclass(frozen=True)
class Library:
    """One file of another server that asv's page loads."""

    tag: str
    element: str
    url: str
    integrity: str | None

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    def holds(self, content: bytes) -> bool:
        """Whether this is the file: by the hash that asv's page carries, or by that of its twin in the registry."""
        hashes = (self.integrity, PACKAGES[self.name][2] if self.name in PACKAGES else None)
        return any(digest(h.partition("-")[0], content) == h for h in hashes if h)


class OfflinePage(OutputPublisher):
    """Runs as the last step of ``asv publish``."""

    name = "offline"
    description = "The page's libraries and data, readable without a network"

    @classmethod
    def publish(cls, conf, repo, benchmarks, graphs, revisions) -> None:
        folder = Path(conf.html_dir).resolve()
        try:
            localise(folder)
        except OfflineError as e:
            log.warning(f"The page needs a network to open: {e}")
            return
        atexit.register(write_data, folder)  # asv writes index.json after its publishers, and calls nothing after that


def localise(folder: Path) -> None:
    """Put every library of ``folder/index.html`` beside it and let the page load it from there."""
    index = folder / "index.html"
    page = index.read_text(encoding="utf-8")
    needed = list(libraries(page))
    found = obtain(needed, cache_folder())
    (folder / LIBRARIES).mkdir(exist_ok=True)
    for library in needed:
        (folder / LIBRARIES / library.name).write_bytes(found[library.name])
        page = page.replace(library.element, _local(library))
    shutil.copyfile(SHIM, folder / SHIM.name)
    asv = re.search(r'<script[^>]*\bsrc="asv\.js"', page)
    if asv is None:
        raise OfflineError("expected asv's page to load asv.js, found no such element: another version of asv?")
    shim = f'<script src="{SHIM.name}"></script>\n    '
    index.write_text(page[: asv.start()] + shim + page[asv.start() :], encoding="utf-8")


def _local(library: Library) -> str:
    where = f"{LIBRARIES}/{library.name}"
    if library.tag == "script":
        return f'<script src="{where}">'
    return f'<link rel="stylesheet" href="{where}">'


def libraries(page: str) -> Iterator[Library]:
    """What ``page`` loads from other servers."""
    for found in EXTERNAL.finditer(page):
        integrity = re.search(r'\bintegrity="([^"]+)"', found[0])
        yield Library(found["tag"], found[0], found["url"], integrity[1] if integrity else None)


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pallatom-bench" / "asv-libraries"


def obtain(needed: Iterable[Library], cache: Path) -> dict[str, bytes]:
    """Content by name, every one checked: from ``cache``, else through npm, else from where asv's page says."""
    found: dict[str, bytes] = {}
    why: list[str] = []
    wanted = {library.name: library for library in needed}

    def keep(name: str, content: bytes, source: str) -> None:
        if wanted[name].holds(content):
            found[name] = content
        else:
            why.append(f"{name} from {source} has another hash than expected")

    for name in wanted:
        if (cache / name).is_file():
            keep(name, (cache / name).read_bytes(), "the cache")
    cached = set(found)
    for source, get in (("the npm registry", _from_npm), ("the address in asv's page", _from_address)):
        missing = [library for name, library in wanted.items() if name not in found]
        if missing:
            try:
                for name, content in get(missing):
                    keep(name, content, source)
            except OfflineError as e:
                why.append(str(e))
    missing_names = sorted(set(wanted) - set(found))
    if missing_names:
        raise OfflineError(
            f"{', '.join(missing_names)} could not be had ({'; '.join(why)}). Publish once where there is a network, "
            f"or copy the folder {cache} from a machine that has."
        )
    for name in set(found) - cached:
        _store(cache / name, found[name])
    return found


def _store(path: Path, content: bytes) -> None:
    """Whole or not at all: two processes may publish at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        partial = Path(folder) / path.name
        partial.write_bytes(content)
        partial.replace(path)


def _from_npm(missing: list[Library]) -> Iterator[tuple[str, bytes]]:
    npm = shutil.which("npm")
    known = [library for library in missing if library.name in PACKAGES]
    if npm is None or not known:
        raise OfflineError("no npm on PATH" if npm is None else "no package is known to hold them")
    specs = sorted({PACKAGES[library.name][0] for library in known})
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", *specs, "--silent", "--ignore-scripts", "--pack-destination", folder]
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=NPM_SECONDS)
        except (OSError, subprocess.SubprocessError) as e:
            raise OfflineError(f"npm pack: {' '.join(str(e).split())[:200]}") from e
        for library in known:
            spec, path, _ = PACKAGES[library.name]
            name, _, version = spec.rpartition("@")
            try:
                with tarfile.open(Path(folder) / f"{name}-{version}.tgz") as archive:
                    member = archive.extractfile(f"package/{path}")
                    content = member.read() if member is not None else b""
            except (OSError, KeyError, tarfile.TarError) as e:
                raise OfflineError(f"{spec}: {e}") from e
            yield library.name, content


def _from_address(missing: list[Library]) -> Iterator[tuple[str, bytes]]:
    for library in missing:
        try:
            with urllib.request.urlopen(library.url, timeout=DOWNLOAD_SECONDS) as response:
                yield library.name, response.read()
        except OSError as e:  # no network for one is none for the rest
            raise OfflineError(f"{library.url}: {e}") from e


def digest(algorithm: str, content: bytes) -> str:
    """As in an ``integrity`` attribute: ``sha256-…``."""
    return f"{algorithm}-{base64.b64encode(hashlib.new(algorithm, content).digest()).decode()}"


def write_data(folder: Path) -> None:
    """Beside every JSON file below ``folder`` a script that hands its content to the page."""
    for path in folder.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        path.with_name(path.name + ".js").write_text(f"asvData({text});\n", encoding="utf-8")
