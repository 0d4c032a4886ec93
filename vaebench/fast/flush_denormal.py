"""Denormal numbers as zero, in every thread that computes.

Adam's moments of pixels that are seldom lit decay into denormals, below 1.2e-38, on which the
processor's arithmetic takes many times longer: an eager epoch grows slower by a third within
three epochs. The switch belongs to a thread, and a thread inherits it from the one that makes it.
So a thread of its own, which sets it before its first parallel region, has a whole pool of
workers that flush, and leaves the caller's threads as they were.
"""

import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def release_workers() -> bool:
    """End the calling thread's pool of OpenMP workers; the next parallel region makes another.

    Two pools are more threads than cores. GNU's OpenMP then lets waiting threads sleep instead of
    spin, and a step, with its dozens of short parallel regions, takes more than twice as long.

    Returns:
        Whether there is an OpenMP runtime that can do so (``omp_pause_resource_all`` of OpenMP 5).
    """
    try:
        pause = ctypes.CDLL(None).omp_pause_resource_all
    except (AttributeError, OSError, TypeError):
        return False
    soft = 1  # omp_pause_soft: keep settings such as the number of threads
    return int(pause(soft)) == 0


def run_flushed(
    work: Callable[[], T], *, flush: bool = True, on_interrupt: Callable[[], None] | None = None
) -> T:
    """Run ``work`` in a new thread, flushing denormals if ``flush``; give its result.

    An exception in ``work`` is raised here. Ctrl-C reaches the calling thread alone: it calls
    ``on_interrupt``, which should ask ``work`` to stop, and waits for it; a second Ctrl-C is
    raised at once.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []
    done = threading.Event()

    def body() -> None:
        try:
            if flush:
                torch.set_flush_denormal(True)
            outcome.append(work())
        except BaseException as error:
            failure.append(error)
        finally:
            done.set()

    release_workers()
    thread = threading.Thread(target=body, name="vaebench-training", daemon=True)
    try:
        thread.start()
        done.wait()  # not join(): Python 3.11 takes a thread whose join was interrupted for ended
    except KeyboardInterrupt:
        if on_interrupt is None or thread.ident is None:
            raise
        on_interrupt()
        done.wait()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]
