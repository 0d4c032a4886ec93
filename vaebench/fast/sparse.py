"""The first layer's products without the dark pixels: four fifths of MNIST's are zero.

Of a default step's five large products two multiply the images: the first layer's output, and
the gradient of its weights. Both leave out what is multiplied by zero, so the sums are the dense
ones but for the order of their terms. The kernel is C++ (``sparse.h``, ``sparse.cpp``), built
when it is first used; the CPU only.
"""

import contextlib
from collections.abc import Iterator
from ctypes import c_long, c_void_p
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from vaebench.fast.draft import Draft, Plan
from vaebench.fast.kernels.nonzero import GROUP, dark
from vaebench.fast.layout import COLUMNS, LaidOut
from vaebench.models.protocol import is_altered, prior_of
from vaebench.models.snapshot import untouched
from vaebench.problem import Problem
from vaebench.system.toolchain import load_kernels

ROWS = 128  # images in a block, as in sparse.h
# A list's size in floats: its values, its row numbers of a byte each, its count.
LIST_FLOATS = ROWS * GROUP + ROWS // 4 + 1


def part(draft: Draft, plan: Plan) -> tuple[Plan, str] | None:
    """Let the first layer skip dark pixels; None if no layer takes them as they are, or few are.

    The layer is of another class, and its weight laid out by columns, while it trains.

    Raises:
        vaebench.toolchain.CompileError: the kernel cannot be built.
    """
    problem = draft.problem
    if plan.autocast or not problem.resident or problem.given is not None:
        return None
    note, layer = dark(problem.images), input_layer(problem)
    if layer is None or note is None:
        return None
    _kernel()
    columns = LaidOut(draft.optimizer.belonging_to(layer.weight), COLUMNS)
    return plan.within(columns).within(partial(_as_sparse, layer)), note


class SparseLinear(nn.Linear):
    """A linear layer that skips the zeros of its input, which gets no gradient."""

    def forward(self, input: Tensor) -> Tensor:
        """Give x W^T + b, (B, H), for x (B, D)."""
        out: Tensor = torch.ops.vaebench.sparse_pairs(input, self.weight, self.bias)[0]
        return out


@contextlib.contextmanager
def _as_sparse(layer: nn.Linear) -> Iterator[None]:
    """Give a layer the forward pass above, by changing its class, while this lasts."""
    layer.__class__ = SparseLinear
    try:
        yield
    finally:
        layer.__class__ = nn.Linear


@torch.no_grad()
def input_layer(problem: Problem) -> nn.Linear | None:
    """Find the linear layer that ``encode`` gives the images as they are, if any, and only them."""
    x = problem.sample_batch
    found: list[nn.Linear] = []
    calls: dict[nn.Module, int] = {}

    def look(layer: Any, inputs: tuple[Tensor, ...]) -> None:
        calls[layer] = calls.get(layer, 0) + 1
        fed = inputs[0]
        if fed.dim() == 2 and fed.data_ptr() == x.data_ptr() and fed.numel() == x.numel():
            found.append(layer)

    with untouched(problem.model):
        for layer in problem.model.modules():
            plain = type(layer) is nn.Linear and layer.bias is not None and not is_altered(layer)
            trained = plain and any(layer.weight is p for p in problem.params)
            if trained and layer.weight.dtype == torch.float32:
                layer.register_forward_pre_hook(look)
        problem.model.eval()
        y = () if problem.labels is None else (problem.labels[: len(x)],)
        mu, _ = problem.vae.encode(x, *y)
        problem.vae.decode(mu, *y)
        prior_of(problem.vae)  # which may encode something else
    return found[0] if len(found) == 1 and calls[found[0]] == 1 else None


@cache
def _kernel() -> Any:
    """Load sparse.cpp."""
    library = load_kernels("vectors.h", "sparse.h", "sparse.cpp")
    library.vaebench_sparse_forward.argtypes = [c_long] * 3 + [c_void_p] * 5
    library.vaebench_sparse_backward.argtypes = [c_long] * 3 + [c_void_p] * 3
    return library


def _sizes(x: Tensor, weight: Tensor) -> tuple[int, int, int]:
    return x.shape[0], weight.shape[1], weight.shape[0]


def _new_lists(x: Tensor) -> Tensor:
    blocks, groups = -(-x.shape[0] // ROWS), -(-x.shape[1] // GROUP)
    return x.new_empty(blocks * groups * LIST_FLOATS)


def _forward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    x, columns = x.contiguous(), weight.t().contiguous()
    out, lists = x.new_empty(x.shape[0], weight.shape[0]), _new_lists(x)
    _kernel().vaebench_sparse_forward(
        *_sizes(x, weight), *(t.data_ptr() for t in (x, columns, bias, out, lists))
    )
    return out, lists


def _weight_grad(grad: Tensor, weight: Tensor, lists: Tensor) -> Tensor:
    grad = grad.contiguous()
    columns = grad.new_empty(weight.shape[1], weight.shape[0])
    _kernel().vaebench_sparse_backward(
        *_sizes(grad, weight), *(t.data_ptr() for t in (grad, lists, columns))
    )
    return columns.t()


def _fake_forward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], weight.shape[0]), _new_lists(x)


def _fake_weight_grad(grad: Tensor, weight: Tensor, lists: Tensor) -> Tensor:
    return grad.new_empty(weight.shape[1], weight.shape[0]).t()


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[1], output[1])


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[None, Tensor, Tensor]:
    return None, torch.ops.vaebench.sparse_pairs_grad(grad, *ctx.saved_tensors), grad.sum(0)


# FRAGMENT: the namespace is adam.py's too. Named by the group's size: torch's cache of compiled
# graphs knows an operator by its name, and would hand out graphs with lists of another size.
_LIBRARY = torch.library.Library("vaebench", "FRAGMENT")
_LIBRARY.define("sparse_pairs(Tensor x, Tensor weight, Tensor bias) -> (Tensor, Tensor)")
_LIBRARY.define("sparse_pairs_grad(Tensor grad, Tensor weight, Tensor lists) -> Tensor")
_LIBRARY.impl("sparse_pairs", _forward, "CPU")
_LIBRARY.impl("sparse_pairs_grad", _weight_grad, "CPU")
torch.library.register_fake("vaebench::sparse_pairs", _fake_forward, lib=_LIBRARY)
torch.library.register_fake("vaebench::sparse_pairs_grad", _fake_weight_grad, lib=_LIBRARY)
torch.library.register_autograd(
    "vaebench::sparse_pairs", _backward, setup_context=_keep, lib=_LIBRARY
)
