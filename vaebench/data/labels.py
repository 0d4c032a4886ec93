"""Labels beside images: checked once, before a model is given them batch by batch."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vaebench.data.files import Dataset
from vaebench.errors import InputError


def check_labels(
    labels: object, images: int, *, classes: int | None = None, name: str = "labels"
) -> Tensor:
    """Check labels and give them as a tensor.

    Args:
        labels: (N, ...) tensor or NumPy array, one for each image; whole numbers of any type become
            int64, floats float32.
        images: N.
        classes: where the model says how many there are: labels are then (N,), from 0 to
            ``classes - 1``. A model given others may end the process, not just raise an error.
        name: what error messages call them.

    Raises:
        InputError: they are of another type, length or range.
    """
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "buif":
        wide = np.float32 if labels.dtype.kind == "f" else np.int64
        labels = torch.from_numpy(np.ascontiguousarray(labels, wide))
    if not isinstance(labels, Tensor) or labels.is_complex() or labels.layout != torch.strided:
        kind = labels.dtype if isinstance(labels, np.ndarray | Tensor) else type(labels).__name__
        raise InputError(
            f"{name}: {kind} is not accepted; give a tensor or an array of numbers, one an image"
        )
    y = labels.detach()
    y = (y.float() if y.is_floating_point() else y.long()).contiguous()
    if y.dim() == 0 or len(y) != images:
        raise InputError(
            f"{name} are of shape {tuple(y.shape)}, for {images} images: give as many as images"
        )
    if classes is None:
        return y
    if y.dim() != 1 or y.is_floating_point():
        raise InputError(
            f"{name} are {str(labels.dtype).removeprefix('torch.')} of shape {tuple(y.shape)}: a "
            f"model of {classes} classes takes one whole number for each image, (N,)"
        )
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise InputError(
            f"{name} lie between {low} and {high}, and the model has {classes} classes: they must "
            f"be from 0 to {classes - 1}"
        )
    return y


def count_classes(data: Dataset) -> int:
    """How many classes a data set's labels are of: from 0 to the largest there is.

    Raises:
        InputError: it has no labels, or some are below 0.
    """
    largest = 0
    for name, part in (("training", data.train), ("test", data.test)):
        if part.labels is None:
            raise InputError(
                f"--conditional needs a label for each image, and the {name} images of {data.name} "
                "have none: give data with labels, as an .npz with y_train and y_test, or drop it"
            )
        low, high = int(part.labels.min()), int(part.labels.max())
        if low < 0:
            raise InputError(
                f"--conditional takes labels from 0 upwards, and those of the {name} images of "
                f"{data.name} begin at {low}: number the classes from 0"
            )
        largest = max(largest, high)
    return largest + 1


def contents(data: Dataset, *, conditional: bool) -> Iterator[Tensor]:
    """What of a data set a training depends on: its images, and where they count its labels."""
    for part in (data.train, data.test):
        yield part.images
        if conditional and part.labels is not None:
            yield part.labels
