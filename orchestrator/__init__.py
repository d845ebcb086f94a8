"""What happened, what is due, and what carries it out.

Read `loop.py` first, then `policy/schedule.py` and `core/state.py`; docs/architecture.md has the map. Imports go to
lower ranks only (tests/test_house.py), and nothing here imports torch.
"""
