"""Why a cell has no number: asv keeps codes, the harness's records beside asv's results keep the sentences."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness.schema.cells import cell_of

Key = tuple[object, ...]  # level, then the cell as asv names it in brief; or "kernels", kernel, arch, dtype


def reasons(results_file: Path) -> dict[Key, str]:
    """The reason of every cell that has one, from the records of one commit and environment; the last of a cell counts.

    ``results_file`` is asv's (``MACHINE/COMMIT-ENV.json``); the records lie in ``MACHINE/records``. A line that is no
    record has no reason to give: the report of the records themselves is where it is named.
    """
    beside = results_file.parent / "records" / results_file.stem
    latest: dict[Key, str | None] = {}
    for end in (".jsonl", ".kernels.jsonl"):
        for fields in _lines(beside.with_name(beside.name + end)):
            key = _key(fields)
            if key is not None:
                reason = fields.get("reason")
                latest[key] = reason if isinstance(reason, str) and reason else None
    return {key: reason for key, reason in latest.items() if reason is not None}


def _lines(path: Path) -> Iterator[dict[str, object]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.split("\n"):
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):  # digits or brackets without end are none either
            continue
        if isinstance(fields, dict):
            yield fields


def _key(fields: dict[str, object]) -> Key | None:
    """Values that no cell can have (lists, say) make no key."""
    problem = fields.get("problem")
    if isinstance(problem, dict):
        values = [problem.get("level"), *cell_of(fields.get("backend"), problem)]
    else:
        values = ["kernels", *(fields.get(name) for name in ("kernel", "arch", "dtype"))]
    return tuple(values) if all(isinstance(v, str | int) for v in values) else None
