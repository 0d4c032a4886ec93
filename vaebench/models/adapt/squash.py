"""Does a computation end in a sigmoid, and what comes out without it?

Found by trying. A call of torch.sigmoid is left out, its input passed on in its place; if the
sigmoid of what then comes out is what came out before, nothing but moving numbers about (reshapes,
slices) followed that call. No name of a layer, and no autograd graph, needs to be read, and what
has no such end cannot be taken for one. Only what is a size or a square is read off the graph.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Squash(NamedTuple):
    """A function of single numbers, and all the names that PyTorch calls it by."""

    apply: Callable[[Tensor], Tensor]
    names: tuple[Any, ...]


SQUASHES = {
    "sigmoid": Squash(
        torch.sigmoid,
        (
            torch.sigmoid,
            torch.sigmoid_,
            torch.special.expit,
            Tensor.sigmoid,
            Tensor.sigmoid_,
        ),
    ),
    "tanh": Squash(torch.tanh, (torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_)),
    "relu": Squash(torch.relu, (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)),
    "softplus": Squash(F.softplus, (F.softplus,)),
    "exp": Squash(torch.exp, (torch.exp, torch.exp_, Tensor.exp, Tensor.exp_)),
}
# Rounding: a graphics card's sums need not be the same twice.
CLOSE = 1e-5
# Calls looked at, from the last one back: a gate in every layer is no end.
CALLS = 8


class Without(TorchFunctionMode):
    """Within this, one call of a squash gives back its input.

    Args:
        squash: which function, a key of SQUASHES.
        place: which of its calls, from 1.
    """

    def __init__(self, squash: str, place: int) -> None:
        super().__init__()
        self.names = SQUASHES[squash].names
        self.place = place
        self.calls = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch, or leave it out."""
        if func in self.names:
            self.calls += 1
            if self.calls == self.place:
                return args[0] if args else kwargs["input"]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Within this, a compiler shows calls of F.sigmoid, as it does those of torch.sigmoid.

    torch.compile takes F.sigmoid for one operation, and offers it to no TorchFunctionMode. So what
    it traces finds the other in its place; it is put back before anything is run.
    """
    if not torch.compiler.is_compiling():
        yield
        return
    kept, F.sigmoid = F.sigmoid, torch.sigmoid
    try:
        yield
    finally:
        F.sigmoid = kept


class _Counting(TorchFunctionMode):
    """Within this, calls of every squash are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.calls.update(name for name, squash in SQUASHES.items() if func in squash.names)
        return func(*args, **(kwargs or {}))


class End(NamedTuple):
    """Which squash ends a computation, and by which of its calls, from 1."""

    squash: str
    place: int


def end_of(run: Callable[[], Tensor], squashes: Iterable[str]) -> End | None:
    """Find which squash ends a computation; None if none does.

    Args:
        run: the computation, which does the same every time.
        squashes: keys of SQUASHES.
    """
    counting = _Counting()
    with counting:
        whole = run()
    for squash in squashes:
        calls = counting.calls[squash]
        for place in range(calls, max(0, calls - CALLS), -1):
            try:
                with Without(squash, place):
                    bare = run()
            except (RuntimeError, ValueError):  # what follows takes squashed numbers only
                continue
            moves = bare.shape == whole.shape and not torch.equal(bare, whole)
            if moves and _close(SQUASHES[squash].apply(bare), whole):
                return End(squash, place)
    return None


# Functions that give nothing below 0, or of a square, by what autograd calls them.
_POSITIVE = (
    "Abs",
    "Pow",
    "Relu",
    "Sigmoid",
    "Exp",
    "Softplus",
    "Clamp",
    "Sqrt",
    "Mul",
)
# What a constant is added to or multiplied with, and what only moves numbers about.
_PASSED = (
    *("Add", "Sub", "Mul", "Div", "View", "UnsafeView", "Reshape", "Split", "Chunk", "Slice"),
    *("Select", "Squeeze", "Unsqueeze", "T", "Transpose", "Permute", "Clone", "ToCopy", "Unbind"),
    *("Alias", "Expand", "ReshapeAlias"),
)


def made_positive(value: Tensor) -> bool:
    """Whether what made a tensor is a function such as a size or a square, constants aside.

    A linear layer's numbers may all be above 0 too, as where what it is given is bounded. Read off
    autograd's graph, this is a hint only: of other functions nothing is known.
    """
    node = value.grad_fn
    while node is not None:
        name = node.name().partition("Backward")[0]
        inputs = [each for each, _ in node.next_functions if each is not None]
        if name in _POSITIVE and (name != "Mul" or (len(inputs) == 2 and inputs[0] is inputs[1])):
            return True
        if name not in _PASSED or len(inputs) != 1:
            return False
        node = inputs[0]
    return False


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.float(), b.float(), rtol=CLOSE, atol=CLOSE)
