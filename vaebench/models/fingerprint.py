"""What a model is at a moment: to tell whether code made of it is still right.

Looked at are its modules and their modes, the memory of parameters and buffers, hooks, attributes a
few levels deep, and what its code reads elsewhere. The values in tensors are not.
"""

from collections import deque
from collections.abc import Callable, Container, Hashable, Iterable
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn
from torch.nn.modules import module as _torch_module

from vaebench.models.code import outside
from vaebench.models.snapshot import DEPTH, OPAQUE, SCALARS

_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_GLOBAL_HOOKS = [name for name in vars(_torch_module) if name.startswith("_global_")]
_SMALL = 1 << 12  # bytes of an array that is looked into

Tokens = dict[str, Hashable]


class Fingerprint(NamedTuple):
    """Tells two states of a model apart, by where they differ.

    ``state``: if it is the same, code made for the first state does what the model's own would do
    in the second, given the tensors that are no parameters or buffers anew. ``memory``: which
    tensors these are. Models keep there what they computed last.
    """

    state: Tokens
    memory: Tokens


def fingerprint(model: nn.Module, sources: Iterable[Callable[..., Any]] = ()) -> Fingerprint:
    """Look a model through, and what its ``forward`` and these functions read beside it."""
    found = Fingerprint({}, {})
    for name, module in model.named_modules():
        found.state[f"{name}:type"] = (id(module), type(module))
        for key, value in vars(module).items():
            if key in ("_parameters", "_buffers"):
                found.state.update({f"{name}.{k}": _place(t) for k, t in value.items()})
            else:
                _note(found, f"{name}.{key}", value)
    for name, value in outside(model, sources).values.items():
        _note(found, f"::{name}", value)
    hooks = [_token(getattr(_torch_module, name), 1, set(), []) for name in _GLOBAL_HOOKS]
    found.state[":hooks of all modules"] = tuple(hooks)
    return found


def changes(before: Tokens, after: Tokens, but: Container[str] = ()) -> list[str]:
    """Name what differs between two states, or between what is in memory; ``but`` these.

    What came or went comes last: it is the rest that brought or took it.
    """
    both = {**before, **after}
    names = [n for n in both if before.get(n) != after.get(n) and n not in but]
    names.sort(key=lambda name: name not in before or name not in after)
    return [name.lstrip(".:").replace(":type", "") or "the model" for name in names]


def _note(found: Fingerprint, name: str, value: Any) -> None:
    tensors: list[Hashable] = []
    found.state[name] = _token(value, DEPTH, set(), tensors)
    if tensors:
        found.memory[name] = tuple(tensors)


def _place(t: Tensor | None) -> Hashable:
    if t is None:
        return None
    hooks = tuple(_token(getattr(t, name, None), 1, set(), []) for name in _HOOKS)
    place = (id(t), t.data_ptr(), tuple(t.shape), t.stride(), t.dtype, t.device)
    return (*place, t.requires_grad, hooks) if t.is_leaf else (*place, hooks)


def _token(value: Any, depth: int, seen: set[int], tensors: list[Hashable]) -> Hashable:
    """Stand for a value: itself if it is a scalar, else what it is and what it holds.

    Which tensors it holds is put into ``tensors``.
    """
    if isinstance(value, SCALARS):
        return (type(value), repr(value))
    if isinstance(value, Tensor):
        tensors.append(id(value))
        return (value.shape, value.dtype, value.device)
    if isinstance(value, FunctionType):
        return id(value.__code__)  # the variables that it encloses are looked at by themselves
    if isinstance(value, np.ndarray) and value.nbytes <= _SMALL and value.dtype.kind != "O":
        return (value.shape, value.dtype.str, value.tobytes())
    if depth == 0 or id(value) in seen or isinstance(value, OPAQUE):
        return id(value)
    seen = {*seen, id(value)}
    if isinstance(value, dict):
        items = [
            (_token(k, 1, seen, []), _token(v, depth - 1, seen, tensors)) for k, v in value.items()
        ]
        return (id(value), tuple(items))
    if isinstance(value, list | tuple | deque):
        own = None if isinstance(value, tuple) else id(value)
        return (own, tuple(_token(v, depth - 1, seen, tensors) for v in value))
    if isinstance(value, set | frozenset):
        return (id(value), frozenset(_token(v, 1, seen, tensors) for v in value))
    held = getattr(value, "__dict__", None)
    return (id(value), _token(held, depth, seen, tensors)) if isinstance(held, dict) else id(value)
