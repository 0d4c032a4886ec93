"""Tensors as they lie in memory: torch's fused optimisers go by address, not by index."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor

COLUMNS = (1, 0)  # of a matrix (H, D), as it lies in memory


def laid_out_as(params: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
    """Give gradients in their parameters' memory layout.

    Autograd keeps that promise for ``.grad``, but not for what ``torch.autograd.grad`` gives.
    """
    return [
        grad if grad.stride() == param.stride() else torch.empty_like(param).copy_(grad)
        for param, grad in zip(params, grads, strict=True)
    ]


def real(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Show complex tensors as pairs of real numbers, which is how torch.optim updates them."""
    return [torch.view_as_real(t) if t.is_complex() else t for t in tensors]


def in_memory_order(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Show tensors in the order they lie in: the kernels copy what is not contiguous, twice."""
    return [t if t.is_contiguous() else t.permute(_order(t.stride())) for t in tensors]


@cache
def _order(strides: tuple[int, ...]) -> list[int]:
    """Dimensions, the fastest last."""
    return sorted(range(len(strides)), key=strides.__getitem__, reverse=True)


class LaidOut:
    """Tensors of one shape (a weight and its moments), laid out otherwise for a while.

    Kernels want a pixel's weights side by side, or a tap's. Between two epochs the memory is the
    owner's again, as it was: a parameter can be viewed and saved.

    Args:
        tensors: of one shape.
        order: their dimensions as they are to lie in memory, the fastest last.
    """

    def __init__(self, tensors: Sequence[Tensor], order: Sequence[int]) -> None:
        self.tensors = list(tensors)
        back = [list(order).index(dim) for dim in range(len(order))]
        self.others = [
            torch.empty([t.shape[dim] for dim in order], dtype=t.dtype, device=t.device).permute(
                back
            )
            for t in tensors
        ]

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Lay them out so in the block."""
        own = [t.data for t in self.tensors]
        for tensor, other in zip(self.tensors, self.others, strict=True):
            tensor.data = other.copy_(tensor.data)
        try:
            yield
        finally:
            for tensor, memory in zip(self.tensors, own, strict=True):
                tensor.data = memory.copy_(tensor.data)
