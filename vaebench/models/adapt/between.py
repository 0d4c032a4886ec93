"""What a model's own forward does before, between and after its encode and decode.

The trainer calls ``encode`` and ``decode`` and draws z itself, so what ``forward`` does besides is
left out. What it does with the spread says what the spread is, whatever that is called; the rest is
told.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vaebench.models.adapt.ways import Source

# What all noise is while a forward is watched; uniform noise is told from normal by it.
NORMAL, UNIFORM = 0.75, 0.4
BLANK: dict[Any, Any] = {
    torch.randn: torch.zeros, torch.rand: torch.zeros,
    torch.randn_like: torch.zeros_like, torch.rand_like: torch.zeros_like,
}  # fmt: skip


class Steady(TorchFunctionMode):
    """Within this, random numbers are constants: standard-normal ones, and uniform ones."""

    def __init__(self, normal: float = 0.0, uniform: float = 0.0) -> None:
        super().__init__()
        self.normal, self.uniform = normal, uniform

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch, or give constants in place of what it would draw."""
        kwargs = kwargs or {}
        if func in BLANK:
            drawn = BLANK[func](*args, **{n: v for n, v in kwargs.items() if n != "generator"})
            return drawn + (self.uniform if func in (torch.rand, torch.rand_like) else self.normal)
        if func is Tensor.normal_:
            mean, std = _two(args[1:], kwargs, "mean", "std")
            return args[0].fill_(mean + std * self.normal)
        if func is Tensor.uniform_:
            least, most = _two(args[1:], kwargs, "from", "to")
            return args[0].fill_(least + (most - least) * self.uniform)
        if func is torch.normal:
            mean, std = _two(args, kwargs, "mean", "std")
            drawn = mean + std * self.normal
            return drawn if isinstance(drawn, Tensor) else torch.full(_size(args, kwargs), drawn)
        return func(*args, **kwargs)


def _two(args: tuple[Any, ...], kwargs: Any, first: str, second: str) -> tuple[Any, Any]:
    """Two numbers given in order or by name; 0 and 1 where they are not."""
    given = dict(zip((first, second), args, strict=False)) | kwargs
    return given.get(first, 0.0), given.get(second, 1.0)


def _size(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return kwargs["size"] if "size" in kwargs else args[2]


@dataclass
class Passed:
    """One call of forward: its result, and the calls of the model's own that it made.

    ``calls`` has, by the name of a method or a part, what each call was given first, and its
    result.
    """

    result: Any = None
    calls: dict[str, list[tuple[Any, Any]]] = field(default_factory=dict)

    def first(self, names: tuple[Source, ...]) -> tuple[Any, Any] | None:
        """The first call of the first of these that was called at all."""
        return next((self.calls[n][0] for n in map(str, names) if self.calls.get(n)), None)


@contextmanager
def watching(model: nn.Module, names: list[str], passed: Passed) -> Iterator[None]:
    """Within this, calls of methods and parts are written down."""
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(_watched(model, name, passed.calls.setdefault(name, [])))
        yield


@contextmanager
def _watched(model: nn.Module, name: str, seen: list[tuple[Any, Any]]) -> Iterator[None]:
    target = getattr(model, name)

    def look(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> None:
        seen.append((next(iter((*args, *kwargs.values())), None), value))

    if isinstance(target, nn.Module):
        with target.register_forward_hook(look, with_kwargs=True):
            yield
        return

    def call(*args: Any, **kwargs: Any) -> Any:
        value = target(*args, **kwargs)
        look(None, args, kwargs, value)
        return value

    own = vars(model)
    before = own.get(name)
    own[name] = call
    try:
        yield
    finally:
        if before is None:
            del own[name]
        else:
            own[name] = before


def same(a: Any, b: Any) -> bool:
    """Whether two values are tensors of the same numbers, but for rounding and shape."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.numel() != b.numel():
        return False
    return torch.allclose(a.float().flatten(), b.float().flatten(), rtol=1e-4, atol=1e-5)
