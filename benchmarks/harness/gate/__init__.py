"""No speed without correctness: errors and tolerances, a trial at a small size, audits of what a backend touches.

May import ``cases`` and what it may.
"""
