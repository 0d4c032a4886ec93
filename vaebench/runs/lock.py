"""A folder that one process at a time writes."""

import contextlib
import os
import warnings
from pathlib import Path
from typing import IO

from vaebench.errors import InputError

LOCK = ".vaebench.lock"


class FolderLock:
    """The right to write to a folder, held by one process: the system takes it back at its death.

    A file in the folder carries it, and is removed at the end. One that a killed process left
    carries nothing.

    Raises:
        InputError: another process holds it.
        OSError: the file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        while True:
            self.file = open(self.path, "ab")  # noqa: SIM115
            try:
                _lock(self.file)
            except BlockingIOError:
                self.file.close()
                raise InputError(
                    f"another training is writing to {folder}: wait for its end, or choose "
                    "another folder"
                ) from None
            except BaseException:
                self.file.close()
                raise
            # Its last owner may have removed it after we opened it: then it guards nothing.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self.file.fileno()), os.stat(self.path)):
                    return
            self.file.close()

    def release(self) -> None:
        """Let others write. The file goes first: it must not go once it is someone else's."""
        if not self.file.closed:
            with contextlib.suppress(OSError):
                self.path.unlink()
            self.file.close()


def _lock(file: IO[bytes]) -> None:
    """Lock the file, or raise BlockingIOError at once; without locks on this system, warn."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except (ImportError, OSError):
        warnings.warn(
            "files cannot be locked here: see to it yourself that no second training writes to "
            "this folder",
            stacklevel=2,
        )
