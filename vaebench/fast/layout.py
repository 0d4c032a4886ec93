"""Tensors as they lie in memory: torch's fused optimisers go by address, not by index."""

from collections.abc import Sequence

import torch
from torch import Tensor


def laid_out_as(params: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
    """Give gradients in their parameters' memory layout.

    Autograd keeps that promise for ``.grad``, but not for what ``torch.autograd.grad`` gives.
    """
    return [
        grad if grad.stride() == param.stride() else torch.empty_like(param).copy_(grad)
        for param, grad in zip(params, grads, strict=True)
    ]


def in_memory_order(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Show tensors in the order they lie in: the kernels copy what is not contiguous, twice."""
    return [
        t if t.is_contiguous() else t.permute(sorted(range(t.dim()), key=t.stride, reverse=True))
        for t in tensors
    ]
