"""How ``regress`` tells what it found: a table on the terminal, Markdown for a pull request, JSON for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from ..harness.regress.regression import ALPHA, MARGIN, Finding
from ..harness.schema.shown import shown
from . import console as show

COLUMNS = ("backend", "problem", "time A", "time B", "B / A", "95% interval", "time", "peak A", "peak B", "memory")
MARKER = "<!-- benchmarks regress -->"  # by which a later run finds its comment again
LONGEST_REASON, MOST_ROWS = 200, 120  # a comment holds 65,536 characters
_STYLES = {"slower": "bold red", "heavier": "bold red", "broken": "bold red", "faster": "green", "lighter": "green"}
_ORDER = ("broken", "slower", "heavier", "faster", "lighter", "fixed")


@dataclass(frozen=True)
class Account:
    """A whole comparison, as it is told. ``code``: what each side is, in words; ``same_code``: nothing was measured."""

    code: dict[str, str]
    findings: Sequence[Finding]
    rounds: int = 0
    seconds: float = 0.0
    margin: float = MARGIN
    same_code: bool = False
    missing: str | None = None
    out: Path | None = None

    @property
    def regressions(self) -> list[Finding]:
        return [f for f in self.findings if f.regressed]

    @property
    def headline(self) -> str:
        """The result in one sentence."""
        if self.missing is not None:
            return f"Nothing to compare: {self.missing}."
        if self.same_code:
            return "Both commits hold the same code: nothing was measured."
        count, total = len(self.regressions), sum(f.outcome != "n/a" for f in self.findings)
        if count:
            return f"{count} of {total} cells regressed."
        found = [f.speed for f in self.findings if f.outcome == "ran"]
        if not found:
            return "No cell could be measured on both sides."
        open_ = found.count("unresolved")
        rest = f"; {open_} of {total} cells are unresolved (more time: --budget-s)" if open_ else ""
        return f"No certain regression in {total} cells{rest}."

    @property
    def method(self) -> str:
        """How it was measured, in one sentence."""
        return (
            f"{self.rounds} rounds of fresh process pairs, samples in turn, {self.seconds:.0f} s. A change counts "
            f"beyond {self.margin:.0%}; the chance of any false alarm on time in the whole table is at most "
            f"{ALPHA:.0%} (Holm)."
        )


def row(finding: Finding) -> tuple[str, ...]:
    """The cells of one line, plain text, in the order of :data:`COLUMNS`."""
    change = finding.change
    time, memory = (finding.speed, finding.weight) if finding.outcome == "ran" else (finding.outcome, "")
    times = ratio = interval = None
    if change is not None:
        times, ratio = (show.milliseconds(change.a_ms), show.milliseconds(change.b_ms)), f"{change.ratio:.3g}"
        if change.low is not None:
            interval = f"{change.low:.3g} … {change.high:.3g}"
    return (
        finding.backend,
        show.title(finding.problem),
        *(times or ("–", "–")),
        ratio or "–",
        interval or "–",
        time,
        show.size(finding.a_bytes),
        show.size(finding.b_bytes),
        memory,
    )


def by_weight(findings: Sequence[Finding]) -> list[Finding]:
    """The worst first; the uninteresting as they came."""

    def place(f: Finding) -> tuple[int, float]:
        said = (f.outcome, f.speed, f.weight)
        rank = min((_ORDER.index(word) for word in said if word in _ORDER), default=len(_ORDER))
        return rank, 0.0 if f.change is None or rank == len(_ORDER) else -abs(math.log(f.change.ratio))

    return sorted(findings, key=place)


def table(findings: Sequence[Finding]) -> Table:
    """For the terminal."""
    shown = Table(title="B against A: the worst first", title_justify="left")
    for column in COLUMNS:
        shown.add_column(column, justify="left" if column in ("backend", "problem", "time", "memory") else "right")
    for finding in by_weight([f for f in findings if f.outcome != "n/a"]):
        shown.add_row(*(_styled(text) for text in row(finding)))
    return shown


def _styled(text: str) -> Text:
    return show.styled((text, _STYLES.get(text, "")))


def reasons(findings: Sequence[Finding]) -> list[str]:
    """Why a cell has no verdict, or what broke: one line for all cells of a backend that share it."""
    found: dict[tuple[str, str, str], int] = {}
    for f in by_weight(findings):
        if f.reason:
            key = (f.outcome, f.backend, " ".join(f.reason.split()))
            found[key] = found.get(key, 0) + 1
    return [
        f"{outcome}: {backend} ({count} cell{'s' if count > 1 else ''}): {_cut(reason)}"
        for (outcome, backend, reason), count in found.items()
    ]


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 1] + "…"


def markdown(account: Account) -> str:
    """For a comment on a pull request: the regressions open, everything else folded away."""
    a, b = account.code["a"], account.code["b"]
    sign = "❌" if account.regressions else "✅"
    lines = [MARKER, f"### {sign} Benchmarks: {account.headline}", "", f"A: {_cell(a)}  ", f"B: {_cell(b)}", ""]
    ranked = by_weight(account.findings)
    lines += _rows([f for f in ranked if f.regressed])
    lines += [f"- {_cell(reason)}" for reason in reasons(account.regressions)[:MOST_ROWS]]
    others = [f for f in ranked if not f.regressed]
    if others:
        lines += ["", "<details><summary>All other cells</summary>", ""]
        lines += _rows([f for f in others if f.outcome != "n/a"])
        lines += [*(f"- {_cell(reason)}" for reason in reasons(others)[:MOST_ROWS]), "", "</details>"]
    if account.findings:
        lines += ["", account.method]
    return "\n".join(lines) + "\n"


def _rows(findings: Sequence[Finding]) -> list[str]:
    if not findings:
        return []
    more = len(findings) - MOST_ROWS
    head = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return [
        *head,
        *("| " + " | ".join(_bold(_cell(text)) for text in row(f)) + " |" for f in findings[:MOST_ROWS]),
        "",
    ] + ([f"… and {more} more.", ""] if more > 0 else [])


def _bold(text: str) -> str:
    return f"**{text}**" if text in _STYLES else text


def _cell(text: str) -> str:
    """Text of others, harmless: it can close no cell, open no tag and call nobody."""
    text = shown(text)
    for sign, harmless in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("@", "&#64;"), ("`", "'")):
        text = text.replace(sign, harmless)
    return text


def as_json(account: Account) -> dict[str, Any]:
    """Everything, for a program."""
    return {
        "headline": account.headline,
        "regressed": bool(account.regressions),
        "a": account.code["a"],
        "b": account.code["b"],
        "rounds": account.rounds,
        "seconds": account.seconds,
        "margin": account.margin,
        "alpha": ALPHA,
        "records": None if account.out is None else str(account.out),
        "cells": [
            {
                "backend": f.backend,
                "title": show.title(f.problem),
                "problem": f.problem.model_dump(mode="json"),
                "outcome": f.outcome,
                "reason": f.reason,
                "time": f.speed,
                "memory": f.weight,
                "regressed": list(f.regressed),
                "change": None if f.change is None else asdict(f.change),
                "p_adjusted": f.p_adjusted,
                "peak_bytes": {"a": f.a_bytes, "b": f.b_bytes},
            }
            for f in account.findings
        ],
    }
