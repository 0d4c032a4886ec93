"""Images as tensors: known to be sound, scaled, and taken by index."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Images:
    """Images that were checked, so that nobody need check them again.

    :func:`vaebench.data.arrays.checked` makes them. ``pixels`` (N, ...) are contiguous, uint8 or
    finite float32, and may be the caller's own memory. ``unit_interval``: floats are known to lie
    in [0, 1].
    """

    pixels: Tensor
    unit_interval: bool

    def __len__(self) -> int:
        """Count them."""
        return len(self.pixels)


def to_unit(x: Tensor) -> Tensor:
    """Scale uint8 pixels to float32 in [0, 1]; floats pass as they are."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


def gather(images: Tensor, index: Tensor) -> Tensor:
    """Take the images at ``index`` (B,) int64 as float32 (B, ...), uint8 scaled to [0, 1]."""
    return to_unit(images.index_select(0, index))
