"""What must come out of a built problem: the float64 reference, of all of it or of a sample that is exact.

May import ``workload`` and what it may; variants, inside functions.
"""
