"""``python -m reports RECORDS… --out DIR``: the page from record files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from reports import page, profiles, readme
from reports.build import build
from reports.load import InputError, load

app = typer.Typer(add_completion=False, rich_markup_mode=None)
ERROR_EXIT = 2


@app.command()
def main(
    records: Annotated[list[Path], typer.Argument(help="Record files (.jsonl), or folders that hold some.")],
    out: Annotated[Path, typer.Option(help="Folder to write index.html, report.md, figures/ and tables into.")],
    title: Annotated[str, typer.Option(help="The page's title.")] = "Sparse atom attention",
    readme_file: Annotated[
        Path | None,
        typer.Option("--readme", help="Also write the figure and table of this README, between its markers."),
    ] = None,
    strict: Annotated[bool, typer.Option(help="Fail on a line that is no record, instead of listing it.")] = False,
) -> None:
    """Write the report of RECORDS: one page that opens offline, its Markdown twin, figures and tables.

    Exit codes: 0 the report was written; 2 there is nothing to report on, and why.
    """
    errors = Console(stderr=True)
    try:
        measured, profile_files = profiles.split(records)
        collection = load(measured, strict=strict)
        out.mkdir(parents=True, exist_ok=True)
        report = build(collection, title=title, folder=out, profile_files=profile_files)
        html_path, _ = page.write(report, out)
        if readme_file is not None:
            readme.write(readme_file, report, records, out)
    except (InputError, OSError) as e:
        errors.print(f"error: {e}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(ERROR_EXIT) from e
    for r in collection.rejected:
        errors.print(f"left out: {r.source}:{r.line}: {r.why}", markup=False, highlight=False, soft_wrap=True)
    console = Console()
    for view in report.places:
        console.print(view.place.label, style="bold", markup=False, highlight=False)
        for line in view.headline:
            console.print("  " + line.replace("**", "").replace("`", ""), markup=False, highlight=False)
    console.print(f"{report.summary}\n{html_path}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
