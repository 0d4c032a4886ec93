"""The first layer's products without the dark pixels: four fifths of MNIST's are zero.

Of a default step's five large products two multiply the images: the first layer's output, and
the gradient of its weights. Both leave out what is multiplied by zero, so the sums are the dense
ones but for the order of their terms. The kernel is C++ (``sparse.h``, ``sparse.cpp``), built
when it is first used; the CPU only.
"""

import copy
from ctypes import c_long, c_void_p
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from vaebench.models.protocol import as_vae
from vaebench.system.toolchain import load_kernels

# As in sparse.h: neighbouring pixels that are kept or left out together, images in a block.
GROUP, ROWS = 2, 128
# A list's size in floats: its values, its row numbers of a byte each, its count.
LIST_FLOATS = ROWS * GROUP + ROWS // 4 + 1
# Share of groups with any light in them from which dense products may be as fast.
WORTHWHILE = 0.5
# Images looked at to find that share.
SAMPLE = 1024


class SparseLinear(nn.Module):
    """A linear layer that skips the zeros of its input; with another layer's parameters.

    The weight (H, D) is laid out by columns from here on: a pixel's weights lie side by side.
    """

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = dense.weight, dense.bias
        lay_out_by_columns(dense)

    def forward(self, x: Tensor) -> Tensor:
        """Give x W^T + b, (B, H), for x (B, D), which gets no gradient."""
        out: Tensor = torch.ops.vaebench.sparse_pairs(x, self.weight, self.bias)[0]
        return out


def lay_out_by_columns(layer: nn.Linear) -> None:
    """Let a pixel's weights lie side by side, as the kernels read them."""
    layer.weight.data = layer.weight.data.t().contiguous().t()


def darkness(images: Tensor) -> str | None:
    """Say in a line that leaving out dark pixels of images (N, ...) pays; None if it does not."""
    share = lit_share(images)
    if share > WORTHWHILE:
        return None
    return f"the first layer leaves out dark pixels: {share:.0%} of the images' are lit, in twos"


def with_sparse_input(model: nn.Module, images: Tensor, x: Tensor) -> tuple[nn.Module, str | None]:
    """Give a model whose first layer skips dark pixels, and a line that says so.

    Args:
        model: stays as it is, but for the memory layout of one weight. The model given back
            shares its parameters and buffers.
        images: (N, ...) that it will be trained on.
        x: (B, ...) float32, a few of them as the model takes them.

    Returns:
        The model itself and None if no float32 linear layer takes the pixels as they are, or too
        few of them are zero.

    Raises:
        vaebench.system.toolchain.CompileError: the kernel cannot be built.
    """
    if images.device.type != "cpu":
        return model, None
    note, name = darkness(images), input_layer(model, x)
    if name is None or note is None:
        return model, None
    _kernel()
    tensors = [*model.parameters(), *model.buffers()]
    twin = copy.deepcopy(model, {id(t): t for t in tensors})
    parent, _, own_name = name.rpartition(".")
    dense = cast(nn.Linear, model.get_submodule(name))
    setattr(twin.get_submodule(parent), own_name, SparseLinear(dense))
    return twin, note


def lit_share(images: Tensor) -> float:
    """Find the share of groups of GROUP neighbouring pixels that are not all zero."""
    pixels = images[:: max(1, len(images) // SAMPLE)].flatten(1)
    whole = pixels.shape[1] // GROUP * GROUP
    if whole == 0:
        return 1.0
    groups = pixels[:, :whole].unflatten(1, (-1, GROUP))
    return float(groups.ne(0).any(2).float().mean())


@torch.no_grad()
def input_layer(model: nn.Module, x: Tensor) -> str | None:
    """Name the linear layer that ``encode`` gives the images x (B, ...) as they are, if any."""
    found: list[str] = []
    hooks = []

    def look(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            fed = inputs[0]
            if fed.dim() == 2 and fed.data_ptr() == x.data_ptr() and fed.numel() == x.numel():
                found.append(name)

        return hook

    for name, layer in model.named_modules():
        plain = type(layer) is nn.Linear and layer.bias is not None
        if plain and name and layer.weight.dtype == torch.float32:
            hooks.append(layer.register_forward_pre_hook(look(name)))
    was_training = model.training
    model.eval()
    try:
        as_vae(model).encode(x)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return found[0] if len(found) == 1 else None


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
