"""Pairs of models in which the layers that disturb refusal are known, and scores against them."""
