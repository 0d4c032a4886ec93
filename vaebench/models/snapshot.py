"""What a module remembers beside its parameters, put back at the end.

A model is tried out before it is trained, and trained by code that was made for the state it was
in. So all its Python state is looked through: the attributes of every submodule, and the lists,
dicts and plain objects that they hold, a few levels deep.
"""

import contextlib
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from logging import Logger
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vaebench.models.code import outside

DEPTH = 4  # levels below a module
MOST = 20_000  # holders looked through; a model that keeps more of them is not one
SCALARS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, np.generic)
# What keeps notes of its own, as loggers do of their levels, is as opaque as what is code.
OPAQUE = (Tensor, nn.Module, type, ModuleType, FunctionType, BuiltinFunctionType, Logger)

HOLDERS = (dict, list, set, deque)
Holder = dict[Any, Any] | list[Any] | set[Any] | deque[Any]


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put everything back at the end: tensors, modes, attributes, and random numbers' states."""
    drawn = random.getstate(), np.random.get_state()
    elsewhere = outside(model)
    put_back, values = elsewhere.remember(), elsewhere.values.values()
    others = [(holder, _copy(holder)) for holder in _held(values)]
    holders = [(holder, _copy(holder)) for holder in _holders(model)]
    both = [holder for holder, _ in holders + others]
    generators = [(g, g.get_state()) for g in _generators(both, values)]
    tensors = [(t, t.detach().clone()) for t in _tensors(model, holders)]
    devices = sorted({t.device.index for t, _ in tensors if t.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices), modes_kept(model):
            yield
    finally:
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])
        for generator, state in generators:
            generator.set_state(state)
        put_back()
        for holder, before in holders + others:
            _put_back(holder, before)
        with torch.no_grad():
            for tensor, value in tensors:
                tensor.copy_(value)


@contextlib.contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Put every submodule back into its own mode, training or not, at the end."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def others_random() -> str:
    """The state of random numbers that are not torch's."""
    return repr((random.getstate(), np.random.get_state()))


def leaves_state(model: nn.Module, call: Callable[[], object]) -> bool:
    """Whether a call leaves anything new in the model's Python state, tensors included."""
    holders = [(holder, _entries(holder), _copy(holder)) for holder in _holders(model)]
    call()
    return any(_entries(holder) != before for holder, before, _ in holders)


def _held(values: Iterable[Any]) -> list[Holder]:
    """Values that are lists and the like, and the attributes of those that are plain objects."""
    plain = [v for v in values if not isinstance(v, SCALARS + OPAQUE)]
    found = [v if isinstance(v, HOLDERS) else getattr(v, "__dict__", None) for v in plain]
    return [holder for holder in found if isinstance(holder, HOLDERS)]


def generators_of(model: nn.Module) -> list[torch.Generator]:
    """Generators that the model, or its code, has for itself."""
    values = outside(model).values.values()
    return _generators([*_holders(model), *_held(values)], values)


def _generators(holders: Iterable[Holder], values: Iterable[Any]) -> list[torch.Generator]:
    held = [each for holder in holders for each in _inside(holder)]
    found = [each for each in (*held, *values) if isinstance(each, torch.Generator)]
    return list({id(generator): generator for generator in found}.values())


def _inside(holder: Holder) -> Iterable[Any]:
    return holder.values() if isinstance(holder, dict) else holder


def _holders(model: nn.Module) -> list[Holder]:
    """Everything reachable in which the model keeps Python state."""
    found: dict[int, Holder] = {}
    pending: list[tuple[Any, int]] = [(vars(module), DEPTH) for module in model.modules()]
    while pending and len(found) < MOST:
        value, depth = pending.pop()
        if isinstance(value, SCALARS + OPAQUE) or id(value) in found or depth < 0:
            continue
        if isinstance(value, HOLDERS):
            found[id(value)] = value
            pending += [(v, depth - 1) for v in _inside(value)]
        elif isinstance(value, tuple):
            pending += [(v, depth - 1) for v in value]
        else:
            pending.append((getattr(value, "__dict__", None), depth))
    return list(found.values())


def _tensors(model: nn.Module, holders: list[tuple[Holder, Any]]) -> list[Tensor]:
    """Parameters, buffers and the plain tensors among the attributes, each once."""
    held = [
        value
        for holder, _ in holders
        for value in _inside(holder)
        if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
    ]
    return list({id(t): t for t in (*model.parameters(), *model.buffers(), *held)}.values())


def _copy(holder: Holder) -> Holder:
    return dict(holder) if isinstance(holder, dict) else type(holder)(holder)


def _put_back(holder: Holder, before: Any) -> None:
    same = len(holder) == len(before) and _entries(holder) == _entries(before)
    if same:
        return
    holder.clear()
    if isinstance(holder, dict | set):
        holder.update(before)
    else:
        holder.extend(before)


def _entries(holder: Any) -> list[Any]:
    """What a holder holds, to be compared by identity: values may refuse to be compared."""
    if isinstance(holder, dict):
        return [(id(k), id(v)) for k, v in holder.items()]
    return sorted(map(id, holder)) if isinstance(holder, set) else [id(v) for v in holder]
