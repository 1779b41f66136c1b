"""Records and asv's results, read and sorted: all that a page shows comes through here.

May import the bench's ``ruler``, ``schema``, ``levels`` and ``cases.limits``, and ``words``; never torch.
"""
