"""The ways a training can fail that are not faults of the code."""

LONGEST = 1500  # characters of a message; a name of a megabyte is not repeated in full


def one_line(text: object) -> str:
    """Give ``str(text)`` as one printable line, cut in its middle where it is too long.

    Messages quote file names, arguments and other programs' messages, which may hold anything.
    """
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


class InputError(ValueError):
    """Bad input: its message is one line that says what was wrong and what to do.

    Library callers may catch it as a ``ValueError``; the command line prints the message on
    stderr and exits with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class TrainingError(RuntimeError):
    """The training went wrong underway, by its numbers: the message is one line, as above.

    The command line prints it on stderr and exits with status 1.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class ResourceError(RuntimeError):
    """The machine could not go on: a full disk, a folder taken away, no memory left; one line.

    The command line prints it on stderr and exits with status 3.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))
