"""The bench: asv suites, the harness that they share, and the command line (``python -m benchmarks``)."""
