"""What a module remembers beside its parameters, put back, or compared with what it was.

A model is tried out before it is trained, and trained by code that was made for the state it was
in. So all its Python state is looked through: the attributes of every submodule, and the lists,
dicts and plain objects that they hold, a few levels deep.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _torch_module

DEPTH = 4  # levels below a module
MOST = 20_000  # holders looked through; a model that keeps more of them is not one
_SCALARS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_OPAQUE = (Tensor, nn.Module, type, ModuleType, FunctionType, BuiltinFunctionType)
_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_GLOBAL_HOOKS = [name for name in vars(_torch_module) if name.startswith("_global_")]

Holder = dict[Any, Any] | list[Any] | set[Any] | deque[Any]


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put everything back at the end: tensors, modes, attributes, and torch's random numbers."""
    holders = [(holder, _copy(holder)) for holder in _holders(model)]
    tensors = [(t, t.detach().clone()) for t in _tensors(model, holders)]
    devices = sorted({t.device.index for t, _ in tensors if t.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices), modes_kept(model):
            yield
    finally:
        for holder, before in holders:
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


def leaves_state(model: nn.Module, call: Callable[[], object]) -> bool:
    """Whether a call leaves anything new in the model's Python state, tensors included."""
    holders = [(holder, _entries(holder), _copy(holder)) for holder in _holders(model)]
    call()
    return any(_entries(holder) != before for holder, before, _ in holders)


def fingerprint(model: nn.Module) -> dict[str, Hashable]:
    """Tell two states of a model apart; the values in its tensors are not looked at.

    Two fingerprints of one model are equal if code made for the first state does what the model's
    own code would do in the second: same modules and modes, parameters and buffers in the same
    memory, same hooks, same attributes. The keys say where: compare them with :func:`changes`.
    """
    found: dict[str, Hashable] = {}
    for name, module in model.named_modules():
        found[f"{name}:type"] = (id(module), type(module))
        for key, value in vars(module).items():
            if key in ("_parameters", "_buffers"):
                found |= {f"{name}.{k}": _place(t) for k, t in value.items()}
            else:
                found[f"{name}.{key}"] = _token(value, DEPTH, set())
    hooks = [_token(getattr(_torch_module, name), 1, set()) for name in _GLOBAL_HOOKS]
    found[":hooks of all modules"] = tuple(hooks)
    return found


def changes(before: dict[str, Hashable], after: dict[str, Hashable]) -> list[str]:
    """Name what differs between two fingerprints."""
    names = [n for n in {**before, **after} if before.get(n) != after.get(n)]
    return [name.lstrip(".:").replace(":type", "") or "the model" for name in names]


def _place(t: Tensor | None) -> Hashable:
    if t is None:
        return None
    hooks = tuple(_token(getattr(t, name, None), 1, set()) for name in _HOOKS)
    place = (id(t), t.data_ptr(), tuple(t.shape), t.stride(), t.dtype, t.device)
    return (*place, t.requires_grad, hooks) if t.is_leaf else (*place, hooks)


def _token(value: Any, depth: int, seen: set[int]) -> Hashable:
    """Stand for a value: itself if it is a scalar, else what it is and what it holds."""
    if isinstance(value, _SCALARS):
        return (type(value), repr(value))
    if isinstance(value, Tensor):  # which one is read anew: models keep what they computed last
        return (value.shape, value.dtype, value.device)
    if depth == 0 or id(value) in seen or isinstance(value, _OPAQUE):
        return id(value)
    seen = {*seen, id(value)}
    if isinstance(value, dict):
        items = [(_token(k, 1, seen), _token(v, depth - 1, seen)) for k, v in value.items()]
        return (id(value), tuple(items))
    if isinstance(value, list | tuple | deque):
        own = None if isinstance(value, tuple) else id(value)
        return (own, tuple(_token(v, depth - 1, seen) for v in value))
    if isinstance(value, set | frozenset):
        return (id(value), frozenset(_token(v, 1, seen) for v in value))
    held = getattr(value, "__dict__", None)
    return (id(value), _token(held, depth, seen)) if isinstance(held, dict) else id(value)


def _holders(model: nn.Module) -> list[Holder]:
    """Everything reachable in which the model keeps Python state."""
    found: dict[int, Holder] = {}
    pending: list[tuple[Any, int]] = [(vars(module), DEPTH) for module in model.modules()]
    while pending and len(found) < MOST:
        value, depth = pending.pop()
        if isinstance(value, _SCALARS + _OPAQUE) or id(value) in found or depth < 0:
            continue
        if isinstance(value, dict | list | set | deque):
            found[id(value)] = value
            inside = value.values() if isinstance(value, dict) else value
            pending += [(v, depth - 1) for v in inside]
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
        for value in (holder.values() if isinstance(holder, dict) else holder)
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
