"""Augmentation and resizing of whole batches, where they are: for `DeviceLoader(transform=...)`.

Each takes x, (B, H, W) or (B, C, H, W) floats, and returns new floats; those that draw random
numbers draw anew for every image. torchvision's draw once a batch if they are given one.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vaebench.errors import InputError, check_count, check_counts, check_real


class RandomTransform:
    """A transform that draws random numbers, from a generator on the images' device."""

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Transform a batch. Without a generator draw from torch's default one."""
        raise NotImplementedError


@dataclass(frozen=True)
class PadTo:
    """Pad with ``fill`` to ``size`` pixels in height and width, the images in the middle.

    An odd pixel goes to the right and below.
    """

    size: int | tuple[int, int]
    fill: float = 0.0

    def __post_init__(self) -> None:
        _pair(self.size)

    def __call__(self, x: Tensor) -> Tensor:
        """Pad a batch. Raises InputError where an image is larger than ``size``."""
        _check_pictures(x)
        height, width = _pair(self.size)
        down, right = height - x.shape[-2], width - x.shape[-1]
        if down < 0 or right < 0:
            raise InputError(
                f"images of {x.shape[-2]}x{x.shape[-1]} pixels cannot be padded to "
                f"{height}x{width}: give a larger size, or use Resize"
            )
        margins = (right // 2, right - right // 2, down // 2, down - down // 2)
        return F.pad(x, margins, value=self.fill)


@dataclass(frozen=True)
class Resize:
    """Resize to ``size`` pixels in height and width: bilinear, with antialiasing."""

    size: int | tuple[int, int]

    def __post_init__(self) -> None:
        _pair(self.size)

    def __call__(self, x: Tensor) -> Tensor:
        """Resize a batch."""
        _check_pictures(x)
        images = x.unsqueeze(1) if x.dim() == 3 else x
        resized = F.interpolate(
            images, _pair(self.size), mode="bilinear", align_corners=False, antialias=True
        )
        return resized.squeeze(1) if x.dim() == 3 else resized


@dataclass(frozen=True)
class Binarize(RandomTransform):
    """Light each pixel with the probability that its value is, anew every time.

    Takes x of any shape, in [0, 1]. Source: Salakhutdinov & Murray, On the quantitative analysis
    of deep belief networks (ICML 2008).
    """

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw a batch of zeros and ones."""
        return torch.bernoulli(x, generator=generator)


@dataclass(frozen=True)
class RandomCrop(RandomTransform):
    """Cut ``size`` pixels in height and width, at a place of its own for each image.

    ``padding`` zeros are put around the images before. Every place is equally likely.
    """

    size: int | tuple[int, int]
    padding: int = 0

    def __post_init__(self) -> None:
        _pair(self.size)
        if self.padding != 0:
            check_count("padding", self.padding)

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Crop a batch. Raises InputError where a padded image is smaller than ``size``."""
        _check_pictures(x)
        padded = F.pad(x.unsqueeze(1) if x.dim() == 3 else x, (self.padding,) * 4)
        batch, _, full_height, full_width = padded.shape
        height, width = _pair(self.size)
        if height > full_height or width > full_width:
            raise InputError(
                f"images of {full_height}x{full_width} pixels, padding included, cannot be cropped "
                f"to {height}x{width}: give a smaller size, or more padding"
            )

        def places(full: int, length: int) -> Tensor:
            """Draw where each image's cut begins, and list its pixels: (B, length)."""
            starts = torch.randint(
                full - length + 1, (batch, 1), generator=generator, device=x.device
            )
            return starts + torch.arange(length, device=x.device)

        rows, columns = places(full_height, height), places(full_width, width)
        image = torch.arange(batch, device=x.device)[:, None, None]
        cut = padded.movedim(1, -1)[image, rows[:, :, None], columns[:, None, :]]  # (B, h, w, C)
        cut = cut.movedim(-1, 1).contiguous()
        return cut.squeeze(1) if x.dim() == 3 else cut


@dataclass(frozen=True)
class RandomHorizontalFlip(RandomTransform):
    """Mirror left and right, each image with probability ``p``."""

    p: float = 0.5

    def __post_init__(self) -> None:
        if check_real("p", self.p, zero=True) > 1:
            raise InputError(f"p is {self.p}: it is a probability, at most 1")

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Flip some images of a batch."""
        _check_pictures(x)
        drawn = torch.rand(len(x), generator=generator, device=x.device) < self.p
        return torch.where(drawn.view(-1, *(1,) * (x.dim() - 1)), x.flip(-1), x)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width, given as a number for both or as two."""
    sizes = check_counts("size", (size, size) if isinstance(size, int) else size)
    if len(sizes) != 2:
        raise InputError(f"size is {size}: it must be one number, or two, height and width")
    return sizes[0], sizes[1]


def _check_pictures(x: Tensor) -> None:
    if x.dim() not in (3, 4):
        raise InputError(
            f"images of shape {tuple(x.shape[1:])} have no height and width: give the loader "
            "(N, H, W) or (N, C, H, W)"
        )
