"""asv: three blocks in turn, which share one index and so one plan."""

from benchmarks.asv.suite import Suite


class Stack(Suite, level="stack"):
    """Three blocks in turn, which share one index and so one plan."""
