"""Records in, a page out: which backend to use where, by how much, how sure, and what will fit.

``load`` reads and sorts records, ``analyse`` turns them into comparisons, ``plots`` draws, ``page`` writes. Nothing here
imports torch or a backend: a report is made on any machine that holds the records.
"""
