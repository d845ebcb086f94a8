"""What is wrong with a prompt, apart from the module that reads prompts, so that a listing need not load that."""


class PromptError(Exception):
    """A prompt cannot be used; the message says which and why in one line."""
