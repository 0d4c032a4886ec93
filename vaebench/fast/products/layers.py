"""Convolution layers whose forward pass is the operators', put on by changing a module's class."""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vaebench.fast.products.operators import conv2d_size


class Manner(NamedTuple):
    """How a layer convolves.

    ``widened`` multiplies bfloat16 images as float32, where the processor is no slower at that;
    ``contiguous`` gives results as the library lays them out, not channels last.
    """

    widened: bool = False
    contiguous: bool = False


def is_plain(module: nn.Module) -> bool:
    """Whether a module is a convolution over zero-padded images, neither grouped nor dilated.

    A weight that is made of something else before each pass (spectral norm) is none of its own.
    """
    return (
        (type(module) is nn.Conv2d or type(module) is nn.ConvTranspose2d)
        and "weight" in module._parameters
        and (module.groups, module.dilation, module.padding_mode) == (1, (1, 1), "zeros")
        and not isinstance(module.padding, str)
        and module.weight.dtype == torch.float32
    )


@cache
def native(transposed: bool, manner: Manner) -> type[nn.Module]:
    """The class of a layer that convolves by the operator."""
    base = NativeConvTranspose2d if transposed else NativeConv2d
    return type(base.__name__, (base,), {"manner": manner})


class NativeConv2d(nn.Conv2d):
    """A convolution by the operator."""

    manner = Manner()

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, H', W')."""
        assert not isinstance(self.padding, str)  # else it is not plain
        x = _autocast(input)
        if not _fits(self, x):
            return super().forward(input)
        if min(conv2d_size(x.shape[2:], self.kernel_size, self.stride, self.padding)) < 1:
            return super().forward(input)  # which says so
        operator = torch.ops.vaebench.conv2d
        return _applied(self, operator, x, list(self.stride), list(self.padding))


class NativeConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution by the operator."""

    manner = Manner()

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, C, H, W) -> (B, O, H', W')."""
        assert not isinstance(self.padding, str)
        x = _autocast(input)
        if not _fits(self, x) or output_size is not None:
            return super().forward(input, output_size)
        size = [
            (n - 1) * s - 2 * p + k + extra
            for n, s, p, k, extra in zip(
                x.shape[2:], self.stride, self.padding, self.kernel_size, self.output_padding,
                strict=True,
            )
        ]  # fmt: skip
        if min(size) < 1:
            return super().forward(input)
        operator = torch.ops.vaebench.conv_transpose2d
        return _applied(self, operator, x, list(self.stride), list(self.padding), size)


def _autocast(x: Tensor) -> Tensor:
    """The images as autocast wants them, if it is on."""
    if torch.is_autocast_enabled("cpu"):
        return x.to(torch.get_autocast_dtype("cpu"))
    return x


def _fits(layer: Any, x: Tensor) -> bool:
    channels = layer.in_channels
    return (
        x.dim() == 4
        and x.shape[1] == channels
        and x.numel() > 0
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and layer.weight.dtype == torch.float32
    )


def _applied(layer: Any, operator: Any, x: Tensor, *where: list[int]) -> Tensor:
    dtype = x.dtype
    if layer.manner.widened:
        x = x.float()
    y: Tensor = operator(x, layer.weight, layer.bias, *where).to(dtype)
    return y.contiguous() if layer.manner.contiguous else y
