"""Decisions as pure functions of the state: what is due, what is kept, how a run is evaluated.

Imports only `core`. Read `schedule.py` (what is due), then `judge.py` (what is kept) with `evidence.py` (noise and
comparison) and `belief.py` (the posterior), and `certification.py` (the gain at the end); every number is in
`thresholds.py`, with its reason.
"""
