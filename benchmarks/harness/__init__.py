"""The ruler: how a number is made (clock, gate, statistics), and what it is recorded as."""
