"""A thread of its own for what computes, so that the caller's threads stay as they are.

Settings of threads (whether denormals are zero) are inherited by the workers that a thread makes
for its parallel regions. A new thread has new workers.
"""

import ctypes
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

import torch

from vaebench.system.fork import forked

T = TypeVar("T")

# Python runs a signal's handler in the main thread, between two instructions. A signal that comes
# as that thread is just about to wait does not wake it: it waits for this long at a time.
LONGEST_WAIT = 0.1  # seconds


def release_workers() -> bool:
    """End the calling thread's pool of OpenMP workers; the next parallel region makes another.

    Two pools are more threads than cores. GNU's OpenMP then lets waiting threads sleep instead of
    spin, and a step, with its dozens of short parallel regions, takes more than twice as long.

    Returns:
        Whether there is an OpenMP runtime that can do so (``omp_pause_resource_all`` of OpenMP 5).
    """
    if forked():  # OpenMP believes in the parent's workers, and would wait for ever
        return False
    try:
        pause = ctypes.CDLL(None).omp_pause_resource_all
    except (AttributeError, OSError, TypeError):
        return False
    soft = 1  # omp_pause_soft: keep settings such as the number of threads
    return int(pause(soft)) == 0


def run_apart(work: Callable[[], T], *prepare: Callable[[], None]) -> T:
    """Run one piece of work in a thread of its own, which is prepared first."""
    with Worker(prepare) as worker:
        return worker.run(work)


def after_fork() -> str | None:
    """Compute with one thread in a process that was forked: more would wait for the parent's.

    Returns:
        A line that says so, if this changed anything.
    """
    if not forked() or torch.get_num_threads() == 1:
        return None
    torch.set_num_threads(1)
    return "a forked process computes with one thread: start processes by spawn to have more"


class Worker:
    """A thread that runs what it is given, call by call, while the caller waits.

    Args:
        prepare: called in the thread before anything else.
        on_interrupt: called, in the calling thread, at the first Ctrl-C while the worker lasts. It
            should ask the work to stop, which is then waited for; a second Ctrl-C is raised at
            once. A handler of the caller's own, other than Python's, keeps the signal.

    The number of threads for parallel regions is the calling thread's: torch would give a new
    thread its default.
    """

    def __init__(
        self,
        prepare: Sequence[Callable[[], None]] = (),
        on_interrupt: Callable[[], None] | None = None,
    ) -> None:
        self.prepare, self.on_interrupt = prepare, on_interrupt
        self.threads = torch.get_num_threads()
        self._handlers: dict[int, Any] = {}
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        # What the thread wants the caller to do meanwhile; None when its own work is done.
        self._asked: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="vaebench-training", daemon=True)

    def __enter__(self) -> "Worker":
        release_workers()
        self._thread.start()
        if self.on_interrupt and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if _raises_at_once(signal.getsignal(number)):
                    self._handlers[number] = signal.signal(number, self._interrupt)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._give_back()
        self._calls.put(None)
        if not isinstance(error, KeyboardInterrupt):  # it may still be computing
            self._thread.join()

    def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the thread and give its result, or raise what it raised."""
        future: Future[T] = Future()
        self._calls.put((work, future))
        future.add_done_callback(lambda _: self._asked.put(None))
        while True:
            try:
                job = self._asked.get(timeout=LONGEST_WAIT)
            except Empty:
                continue
            if job is None:
                return future.result()
            _do(*job)

    def ask(self, work: Callable[[], T]) -> T:
        """From amid the work: let the calling thread run something, and give its result."""
        future: Future[T] = Future()
        self._asked.put((work, future))
        return future.result()

    def _interrupt(self, number: int, frame: Any) -> None:
        """Python runs this between any two instructions: nothing is raised from amid them."""
        assert self.on_interrupt
        self._give_back()  # the second one is raised
        self.on_interrupt()

    def _give_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _serve(self) -> None:
        torch.set_num_threads(self.threads)
        for call in self.prepare:
            call()
        while (job := self._calls.get()) is not None:
            _do(*job)
            del job


def _do(work: Callable[[], Any], future: "Future[Any]") -> None:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)


def _raises_at_once(handler: Any) -> bool:
    """Whether it is Python's, or that of a worker around this one."""
    return handler is signal.default_int_handler or isinstance(
        getattr(handler, "__self__", None), Worker
    )
