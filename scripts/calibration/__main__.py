"""``python -m scripts.calibration simulate|real|draw``: the numbers and figures of ``reports/2026-11-27-statistics``.

python -m scripts.calibration simulate      (five minutes of two idle cores; seeded, the same numbers everywhere)
python -m scripts.calibration real          (the same code twice, on this machine)
python -m scripts.calibration draw          (figures and tables from the CSV files)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

FOLDER = Path("reports/2026-11-27-statistics")
Out = Annotated[Path, typer.Option(help="The folder of CSV files and figures.")]
app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)


@app.command()
def simulate(
    out: Out = FOLDER,
    scale: Annotated[float, typer.Option(min=0, help="Runs, relative to what was published.")] = 1.0,
    processes: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
) -> None:
    """False verdicts, power and cover on machines that exist on paper, where the truth is known."""
    from . import simulate as simulation

    simulation.simulate(out, scale=scale, processes=processes)


@app.command()
def real(
    out: Out = FOLDER,
    seconds: Annotated[float, typer.Option(min=0, help="For each of the two protocols.")] = 300.0,
    records: Annotated[
        list[Path],
        typer.Option(help="Files of records whose A/A arms are judged as well.", exists=True, dir_okay=False),
    ] = [Path("reports/2026-11-22-cpu/records.jsonl"), Path("reports/2026-11-22-h200/records.jsonl")],  # noqa: B006
) -> None:
    """The same code twice: false verdicts and cover on this machine, and in records made before."""
    from . import real as trials
    from .simulate import write

    out.mkdir(parents=True, exist_ok=True)
    rows = [*trials.same_callable(seconds), *trials.same_commit(seconds), *trials.on_record(records)]
    write(out / "real.csv", rows)


@app.command()
def draw(out: Out = FOLDER) -> None:
    """Figures from the CSV files."""
    from . import figures

    figures.draw(out)


if __name__ == "__main__":
    app()
