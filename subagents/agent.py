"""The kernel of every agent: a prompt, a few tools and an answer type; `ask` is the only loop that talks to a model."""


class NoAnswer(Exception):  # noqa: N818 - it is an answer of sorts, not an error
    """An agent came to no usable answer; the step is given up, never the session."""
