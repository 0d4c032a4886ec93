"""Batch norm and the activation after it, forward and backward, in two passes over the images each.

The library takes four for the forward and five for the backward pass, and a compiler that fuses
them adds up channel by channel, with few of a vector's places in use. The kernel
(``batch_norm.cpp``) goes along the channels, which lie fastest after the convolutions of
``products``; images that lie otherwise are left to the library, layer by layer. It is C++, built
when it is first used; the CPU only. Running statistics are those of torch but for rounding.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from ctypes import c_double, c_long, c_void_p
from functools import cache, partial
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from vaebench.fast.direct import implement
from vaebench.fast.draft import Draft, Offer
from vaebench.models.protocol import is_altered
from vaebench.system.toolchain import CompileError, load_kernels

# A layer, and the activation that follows it and nothing else, if any.
Pair = tuple[nn.Module, nn.Module | None]


def offer(draft: Draft) -> Offer | str:
    """Offer the step with these layers, if the model has any behind native convolutions.

    Vectors alone are too little work for a race to tell one from the other: which is used, and so
    the bits of a result, would be chance.
    """
    pairs = find(draft.problem.model)
    if not pairs or not draft.actual.get("products"):
        return ""
    try:
        _kernel()
    except CompileError as error:
        return f"{error}; the library normalises"
    plan = draft.plan.within(partial(swapped, pairs))
    return Offer(draft.make(plan), plan, actual={"batch_norm": True})


def find(model: nn.Module) -> list[Pair]:
    """The layers of a model that the kernel can take, each with its activation."""
    places = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
    after: dict[int, nn.Module] = {}
    for module in model.modules():
        if type(module) is nn.Sequential and not is_altered(module) and places[id(module)] == 1:
            after |= {id(a): b for a, b in pairwise(module)}

    def activation(layer: nn.Module) -> nn.Module | None:
        found: Any = after.get(id(layer))
        if type(found) not in (nn.ReLU, nn.LeakyReLU) or is_altered(found):
            return None
        alone = places[id(layer)] == places[id(found)] == 1
        return cast(nn.Module, found) if alone else None

    return [(layer, activation(layer)) for layer in model.modules() if _is_plain(layer)]


def _is_plain(layer: nn.Module) -> bool:
    return (
        (type(layer) is nn.BatchNorm2d or type(layer) is nn.BatchNorm1d)
        and not is_altered(layer)
        and layer.affine
        and layer.momentum is not None
        and all(
            t is not None and t.dtype == torch.float32 and t.is_contiguous()
            for t in (layer.weight, layer.running_mean, layer.running_var)
        )
    )


@contextlib.contextmanager
def swapped(pairs: list[Pair]) -> Iterator[None]:
    """Let the kernel take these layers while this lasts; their classes alone are changed."""
    before = [(m, type(m)) for pair in pairs for m in pair if m is not None]
    try:
        kind: Any
        for layer, activation in pairs:
            slope = 1.0
            if activation is not None:
                kind, slope = type(activation), getattr(activation, "negative_slope", 0.0)
                activation.__class__ = _applied(kind)
            kind = type(layer)
            layer.__class__ = _native(kind, slope)
        yield
    finally:
        for module, kind in before:
            module.__class__ = kind


@cache
def _applied(kind: Any) -> type[nn.Module]:
    """The class of an activation that has been applied already."""
    return type(f"Applied{kind.__name__}", (kind,), {"forward": lambda _, input: input})


@cache
def _native(kind: Any, slope: float) -> type[nn.Module]:
    """The class of a layer that is normalised by the kernel, with its activation."""

    def forward(self: Any, input: Tensor) -> Tensor:
        if not (self.training and _fits(self, input)):
            y: Tensor = kind.forward(self, input)
            return y if slope == 1.0 else torch.nn.functional.leaky_relu(y, slope)
        y, mean, var = torch.ops.vaebench.batch_norm(input, self.weight, self.bias, self.eps, slope)
        rows = input.numel() // input.shape[1]
        _track(self, mean.detach(), var.detach(), rows / (rows - 1))
        return y

    return type(f"Native{kind.__name__}", (kind,), {"forward": forward})


@torch.no_grad()
def _track(layer: Any, mean: Tensor, var: Tensor, bessel: float) -> None:
    """Move a layer's running statistics towards a batch's; a compiler fuses the formulas."""
    running = layer.running_mean, layer.running_var, layer.num_batches_tracked
    if not torch.compiler.is_compiling():
        torch.ops.vaebench.running_stats_(*running, mean, var, layer.momentum, bessel)
        return
    running[2].add_(1)
    running[0].lerp_(mean, layer.momentum)
    running[1].lerp_(var * bessel, layer.momentum)


def _fits(layer: Any, x: Tensor) -> bool:
    """Whether the kernel can take what a layer is given; the layer itself says what cannot be."""
    last = x.dim() == 2 or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
    return (
        last
        and x.dim() == (4 if isinstance(layer, nn.BatchNorm2d) else 2)
        and x.shape[1] == layer.num_features
        and x.numel() > x.shape[1]
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.device.type == "cpu"
    )


@cache
def _kernel() -> Any:
    """Load batch_norm.cpp."""
    library = load_kernels("vectors.h", "numbers.h", "halves.h", "batch_norm.cpp")
    numbers = [c_double, c_double]
    library.vaebench_batch_norm.argtypes = (
        [c_long] * 3 + [c_void_p] * 3 + numbers + [c_void_p] * 3 + [c_long]
    )
    library.vaebench_running_stats.argtypes = [c_long, *[c_void_p] * 2, *numbers, *[c_void_p] * 3]
    library.vaebench_batch_norm_backward.argtypes = (
        [c_long] * 3 + [c_void_p] * 6 + numbers + [c_void_p] * 3 + [c_long]
    )
    return library


def _last(x: Tensor) -> Tensor:
    """The numbers with the channels fastest."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.contiguous()


def _sizes(x: Tensor) -> tuple[int, int, bool]:
    return x.numel() // x.shape[1], x.shape[1], x.dtype == torch.bfloat16


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias = _last(x), weight.contiguous(), bias.contiguous()
    y, mean, var = _fake_forward(x, weight, bias, eps, slope)
    _kernel().vaebench_batch_norm(
        *_sizes(x), *(t.data_ptr() for t in (x, weight, bias)), eps, slope,
        *(t.data_ptr() for t in (y, mean, var)), torch.get_num_threads(),
    )  # fmt: skip
    return y, mean, var


def _fake_forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(_last(x)), torch.empty_like(weight), torch.empty_like(weight)


def _grads(
    grad: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor,
    eps: float, slope: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grad, x, weight, bias = _last(grad), _last(x), weight.contiguous(), bias.contiguous()
    grads = _fake_grads(grad, x, mean, var, weight, bias, eps, slope)
    _kernel().vaebench_batch_norm_backward(
        *_sizes(x), *(t.data_ptr() for t in (grad, x, mean, var, weight, bias)), eps, slope,
        *(t.data_ptr() for t in grads), torch.get_num_threads(),
    )  # fmt: skip
    return grads


def _running_stats(
    mean: Tensor, var: Tensor, batches: Tensor, batch_mean: Tensor, batch_var: Tensor,
    momentum: float, bessel: float,
) -> None:  # fmt: skip
    _kernel().vaebench_running_stats(
        len(mean), batch_mean.data_ptr(), batch_var.data_ptr(), momentum, bessel,
        *(t.data_ptr() for t in (mean, var, batches)),
    )  # fmt: skip


def _fake_grads(
    grad: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor,
    eps: float, slope: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(_last(x)), torch.empty_like(weight), torch.empty_like(bias)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, ctx.eps, ctx.slope = inputs
    ctx.save_for_backward(x, *output[1:], weight, bias)


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    grads = torch.ops.vaebench.batch_norm_grads(
        grad.to(ctx.saved_tensors[0].dtype), *ctx.saved_tensors, ctx.eps, ctx.slope
    )
    return (*grads, None, None)


# FRAGMENT: the namespace is adam.py's too.
_LIBRARY = torch.library.Library("vaebench", "FRAGMENT")
_LIBRARY.define(
    "batch_norm(Tensor x, Tensor weight, Tensor bias, float eps, float slope) "
    "-> (Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    "batch_norm_grads(Tensor grad, Tensor x, Tensor mean, Tensor var, Tensor weight, Tensor bias, "
    "float eps, float slope) -> (Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    "running_stats_(Tensor(a!) mean, Tensor(b!) var, Tensor(c!) batches, Tensor batch_mean, "
    "Tensor batch_var, float momentum, float bessel) -> ()"
)
implement(_LIBRARY, "running_stats_", _running_stats)
implement(_LIBRARY, "batch_norm", _forward)
implement(_LIBRARY, "batch_norm_grads", _grads)
torch.library.register_fake("vaebench::batch_norm", _fake_forward, lib=_LIBRARY)
torch.library.register_fake("vaebench::batch_norm_grads", _fake_grads, lib=_LIBRARY)
torch.library.register_autograd(
    "vaebench::batch_norm", _backward, setup_context=_keep, lib=_LIBRARY
)
