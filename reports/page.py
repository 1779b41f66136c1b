"""The page: one self-contained HTML file and its Markdown twin, from what a report says."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reports import theme
from reports.build import Report
from reports.table import Td

TEMPLATES = Path(__file__).parent / "templates"


def mark_up(text: str, names: Sequence[str]) -> Markup:
    """``**bold**`` and `` `backend` `` of a sentence as HTML, everything else escaped."""
    out = html.escape(text, quote=False)
    out = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", out)
    return Markup(re.sub(r"`([^`]+)`", lambda m: chip(m.group(1), names), out))


def chip(backend: str, names: Sequence[str]) -> Markup:
    """A backend's name with its marker in its colour."""
    if backend not in names:
        return Markup("<code>{}</code>").format(backend)
    shape = theme.marker(backend, names)
    picture = '<svg aria-hidden="true" viewBox="-6 -6 12 12"><use href="#k-{1}"/></svg>'
    return Markup('<b class="k" style="--c:var(--b{0})">' + picture + "{2}</b>").format(
        theme.slot(backend, names), _SHAPE_IDS[shape], backend
    )


_SHAPES = {
    "o": "M4 0A4 4 0 1 1-4 0A4 4 0 1 1 4 0Z", "s": "M-4-4H4V4H-4Z", "D": "M0-5L5 0L0 5L-5 0Z", "^": "M0-5L5 4H-5Z",
    "v": "M0 5L5-4H-5Z", "P": "M-2-5H2V-2H5V2H2V5H-2V2H-5V-2H-2Z",
    "X": "M-4-5L0-2L4-5L5-4L2 0L5 4L4 5L0 2L-4 5L-5 4L-2 0L-5-4Z",
    "h": "M0-5L4.4-2.5V2.5L0 5L-4.4 2.5V-2.5Z", "<": "M-5 0L4-5V5Z", ">": "M5 0L-4-5V5Z", "p": "M0-5L5-1L3 5H-3L-5-1Z",
    "d": "M0-5L3 0L0 5L-3 0Z",
}  # fmt: skip
_SHAPE_IDS = {shape: str(i) for i, shape in enumerate(_SHAPES)}


def sort_key(td: Td) -> str:
    """What a table's script sorts by, where the text would not do."""
    if td.sort is None or isinstance(td.sort, str):
        return ""
    return f"{td.sort:.6g}"


def environment() -> Environment:
    env = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=lambda name: name is not None and "html" in name,
                      undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    env.filters["pipe"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    return env


def write(report: Report, folder: Path) -> tuple[Path, Path]:
    """``index.html`` and ``report.md`` in ``folder``."""
    env = environment()
    css = "\n".join([_variables(), (TEMPLATES / "style.css").read_text(encoding="utf-8")])
    shapes = [(ident, _SHAPES[shape]) for shape, ident in _SHAPE_IDS.items()]
    page = env.get_template("page.html.j2").render(
        r=report, css=Markup(css), js=Markup((TEMPLATES / "page.js").read_text(encoding="utf-8")), shapes=shapes,
        say=lambda text: mark_up(text, report.names), chip=lambda b: chip(b, report.names), key=sort_key,
        svg=lambda picture: Markup(picture.inline),
    )  # fmt: skip
    html_path, md_path = folder / "index.html", folder / "report.md"
    html_path.write_text(page, encoding="utf-8")
    md_path.write_text(env.get_template("page.md.j2").render(r=report), encoding="utf-8")
    return html_path, md_path


def _variables() -> str:
    def block(dark: bool) -> str:
        return ";".join(f"{k}:{v}" for k, v in theme.css_variables(dark).items())

    light, dark = block(False), block(True)
    return (
        f":root{{color-scheme:light;{light}}}\n"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}\n"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}"
    )
