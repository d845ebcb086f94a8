"""The classical crew: coordinate search over the constants of train.py, then TPE, or another way. No key, no network.

Imports `core`, `policy`, `prepare.constants` and, for NoAnswer, `subagents`; imported by `cli`. Read `crew.py` first,
then `search.py` and `space.py`.
"""
