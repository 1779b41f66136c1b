"""What a sweep shows: progress with an estimate, a line per cell as it ends, and the table at the end.

Nothing printed is markup: what looks like it (``[/red]``, ``[enforce fail at …]``) came from outside and is shown as it
is, cleaned of what a terminal would obey. Colours come by :func:`styled` alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich import progress
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..harness.cases.problems import Group
from ..harness.ruler.statistics import Verdict
from ..harness.schema.axes import of_role, unusual, unusual_in
from ..harness.schema.comparison import compared, noise_floors
from ..harness.schema.problem import Problem
from ..harness.schema.record import Record, Timing
from ..harness.schema.shown import shown, shown_lines
from ..harness.sweep.sweep import Observer

STYLES = {
    "ok": "green",
    "wrong": "bold red",
    "crashed": "red",
    "timeout": "red",
    "oom": "yellow",
    "unsupported": "dim",
}
WIDTH = 150  # where the output goes to a file
PLACES = ("1st", "2nd", "3rd")
PLAIN = "gather"  # what the layer itself does
SHORT = {"float32": "fp32", "float64": "fp64", "bfloat16": "bf16", "float16": "fp16"}


class Plain(Console):
    """Every string that it is given, in a table's cell too, is text and no markup, and is cleaned."""

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(shown_lines(text), **how)


def console(*, stderr: bool = False) -> Console:
    """A console that does not wrap tables when its output goes to a file."""
    stream = sys.stderr if stderr else sys.stdout
    return Plain(
        stderr=stderr, width=None if stream.isatty() else WIDTH, highlight=False, soft_wrap=False, markup=False,
        emoji=False,
    )  # fmt: skip


def styled(*parts: str | tuple[str, str]) -> Text:
    """Text of parts, each cleaned; a pair is a text and its style."""
    pairs = ((part, "") if isinstance(part, str) else part for part in parts)
    return Text.assemble(*((shown_lines(text), style) for text, style in pairs))


def status(record: Record) -> tuple[str, str]:
    """A record's status and its style, as a part of :func:`styled`."""
    return record.status, STYLES[record.status]


def title(problem: Problem) -> str:
    """A problem in one line."""
    p = problem
    remarks = {
        "window": " blocks" if p.window_style == "blocks" else "",
        "k_cap": f" (capped {p.k_cap})" if p.k_cap else "",
    }
    sizes = [f"{a.symbol} = {a.value(p):,}{remarks.get(a.name, '')}" for a in (*of_role("size"), *unusual(p))]
    return "  ".join([f"{p.level} {p.mode} {SHORT[p.dtype]} {p.device}", f"{shown(p.workload)} {p.atoms}", *sizes])


def milliseconds(x: float | None) -> str:
    """A time to three figures."""
    if x is None:
        return "–"
    return f"{x:.3g} ms" if x < 1000 else f"{x / 1000:.3g} s"


def size(n: int | None) -> str:
    """Bytes to three figures."""
    if n is None:
        return "–"
    value = float(n)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} GiB"


class Live(Observer):
    """Progress on a terminal; plain lines elsewhere."""

    def __init__(self, out: Console) -> None:
        self.out = out
        self._progress = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(),
            progress.TextColumn("cells"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left about"),
            progress.TimeRemainingColumn(),
            console=out,
            transient=True,
            disable=not out.is_terminal,
        )
        self._task = self._progress.add_task("starting", total=None)
        self._group: Group | None = None

    def __enter__(self) -> Live:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def planned(self, cells: int, on_file: int) -> None:
        self._progress.update(self._task, total=cells)
        known = f", {on_file} are on file already" if on_file else ""
        self.out.print(f"{cells} cells to measure{known}.")

    def phase(self, group: Group, backend: str, phase: str) -> None:
        if group is not self._group:
            self._group = group
            self.out.print(styled("\n", (title(group.problem), "bold")))
        self._progress.update(self._task, description=shown(f"{backend or 'inputs'}: {phase}"))

    def recorded(self, records: list[Record]) -> None:
        for record in sorted(records, key=by_speed):
            self.out.print(line(record, records))
        self._progress.advance(self._task, len(records))

    def notice(self, text: str) -> None:
        self.out.print(styled((text, "yellow")))


def line(record: Record, group: Iterable[Record]) -> Text:
    """One cell in one line: its time, how it stands to the group's fastest, its memory; or why there is none."""
    word, style = status(record)
    name = f"  {shown(record.backend):<22}", (f"{word:<12}", style)
    if record.timing is None:
        return styled(*name, shown(record.reason or _errors(record)))
    half = record.timing.half_width
    spread = "" if half is None else f"± {100 * half:.1f}%"
    limit = "" if record.limit is None or record.limit.percent is None else f"{record.limit.percent:.0f}% of limit"
    extra = "" if record.memory is None else f"+{size(record.memory.peak_bytes)}"
    time = milliseconds(record.timing.median_ms)
    waits = wall(record.timing)
    waits = f"{waits:<26}" if waits else ""
    return styled(*name, f"{time:>10} {spread:<9}{waits}{standing(record, group):<22}{extra:<14}{limit}")


def wall(timing: Timing) -> str:
    """What an eager caller waits, where that is another time than the device's; nothing on a CPU."""
    if timing.wall_ms is None:
        return ""
    return f"wall {milliseconds(timing.wall_ms)}{', host-bound' if timing.host_bound else ''}"


def _errors(record: Record) -> str:
    if record.gate is None:
        return ""
    worst = max((e for e in record.gate.errors.values() if e is not None), default=None)
    return "gate green" if worst is None else f"gate green, largest relative error {worst:.1e}"


def standing(record: Record, group: Iterable[Record]) -> str:
    """``3.1× slower``, by paired blocks, against the fastest of the group; ``fastest`` for itself."""
    paired = [r for r in group if r.timing is not None and r.group == record.group]
    if record.timing is None or len(paired) < 2:
        return ""
    best = min(paired, key=by_speed)
    if best is record:
        return "fastest"
    ratio, said = against(record, best, paired)
    return f"{ratio:.3g}× {said}"


def against(record: Record, best: Record, group: Iterable[Record]) -> tuple[float, Verdict]:
    """Time of one over another of the same group, by paired blocks, and the verdict on it."""
    found = compared(record, best, noise_floors(group))
    return found.ratio.ratio, found.verdict()


def by_speed(record: Record) -> float:
    return float("inf") if record.timing is None else record.timing.median_ms


def table(records: list[Record]) -> Table:
    """The whole sweep, a row per problem: the three fastest, the plain layer, and who has no time."""
    shown = Table(title="Median times, the fastest first", title_justify="left")
    sizes = [*of_role("size"), *unusual_in(r.problem for r in records)]
    numbers = [a.symbol for a in sizes]
    for column in ("level", "mode", "dtype", "atoms of", *numbers, *PLACES, PLAIN, "no time"):
        shown.add_column(column, justify="right" if column in (*numbers, PLAIN) else "left")
    problems: dict[str, list[Record]] = {}
    for record in records:
        problems.setdefault(record.problem.key, []).append(record)
    for cells in problems.values():
        p = cells[0].problem
        ranked = sorted((r for r in cells if r.timing is not None), key=by_speed)
        places = [_place(ranked[i], bold=i == 0) if i < len(ranked) else "" for i in range(len(PLACES))]
        plain = next((milliseconds(r.timing.median_ms) for r in ranked if r.timing and r.backend == PLAIN), "")
        shown.add_row(
            p.level, p.mode, SHORT[p.dtype], f"{p.workload} {p.atoms}", *(f"{a.value(p):,}" for a in sizes),
            *places, plain, _absent(cells),
        )  # fmt: skip
    return shown


def _place(record: Record, *, bold: bool) -> Text:
    assert record.timing is not None
    return styled((f"{record.backend} {milliseconds(record.timing.median_ms)}", "bold" if bold else ""))


def _absent(cells: list[Record]) -> Text:
    """``2 unsupported, 1 oom``."""
    counts = {one: sum(r.status == one for r in cells) for one in STYLES if one != "ok"}
    return Text(", ").join(styled((f"{count} {one}", STYLES[one])) for one, count in counts.items() if count)
