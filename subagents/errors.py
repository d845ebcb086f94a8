"""What is wrong with a prompt, apart from the module that reads prompts, so that a listing need not load that."""


class PromptError(ValueError):
    """A prompt cannot be used; the message says which and why in one line."""
