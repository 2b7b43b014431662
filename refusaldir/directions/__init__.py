"""Refusal directions: mean differences, and the choice of a site by separation or by cause."""
