"""The process that measures, and its parent's view of it: requests go down, events come up.

May import ``gate`` and what it may.
"""
