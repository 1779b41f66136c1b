"""Every cell of a grid, once, in workers that may die; and one cell again, from its record.

May import ``worker`` and what it may.
"""
