"""Blocks exchanged between base and tuned."""
