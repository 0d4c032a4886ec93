"""DeviceLoader: the whole data set on the device; a batch is an index.

An ordinary DataLoader fetches, converts and collates image by image in Python, which for MNIST
takes longer than training on them. Here the images stay where they are used, as uint8, a quarter
of their float32 size, and a batch is one gather. Usable on its own, in any training loop.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from vaebench.data.images import gather, to_unit
from vaebench.data.streaming import HostImages, fits
from vaebench.errors import InputError, check_count, check_seed, check_switch
from vaebench.system.device import resolve_device


class DeviceLoader:
    """Iterate over a data set that lives on the device, every image exactly once an epoch.

    Like a ``DataLoader`` over a ``TensorDataset``: yields ``x`` when given images alone, and
    ``(x, *others)`` when given further tensors, such as labels.

    Args:
        images: (N, ...) uint8, yielded as float32 in [0, 1], or floating, yielded as they are.
        others: further tensors of length N, yielded beside their images, unconverted.
        batch_size: images per batch.
        shuffle: a new order every epoch.
        drop_last: leave out a short last batch; by default it is kept.
        seed: of the order. Two loaders of one seed give the same order, epoch by epoch.
        device: where everything is kept and yielded; default: where ``images`` is. Images that its
            memory does not hold stay on the host and are streamed; ``data_on`` says which.

    Raises:
        InputError: tensors that cannot be, or sizes that do not fit one another.

    Example:
        >>> loader = DeviceLoader(images, labels, batch_size=128, device="cuda")
        >>> for x, y in loader:
        ...     train(x, y)
    """

    def __init__(
        self,
        images: Tensor,
        *others: Tensor,
        batch_size: int,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
        device: str | torch.device | None = None,
    ) -> None:
        batch_size, seed = check_count("batch_size", batch_size), check_seed("seed", seed)
        check_switch("shuffle", shuffle)
        check_switch("drop_last", drop_last)
        _check_images(images)
        for other in others:
            _check_tensor("a further tensor", other)
            if len(other) != len(images):
                raise InputError(
                    f"{len(images)} images beside a tensor of length {len(other)}: make them as "
                    "long as each other"
                )
        self.device = images.device if device is None else resolve_device(device)
        resident = fits(images, self.device)
        self.data_on = "device" if resident else "host, streamed"
        self.images = images.to(self.device) if resident else images
        self.source = None if resident else HostImages(images, self.device, batch_size)
        self.others = tuple(other.to(self.device) for other in others)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def __len__(self) -> int:
        """Count the batches of an epoch."""
        full, rest = divmod(len(self.images), self.batch_size)
        return full if self.drop_last or not rest else full + 1

    def __iter__(self) -> Iterator[Tensor | tuple[Tensor, ...]]:
        for index, x in self._batches():
            if self.others:
                yield (x, *(other.index_select(0, index) for other in self.others))
            else:
                yield x

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Give an epoch's batches: their indices, and their images as they are yielded."""
        order = self.order()
        if self.drop_last:
            order = order[: len(self) * self.batch_size]
        if self.source is None:
            for index in order.split(self.batch_size):
                yield index, gather(self.images, index)
            return
        indices = iter(order.split(self.batch_size))
        for images, count in self.source.chunks(order):
            for batch in images[:count].split(self.batch_size):
                x = to_unit(batch)
                yield next(indices), x.clone() if x is batch else x  # the buffer is used again

    def order(self) -> Tensor:
        """Draw the next epoch's order: (N,) int64 on the device."""
        n = len(self.images)
        if not self.shuffle:
            return torch.arange(n, device=self.device)
        return torch.randperm(n, generator=self.generator, device=self.device)


def _check_images(images: object) -> None:
    _check_tensor("images", images)
    assert isinstance(images, Tensor)
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise InputError(
            f"images: element type {images.dtype} is not accepted, only uint8 and floats; scale "
            "and convert them"
        )
    if images.numel() == 0:
        raise InputError(f"there are no images in shape {tuple(images.shape)}: give at least one")


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise InputError(
            f"{name}: a {type(value).__name__} is not accepted; give a tensor, for instance "
            "torch.as_tensor(...)"
        )
    if value.layout != torch.strided or value.is_nested or value.is_quantized:
        raise InputError(
            f"{name}: only dense tensors are accepted; use .to_dense() or .dequantize()"
        )
    if value.is_meta:
        raise InputError(f"{name}: a tensor on device 'meta' holds no values; give a real one")
    if value.dim() == 0:
        raise InputError(f"{name}: a tensor without dimensions is not accepted; give (N, ...)")
