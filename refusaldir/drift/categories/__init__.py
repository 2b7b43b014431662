"""Drift of the hazard categories and of the subspace they span."""
