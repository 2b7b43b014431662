"""Judges beside the phrase judge, and how good each of them is against human labels.

A judge labels responses as `refusaldir.probes.outcomes` defines them; `spec.open_judge` makes one
from a line of text, `labelling.add_judges` adds its labels to replies that are there, and
`calibration.calibrate` says what its errors do to a refusal rate. Nothing heavy is loaded here.
"""
