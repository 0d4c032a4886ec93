"""What can go wrong that is no fault of the code, and the checks of plain values.

Each check takes the name that the user knows the value by: ``--batch-size`` or ``batch_size``. No
torch in this room.
"""

import math
from collections.abc import Sequence
from numbers import Integral, Real

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


# float32 has numbers from 1e-38 to 3e38. Within these ends a value, its square, and its product
# with a loss or a gradient of ordinary size are numbers still.
SMALLEST, LARGEST = 1e-15, 1e15
WIDEST = 2**20  # of a layer


def check_count(name: str, value: object, *, most: int | None = None) -> int:
    """Give ``value`` as an int if it is a whole number from 1 to ``most``; a bool is none."""
    number = _whole(value)
    if number is None or number < 1:
        raise InputError(f"{name} is {_shown(value)}: it must be a whole number of at least 1")
    if most is not None and number > most:
        raise InputError(f"{name} is {_shown(value)}: it must be a whole number of at most {most}")
    return number


def check_counts(name: str, values: object, *, most: int | None = None) -> tuple[int, ...]:
    """Give ``values`` as a tuple if they are one or more whole numbers from 1 to ``most``."""
    text = isinstance(values, (str, bytes, bytearray, memoryview))
    if text or not isinstance(values, Sequence) or not values:
        raise InputError(
            f"{name} is {_shown(values)}: it must be a sequence of one or more whole numbers"
        )
    return tuple(check_count(name, value, most=most) for value in values)


def check_real(name: str, value: object, *, zero: bool = False) -> float:
    """Give ``value`` as a float if float32 can work with it: 1e-15 to 1e15, and 0 if ``zero``."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"{name} is {_shown(value)}: it must be a number")
    try:
        number = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not (SMALLEST <= number <= LARGEST or (zero and number == 0)):
        bound = "0 or more" if zero else "above 0"
        raise InputError(
            f"{name} is {_shown(value)}: it must be a finite number {bound}, "
            f"{'else ' if zero else ''}from {SMALLEST:g} to {LARGEST:g}"
        )
    return number


def check_range(name: str, value: object) -> tuple[float, float]:
    """Give two finite numbers, the first of them the lower, as floats."""
    try:
        low, high = (float(end) for end in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise InputError(f"{name} is {_shown(value)}: it must be two numbers") from None
    if not -LARGEST <= low < high <= LARGEST:
        raise InputError(f"{name} is {_shown(value)}: the first must be below the second")
    return low, high


def check_share(name: str, value: object) -> float:
    """Give ``value`` as a float if it is in [0, 1), as the decay of an average must be."""
    number = check_real(name, value, zero=True)
    if number >= 1:
        raise InputError(f"{name} is {_shown(value)}: it must be at least 0, and less than 1")
    return number


def check_seed(name: str, value: object) -> int:
    """Give ``value`` as an int if it can be a seed."""
    number = _whole(value)
    if number is None or not 0 <= number < 2**63:
        raise InputError(f"{name} is {_shown(value)}: it must be a whole number in 0 .. 2**63 - 1")
    return number


def _whole(value: object) -> int | None:
    """Give a whole number of any type, NumPy's included, as an int; None for anything else."""
    return int(value) if type(value) is not bool and isinstance(value, Integral) else None


def _shown(value: object) -> str:
    try:
        return repr(value)
    except ValueError:  # a whole number of more digits than Python is willing to write
        return f"a {type(value).__name__} of thousands of digits"


def check_choice(name: str, value: object, accepted: Sequence[str]) -> None:
    """Raise InputError unless ``value`` is one of the words ``accepted``."""
    if not isinstance(value, str) or value not in accepted:
        raise InputError(f"{name} is {_shown(value)}: choose from {', '.join(accepted)}")


def check_switch(name: str, value: object) -> None:
    """Raise InputError unless ``value`` is True or False; ``"no"`` would count as True."""
    if not isinstance(value, bool):
        raise InputError(f"{name} is {_shown(value)}: it must be True or False")


def check_text(name: str, value: object) -> None:
    """Raise InputError unless ``value`` is a text that is not empty."""
    if not isinstance(value, str) or not value:
        raise InputError(
            f"{name} is {_shown(value)}: it must be a text that is not empty, or left out"
        )


def in_a_line(error: Exception) -> str:
    """What was raised: the first line says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {(lines or ['no reason given'])[0]}"
