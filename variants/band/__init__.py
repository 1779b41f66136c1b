"""Bands, neighbour lists that are contiguous runs of atoms: the plan of one, and the tiles that cover it.

May import pallatom and the declarations at the top of ``variants``; imports no backend and no other package of
``variants``.
"""
