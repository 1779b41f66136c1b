"""README's figure and table, from records that are in the repository: no number there lacks one.

It holds the five rows that tell most; the whole table is the report's. The block between the two markers names its own
records in a comment, so that anyone (and a test) can make it again.
"""

from __future__ import annotations

import html
import re
from pathlib import Path, PurePosixPath

from reports.markup import as_markdown, bold, code
from reports.page.build import PlaceView, Report, build
from reports.read.load import InputError, load
from reports.tables.table import Td

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
SOURCE = re.compile(r"<!-- python -m reports (?P<records>.+) --out (?P<out>\S+) --readme \S+ -->")


def block(report: Report, records: list[PurePosixPath], folder: PurePosixPath, readme: str) -> str:
    """The text between the markers: per place the answer, its first figure and the table; paths as README sees them."""
    command = f"<!-- python -m reports {' '.join(map(str, records))} --out {folder} --readme {readme} -->"
    parts = [command, *(part for view in report.places for part in _place(view, folder))]
    parts.append(f"[The whole report]({folder}/report.md), or `{folder}/index.html` in a browser.")
    return "\n\n".join(parts)


def _place(view: PlaceView, folder: PurePosixPath) -> list[str]:
    place = view.place
    where = f"{bold(place.hardware)} ({place.machine}, {place.device}, commit {place.commit})"
    parts = [as_markdown(where + ": " + " ".join(view.headline[:2]))]
    drawings = [d for g in view.galleries for d in g.drawings]
    if drawings:
        stem = f"{folder}/figures/{drawings[0].name}"
        parts.append(
            f'<picture><source media="(prefers-color-scheme: dark)" srcset="{stem}-dark.svg">'
            f'<img alt="{html.escape(drawings[0].title)}" src="{stem}.svg" width="560"></picture>'
        )
    if view.brief.rows:
        columns = view.brief.columns
        head = "| " + " | ".join(as_markdown(c.label) for c in columns) + " |"
        rule = "|" + "|".join(" ---: " if c.numeric else " --- " for c in columns) + "|"
        rows = ["| " + " | ".join(map(_entry, row)) + " |" for row in view.brief.rows]
        parts.append("\n".join([head, rule, *rows]))
    return parts


def _entry(td: Td) -> str:
    text = as_markdown(code(td.text) if td.backend else td.text)
    return text + (f"<br>{as_markdown(td.detail)}" if td.detail else "")


def write(readme: Path, report: Report, records: list[Path], folder: Path) -> None:
    """Replace the block of ``readme``; records and report must lie in README's own folder or below it."""
    text = readme.read_text(encoding="utf-8")
    root = readme.parent.resolve()
    try:
        inside = [PurePosixPath(p.resolve().relative_to(root).as_posix()) for p in [*records, folder]]
    except ValueError as e:
        raise InputError(f"--readme: expected records and --out inside {root}: {e}") from e
    made = block(report, inside[:-1], inside[-1], readme.name)
    readme.write_text(_replace(text, made, readme), encoding="utf-8")


def _replace(text: str, made: str, readme: Path) -> str:
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"{readme}: expected a line {BEGIN} and after it a line {END}, found none")
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{after}"


def current(readme: Path) -> str:
    """The block that ``readme`` holds now, without the markers; empty where it names no records."""
    _, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    held, end, _ = rest.partition(END)
    if not begin or not end:
        raise InputError(f"{readme}: expected a line {BEGIN} and after it a line {END}, found none")
    return held.strip()


def expected(readme: Path) -> str | None:
    """The block as the records that it names give it today; ``None`` where it names none."""
    command = SOURCE.search(current(readme))
    if command is None:
        return None
    records = [PurePosixPath(r) for r in command["records"].split()]
    collection = load([readme.parent / r for r in records])
    return block(build(collection, title="", folder=None), records, PurePosixPath(command["out"]), readme.name)
