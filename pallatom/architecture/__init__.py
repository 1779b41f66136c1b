"""The layers; see :mod:`pallatom.architecture.atom_transformers`."""
