"""Records in, a page out: which backend to use where, by how much, how sure, and what will fit.

``read`` reads and sorts records and results of asv, ``find`` compares and fits, ``say`` puts it into sentences,
``tables`` into tables and files, ``draw`` into figures, ``page`` writes. Nothing here imports torch or a backend: a
report is made on any machine that holds the records.
"""
