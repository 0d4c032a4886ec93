"""Triton's interpreter, mended: products as a GPU rounds them."""

from typing import Any

import numpy as np
from triton.runtime import interpreter


def mend() -> None:
    """Round products as asked for; let Triton 3.6 read a number out of an array with NumPy 2.5."""
    interpreter.interpreter_builder.create_dot = _dot
    patch: Any = interpreter._patch_lang_tensor

    def patched(tensor: Any, *scope: Any) -> None:
        patch(tensor, *scope)
        tensor.__index__ = lambda self: self.handle.data.item()

    interpreter._patch_lang_tensor = patched


def _dot(a: Any, b: Any, total: Any, precision: Any, _: Any) -> Any:
    """Multiply float32 as tensor cores do: factors cut to 10 bits, or in two parts of 10 each."""
    high = [_ten_bits(factor.data) for factor in (a, b)]
    low = [_ten_bits(factor.data - part) for factor, part in zip((a, b), high, strict=True)]
    if precision.name == "IEEE":
        product = a.data @ b.data
    elif precision.name == "TF32":
        product = high[0] @ high[1]
    else:
        assert precision.name == "TF32x3"
        product = low[0] @ high[1] + high[0] @ low[1] + high[0] @ high[1]
    return interpreter.TensorHandle(product + total.data, total.dtype.scalar)


def _ten_bits(x: Any) -> Any:
    """Cut the 23 bits behind a float32's point to 10."""
    assert x.dtype == np.float32
    return (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
