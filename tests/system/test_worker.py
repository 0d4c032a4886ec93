"""The worker: its pool of threads, its errors, and Ctrl-C while it works."""

import os
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch

from vaebench.system.worker import Worker, release_workers


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_the_callers_workers_are_released() -> None:
    """Beside a second pool, training would take more than twice as long."""
    if not release_workers():
        pytest.skip("this OpenMP runtime cannot end its workers")

    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    wanted = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        release_workers()  # those that the tests before this one have made
        alone = threads()
        torch.ones(1 << 22).sum()
        assert threads() == alone + 1
        assert release_workers()
        assert threads() == alone
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(wanted)


def test_the_worker_raises_what_the_work_raises() -> None:
    def work() -> None:
        raise OSError("inside")

    with pytest.raises(OSError, match="inside"), Worker() as worker:
        worker.run(work)


def test_the_worker_asks_the_work_to_stop_on_ctrl_c() -> None:
    stop = threading.Event()

    def work() -> bool:
        signal.raise_signal(signal.SIGINT)  # in this thread: it wakes nobody who waits
        return stop.wait(10)

    with Worker(on_interrupt=stop.set) as worker:
        assert worker.run(work)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_ctrl_c_is_raised() -> None:
    asked = []
    with pytest.raises(KeyboardInterrupt), Worker(on_interrupt=lambda: asked.append(1)):
        os.kill(os.getpid(), signal.SIGINT)
        assert asked == [1]
        os.kill(os.getpid(), signal.SIGINT)
    assert asked == [1]


def test_a_callers_own_handler_keeps_ctrl_c() -> None:
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append("caller"))
    try:
        with Worker(on_interrupt=lambda: seen.append("worker")):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == ["caller"]


def test_workers_within_workers_take_ctrl_c_in_turn() -> None:
    seen = []
    with Worker(on_interrupt=lambda: seen.append("outer")):
        with Worker(on_interrupt=lambda: seen.append("inner")):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert seen == ["inner", "outer"]
