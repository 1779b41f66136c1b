"""How a number is made: clocks, interleaving, statistics, measured ceilings, memory, the machine's facts.

Knows no attention and no record. May import numpy, scipy and torch; nothing of this project.
"""
