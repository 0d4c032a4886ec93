"""What a model's code does beside computing: prints, counts, looks at values, random numbers.

A step that is called from a list of its operators (``fast/tape``) would do none of it, without
a word; so it is looked for while the list is written.
"""

import contextlib
import dis
import logging
import random
import sys
import sysconfig
from collections import deque
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_LOOKS = (Tensor.numpy, Tensor.tolist, Tensor.__array__)
# Code that is nobody's model: torch's, ours, what dataclasses make of themselves, Python's.
_OURS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[2]), "<frozen", "<string>")
_PYTHONS = sysconfig.get_path("stdlib")
_STORES = ("STORE_GLOBAL", "DELETE_GLOBAL", "STORE_ATTR", "STORE_SUBSCR", "DELETE_SUBSCR")
_COLLECTS = ("append", "appendleft", "extend", "insert", "add", "update", "setdefault", "pop")


class NotTheSameError(RuntimeError):
    """The step is no list of operators; the message is one line: why."""


class Watch(TorchFunctionMode):
    """Sees what is no operator: values that are handed to somebody else."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call it.

        Raises:
            NotTheSameError: it looks at values.
        """
        if func in _LOOKS:
            raise NotTheSameError(f"a step looks at values ({func.__name__})")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def deeds() -> Iterator[set[str]]:
    """Collect what a model's own code does beside computing, in words, while this lasts.

    Whatever is stored in a function that is called counts, in a branch not taken too; so does a
    list that is the function's own: who errs here stays eager.
    """
    found: set[str] = set()

    def see(frame: FrameType, event: str, arg: Any) -> None:
        if event == "call" and frame.f_code.co_filename == logging.__file__:
            if frame.f_back and _is_models(frame.f_back.f_code):
                found.add("logging")
        elif event == "call" and _is_models(frame.f_code):
            found.update(_stores(frame.f_code))
        elif event == "c_call" and _is_models(frame.f_code):
            holds = isinstance(getattr(arg, "__self__", None), list | dict | set | deque)
            if arg is print or arg.__name__ == "write" or (holds and arg.__name__ in _COLLECTS):
                found.add(f"{frame.f_code.co_name} calls {arg.__name__}")

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        yield found
    finally:
        sys.setprofile(before)


@cache
def _is_models(code: CodeType) -> bool:
    name = code.co_filename
    return not name.startswith(_OURS) and (not name.startswith(_PYTHONS) or "site-packages" in name)


@cache
def _stores(code: CodeType) -> frozenset[str]:
    """Where a function puts anything but into a variable of its own."""
    return frozenset(
        f"{code.co_name} stores {each.argval or 'an item'}"
        for each in dis.get_instructions(code)
        if each.opname in _STORES
        or (each.opname == "STORE_DEREF" and each.argval in code.co_freevars)
    )


def others_random() -> str:
    """The state of random numbers that are not torch's."""
    return repr((random.getstate(), np.random.get_state()))
