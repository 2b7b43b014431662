"""Refusal directions: the mean difference, and the choice of a site on the base model."""
