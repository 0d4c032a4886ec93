"""Triton's interpreter, mended: products as a GPU rounds them, programs that wait for each other.

As it is, it runs one program to its end before the next: a kernel whose programs wait for each
other would never end. With :func:`in_turns` they take turns, in a random order: one runs until it
has done an atomic operation, as looking at a counter is, and then another. What a program reads
before others have surely written it is so found out, in some order.
"""

import contextlib
import inspect
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from triton.runtime import interpreter


class _Programs:
    """Stands in for a kernel's function: keeps back all calls, and lets the last start them all."""

    def __init__(
        self, function: Callable[..., None], grid: tuple[int, ...], seed: int, late: bool
    ) -> None:
        self.function, self.grid, self.late = function, grid, late
        self.random = random.Random(seed)
        self.calls: list[Any] = []
        # What the interpreter asks of a function.
        self.__signature__ = inspect.signature(function)
        self.__globals__ = function.__globals__
        self.__name__ = function.__name__

    def __call__(self, **arguments: Any) -> None:
        index = tuple(interpreter.interpreter_builder.grid_idx)
        self.calls.append(_Program(self.function, arguments, index))
        if len(self.calls) < self.grid[0]:
            return
        waiting = list(self.calls)
        while waiting:
            program = self.random.choice(waiting[:-1] or waiting if self.late else waiting)
            program.go_on()
            if program.done:
                waiting.remove(program)
            if program.error:
                raise program.error


class _Program:
    """One program, in a thread of its own that runs only when it is its turn."""

    current: "_Program"

    def __init__(
        self, function: Callable[..., None], arguments: dict[str, Any], index: tuple[int, ...]
    ) -> None:
        self.index, self.done = index, False
        self.error: Exception | None = None
        self.mine, self.others = threading.Semaphore(0), threading.Semaphore(0)

        def work() -> None:
            self.mine.acquire()
            try:
                function(**arguments)
            except Exception as error:
                self.error = error
            self.done = True
            self.others.release()

        # A daemon: those that still wait when another has failed are left behind.
        threading.Thread(target=work, daemon=True).start()

    def go_on(self) -> None:
        """Let it run until its next atomic operation or its end."""
        _Program.current = self
        interpreter.interpreter_builder.set_grid_idx(*self.index)
        self.mine.release()
        self.others.acquire()

    def pause(self) -> None:
        """Let others run; called in its own thread."""
        self.others.release()
        self.mine.acquire()


def mend() -> None:
    """Round products as asked for; let Triton 3.6 read a number out of an array with NumPy 2.5."""
    interpreter.interpreter_builder.create_dot = _dot
    patch: Any = interpreter._patch_lang_tensor

    def patched(tensor: Any, *scope: Any) -> None:
        patch(tensor, *scope)
        tensor.__index__ = lambda self: self.handle.data.item()

    interpreter._patch_lang_tensor = patched


def _dot(a: Any, b: Any, total: Any, precision: Any, _: Any) -> Any:
    """Multiply float32 as tensor cores do: factors cut to 10 bits, or in two parts of 10 each."""
    high = [_ten_bits(factor.data) for factor in (a, b)]
    low = [_ten_bits(factor.data - part) for factor, part in zip((a, b), high, strict=True)]
    if precision.name == "IEEE":
        product = a.data @ b.data
    elif precision.name == "TF32":
        product = high[0] @ high[1]
    else:
        assert precision.name == "TF32x3"
        product = low[0] @ high[1] + high[0] @ low[1] + high[0] @ high[1]
    return interpreter.TensorHandle(product + total.data, total.dtype.scalar)


def _ten_bits(x: Any) -> Any:
    """Cut the 23 bits behind a float32's point to 10."""
    assert x.dtype == np.float32
    return (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


@contextlib.contextmanager
def in_turns(seed: int, *, late: bool = False) -> Iterator[None]:
    """Let the programs of what is launched meanwhile take turns, in an order drawn by ``seed``.

    If one is ``late``, it is not started before all others are done.
    """
    executor: Any = interpreter.GridExecutor
    builder = interpreter.interpreter_builder

    class Executor(executor):  # type: ignore[misc]
        fn: Any

        def __call__(self, *args: Any, **words: Any) -> None:
            self.fn = _Programs(self.fn, self.grid, seed, late)
            super().__call__(*args, **words)

    def atomic(*args: Any) -> Any:
        result = type(builder).create_atomic_rmw(builder, *args)
        _Program.current.pause()
        return result

    interpreter.GridExecutor = Executor
    builder.create_atomic_rmw = atomic
    try:
        yield
    finally:
        interpreter.GridExecutor = executor
        del builder.create_atomic_rmw
