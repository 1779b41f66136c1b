"""The page: one self-contained HTML file and its Markdown twin, from what a report says."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reports.draw import svg, theme
from reports.markup import BOLD, CODE, as_markdown, code
from reports.page.build import Report

TEMPLATES = Path(__file__).parent / "templates"


def mark_up(text: str, slots: Mapping[str, int]) -> Markup:
    """A sentence (:mod:`reports.markup`) as HTML: its marks, everything else escaped."""
    out = html.escape(text, quote=False)
    out = re.sub(r"[\d.,]+× \([^)]+\)", r'<span class="nb">\g<0></span>', out)
    out = re.sub("{}(.*?){}".format(*BOLD), r"<strong>\1</strong>", out)
    return Markup(re.sub("{}([^\x0f]*){}".format(*CODE), lambda m: chip(html.unescape(m[1]), slots), out))


def chip(backend: str, slots: Mapping[str, int]) -> Markup:
    """A backend's name behind its marker in its colour (see :func:`_markers`)."""
    if backend not in slots:
        return Markup("<code>{}</code>").format(backend)
    return Markup('<b class="k k{}">{}</b>').format(slots[backend], backend)


_SHAPES = {
    "o": "circle(42%)",
    "s": "inset(14%)",
    "D": "polygon(50% 0,100% 50%,50% 100%,0 50%)",
    "^": "polygon(50% 5%,100% 95%,0 95%)",
    "v": "polygon(0 5%,100% 5%,50% 95%)",
    "P": "polygon(33% 0,67% 0,67% 33%,100% 33%,100% 67%,67% 67%,67% 100%,33% 100%,33% 67%,0 67%,0 33%,33% 33%)",
    "X": "polygon(20% 0,50% 30%,80% 0,100% 20%,70% 50%,100% 80%,80% 100%,50% 70%,20% 100%,0 80%,30% 50%,0 20%)",
    "h": "polygon(50% 0,95% 25%,95% 75%,50% 100%,5% 75%,5% 25%)",
    "<": "polygon(0 50%,95% 0,95% 100%)",
    ">": "polygon(100% 50%,5% 0,5% 100%)",
    "p": "polygon(50% 0,100% 38%,81% 100%,19% 100%,0 38%)",
    "d": "polygon(50% 0,85% 50%,50% 100%,15% 50%)",
    "*": "polygon(50% 0,61% 35%,98% 35%,68% 57%,79% 91%,50% 70%,21% 91%,32% 57%,2% 35%,39% 35%)",
    "H": "polygon(25% 5%,75% 5%,100% 50%,75% 95%,25% 95%,0 50%)",
    "8": "polygon(30% 0,70% 0,100% 30%,100% 70%,70% 100%,30% 100%,0 70%,0 30%)",
}


def _markers(slots: Mapping[str, int]) -> str:
    """The style of each backend's marker, the figures' shapes cut out of its colour, and of the colours of bars."""
    n = len(theme.COLOURS)
    shapes = [f".k{i}::before{{background:var(--b{i % n});clip-path:{_SHAPES[theme.marker(i)]}}}"
              for i in sorted(slots.values())]  # fmt: skip
    return "\n".join([*shapes, *(f".p{i}{{background:var(--b{i})}}" for i in range(n))])


def environment() -> Environment:
    env = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=lambda name: name is not None and "html" in name,
                      undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    env.filters["md"], env.filters["code"] = as_markdown, code
    return env


def write(report: Report, folder: Path) -> tuple[Path, Path]:
    """``index.html`` and ``report.md`` in ``folder``."""
    env = environment()
    drawings = [d for g in report.galleries for d in g.drawings]
    drawn, styles = svg.share_styles([d.inline for d in drawings])
    inline = {d.name: Markup(text) for d, text in zip(drawings, drawn, strict=True)}
    css = "\n".join(
        [_variables(), _markers(report.slots), styles, _alignment(report)]
        + [(TEMPLATES / name).read_text(encoding="utf-8") for name in ("style.css", "profiles.css")]
    )
    page = env.get_template("page.html.j2").render(
        r=report, css=Markup(css), js=Markup((TEMPLATES / "page.js").read_text(encoding="utf-8")),
        say=lambda text: mark_up(text, report.slots), chip=lambda b: chip(b, report.slots),
        svg=lambda drawing: inline[drawing.name],
    )  # fmt: skip
    html_path, md_path = folder / "index.html", folder / "report.md"
    html_path.write_text(page, encoding="utf-8")
    md_path.write_text(env.get_template("page.md.j2").render(r=report), encoding="utf-8")
    return html_path, md_path


def _alignment(report: Report) -> str:
    """Numbers to the right: one rule a table, by column, instead of a class on every entry."""
    right = []
    for t in report.tables:
        right += [f"#{t.anchor} td:nth-child({i})" for i, c in enumerate(t.columns, 1) if c.numeric]
    return ",".join(right) + "{text-align:right}" if right else ""


def _variables() -> str:
    def block(dark: bool) -> str:
        return ";".join(f"{k}:{v}" for k, v in theme.css_variables(dark).items())

    light, dark = block(False), block(True)
    return (
        f":root{{color-scheme:light;{light}}}\n@media screen{{\n"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}\n"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}\n}}"
    )
