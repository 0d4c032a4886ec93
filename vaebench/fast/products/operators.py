"""Convolutions as operators that autograd and the compiler know, and that give the same everywhere.

``vaebench::conv2d`` and ``vaebench::conv_transpose2d`` are each the gradient of the other by its
input. They take images in float32 or bfloat16 and weights in float32, and add up in float32.
Images and weights may lie in memory as they like, but are copied if they do not lie channels last,
and tap by tap (:func:`taps_first`), as results do. The kernels (``conv.cpp``) are
C++, built when they are first used; the CPU only.
"""

import threading
from collections.abc import Sequence
from ctypes import Structure, byref, c_long, c_void_p
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaebench.fast.direct import implement
from vaebench.system.toolchain import load_kernels

SOURCES = (
    "vectors.h", "bf16.h", "amx.h", "halves.h", "conv.h", "conv_pack.h", "conv_apply.h",
    "conv_squares.h", "conv_grad.h", "conv.cpp",
)  # fmt: skip
ALIGNMENT = 64  # bytes, a line of the cache
CHANNELS_LAST = (0, 2, 3, 1)  # of images, as they lie in memory, the fastest last


class _Geometry(Structure):
    _fields_ = (
        *((name, c_long) for name in ("batch", "large_channels", "small_channels")),
        *((name, c_long * 2) for name in ("large", "small", "kernel", "stride", "padding")),
    )


@cache
def _kernel() -> Any:
    """Load conv.cpp."""
    library = load_kernels(*SOURCES)
    for name in ("workspace", "grad_workspace", "bf16", "small_fastest"):
        getattr(library, f"vaebench_conv_{name}").restype = c_long
    for name in ("plan", "grad_plan"):
        getattr(library, f"vaebench_conv_{name}").restype = c_void_p
    library.vaebench_conv_plan.argtypes = [c_void_p, c_long, c_long]
    library.vaebench_conv_grad_plan.argtypes = [c_void_p, c_long]
    library.vaebench_conv_small_fastest.argtypes = [c_long, c_long]
    library.vaebench_conv_workspace.argtypes = [c_void_p, c_long]
    library.vaebench_conv_grad_workspace.argtypes = [c_void_p, c_long]
    library.vaebench_conv.argtypes = [c_void_p, c_long, *[c_void_p] * 5, c_long]
    library.vaebench_conv_weight_grad.argtypes = [c_void_p, c_long, *[c_void_p] * 4, c_long]
    library.vaebench_all_zero.restype = c_long
    library.vaebench_all_zero.argtypes = [c_void_p, c_long, c_long]
    library.vaebench_channel_sums.argtypes = [c_long] * 3 + [c_void_p] * 2 + [c_long]
    return library


def build() -> None:
    """Build the kernels, or find them built.

    Raises:
        vaebench.system.toolchain.CompileError: they cannot be built.
    """
    _kernel()


def supports_bf16() -> bool:
    """Whether this processor multiplies bfloat16; else it is widened, and multiplied as float32."""
    return bool(_kernel().vaebench_conv_bf16())


@cache
def taps_first(small: int, large: int) -> tuple[int, int, int, int]:
    """The order in memory that the kernels want a weight's dimensions in, the fastest last.

    The weight is (small, large, height, width). A tap that meets nothing but padding then touches
    no memory, and weights need no transposing for one of the two directions.
    """
    return (2, 3, 1, 0) if _kernel().vaebench_conv_small_fastest(small, large) else (2, 3, 0, 1)


def all_zero(numbers: Tensor) -> bool:
    """Whether contiguous float32 numbers are all 0; -0 is not."""
    return bool(
        _kernel().vaebench_all_zero(numbers.data_ptr(), numbers.numel(), torch.get_num_threads())
    )


def _in_order(weight: Tensor) -> Tensor:
    """A weight's numbers as the kernels want them, without a copy if they lie so."""
    return weight.permute(taps_first(weight.shape[0], weight.shape[1])).contiguous()


def empty_weight(like: Tensor, small: int, large: int, kernel: Sequence[int]) -> Tensor:
    """A weight (small, large, ``*kernel``), laid out as the kernels want it."""
    size = (small, large, *kernel)
    return like.new_empty_strided(
        size, _strides(size, taps_first(small, large)), dtype=torch.float32
    )


def conv2d_size(size: Sequence[int], kernel: Sequence[int], stride: Sequence[int],
                padding: Sequence[int]) -> list[int]:  # fmt: skip
    """Height and width of what a convolution gives."""
    return [
        (n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding, strict=True)
    ]


class _Work(NamedTuple):
    """A convolution, or a gradient of weights, as it is called again and again."""

    plan: int  # its address; the kernels keep it
    workspace: int  # floats
    size: tuple[int, ...]  # of the result
    strides: tuple[int, ...]
    weight_strides: tuple[int, ...]  # of a weight that lies as the kernels want it


@cache
def _work(
    bf16: bool,
    x: tuple[int, ...],
    weight: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    up_to: tuple[int, ...] | None = None,
) -> _Work:
    """Plan a convolution of images of size ``x``, or a transposed one up to so many pixels."""
    up = up_to is not None
    small, large = weight[:2]
    pixels = up_to or tuple(conv2d_size(x[2:], weight[2:], stride, padding))
    sides = (pixels, x[2:]) if up else (x[2:], pixels)
    geometry = _geometry(x[0], large, small, *sides, weight[2:], stride, padding)
    size = (x[0], large if up else small, *pixels)
    plan = _kernel().vaebench_conv_plan(byref(geometry), up, bf16)
    return _Work(
        plan,
        _kernel().vaebench_conv_workspace(plan, bf16),
        size,
        _strides(size, CHANNELS_LAST),
        _strides(weight, taps_first(small, large)),
    )


@cache
def _grad_work(
    bf16: bool,
    x: tuple[int, ...],
    grad: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
) -> _Work:
    """Plan the gradient of a convolution's weights, by its input and its output's gradient."""
    small, large = grad[1], x[1]
    geometry = _geometry(x[0], large, small, x[2:], grad[2:], kernel, stride, padding)
    size = (small, large, *kernel)
    strides = _strides(size, taps_first(small, large))
    plan = _kernel().vaebench_conv_grad_plan(byref(geometry), bf16)
    return _Work(
        plan,
        _kernel().vaebench_conv_grad_workspace(plan, bf16),
        size,
        strides,
        strides,
    )


def _geometry(batch: int, large_channels: int, small_channels: int, *pairs: Any) -> _Geometry:
    return _Geometry(batch, large_channels, small_channels, *((c_long * 2)(*p) for p in pairs))


def _strides(size: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """Strides of dimensions that lie in this order, the fastest last."""
    found, step = [0] * len(size), 1
    for dim in reversed(order):
        found[dim], step = step, step * size[dim]
    return tuple(found)


_of_thread = threading.local()


def _workspace(floats: int) -> int:
    """The address of so many floats, this thread's own until it asks again."""
    kept: Tensor | None = getattr(_of_thread, "workspace", None)
    if kept is None or kept.numel() < floats + ALIGNMENT // 4:
        kept = _of_thread.workspace = torch.empty(floats + ALIGNMENT // 4, dtype=torch.float32)
    return -(-kept.data_ptr() // ALIGNMENT) * ALIGNMENT


def _channels_last(x: Tensor, even: bool = False) -> Tensor:
    """Images (B, C, H, W) channels last; ``even`` adds a channel of zeros to an odd number."""
    if even and x.shape[1] % 2:
        padded = _empty(x, (x.shape[0], x.shape[1] + 1, *x.shape[2:]))
        padded[:, -1] = 0
        padded[:, :-1] = x
        return padded
    return x.contiguous(memory_format=torch.channels_last)


def _empty(like: Tensor, size: Sequence[int]) -> Tensor:
    return torch.empty(
        size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, *where: tuple[int, ...]) -> Tensor:
    bf16 = x.dtype == torch.bfloat16
    if bf16 and not supports_bf16():
        return _convolve(x.float(), weight, bias, *where).to(x.dtype)
    work = _work(bf16, x.shape, weight.shape, *where)
    x = _channels_last(x, even=bf16)
    if weight.stride() != work.weight_strides:
        weight = _in_order(weight)
    bias = bias if bias is None else bias.contiguous()
    y = torch.empty_strided(work.size, work.strides, dtype=x.dtype)
    _kernel().vaebench_conv(
        work.plan, bf16, x.data_ptr(), weight.data_ptr(),
        None if bias is None else bias.data_ptr(), y.data_ptr(),
        _workspace(work.workspace), torch.get_num_threads(),
    )  # fmt: skip
    return y


def _conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]
) -> Tensor:
    return _convolve(x, weight, bias, tuple(stride), tuple(padding))


def _conv_transpose2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int],
    size: list[int],
) -> Tensor:  # fmt: skip
    return _convolve(x, weight, bias, tuple(stride), tuple(padding), tuple(size))


def _conv2d_weight_grad(
    x: Tensor, grad: Tensor, kernel: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    grad = grad.to(x.dtype)
    bf16 = x.dtype == torch.bfloat16
    if bf16 and not supports_bf16():
        return _conv2d_weight_grad(x.float(), grad.float(), kernel, stride, padding)
    work = _grad_work(bf16, x.shape, grad.shape, tuple(kernel), tuple(stride), tuple(padding))
    x, grad = _channels_last(x), _channels_last(grad)
    found = torch.empty_strided(work.size, work.strides, dtype=torch.float32)
    _kernel().vaebench_conv_weight_grad(
        work.plan, bf16, x.data_ptr(), grad.data_ptr(), found.data_ptr(),
        _workspace(work.workspace), torch.get_num_threads(),
    )  # fmt: skip
    return found


def _channel_sums(x: Tensor) -> Tensor:
    x = _channels_last(x)
    sums = x.new_empty(x.shape[1], dtype=torch.float32)
    _kernel().vaebench_channel_sums(
        x.numel() // x.shape[1], x.shape[1], x.dtype == torch.bfloat16, x.data_ptr(),
        sums.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return sums


_LIBRARY = torch.library.Library("vaebench", "FRAGMENT")


def _define(schema: str, run: Any, fake: Any) -> str:
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    implement(_LIBRARY, name, run)
    torch.library.register_fake(f"vaebench::{name}", fake, lib=_LIBRARY)
    return f"vaebench::{name}"


CONV2D = _define(
    "conv2d(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding) -> Tensor",
    _conv2d,
    lambda x, weight, bias, stride, padding: _empty(
        x,
        (x.shape[0], weight.shape[0], *conv2d_size(x.shape[2:], weight.shape[2:], stride, padding)),
    ),
)
CONV_TRANSPOSE2D = _define(
    "conv_transpose2d(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding, "
    "int[] size) -> Tensor",
    _conv_transpose2d,
    lambda x, weight, bias, stride, padding, size: _empty(x, (x.shape[0], weight.shape[1], *size)),
)
_define(
    "conv2d_weight_grad(Tensor x, Tensor grad, int[] kernel, int[] stride, int[] padding) "
    "-> Tensor",
    _conv2d_weight_grad,
    lambda x, grad, kernel, stride, padding: empty_weight(x, grad.shape[1], x.shape[1], kernel),
)
_define(
    "channel_sums(Tensor x) -> Tensor",
    _channel_sums,
    lambda x: x.new_empty(x.shape[1], dtype=torch.float32),
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.stride, ctx.padding = inputs[3:5]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    ops, where = torch.ops.vaebench, (ctx.stride, ctx.padding)
    of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
    size, kernel = list(x.shape[2:]), list(weight.shape[2:])
    return (
        ops.conv_transpose2d(grad, weight, None, *where, size) if of_x else None,
        ops.conv2d_weight_grad(x, grad, kernel, *where) if of_weight else None,
        ops.channel_sums(grad) if of_bias else None,
        None,
        None,
    )


def _backward_transposed(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    ops, where = torch.ops.vaebench, (ctx.stride, ctx.padding)
    of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
    return (
        ops.conv2d(grad, weight, None, *where) if of_x else None,
        ops.conv2d_weight_grad(grad, x, list(weight.shape[2:]), *where) if of_weight else None,
        ops.channel_sums(grad) if of_bias else None,
        None,
        None,
        None,
    )


for _name, _gradient in ((CONV2D, _backward), (CONV_TRANSPOSE2D, _backward_transposed)):
    torch.library.register_autograd(_name, _gradient, setup_context=_keep, lib=_LIBRARY)
