"""Techniques that are settings of the threads that compute."""

from collections.abc import Callable
from importlib import import_module
from typing import cast

import torch

from vaebench.config import FastConfig, asks_for
from vaebench.fast.register import TECHNIQUES


def thread_settings(
    fast: FastConfig, device: torch.device
) -> tuple[list[Callable[[], None]], dict[str, bool]]:
    """What the training's thread is to set, and which techniques do so."""
    actual = {}
    calls = []
    for technique in TECHNIQUES:
        if technique.kind == "thread":
            asked = bool(asks_for(fast, technique.name))
            actual[technique.name] = asked and device.type in technique.devices
            if actual[technique.name]:
                calls.append(cast(Callable[[], None], import_module(technique.module).enter))
    return calls, actual
