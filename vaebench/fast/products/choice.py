"""Whose convolution is the faster one for a shape: measured once in a process, and remembered."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from vaebench.fast.admit import is_open
from vaebench.fast.products.layers import Manner, native
from vaebench.fast.products.operators import empty_weight
from vaebench.system.timing import race

# The library's is left for one that is faster by more than two runs of the same code may differ.
MARGIN = 1.05


@dataclass(frozen=True)
class Shape:
    """A layer's work in a step: what it is given, and what it does with it.

    Args:
        transposed: whether it is a transposed convolution.
        x: (B, C, H, W), the size of its input.
        out_channels: O.
        kernel: height and width.
        stride: along each.
        padding: along each.
        output_padding: along each; zeros of a plain convolution.
        bias: whether it has one.
        input_grad: whether its input wants a gradient.
        bf16: whether it runs under autocast.
        contiguous: whether its results must lie as the library lays them out.
    """

    transposed: bool
    x: tuple[int, ...]
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...] = (0, 0)
    bias: bool = True
    input_grad: bool = True
    bf16: bool = False
    contiguous: bool = False

    def layer(self) -> nn.Module:
        """Such a layer."""
        kind: Any = nn.ConvTranspose2d if self.transposed else nn.Conv2d
        extra = {"output_padding": self.output_padding} if self.transposed else {}
        layer: nn.Module = kind(
            self.x[1], self.out_channels, self.kernel, self.stride, self.padding, bias=self.bias,
            **extra,
        )  # fmt: skip
        return layer


class Choice(NamedTuple):
    """How to convolve, None for the library's way, and the seconds of each, forward and backward.

    ``seconds`` has the names ``"library"``, ``"native"`` and, under autocast, ``"widened"``.
    """

    manner: Manner | None
    seconds: dict[str, float]


_CHOICES: dict[tuple[Shape, int], Choice] = {}


def choices() -> dict[Shape, Choice]:
    """What has been chosen so far in this process, for the present number of threads."""
    threads = torch.get_num_threads()
    return {shape: choice for (shape, n), choice in _CHOICES.items() if n == threads}


def choose(shape: Shape) -> Choice:
    """Find the fastest way, by racing them in turns for about a tenth of a second.

    Within :func:`vaebench.fast.admit.opened` the kernels take every layer.

    Raises:
        vaebench.system.toolchain.CompileError: the kernels cannot be built.
    """
    key = shape, torch.get_num_threads()
    if key not in _CHOICES:
        _CHOICES[key] = _raced(shape)
    found = _CHOICES[key]
    if is_open() and found.manner is None:
        return found._replace(manner=Manner(contiguous=shape.contiguous))
    return found


def _raced(shape: Shape) -> Choice:
    layer, manners = shape.layer(), {"native": Manner(contiguous=shape.contiguous)}
    if shape.bf16:
        manners["widened"] = Manner(widened=True, contiguous=shape.contiguous)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape.x, generator=generator).requires_grad_(shape.input_grad)
    last = x.detach().to(memory_format=torch.channels_last).requires_grad_(shape.input_grad)
    runs: dict[str, Callable[[], object]] = {"library": _trial(layer, x, shape.bf16)}
    if not shape.contiguous:
        runs["library, channels last"] = _trial(layer, last, shape.bf16)
    for name, manner in manners.items():
        changed = shape.layer()
        changed.__class__ = native(shape.transposed, manner)
        weight = cast(Tensor, changed.weight).data
        small, large, *kernel = weight.shape
        changed.weight.data = empty_weight(weight, small, large, kernel).copy_(weight)
        runs[name] = _trial(changed, x if shape.contiguous else last, shape.bf16)
    seconds = race(runs, x.device, turns=5, budget=0.1)
    seconds["library"] = min(seconds["library"], seconds.pop("library, channels last", 1e9))
    best = min(manners, key=seconds.__getitem__)
    wins = MARGIN * seconds[best] < seconds["library"]
    return Choice(manners[best] if wins else None, seconds)


def _trial(layer: nn.Module, x: Tensor, bf16: bool) -> Callable[[], object]:
    """A forward and backward pass of a layer."""
    wanted = [*layer.parameters(), *([x] if x.requires_grad else [])]

    def forward() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
            y: Tensor = layer(x)
        return y

    grad = torch.randn_like(forward())
    return lambda: torch.autograd.grad(forward(), wanted, grad)
