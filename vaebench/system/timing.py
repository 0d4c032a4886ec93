"""A true clock, and the machine's measured peak."""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vaebench.system.device import synchronize
from vaebench.system.start import STARTED

Key = TypeVar("Key", bound=Hashable)


def process_age() -> float:
    """Seconds since this program started, the interpreter's own start included.

    What a shell waited for before it became this program is not: see
    :mod:`vaebench.system.start`, which also says what else is not.
    """
    return time.monotonic() - STARTED


def take_turns(
    runs: Mapping[Key, Callable[[], object]],
    device: torch.device,
    around: Mapping[Key, Callable[[], AbstractContextManager[object]]] | None = None,
) -> Iterator[dict[Key, float]]:
    """Time one call of each, turn after turn, for as long as anybody asks; seconds, by key.

    Something else that runs meanwhile then slows all of them, or none; every other turn goes in the
    opposite order, so that a drift favours none. ``around`` gives what is entered around a call,
    off the clock. The first turn also warms up.
    """
    around = around or {}
    for turn in itertools.count():
        seconds: dict[Key, float] = {}
        for key in list(runs) if turn % 2 == 0 else reversed(list(runs)):
            with around.get(key, contextlib.nullcontext)():
                synchronize(device)
                start = time.perf_counter()
                runs[key]()
                synchronize(device)
                seconds[key] = time.perf_counter() - start
        yield seconds


def race(
    runs: Mapping[Key, Callable[[], object]],
    device: torch.device,
    *,
    turns: int = 8,
    budget: float = 0.4,
    around: Mapping[Key, Callable[[], AbstractContextManager[object]]] | None = None,
) -> dict[Key, float]:
    """Shortest time of one call of each, in seconds, the calls taking turns.

    The first turn warms up and is not counted, but for a call that spends half the budget alone.
    After ``budget`` seconds no turn is begun, once each has a time. The minimum is right for a
    peak: noise only ever adds. ``around`` is as in :func:`take_turns`.
    """
    best = dict.fromkeys(runs, math.inf)
    end = time.perf_counter() + budget
    for turn, seconds in enumerate(take_turns(runs, device, around)):
        for key, took in seconds.items():
            if turn > 0 or took > budget / 2:
                best[key] = min(best[key], took)
        if turn == turns or (math.inf not in best.values() and time.perf_counter() > end):
            break
    return best


def best_seconds(
    work: Callable[[], object], device: torch.device, *, budget: float, repeats: int = 50
) -> float:
    """Shortest time of one call, in seconds, over calls in ``budget`` seconds: a race of one."""
    return race({None: work}, device, turns=repeats, budget=budget)[None]


def peak_flops(
    device: torch.device, dtype: torch.dtype = torch.float32, budget: float = 0.1
) -> float:
    """Measured rate of a large square matrix product, FLOP/s, as torch's library does it here."""
    n = 1024 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device).to(dtype)
    b = torch.randn(n, n, device=device).to(dtype)
    return 2 * n**3 / best_seconds(lambda: a @ b, device, budget=budget)


def count_flops(work: Callable[[], object]) -> int:
    """FLOP of the matrix products and convolutions that ``work`` runs eagerly, by torch's formulas.

    Not by torch's own FlopCounterMode, which loads the compiler: three quarters of a second.
    """
    from torch.utils.flop_counter import flop_registry  # it loads Triton

    total = 0

    def count(
        mode: object, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        nonlocal total
        out = func(*args, **kwargs or {})
        formula = flop_registry.get(func._overloadpacket)
        total += formula(*args, **kwargs or {}, out_val=out) if formula else 0
        return out

    class Counter(TorchDispatchMode):
        pass

    # Not in the class's body: what stands there is wrapped, and the wrapper loads the compiler.
    Counter.__torch_dispatch__ = count  # type: ignore[method-assign]
    with Counter():  # type: ignore[no-untyped-call]
        work()
    return total
