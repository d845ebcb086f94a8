"""The kernel of every agent, and two agents: the mechanic edits a train.py, the reflector writes a post-mortem.

Imports nothing of `orchestrator` or `prepare`. Read `agent.py` first: `ask` is the only loop that talks to a model.
`claude.py` alone knows the SDK.
"""


class PromptError(ValueError):
    """A prompt cannot be used; the message names it and says why, in one line."""
