"""Drift of the refusal direction from base to tuned: what moved, by how much, how surely."""
