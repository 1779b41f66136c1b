"""Where the time of one call goes.

May import ``sweep`` and what it may.
"""
