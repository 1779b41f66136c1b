"""What is measured of the model: inputs, the timed call, the float64 reference, floor and footprint of every level.

May import ``workload`` and what it may; pallatom and variants.
"""
