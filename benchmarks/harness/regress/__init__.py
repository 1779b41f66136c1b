"""Two states of the code measured against each other.

May import ``sweep`` and what it may.
"""
