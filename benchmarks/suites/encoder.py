"""asv: features, index and stack of an atom encoder, from positions to residues."""

from benchmarks.asv.suite import Suite


class Encoder(Suite, level="encoder"):
    """Features, index and stack of an atom encoder, from positions to residues."""
