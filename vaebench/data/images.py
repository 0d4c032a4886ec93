"""Images as tensors: scaled, and taken by index."""

import torch
from torch import Tensor


def to_unit(x: Tensor) -> Tensor:
    """Scale uint8 pixels to float32 in [0, 1]; floats pass as they are."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


def gather(images: Tensor, index: Tensor) -> Tensor:
    """Take the images at ``index`` (B,) int64 as float32 (B, ...), uint8 scaled to [0, 1]."""
    return to_unit(images.index_select(0, index))
