"""DeviceLoader: the whole data set on the device; a batch is an index.

An ordinary DataLoader fetches, converts and collates image by image in Python, which for MNIST
takes longer than training on them. Here the images stay where they are used, as uint8, a quarter
of their float32 size, and a batch is one gather. Usable on its own, in any training loop.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from vaebench.data.datasets import Source, is_dataset, read
from vaebench.data.images import gather, to_unit
from vaebench.data.streaming import HostImages, fits
from vaebench.data.transforms import RandomTransform
from vaebench.errors import InputError, check_count, check_seed, check_switch
from vaebench.system.device import resolve_device
from vaebench.system.random import AUGMENTATION, random_stream

Transform = Callable[[Tensor], Tensor]
Batch = Tensor | tuple[Tensor, ...]


class DeviceLoader:
    """Iterate over a data set that lives on the device, every image exactly once an epoch.

    Stands in for a ``DataLoader``: yields ``x`` when given images alone, and ``(x, *others)`` when
    given further tensors, such as labels, or a data set whose items are tuples.

    Args:
        images: (N, ...) uint8, yielded as float32 in [0, 1], or floating, yielded as they are;
            a tensor or a NumPy array. Or a data set, of torch's, torchvision's or one's own, which
            is read once, its own transform included: its items are an image, or an image and
            further values. PIL images are yielded as ``ToTensor`` gives them.
        others: further tensors or arrays of length N, yielded beside their images, unconverted.
        batch_size: images per batch.
        shuffle: a new order every epoch.
        drop_last: leave out a short last batch; by default it is kept.
        seed: of the order and of what transforms draw. Two loaders of one seed give the same
            batches, epoch by epoch. None: follow ``torch.manual_seed``; the order is then that
            which a ``DataLoader`` would draw.
        device: where everything is kept and yielded; default: where ``images`` is. Images that its
            memory does not hold stay on the host and are streamed; ``data_on`` says which.
        transform: what is done to the images of each batch, (B, ...) floats on the device; a
            function, or several, one after another. See :mod:`vaebench.data.transforms`.
        generator: draw the order from this instead of ``seed``, as a ``DataLoader`` does.
        as_tuple: yield a tuple even of images alone; default: as the ``DataLoader`` would.

    Raises:
        InputError: tensors that cannot be, sizes that do not fit one another, a data set whose
            items change from one reading to the next.

    Example:
        >>> loader = DeviceLoader(images, labels, batch_size=128, device="cuda")
        >>> for x, y in loader:
        ...     train(x, y)
    """

    def __init__(
        self,
        images: Tensor | npt.NDArray[Any] | Dataset[Any],
        *others: Tensor | npt.NDArray[Any],
        batch_size: int,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int | None = 0,
        device: str | torch.device | None = None,
        transform: Transform | Sequence[Transform] | None = None,
        generator: torch.Generator | None = None,
        as_tuple: bool | None = None,
    ) -> None:
        self.batch_size = check_count("batch_size", batch_size)
        seed = None if seed is None else check_seed("seed", seed)
        check_switch("shuffle", shuffle)
        check_switch("drop_last", drop_last)
        if as_tuple is not None:
            check_switch("as_tuple", as_tuple)
        if generator is not None:
            _check_generator(generator, seed)
        given = is_dataset(images)
        source = read(images) if given else Source((_tensor("images", images),), (), False)
        x, *rest = source.tensors
        rest += [_tensor("a further tensor", other) for other in others]
        _check(x, rest)
        self.dataset: Any = images if given else TensorDataset(x, *rest)
        self.device = x.device if device is None else resolve_device(device)
        resident = fits(x, self.device)
        self.data_on = "device" if resident else "host, streamed"
        self.images = x.to(self.device) if resident else x
        self.source = None if resident else HostImages(x, self.device, self.batch_size)
        self.others = tuple(other.to(self.device) for other in rest)
        self.shuffle, self.drop_last = shuffle, drop_last
        self.as_tuple = bool(source.as_tuple or rest) if as_tuple is None else as_tuple
        if rest and not self.as_tuple:
            raise InputError("as_tuple is False, but there is more to yield than images: drop it")
        self.transforms = (*source.steps, *_steps(transform))
        self.follows_torch = generator is not None or seed is None
        self.generator = generator
        if seed is not None and generator is None:
            self.generator = torch.Generator(self.device).manual_seed(seed)
        self.augmentation = random_stream(seed or 0, AUGMENTATION, self.device)

    def __len__(self) -> int:
        """Count the batches of an epoch."""
        full, rest = divmod(len(self.images), self.batch_size)
        return full if self.drop_last or not rest else full + 1

    def __iter__(self) -> Iterator[Batch]:
        if self.follows_torch:
            # A DataLoader draws this for its workers: so the order after it is the DataLoader's.
            self.augmentation.manual_seed(_draw_seed(self.generator))
        return self._epoch()

    def _epoch(self) -> Iterator[Batch]:
        for index, x in self._batches():
            for transform in self.transforms:
                x = self._transformed(transform, x)
            if self.as_tuple:
                yield (x, *(other.index_select(0, index) for other in self.others))
            else:
                yield x
        if self.follows_torch and self.generator is not None:
            self.order()  # a DataLoader's sampler draws one more at its end, and leaves it

    def _transformed(self, transform: Transform, x: Tensor) -> Tensor:
        if isinstance(transform, RandomTransform):
            return transform(x, self.augmentation)
        out: Any = transform(x)
        if not isinstance(out, Tensor) or out.dim() == 0 or len(out) != len(x):
            what = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise InputError(
                f"transform gave {what} for a batch of shape {tuple(x.shape)}: it must give a "
                "tensor of as many images"
            )
        return out

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
        generator = self.generator
        if generator is None:  # as torch's RandomSampler does
            generator = torch.Generator().manual_seed(_draw_seed(None))
        drawn = torch.randperm(n, generator=generator, device=generator.device)
        return drawn.to(self.device)


def _draw_seed(generator: torch.Generator | None) -> int:
    """Draw a seed from a generator; from torch's default one on the CPU without."""
    device = None if generator is None else generator.device
    return int(torch.empty((), dtype=torch.int64, device=device).random_(generator=generator))


def _check_generator(generator: object, seed: int | None) -> None:
    if not isinstance(generator, torch.Generator):
        raise InputError(f"generator is {generator!r}: it must be a torch.Generator")
    if seed:
        raise InputError(f"seed is {seed}, and a generator is given too: give one of them")


def _check(images: Tensor, others: Sequence[Tensor]) -> None:
    """Raise InputError unless images can be yielded, and others beside them."""
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise InputError(
            f"images: element type {images.dtype} is not accepted, only uint8 and floats; scale "
            "and convert them"
        )
    if images.numel() == 0:
        raise InputError(f"there are no images in shape {tuple(images.shape)}: give at least one")
    for other in others:
        if len(other) != len(images):
            raise InputError(
                f"{len(images)} images beside a tensor of length {len(other)}: make them as long "
                "as each other"
            )


def _tensor(name: str, value: object) -> Tensor:
    """Give a tensor, or an array as one, of at least one dimension; InputError for all else."""
    if isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray):
        if value.dtype.kind not in "buifc":
            raise InputError(f"{name}: an array of {value.dtype} is not accepted; give numbers")
        native = value.dtype.newbyteorder("=")
        value = torch.from_numpy(np.require(value, native, ["C", "A", "W", "E"]))
    if not isinstance(value, Tensor):
        raise InputError(
            f"{name}: a {type(value).__name__} is not accepted; give a tensor or an array, for "
            "instance torch.as_tensor(...)"
        )
    if value.layout != torch.strided or value.is_nested or value.is_quantized:
        raise InputError(
            f"{name}: only dense tensors are accepted; use .to_dense() or .dequantize()"
        )
    if value.is_meta:
        raise InputError(f"{name}: a tensor on device 'meta' holds no values; give a real one")
    if value.dim() == 0:
        raise InputError(f"{name}: a tensor without dimensions is not accepted; give (N, ...)")
    return value


def _steps(transform: object) -> tuple[Transform, ...]:
    """The functions that a transform is made of; InputError for what cannot be one."""
    steps = () if transform is None else transform
    steps = tuple(steps) if isinstance(steps, list | tuple) else (steps,)
    for step in steps:
        if not callable(step):
            raise InputError(f"transform is {step!r}: it must be a function of a batch, or several")
    return tuple(partial(_run_torchvisions, s) if _is_torchvisions(s) else s for s in steps)


def _is_torchvisions(transform: Transform) -> bool:
    parts = transform.modules() if isinstance(transform, nn.Module) else [transform]
    return any(type(part).__module__.startswith("torchvision.transforms.") for part in parts)


def _run_torchvisions(transform: Transform, x: Tensor) -> Any:
    """Run a transform of torchvision's on a batch; InputError if it is made for single images."""
    name = type(transform).__name__
    before = torch.get_rng_state()
    try:
        out = transform(x)
    except TypeError as error:
        raise InputError(
            f"transform {name} takes no batch of scaled floats ({error}): leave it out of the "
            "loader's transform"
        ) from error
    if not torch.equal(before, torch.get_rng_state()):
        raise InputError(
            f"transform {name} is torchvision's, which draws once for a whole batch: use those of "
            "vaebench.data.transforms, which draw for each image"
        )
    return out
