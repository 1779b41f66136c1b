"""asv: building the neighbour index, which has no backend."""

from .asv_suite import Suite


class Index(Suite, level="index"):
    """Building the neighbour index, which has no backend."""
