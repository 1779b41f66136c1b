"""``check``: the gate alone, for every backend, case and dtype."""

from __future__ import annotations

import json

import typer
from rich.table import Table

from ..harness.cases import registry
from ..harness.schema.axes import of_role, unusual_in
from ..harness.schema.record import Record
from ..harness.sweep import sweep as harness
from ..harness.worker.host import Host
from ..harness.worker.options import Options
from . import console as show
from . import options as opt


@opt.reported
@opt.asks(rare=True, dtype=["float32,bfloat16"], mode=["fwdbwd"], level=["attention,block"])
def check(
    backend: opt.Backends = ["all"],  # noqa: B006
    *,
    asked: opt.Asked,
    pairs: opt.Pairs = 1 << 20,
    as_json: opt.Json = False,
) -> None:
    """Is every backend right? Outputs and all gradients against the float64 reference; no timing.

    Exit code 1 if any gate is red or a backend crashed; a backend that says why it does not run is no failure.

    Examples:

      python -m benchmarks check

      python -m benchmarks check -b ./my_backend.py -n 512 --window 16 --level attention,block,stack
    """
    backends = registry.expand(list(opt.paths(backend)))
    out = show.console(stderr=as_json)
    with Host(threads=asked.threads) as host:
        wanted = asked.axes(opt.one_device(asked.device, host), default_workload=("ubiquitin",))
        groups = harness.plan(wanted, backends)
        settings = harness.Settings(options=Options(speed=False, memory=False, gate_pairs=pairs), **asked.run)
        with show.Live(out) as live:
            outcome = harness.Sweep(groups, settings, live, host).run()
    if as_json:
        print(json.dumps([record.model_dump(mode="json") for record in outcome.records]))
    out.print()
    out.print(table(outcome.records))
    red = [r for r in outcome.records if r.status not in ("ok", "unsupported")]
    out.print(f"{len(red)} of {len(outcome.records)} cells are not right." if red else "Every gate is green.")
    raise typer.Exit(opt.FAILED if red else 0)


def table(records: list[Record]) -> Table:
    """A row per cell with its largest error, as a share of what is allowed."""
    shown = Table(title="Largest relative errors against the float64 reference", title_justify="left")
    problems = [r.problem for r in records]
    sizes = [a for a in of_role("size") if a.name == "n_atom" or len({a.value(p) for p in problems}) > 1]
    sizes += unusual_in(problems)
    numbers = [a.symbol for a in sizes]
    for column in ("backend", "level", "mode", "dtype", "atoms of", *numbers, "rows", "output", "gradients", "status"):
        shown.add_column(column)
    for r in records:
        p = r.problem
        errors = r.gate.errors if r.gate else {}
        rows = f"{r.gate.rows_checked:,}" if r.gate else "–"
        why = "" if r.status in ("ok", "unsupported") else f" {r.reason}"
        shown.add_row(
            r.backend, p.level, p.mode, show.SHORT[p.dtype], f"{p.workload} {p.atoms}",
            *(f"{a.value(p):,}" for a in sizes), rows, _largest(errors, gradients=False),
            _largest(errors, gradients=True), show.styled(show.status(r), why),
        )  # fmt: skip
    return shown


def _largest(errors: dict[str, float | None], *, gradients: bool) -> str:
    chosen = {name: e for name, e in errors.items() if name.startswith("grad:") == gradients}
    if not chosen:
        return "–"
    name, worst = max(chosen.items(), key=lambda item: float("inf") if item[1] is None else item[1])
    return f"{'not finite' if worst is None else f'{worst:.1e}'} {name.removeprefix('grad:')}"
