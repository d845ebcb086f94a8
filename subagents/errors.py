"""Define PromptError apart from prompts.py, whose imports are slow."""


class PromptError(ValueError):
    """A prompt cannot be used; the message names it and says why, in one line."""
