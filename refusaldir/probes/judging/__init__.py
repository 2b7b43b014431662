"""Judges beside the phrase judge, and how good each of them is against human labels.

A judge labels responses as `refusaldir.probes.outcomes` defines them; `spec.open_judge` makes one
from a line of text, `many.judge_rows` runs any of them over a file of responses, and
`calibration.calibrate` says what its errors do to a refusal rate. Nothing heavy is loaded here.
"""
