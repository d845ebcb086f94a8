"""The error that commands print as one line."""


class UserError(Exception):
    """A problem that the user can fix; the message is one line that says what to do."""
