"""``python -m reports RECORDS… --out DIR``: the page from record files and folders of asv results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.harness.schema.shown import shown
from reports.find import history
from reports.markup import plain
from reports.page import page, readme
from reports.page.build import Report, build
from reports.read import asv_results
from reports.read.load import Collection, InputError, load
from reports.tables import profiles

app = typer.Typer(add_completion=False, rich_markup_mode=None)
ERROR_EXIT = 2


@app.command()
def main(
    records: Annotated[
        list[Path], typer.Argument(help="Record files (.jsonl) or folders of them; asv's results folders.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write index.html, report.md, figures/ and tables into.")],
    title: Annotated[str, typer.Option(help="The page's title.")] = "Sparse atom attention",
    readme_file: Annotated[
        Path | None,
        typer.Option("--readme", help="Also write the figure and table of this README, between its markers."),
    ] = None,
    strict: Annotated[bool, typer.Option(help="Fail on a line that is no record, instead of listing it.")] = False,
    repository: Annotated[
        Path | None,
        typer.Option("--repo", help="The git repository that orders asv's commits; else the one around the results."),
    ] = None,
) -> None:
    """Write the report of RECORDS: one page that opens offline, its Markdown twin, figures and tables.

    Exit codes: 0 the report was written; 2 there is nothing to report on, and why.
    """
    errors = Console(stderr=True)
    try:
        others, profile_files = profiles.split([p for p in records if not _is_asv(p)])
        commits = _history([p for p in records if _is_asv(p)], strict=strict, repository=repository)
        if commits is not None and readme_file is not None:
            raise InputError("--readme: expected records alone, for its figure and table; got a results folder of asv")
        collection = Collection(()) if commits and not others else load(others, strict=strict)
        out.mkdir(parents=True, exist_ok=True)
        report = build(collection, title=title, folder=out, profile_files=profile_files, history=commits)
        html_path, _ = page.write(report, out)
        if readme_file is not None:
            readme.write(readme_file, report, records, out)
    except (InputError, OSError) as e:
        errors.print(shown(f"error: {e}"), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(ERROR_EXIT) from e
    for r in (*collection.rejected, *(commits.results.rejected if commits else ())):
        where = f"{r.source}:{r.line}" if r.line else r.source
        errors.print(f"left out: {where}: {r.why}", markup=False, highlight=False, soft_wrap=True)
    _tell(report, html_path)


def _is_asv(path: Path) -> bool:
    return path.is_dir() and asv_results.is_asv_folder(path)


def _history(folders: list[Path], *, strict: bool, repository: Path | None) -> history.History | None:
    """What commits did, from results folders of asv; nothing where none was given."""
    if not folders:
        return None
    results = asv_results.read(folders, repository)
    if strict and results.rejected:
        r = results.rejected[0]
        raise InputError(f"{r.source}: {r.why} ({len(results.rejected)} such; leave out --strict to pass over)")
    return history.analyse(results)


def _tell(report: Report, html_path: Path) -> None:
    console = Console()
    said = [(view.place.label, view.headline) for view in report.places]
    said += [("History", report.history.headline)] if report.history else []
    for title, lines in said:
        console.print(title, style="bold", markup=False, highlight=False)
        for line in lines:
            console.print("  " + plain(line), markup=False, highlight=False)
    console.print(f"{report.summary}\n{html_path}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
