"""asv: building the neighbour index, which has no backend."""

from benchmarks.asv.suite import Suite


class Index(Suite, level="index"):
    """Building the neighbour index, which has no backend."""
