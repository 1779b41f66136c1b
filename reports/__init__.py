"""Records in, a page out: which backend to use where, by how much, how sure, and what will fit.

``load`` reads and sorts records, ``analyse`` and ``curves`` compare and fit, ``answer``, ``summary`` and ``tables`` say
what came out, ``figures`` chooses what ``plots`` and ``forests`` draw, ``page`` writes. Nothing here imports torch or a
backend: a report is made on any machine that holds the records.
"""
