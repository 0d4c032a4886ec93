"""Standard streams that are closed, know ASCII alone, or end early: none stops a command."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

IN_ASCII = {"±": "+/-"}  # what the commands write beyond ASCII


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Let nothing that is written to stdout or stderr within the block fail."""
    _open_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout = cast(TextIO, _Lasting(sys.stdout, "stdout"))
    sys.stderr = cast(TextIO, _Lasting(sys.stderr, "stderr"))
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def say(text: str) -> None:
    """Print on stdout, at once, and beside a progress bar if there is one."""
    from tqdm.auto import tqdm

    tqdm.write(text)
    sys.stdout.flush()


def complain(text: object) -> None:
    """Print on stderr, in one write: lines of several processes do not mix."""
    rank = os.environ.get("RANK", "0")
    who = f"process {rank}: " if rank != "0" else ""
    sys.stderr.write(f"vaebench: {who}{text}\n")


def _open_descriptors() -> None:
    """Open on nothing what a caller has closed: the next file opened would take its number.

    What a library then writes to stderr, say, would go into a checkpoint.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number: this


class _Nothing(io.TextIOBase):
    """What is written goes nowhere."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)


class _Lasting:
    """A stream in front of another; in front of nothing, once that cannot be written to.

    Args:
        stream: the other; None if it was closed before the interpreter started.
        name: what it is called in messages.
    """

    def __init__(self, stream: TextIO | None, name: str) -> None:
        self._stream: TextIO | _Nothing = _Nothing() if stream is None else stream
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write what of the text the stream's encoding has, and the rest as escapes."""
        with self._until_it_ends():
            self._stream.write(_encodable(text, self._stream.encoding or "utf-8"))
        return len(text)

    def flush(self) -> None:
        """Hand over what was written."""
        with self._until_it_ends():
            self._stream.flush()

    @contextlib.contextmanager
    def _until_it_ends(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # a reader that went away, a full disk
            nothing = os.open(os.devnull, os.O_WRONLY)
            with contextlib.suppress(OSError):  # the interpreter will flush the stream at its end
                os.dup2(nothing, self._stream.fileno())
            os.close(nothing)
            self._stream = _Nothing()
            if self._name != "stderr":
                complain(f"{self._name} cannot be written ({error.strerror}): going on without it")


def _encodable(text: str, encoding: str) -> str:
    try:
        text.encode(encoding)
        return text
    except UnicodeEncodeError:
        for character, plain in IN_ASCII.items():
            text = text.replace(character, plain)
        return text.encode(encoding, "backslashreplace").decode(encoding)
