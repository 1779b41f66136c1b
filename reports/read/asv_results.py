"""Results of asv, of any number of machines, as one tidy table: a row a number, read through asv's own classes.

asv keeps three kinds of nothing apart, and so does the table: *absent* (nobody asked for the cell: no row), NaN
(``n/a``: the cell has no such number, and its ``status`` says why) and null (``failed``: what should have looked the
number up broke). None of them is ever 0. What cannot be read is left out and named.
"""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from benchmarks.asv.metrics import STATUS_CODES
from benchmarks.harness.schema.cells import brief
from benchmarks.harness.schema.shown import shown
from reports.read.asv_reasons import reasons
from reports.read.load import InputError, Rejected, cleaned

if TYPE_CHECKING:
    from asv.benchmarks import Benchmarks
    from asv.results import Results

STATUS_WORDS = {code: word for word, code in STATUS_CODES.items()}
NUMBER, NOT_AVAILABLE, FAILED = "number", "n/a", "failed"  # the column ``found``
STATUS = "status"  # the metric that says what became of a cell
INDEX = "benchmarks.json"  # what makes a folder one of asv's


@dataclass(frozen=True)
class Commit:
    """One commit that has results; ``position`` counts from the oldest."""

    hash: str
    date: pd.Timestamp
    position: int

    @property
    def short(self) -> str:
        return self.hash[:7]


@dataclass(frozen=True)
class AsvResults:
    """Everything that was read: see :func:`read`."""

    frame: pd.DataFrame
    commits: tuple[Commit, ...]
    machines: dict[str, dict[str, str]]
    ordered_by: str  # git or date
    parameters: tuple[str, ...]
    rejected: tuple[Rejected, ...] = ()
    sources: tuple[str, ...] = field(default=())


def is_asv_folder(path: Path) -> bool:
    return (path / INDEX).is_file() or any(path.glob("*/machine.json"))


def read(folders: Sequence[Path], repository: Path | None = None) -> AsvResults:
    """All results below ``folders`` (asv's ``results_dir`` of one or more projects or shards).

    The frame has a row for every number that was asked for: machine, env, commit, date, position, suite, metric, unit,
    the benchmark's parameters by name, ``value``, ``found``, ``status`` and asv's statistics (99% interval, quartiles,
    samples where they were recorded). Commits are in git's order where ``repository`` (else the one that holds the
    folder, or the working directory) knows them all, else by date.

    Raises
    ------
    InputError
        asv is not installed; a folder holds no results; nothing in it can be read.
    """
    _require_asv()
    rejected: list[Rejected] = []
    rows: dict[tuple[object, ...], dict[str, Any]] = {}
    machines: dict[str, dict[str, str]] = {}
    for folder in folders:
        benchmarks = _benchmarks(folder)
        for results, source in _results(folder, rejected):
            machine = shown(str(results.params.get("machine")))
            machines.setdefault(machine, {}).update({shown(k): shown(str(v)) for k, v in results.params.items() if v})
            why = reasons(folder / source)
            for raw in _rows(results, benchmarks, source, rejected):
                level = raw["suite"].rpartition(".")[2].lower()
                raw["reason"] = None
                if raw["status"] != "ok":
                    raw["reason"] = why.get((level, *brief(tuple(raw["params"].values()))))
                row: dict[str, Any] = {k: cleaned(v) for k, v in raw.items()}
                key = tuple(row[k] for k in ("machine", "env", "commit", "benchmark", "cell"))
                if key not in rows or (row["started_at"] or 0) >= (rows[key]["started_at"] or 0):
                    rows[key] = row
    if not any(row["found"] == NUMBER for row in rows.values()):
        why = "".join(f"; {r.source}: {r.why}" for r in rejected[:3])
        raise InputError(f"{', '.join(map(str, folders))}: expected results of asv, found no number{why}")
    commits, ordered_by = _order(rows.values(), _repositories(folders, repository))
    position = {c.hash: c.position for c in commits}
    frame, parameters = _frame([row | {"position": position[row["commit"]]} for row in rows.values()])
    frame = frame.sort_values(["machine", "env", "suite", "metric", "cell", "position"], ignore_index=True)
    return AsvResults(
        frame, commits, machines, ordered_by, parameters, tuple(rejected), tuple(shown(str(f)) for f in folders)
    )


def _require_asv() -> None:
    try:
        import asv.results  # noqa: F401
    except ModuleNotFoundError as e:
        raise InputError(f"a folder of asv results needs asv (pip install '.[asv]'), found no module {e.name}") from e


def _benchmarks(folder: Path) -> Benchmarks:
    from asv.benchmarks import Benchmarks
    from asv.config import Config
    from asv.util import UserError

    conf = Config()
    conf.results_dir = str(folder)
    try:
        return Benchmarks.load(conf)
    except (UserError, OSError, ValueError, TypeError, KeyError, AttributeError) as e:
        raise InputError(f"{folder / INDEX}: expected asv's list of benchmarks: {_said(e)}") from e


def _said(error: Exception) -> str:
    """An error in one line; asv's name the file by its whole path, which says nothing to a reader of the report."""
    text = str(error).split("\n", 1)[0] or type(error).__name__
    if isinstance(error, KeyError | AttributeError | TypeError | IndexError):
        text = f"not of asv's form ({type(error).__name__}: {text})"
    return text


def _results(folder: Path, rejected: list[Rejected]) -> Iterator[tuple[Results, str]]:
    """Every file of results that asv can load, with its name; the others are listed."""
    from asv.results import Results, iter_results_paths
    from asv.util import UserError

    seen: set[Path] = set()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        paths = list(iter_results_paths(str(folder)))
    for root, name, machine in sorted(paths):
        path = Path(root) / name
        seen.add(path)
        source = str(path.relative_to(folder))
        try:
            yield Results.load(str(path), machine_name=machine), source
        except UserError as e:
            rejected.append(Rejected(source, 0, _said(e).replace(str(path.resolve()), name).replace(str(path), name)))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError) as e:
            rejected.append(Rejected(source, 0, _said(e)))
    for path in sorted(set(folder.glob("*/*.json")) - seen):
        if path.name != "machine.json":
            why = "no readable machine.json lies beside it"
            rejected.append(Rejected(str(path.relative_to(folder)), 0, why))


def _rows(
    results: Results, benchmarks: Benchmarks, source: str, rejected: list[Rejected]
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The rows of one file; a suite's status first, for it says which cells were asked for."""
    current = results.get_result_keys(benchmarks)
    states: dict[str, dict[tuple[str, ...], str | None]] = {}
    for key in sorted(results.get_all_result_keys(), key=lambda k: (_split(k)[1] != STATUS, k)):
        suite, metric = _split(key)
        if key not in current:
            rejected.append(Rejected(source, 0, f"{key} is of another version than {INDEX} knows"))
            continue
        try:
            rows = list(_of_benchmark(results, key, benchmarks[key], source, states.get(suite)))
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError) as e:
            rejected.append(Rejected(source, 0, f"{key}: {_said(e)}"))
            continue
        if metric == STATUS:
            states[suite] = {row["cell"]: _word(row["value"]) for row in rows if row["found"] != NOT_AVAILABLE}
            rows = [row | {"status": states[suite].get(row["cell"])} for row in rows if row["found"] != NOT_AVAILABLE]
        yield from rows


def _split(key: str) -> tuple[str, str]:
    """``block.Block.track_latency``: the suite ``block.Block`` and the metric ``latency``."""
    suite, _, function = key.rpartition(".")
    return suite, function.partition("_")[2] or function


def _word(code: float | None) -> str | None:
    return None if code is None else STATUS_WORDS.get(int(code), f"code {code:g}")


def _of_benchmark(
    results: Results, key: str, benchmark: dict[str, Any], source: str, asked: dict[tuple[str, ...], str | None] | None
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Rows of one benchmark; with ``asked`` (statuses by cell), n/a only for cells that are in it."""
    params: list[list[str]] = benchmark["params"] or []
    names: list[str] = benchmark["param_names"] or []
    suite, metric = _split(key)
    columns = [get(key, params) for get in
               (results.get_result_value, results.get_result_stats, results.get_result_samples)]  # fmt: skip
    plain = itertools.product(*([_literal(v) for v in values] for values in params))
    entries = list(zip(itertools.product(*params), plain, *columns, strict=True))
    held = results.get_result_params(key) or []
    if held != params:  # asv gives null for what a grid of that time did not have: nobody asked for it
        known = set(itertools.product(*held))
        entries = [entry for entry in entries if entry[0] in known]
    if len(entries) > 1 and all(value is None for _, _, value, _, _ in entries):
        # It broke as a whole: one row, not one of every cell that there might have been.
        entries, names = [((), (), None, None, None)], []
    shared = {
        "machine": results.params.get("machine"), "env": results.env_name, "commit": results.commit_hash,
        "date": pd.Timestamp(results.date, unit="ms", tz="UTC"), "suite": suite, "metric": metric,
        "unit": benchmark.get("unit") or "", "benchmark": key, "started_at": results.started_at.get(key),
        "source": source,
    }  # fmt: skip
    for cell, values, value, stats, samples in entries:
        number, kind = _value(value)
        if kind == NOT_AVAILABLE and asked is not None and cell not in asked:
            continue
        stats = stats or {}
        yield shared | {
            "cell": cell, "params": dict(zip(names, values, strict=True)), "value": number, "found": kind,
            "status": asked.get(cell) if asked else None, "ci_low": _bound(stats.get("ci_99_a")),
            "ci_high": _bound(stats.get("ci_99_b")), "q25": _bound(stats.get("q_25")),
            "q75": _bound(stats.get("q_75")), "n_samples": stats.get("repeat"), "samples": samples,
        }  # fmt: skip


def _value(value: object) -> tuple[float | None, str]:
    if value is None:
        return None, FAILED
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected numbers, got {value!r:.40}")
    if math.isnan(value):
        return None, NOT_AVAILABLE
    if math.isinf(value):
        raise ValueError(f"expected finite numbers, got {value}")
    return float(value), NUMBER


def _bound(value: object) -> float | None:
    """A bound of an interval; asv writes infinity where too few samples bound nothing."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _literal(text: str) -> object:
    """A parameter's value, of which asv keeps the ``repr``; what is no plain value stays that text."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if value is None or isinstance(value, str | int | float) else text


def _frame(rows: Iterable[dict[str, Any]]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Parameters become columns; one that has the name of another column gets ``param_`` before it."""
    named: dict[str, str] = {}
    flat = []
    for row in rows:
        params = row.pop("params")
        for name in params:
            named.setdefault(name, f"param_{name}" if name in row else name)
        flat.append(row | {named[name]: value for name, value in params.items()})
    return pd.DataFrame(flat), tuple(named.values())


def _repositories(folders: Sequence[Path], given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    for start in (*folders, Path.cwd()):
        yield from (p for p in (start.resolve(), *start.resolve().parents) if (p / ".git").exists())


def _order(rows: Iterable[dict[str, Any]], repositories: Iterable[Path]) -> tuple[tuple[Commit, ...], str]:
    dates: dict[str, pd.Timestamp] = {}
    for row in rows:
        dates[row["commit"]] = min(row["date"], dates.get(row["commit"], row["date"]))
    ordered_by, rank = "date", None
    for repository in repositories:
        known = _revisions(repository, set(dates))
        if set(known) == set(dates):
            ordered_by, rank = "git", known.__getitem__
            break
    by: Callable[[str], Any] = rank or (lambda commit: (dates[commit], commit))
    return tuple(Commit(c, dates[c], i) for i, c in enumerate(sorted(dates, key=by))), ordered_by


def _revisions(repository: Path, commits: set[str]) -> dict[str, int]:
    """asv's own numbering of the commits that the repository knows; none where git cannot be asked."""
    from asv.plugins.git import Git
    from asv.util import ProcessError

    try:
        return Git(str(repository), str(repository)).get_revisions(commits)
    except (OSError, ProcessError):
        return {}
