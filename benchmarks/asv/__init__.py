"""What drives asv: the grid it measures, one sweep a commit, and the numbers that it tracks.

May import the harness.
"""
