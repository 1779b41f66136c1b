"""The tables of a page.

May import ``find`` and what it may.
"""
