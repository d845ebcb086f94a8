"""The crew of three agents: researcher, mechanic, reflector, and what each of them is told.

Imports `core`, `policy`, `ports.py` and `subagents`; imported by `cli`. Read `crew.py` first. `briefing.py` and
`packets.py` are pure: they select facts within a budget of tokens, which the files of `templates/` put into words.
So is `fidelity.py`, which checks an edit.
"""
