"""When this program started. Its clock begins with the first import of the package."""

import math
import os
import time


def _already_taken() -> float:
    """Seconds that this program has taken so far, interpreter and imports before this one included.

    The system knows when the process was started. That is too early if it was a shell, which waited
    for something and then became this program; of that moment there is no record. So what is
    counted is the time in which the process computed, or was ready to and had no processor.

    Limits: waiting for the disk before this import is left out (with files in memory the figure
    is within 3 ms of the system's), and computing by the shell itself is counted.
    """
    ready = 0.0
    try:
        with open("/proc/self/schedstat", "rb") as file:
            ready = int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        pass  # not Linux, or it keeps no such record
    return min(_age_of_process(), time.process_time() + ready)


def _age_of_process() -> float:
    """Seconds since the system started this process; infinity where it does not tell."""
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError, IndexError):
        return math.inf
    return age if age > 0 else math.inf  # a container's clock may differ from its host's


STARTED = time.monotonic() - _already_taken()
