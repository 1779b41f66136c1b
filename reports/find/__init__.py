"""What the numbers say: ratios, exponents, crossovers, regions, the steps of a history.

May import ``read`` and what it may.
"""
