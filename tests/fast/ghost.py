"""A CUDA device that is not there: its tensors have shapes and no values, and nothing may leave it.

Torch's fake tensors say on which device they are. Reading one on the host raises, and so does an
operator that is given tensors of two devices. Within :meth:`Ghost.closed` any tensor of the
host's, in any operator, is an error too: a step that is recorded in a graph must not copy one, and
a number that one holds would be frozen. What is not seen: streams, kernels, values; and autocast
does not cast.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # fake tensors import it, which must not happen while torch is patched
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

GHOST = torch.device("cuda", 0)
# What torch has no fake of: these change their arguments and give nothing back.
UNKNOWN = tuple(f"aten::_fused_{name}_.tensor_lr" for name in ("adam", "adamw", "adagrad", "sgd"))

_make_subclass = torch.Tensor._make_subclass


class HostError(RuntimeError):
    """An operator was given a tensor that is not on the device, or gave one back."""


def _subclass(cls: type, data: Tensor, requires_grad: bool = False, **words: Any) -> Any:
    """Let torch's C++, which would look for the device's driver, see tensors without values."""
    return _make_subclass(cls, data, requires_grad)


class Ghost(FakeTensorMode):
    """While it is active, there is the device."""

    strict = False

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Let no tensor be the host's meanwhile."""
        self.strict = True
        try:
            yield
        finally:
            self.strict = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if self.in_kernel_invocation:
            return super().__torch_dispatch__(func, types, args, kwargs)
        if kwargs.get("device") == torch.device("meta"):  # what C++ takes GHOST for
            kwargs["device"] = GHOST
        if self.strict and func is torch.ops.aten.lift_fresh.default:  # as torch.tensor ends
            raise HostError("a tensor was made from numbers of the host's")
        self._check(func, (args, kwargs))
        if func.name() in UNKNOWN:
            return None
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self._check(func, result)
        return result

    def _check(self, func: Any, tree: Any) -> None:
        for tensor in tree_leaves(tree) if self.strict else ():
            if isinstance(tensor, Tensor) and tensor.device != GHOST:
                raise HostError(f"{func.name()}: a tensor on {tensor.device}")


@contextlib.contextmanager
def ghost() -> Iterator[Ghost]:
    """Have the device."""
    with mock.patch.object(torch.Tensor, "_make_subclass", _subclass), Ghost() as mode:
        yield mode
