"""Pallatom's atom transformer: local attention over atoms, with a learned bias on every live pair."""
