"""A case: a problem asked for, built and run by one backend, with what it needs of memory and the limit on its speed.

May import ``levels`` and what it may; pallatom and variants, inside functions.
"""
