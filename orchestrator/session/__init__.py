"""A session: its file, the recording of conversations, and the verification of recordings.

Imports `core`, `ports.py` and `subagents`; imported by `views`, `supervisor.py` and `cli`. Read `store.py` first.
"""
