"""Events, and the state as a fold over them. Pure; imported by everything, imports nothing of the orchestrator.

Read `events.py` (everything that can happen), then `state.py` (what is known after it).
"""
