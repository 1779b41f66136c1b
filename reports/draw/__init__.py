"""The figures of a page, by matplotlib.

May import ``find`` and what it may.
"""
