"""A true clock, and the machine's measured peak."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from vaebench.system.device import synchronize


def process_age() -> float:
    """Seconds since this process was started, the interpreter's own start included.

    Where the system does not tell (it does on Linux): the processor time used so far, which is
    less, but not by much in a process that has only imported things.
    """
    try:
        fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, ValueError, AttributeError):
        return time.process_time()


def best_seconds(
    work: Callable[[], object], device: torch.device, *, budget: float, repeats: int = 50
) -> float:
    """Shortest time of one call, in seconds, over calls that fit in ``budget`` seconds.

    The first call warms up and is not counted, unless it alone spends the budget. The minimum is
    right for a peak: noise only ever adds.
    """
    best, spent = math.inf, 0.0
    for call in range(repeats + 1):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        seconds = time.perf_counter() - start
        spent += seconds
        if call or spent >= budget:
            best = min(best, seconds)
        if spent >= budget:
            break
    return best


def peak_flops(
    device: torch.device, dtype: torch.dtype = torch.float32, budget: float = 0.25
) -> float:
    """Measured rate of a large square matrix product, FLOP/s, as torch's library does it here."""
    n = 1024 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device).to(dtype)
    b = torch.randn(n, n, device=device).to(dtype)
    return 2 * n**3 / best_seconds(lambda: a @ b, device, budget=budget)


def count_flops(work: Callable[[], object]) -> int:
    """FLOP of the matrix products and convolutions that ``work`` runs eagerly, counted by torch."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())
