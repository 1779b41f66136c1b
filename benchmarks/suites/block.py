"""asv: the seam (attention alone, all that a backend replaces) and the block around it."""

from benchmarks.asv.suite import Suite


class Attention(Suite, level="attention"):
    """The seam: where backends differ most, so a change of one shows here first."""


class Block(Suite, level="block"):
    """Attention with its norms and projections, and the feed-forward layer."""
