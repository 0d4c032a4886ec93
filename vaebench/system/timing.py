"""A true clock, and the machine's measured peak."""

import contextlib
import math
import time
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from vaebench.system.device import synchronize
from vaebench.system.start import STARTED

Key = TypeVar("Key", bound=Hashable)


def process_age() -> float:
    """Seconds since this program started, the interpreter's own start included.

    What a shell waited for before it became this program is not: see
    :mod:`vaebench.system.start`, which also says what else is not.
    """
    return time.monotonic() - STARTED


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


def race(
    runs: Mapping[Key, Callable[[], object]],
    device: torch.device,
    *,
    turns: int = 8,
    budget: float = 0.4,
    around: Mapping[Key, Callable[[], AbstractContextManager[object]]] | None = None,
) -> dict[Key, float]:
    """Shortest time of one call of each, in seconds, the calls taking turns.

    Something else that runs meanwhile then slows all of them, or none, and does not decide. The
    first turn warms up and is not counted, but for a call that spends half the budget alone. After
    ``budget`` seconds no turn is begun, once each has a time. ``around`` gives what is entered
    around a call, off the clock.
    """
    around = around or {}
    best = dict.fromkeys(runs, math.inf)
    end = time.perf_counter() + budget
    for turn in range(turns + 1):
        for key, run in runs.items():
            with around.get(key, contextlib.nullcontext)():
                synchronize(device)
                start = time.perf_counter()
                run()
                synchronize(device)
                seconds = time.perf_counter() - start
            if turn > 0 or seconds > budget / 2:
                best[key] = min(best[key], seconds)
        if math.inf not in best.values() and time.perf_counter() > end:
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
