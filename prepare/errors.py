"""The error that commands turn into one line."""


class UserError(Exception):
    """Something that the user can mend; the message is one line that says what to do."""
