"""``check``: the gate alone, for every backend, case and dtype."""

from __future__ import annotations

import json

import typer
from rich.table import Table

from ..harness.levels import arms
from ..harness.schema.record import Record
from ..harness.sweep import sweep as harness
from ..harness.worker.host import Host
from ..harness.worker.options import Options
from . import console as show
from . import options as opt


@opt.reported
def check(
    backend: opt.Backends = ["all"],  # noqa: B006
    workload: opt.Workloads = None,
    structure: opt.Structures = None,
    n_atom: opt.Sizes = None,
    atoms: opt.AtomSets = None,
    window: opt.Windows = ["32"],  # noqa: B006
    k: opt.Caps = None,
    heads: opt.Heads = ["4"],  # noqa: B006
    dtype: opt.DTypes = ["float32,bfloat16"],  # noqa: B006
    mode: opt.Modes = ["fwdbwd"],  # noqa: B006
    level: opt.Levels = ["attention,block"],  # noqa: B006
    device: opt.Device = "auto",
    window_style: opt.Styles = ["residues"],  # noqa: B006
    batch: opt.Batches = ["1"],  # noqa: B006
    n_blocks: opt.Blocks = ["3"],  # noqa: B006
    c_atom: opt.AtomWidths = ["128"],  # noqa: B006
    c_atompair: opt.PairWidths = ["16"],  # noqa: B006
    c_token: opt.TokenWidths = ["384"],  # noqa: B006
    c_pair: opt.TokenPairWidths = ["128"],  # noqa: B006
    seed: opt.Seed = 0,
    threads: opt.Threads = None,
    pairs: opt.Pairs = 1 << 20,
    as_json: opt.Json = False,
) -> None:
    """Is every backend right? Outputs and all gradients against the float64 reference; no timing.

    Exit code 1 if any gate is red or a backend crashed; a backend that says why it does not run is no failure.

    Examples:

      python -m benchmarks check

      python -m benchmarks check -b ./my_backend.py -n 512 --window 16 --level attention,block,stack
    """
    backends = arms.expand(list(opt.paths(backend)))
    out = show.console(stderr=as_json)
    with Host(threads=threads) as host:
        wanted = opt.axes(
            workload=workload, structure=structure, n_atom=n_atom, atoms=atoms, window=window, k=k, heads=heads,
            dtype=dtype, mode=mode, level=level, style=window_style, batch=batch, device=opt.one_device(device, host),
            seed=seed, default_workload=("ubiquitin",), n_blocks=n_blocks, c_atom=c_atom, c_atompair=c_atompair,
            c_token=c_token, c_pair=c_pair,
        )  # fmt: skip
        groups = harness.plan(wanted, backends)
        settings = opt.settings(out=None, options=Options(speed=False, memory=False, gate_pairs=pairs), seed=seed)
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
    for column in ("backend", "level", "mode", "dtype", "atoms of", "N", "rows", "output", "gradients", "status"):
        shown.add_column(column)
    for r in records:
        p = r.problem
        errors = r.gate.errors if r.gate else {}
        rows = f"{r.gate.rows_checked:,}" if r.gate else "–"
        why = "" if r.status in ("ok", "unsupported") else f" {r.reason}"
        shown.add_row(
            r.backend, p.level, p.mode, show.SHORT[p.dtype], f"{p.workload} {p.atoms}", f"{p.n_atom:,}", rows,
            _largest(errors, gradients=False), _largest(errors, gradients=True), show.styled(show.status(r), why),
        )  # fmt: skip
    return shown


def _largest(errors: dict[str, float | None], *, gradients: bool) -> str:
    chosen = {name: e for name, e in errors.items() if name.startswith("grad:") == gradients}
    if not chosen:
        return "–"
    name, worst = max(chosen.items(), key=lambda item: float("inf") if item[1] is None else item[1])
    return f"{'not finite' if worst is None else f'{worst:.1e}'} {name.removeprefix('grad:')}"
