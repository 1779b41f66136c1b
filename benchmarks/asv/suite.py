"""What every asv suite is: a look-up, per cell and metric, in what the harness measured for this commit.

A suite's numbers are made once per commit, in ``setup_cache``: one sweep of the harness over all that is asked for,
every suite's problems in it, the backends of a problem interleaved. ``setup_cache`` is the same function for all of
them, so asv calls it once. The look-ups import nothing but the standard library, since asv starts a process for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

from . import grid as asv_grid
from .metrics import KERNEL_METRICS, METRICS, Metric

Cache = dict[tuple[str, tuple], dict[str, Any]]
MEASURING_LIMIT_S = 6 * 3600.0  # of the whole grid on a slow machine; each phase of a cell has a limit of its own


class Suite:
    """One level of the model over the grid. It has no benchmarks of its own, so asv finds none where it is imported."""

    level: ClassVar[str]  # the name of the suite's part in BENCH_CELLS
    params: ClassVar[list[list[Any]]]
    param_names: ClassVar[list[str]]
    timeout = 60.0  # a look-up
    version = "1"

    def __init_subclass__(cls, level: str) -> None:
        """Give a suite its axes, and one benchmark per metric."""
        cls.level = level
        cls.params, cls.param_names = asv_grid.params(level), list(asv_grid.GRIDS[level])
        for name, metric in (KERNEL_METRICS if level == asv_grid.KERNELS else METRICS).items():
            setattr(cls, f"track_{name}", _look_up(cls, name, metric))

    def setup_cache(self) -> Cache:
        from .measure import measure_commit

        return measure_commit()

    setup_cache.timeout = MEASURING_LIMIT_S  # type: ignore[attr-defined]

    def setup(self, cache: Cache, *cell: Any) -> None:
        """A cell that nobody asked for is n/a."""
        if (self.level, cell) not in cache:
            raise NotImplementedError(f"{self.level} {cell}: not among the cells that {asv_grid.CELLS} asks for")


def _look_up(suite: type[Suite], name: str, metric: Metric) -> Callable[..., Any]:
    """The benchmark of one metric: the cell's number, NaN where its record has none (its status tells why)."""

    def look_up(self: Suite, cache: Cache, *cell: Any) -> Any:
        value = cache[self.level, cell][name]
        return math.nan if value is None else value

    told = {
        "__name__": f"track_{name}",
        "__qualname__": f"{suite.__qualname__}.track_{name}",
        "__doc__": f"{metric.title[0].upper()}{metric.title[1:]} [{metric.unit}].",
        "unit": metric.unit,
        "pretty_name": f"{suite.__name__}: {metric.title}",
    }
    for attribute, value in told.items():
        setattr(look_up, attribute, value)
    return look_up
