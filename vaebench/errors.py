"""The ways a training can fail that are not faults of the code."""


class InputError(ValueError):
    """Bad input: its message is one line that says what was wrong and what to do.

    Library callers may catch it as a ``ValueError``; the command line prints the message on
    stderr and exits with status 2.
    """


class TrainingError(RuntimeError):
    """The training went wrong underway, by its numbers: the message is one line, as above.

    The command line prints it on stderr and exits with status 1.
    """


class ResourceError(RuntimeError):
    """The machine could not go on: a full disk, a folder taken away, no memory left; one line.

    The command line prints it on stderr and exits with status 3.
    """
