"""The residual stream taken apart: who writes along a direction."""
