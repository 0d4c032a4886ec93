"""The one exception for things a user can put right."""


class InputError(ValueError):
    """Bad input: its message is one line that says what was wrong and what to do.

    Library callers may catch it as a ``ValueError``; the command line prints the message on
    stderr and exits with status 2.
    """
