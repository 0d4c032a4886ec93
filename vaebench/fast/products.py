"""Convolutions on small images as matrix products, on the CPU.

A library's convolution is made for large images. On one of 28x28 pixels and its halves down to a
single pixel, most of its time goes into setting up, into taps that meet nothing but padding, and
into weights brought from one layout into another; a plain matrix product of the same numbers takes
a third of it. So here, with images and weights laid out channels last:

- a convolution gathers the window under each output position into a row, and multiplies the rows
  by the weights (H. Jia's "im2col", as in Caffe);
- a transposed convolution, its mirror image, multiplies first, and adds the products up where
  they overlap;
- a convolution to few channels multiplies first too: it would otherwise gather far more than it
  computes with. Its products are kept as planes, one per tap, in which neighbours are adjacent;
- a tap that meets only padding, on 1x1 pixels five out of nine, is left out.

The sums are the same but for the order of their terms. Gathering and adding up are operators of
their own, each the gradient of the other. The compiler would else fuse them with what comes
before, and compute batch norm anew for every tap.
"""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaebench.fast.draft import Draft, Offer
from vaebench.fast.layout import CHANNELS_LAST, LaidOut

# Output positions of one image. Beyond, gathered rows no longer fit a cache.
LARGEST_GRID = 32 * 32
# A convolution multiplies first if it has fewer output channels than this share of its inputs.
NARROW = 1 / 4


def offer(draft: Draft) -> Offer | str:
    """Offer the step with the model's convolutions as products."""
    # Under autocast a library's own convolutions are the faster or finer ones.
    found = _suited(draft.problem.model)
    if not found or draft.plan.autocast:
        return ""
    trained = set(map(id, draft.optimizer.params))
    plan = draft.plan
    for module in found:
        if id(module.weight) in trained:
            tensors = draft.optimizer.belonging_to(module.weight)
            plan = plan.within(LaidOut(tensors, CHANNELS_LAST))
    plan = plan.within(partial(_changed, found))
    notes = [f"--products: {len(found)} convolutions as matrix products"]
    return Offer(draft.make(plan), plan, actual={"products": True}, notes=notes)


def _suited(model: nn.Module) -> list[Any]:
    """The plain convolutions over zero-padded images, neither grouped nor dilated."""
    return [
        m
        for m in model.modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
        and type(m) in _PRODUCTS
        and (m.groups, m.dilation, m.padding_mode) == (1, (1, 1), "zeros")
        and not isinstance(m.padding, str)
        and m.stride[0] == m.stride[1]
    ]


@contextlib.contextmanager
def _changed(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Give the modules the forward pass below, by changing their class, while this lasts."""
    plain = [type(module) for module in modules]
    try:
        for module, kind in zip(modules, plain, strict=True):
            module.__class__ = _PRODUCTS.get(kind, kind)
        yield
    finally:
        for module, kind in zip(modules, plain, strict=True):
            module.__class__ = kind


class ProductConv2d(nn.Conv2d):
    """A convolution as one matrix product."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, H', W')."""
        size = input.shape[-2:]
        assert not isinstance(self.padding, str)  # else it is not suited
        out = [
            (n + 2 * p - k) // s + 1
            for n, p, k, s in zip(size, self.padding, self.kernel_size, self.stride, strict=True)
        ]
        if input.dim() != 4 or min(out) < 1 or out[0] * out[1] > LARGEST_GRID:
            return super().forward(input)
        weight, first = _live(self, out, size)  # (O, U, V, C)
        x = input.permute(0, 2, 3, 1)  # (B, H, W, C)
        if self.stride[0] == 1 and self.out_channels <= NARROW * self.in_channels:
            y = _narrow(x, weight, first, out)
        else:
            taps = weight.shape[1:3]
            rows = torch.ops.vaebench.windows(x, self.stride[0], first, taps, out, False)
            y = F.linear(rows.flatten(3), weight.flatten(1))  # (B, H', W', O)
        y = y if self.bias is None else y + self.bias
        return y.permute(0, 3, 1, 2)


class ProductConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution as one matrix product."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, C, H, W) -> (B, O, H', W')."""
        size = input.shape[-2:]
        assert not isinstance(self.padding, str)
        out = [
            (n - 1) * s - 2 * p + k + extra
            for n, s, p, k, extra in zip(
                size, self.stride, self.padding, self.kernel_size, self.output_padding, strict=True
            )
        ]
        plain = output_size is None and input.dim() == 4
        if not plain or min(out) < 1 or size[0] * size[1] > LARGEST_GRID:
            return super().forward(input, output_size)
        weight, first = _live(self, size, out)  # (C, U, V, O)
        products = input.permute(0, 2, 3, 1) @ weight.flatten(1)  # (B, H, W, U V O)
        parts = products.unflatten(3, weight.shape[1:])
        y: Tensor = torch.ops.vaebench.overlap_add(parts, self.stride[0], first, out, False)
        y = y if self.bias is None else y + self.bias
        return y.permute(0, 3, 1, 2)


_PRODUCTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: ProductConv2d,
    nn.ConvTranspose2d: ProductConvTranspose2d,
}


def _live(module: Any, grid: Sequence[int], pixels: Sequence[int]) -> tuple[Tensor, list[int]]:
    """The weights of the taps that meet a pixel, and where the first one lies.

    Tap u of grid position i meets pixel ``stride * i + u - padding``. Gives the weights as (rows,
    U, V, columns), channels last, and the first live tap's pixel at grid position 0.
    """
    weight, first = module.weight.permute(0, 2, 3, 1), []
    for axis, (positions, n) in enumerate(zip(grid, pixels, strict=True)):
        stride, padding = module.stride[axis], module.padding[axis]
        live = [
            tap
            for tap in range(module.kernel_size[axis])
            if any(0 <= stride * i + tap - padding < n for i in range(positions))
        ] or [0]
        weight = weight.narrow(1 + axis, live[0], live[-1] + 1 - live[0])
        first.append(live[0] - padding)
    return weight, first


def _narrow(x: Tensor, weight: Tensor, first: list[int], out: list[int]) -> Tensor:
    """A convolution of stride 1, multiplying first: x (B, H, W, C), weight (O, U, V, C).

    Seen from a pixel, it adds to the outputs around it, with the taps in reverse.
    """
    o, u, v, _ = weight.shape
    products = weight.flip(1, 2).flatten(0, 2) @ x.flatten(0, 2).t()  # (O U V, B H W)
    parts = products.view(o, u, v, *x.shape[:3]).permute(3, 4, 5, 1, 2, 0)  # (B, H, W, U, V, O)
    start = [1 - f - taps for f, taps in zip(first, (u, v), strict=True)]
    y: Tensor = torch.ops.vaebench.overlap_add(parts, 1, start, out, True)
    return y


# The operators. ``first`` is the pixel that tap 0 of grid position 0 meets; ``planar`` says how the
# six-dimensional tensor lies in memory: (C, U, V, B, I, J), not (B, I, J, U, V, C).


def _windows(
    x: Tensor, stride: int, first: list[int], taps: list[int], grid: list[int], planar: bool
) -> Tensor:
    """(B, H, W, C) -> (B, I, J, U, V, C): [i, u] is pixel ``stride * i + first + u``, else 0."""
    pads, starts = [], []
    for n, f, t, positions in zip(x.shape[1:3], first, taps, grid, strict=True):
        pads.append((max(-f, 0), max(stride * (positions - 1) + f + t - n, 0)))
        starts.append(max(f, 0))
    if any(map(any, pads)):
        x = F.pad(x, (0, 0, *pads[1], *pads[0]))
    x = x.contiguous()
    b, h, w, c = x.shape
    place = x.storage_offset() + (starts[0] * w + starts[1]) * c
    strides = (h * w * c, stride * w * c, stride * c, w * c, c, 1)
    view = x.as_strided((b, *grid, *taps, c), strides, place)
    # A copy in any case: an operator may not give back its input's memory.
    copied = _planar(view) if planar else view
    copied = copied.clone(memory_format=torch.contiguous_format)
    return _from_planar(copied) if planar else copied


def _overlap_add(
    parts: Tensor, stride: int, first: list[int], out: list[int], planar: bool
) -> Tensor:
    """(B, I, J, U, V, C) -> (B, H, W, C): part [i, u] is added to ``stride * i + first + u``."""
    b, i, j, u, v, c = parts.shape
    y = parts.new_zeros(b, *out, c)
    for row in range(u):
        to_row, from_row = _meeting(stride, first[0] + row, i, out[0])
        for column in range(v):
            to_column, from_column = _meeting(stride, first[1] + column, j, out[1])
            y[:, to_row, to_column] += parts[:, from_row, from_column, row, column]
    return y


def _meeting(stride: int, offset: int, grid: int, pixels: int) -> tuple[slice, slice]:
    """Pixels ``stride * i + offset`` that exist, and the grid positions i that meet them."""
    start = max(0, -(offset // stride))
    end = max(start, min(grid, -((offset - pixels) // stride)))
    return slice(stride * start + offset, stride * end + offset, stride), slice(start, end)


def _planar(parts: Tensor) -> Tensor:
    return parts.permute(5, 3, 4, 0, 1, 2)


def _from_planar(planes: Tensor) -> Tensor:
    return planes.permute(3, 4, 5, 1, 2, 0)


def _empty_windows(
    x: Tensor, stride: int, first: list[int], taps: list[int], grid: list[int], planar: bool
) -> Tensor:
    b, c = x.shape[0], x.shape[3]
    if planar:
        return _from_planar(x.new_empty(c, *taps, b, *grid))
    return x.new_empty(b, *grid, *taps, c)


_LIBRARY = torch.library.Library("vaebench", "FRAGMENT")


def _define(name: str, schema: str, run: Any, fake: Any, gradient: Any, remember: Any) -> None:
    """Register an operator that is linear in its first argument, with its gradient."""
    _LIBRARY.define(f"{name}{schema}")
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vaebench::{name}", fake, lib=_LIBRARY)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.words = remember(*inputs)
        ctx.others = len(inputs) - 1

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return gradient(grad, *ctx.words), *[None] * ctx.others

    torch.library.register_autograd(
        f"vaebench::{name}", backward, setup_context=setup, lib=_LIBRARY
    )


_define(
    "windows",
    "(Tensor x, int stride, int[] first, int[] taps, int[] grid, bool planar) -> Tensor",
    _windows,
    _empty_windows,
    lambda grad, *words: torch.ops.vaebench.overlap_add(grad, *words),
    lambda x, stride, first, taps, grid, planar: (stride, first, x.shape[1:3], planar),
)
_define(
    "overlap_add",
    "(Tensor parts, int stride, int[] first, int[] out, bool planar) -> Tensor",
    _overlap_add,
    lambda parts, stride, first, out, planar: parts.new_empty(parts.shape[0], *out, parts.shape[5]),
    lambda grad, *words: torch.ops.vaebench.windows(grad, *words),
    lambda parts, stride, first, out, planar: (
        stride, first, parts.shape[3:5], parts.shape[1:3], planar,
    ),
)  # fmt: skip
