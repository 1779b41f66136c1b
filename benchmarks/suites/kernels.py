"""asv: the fused GPU kernels as the compiler leaves them, read without a GPU: a spill is seen before it is slow."""

from benchmarks.asv.suite import Suite


class Kernels(Suite, level="kernels"):
    """Registers, spills, shared memory, occupancy and instructions of the kernels as ``triton_fused`` launches them."""
