"""The sentences of a page.

May import ``find`` and what it may.
"""
