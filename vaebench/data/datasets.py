"""Other people's data sets as tensors: read once, so that a batch is an index from then on.

What a data set draws at random for every item cannot be read once; it is refused, not frozen.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, Subset, TensorDataset, default_collate

from vaebench.errors import InputError

# Items read twice to see whether they are the same again.
TRIED = 8


class Source(NamedTuple):
    """A data set's items: ``tensors`` of one length, images first.

    ``steps`` are still to be done to each batch of images, scaled. ``as_tuple`` says that an item
    is a sequence, if of one thing only.
    """

    tensors: tuple[Tensor, ...]
    steps: tuple[Callable[[Tensor], Tensor], ...]
    as_tuple: bool


def is_dataset(value: object) -> bool:
    """Whether something is a data set, or behaves as one: it has a length and items."""
    if isinstance(value, Tensor | np.ndarray | list | tuple | str | bytes | Mapping):
        return False
    return hasattr(value, "__getitem__")


def read(dataset: Any) -> Source:
    """Read all items of a data set.

    Args:
        dataset: its items are an image, or a sequence of an image and further values. Images may
            be PIL's, taken as (C, H, W) uint8; what a `DataLoader` makes tensors of is taken so.

    Raises:
        InputError: it has no length, no items, items of other kinds, unlike shapes, or items that
            are different each time they are read.
    """
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise InputError(
            f"{_name(dataset)} has no length and items: give a data set that has both, or tensors"
        )
    if len(dataset) == 0:
        raise InputError(f"there are no images in {_name(dataset)}: give at least one")
    if type(dataset) is TensorDataset:
        return Source(dataset.tensors, (), as_tuple=True)
    if type(dataset) is Subset:
        whole, index = read(dataset.dataset), torch.as_tensor(dataset.indices)
        return whole._replace(tensors=tuple(t[index.to(t.device)] for t in whole.tensors))
    return _held(dataset) or _read_items(dataset)


def _held(dataset: Any) -> Source | None:
    """Take the tensors that a data set of torchvision's holds, if its items are made of them.

    So 60,000 images are there at once, as uint8, where reading them by item takes seconds. None if
    the data set does something else, to be read by item.
    """
    if not type(dataset).__module__.startswith("torchvision.datasets."):
        return None
    data = getattr(dataset, "data", None)
    labels = getattr(dataset, "targets", getattr(dataset, "labels", None))
    steps = _batched_steps(getattr(dataset, "transform", None))
    arrays = isinstance(data, Tensor | np.ndarray) and isinstance(
        labels, Tensor | np.ndarray | list
    )
    if not arrays or steps is None:
        return None
    images, labels = torch.as_tensor(data), torch.as_tensor(labels)
    if images.dtype != torch.uint8 or images.dim() not in (3, 4) or len(images) != len(labels):
        return None
    if images.dim() == 3:
        images = images.unsqueeze(1)
    elif images.shape[1] not in (1, 3):  # as PIL has them
        images = images.movedim(-1, 1).contiguous()
    for i in {0, len(images) // 2, len(images) - 1}:
        image, *others = _item(dataset, i)[0]
        mine = images[i] if image.dtype == torch.uint8 else images[i].float() / 255
        for step in steps if image.dtype != torch.uint8 else ():
            mine = step(mine)
        if len(others) != 1 or not _same(mine, image) or not _same(labels[i], others[0]):
            return None
    return Source((images, labels), steps, as_tuple=True)


def _batched_steps(transform: Any) -> tuple[Callable[[Tensor], Tensor], ...] | None:
    """What follows ToTensor, if it can be done to a batch as to one image; None if not."""
    if transform is None:
        return ()
    steps = transform.transforms if _is(transform, "Compose") else [transform]
    if steps and _is(steps[0], "ToTensor") and all(_is(step, "Normalize") for step in steps[1:]):
        return tuple(steps[1:])
    return None


def _is(step: object, name: str) -> bool:
    """Whether a transform is torchvision's of this name; torchvision is not loaded for it."""
    kind = type(step)
    return kind.__name__ == name and kind.__module__.startswith("torchvision.transforms.")


def _read_items(dataset: Any) -> Source:
    """Read the items one by one."""
    count = len(dataset)
    with _nothing_drawn(dataset):
        first, as_tuple = _item(dataset, 0)
        for i in range(min(TRIED, count)):
            if not all(map(_same, _item(dataset, i)[0], _item(dataset, i)[0])):
                raise _changing(dataset)
    tensors = tuple(torch.empty((count, *t.shape), dtype=t.dtype) for t in first)
    with _nothing_drawn(dataset):
        for i in range(count):
            item = _item(dataset, i)[0]
            if [(t.shape, t.dtype) for t in item] != [(t.shape, t.dtype) for t in first]:
                raise InputError(
                    f"item {i} of {_name(dataset)} is {_shapes(item)}, and the first "
                    f"{_shapes(first)}: make them alike"
                )
            for column, value in zip(tensors, item, strict=True):
                column[i] = value
    return Source(tensors, (), as_tuple)


def _item(dataset: Any, i: int) -> tuple[list[Tensor], bool]:
    """Item i as tensors, and whether it was a sequence."""
    item = dataset[i]
    as_tuple = isinstance(item, tuple | list)
    return [_value(dataset, value) for value in (item if as_tuple else [item])], as_tuple


def _value(dataset: Any, value: Any) -> Tensor:
    """Make of one value what a DataLoader's batches would hold; of a PIL image (C, H, W) uint8."""
    if hasattr(value, "__array_interface__") and not isinstance(value, np.ndarray | np.generic):
        array = np.array(value)
        value = torch.from_numpy(array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0))
    try:
        batch = default_collate([value])
    except TypeError as error:
        raise _strange(dataset, value) from error
    if not isinstance(batch, Tensor):
        raise _strange(dataset, value)
    return batch[0].as_subclass(Tensor)


def _strange(dataset: Any, value: Any) -> InputError:
    return InputError(
        f"an item of {_name(dataset)} holds a {type(value).__name__}: only images, or an image and "
        "further numbers or tensors, are accepted; give those as tensors"
    )


def _same(a: Tensor, b: Tensor) -> bool:
    alike = a.shape == b.shape and a.dtype == b.dtype
    return alike and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


@contextmanager
def _nothing_drawn(dataset: Any) -> Iterator[None]:
    """Raise InputError, and put the states back, if the block draws random numbers."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        after = torch.get_rng_state(), random.getstate(), np.random.get_state()
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])
    same_numpy = all(map(np.array_equal, before[2], after[2]))
    if not torch.equal(before[0], after[0]) or before[1] != after[1] or not same_numpy:
        raise _changing(dataset)


def _changing(dataset: Any) -> InputError:
    return InputError(
        f"{_name(dataset)} draws random numbers for its items, which are read only once here: take "
        "that out of its transform, and give the loader a transform, as those of "
        "vaebench.data.transforms"
    )


def _shapes(item: list[Tensor]) -> str:
    return ", ".join(f"{t.dtype} {tuple(t.shape)}".removeprefix("torch.") for t in item)


def _name(dataset: object) -> str:
    return f"the data set {type(dataset).__name__}"
