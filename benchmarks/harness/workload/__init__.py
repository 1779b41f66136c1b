"""Which atoms: real proteins by name, a user's files, synthetic lengths; their index; the problems that axes ask for.

May import ``schema``, and pallatom for the index.
"""
