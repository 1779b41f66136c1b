"""One page of it all, its Markdown twin, and README's block.

May import all other rooms.
"""
