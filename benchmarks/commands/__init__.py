"""The command line. Parsing, printing and exit codes are here; what is measured is decided in the harness.

Exit codes: 0 all well; 1 a gate is red or a cell failed; 2 bad input; 130 interrupted.
"""

from __future__ import annotations

import typer

from . import check, compare, doctor, inspect, pipeline, profile, regress, structure, sweep, tune

EPILOG = """
Begin with:  python -m benchmarks doctor        what runs on this machine, and what does not, and why

Then:        python -m benchmarks sweep --workload gfp --backend all
"""

app = typer.Typer(
    name="python -m benchmarks",
    help="Which sparse atom-attention backend is right, and which is fast: for your sizes, on your device.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
app.command("doctor")(doctor.doctor)
app.command("structure")(structure.structure)
app.command("check")(check.check)
app.command("sweep")(sweep.sweep)
app.command("compare")(compare.compare)
app.command("profile")(profile.profile)
app.command("regress")(regress.regress)
app.command("inspect")(inspect.inspect)
app.command("tune")(tune.tune)
app.command("bench")(pipeline.bench)
app.command("gpu")(pipeline.gpu)


def main() -> None:
    """Run the command line."""
    app(prog_name="python -m benchmarks")
