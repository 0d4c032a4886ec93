"""What all commands share: how a process is set up, and how it ends."""

import gc
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable

from vaebench.cli.streams import complain, lasting_streams
from vaebench.errors import InputError, ResourceError, TrainingError

STATUS = {TrainingError: 1, InputError: 2, ResourceError: 3}


# How often a thread of GNU's OpenMP looks whether the others are there, before it sleeps: a tenth
# of a millisecond. By its own 300,000 all wait for one that another program keeps from its core:
# an epoch was seen to take twenty times as long. With none to disturb, it makes no difference.
SPINS = "2000"
# Allocations from one search for garbage to the next: torch is made of hundreds of thousands of
# objects, and they are none.
ALLOCATIONS = 50_000


def alone(main: Callable[[], int]) -> int:
    """Run a command's ``main`` as all that its process is for; give the exit status.

    The process's own settings are made here, before torch is loaded: nothing else sets any.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    gc.set_threshold(ALLOCATIONS)
    status = main()
    gc.freeze()  # the system takes the memory back sooner than a last search through it
    return status


def run(work: Callable[[list[str]], int], argv: list[str] | None, *, interrupted: str) -> int:
    """Do a command's work in this process, which is its own; give the exit status.

    0, or what ``work`` gives: done. 1: the training went wrong by its numbers. 2: bad input. 3: the
    machine could not go on, its disk or memory being full. 130: interrupted.

    Args:
        work: takes the arguments, gives the status; what it raises becomes one line and a status.
        argv: the arguments; default: the process's own.
        interrupted: what is said after Ctrl-C or SIGTERM.
    """
    with lasting_streams(), warnings.catch_warnings():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
        warnings.showwarning = lambda message, *_, **__: complain(message)
        logging.basicConfig(format="vaebench: %(message)s")
        try:
            return work(sys.argv[1:] if argv is None else argv)
        except tuple(STATUS) as error:
            complain(error)
            return next(status for kind, status in STATUS.items() if isinstance(error, kind))
        except KeyboardInterrupt:
            complain(interrupted)
            sys.stdout.flush()
            # Not by way of the interpreter's end: the training thread may still be computing, and
            # torch aborts when it is torn down under way.
            os._exit(130)
