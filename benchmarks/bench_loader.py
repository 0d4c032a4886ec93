"""How fast do batches come: from per-image Python, from a TensorDataset, from the device?

One pass over the images, every batch ready on the device as float32 in [0, 1]; nothing is trained.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.conftest import Measure
from benchmarks.harness import BATCH
from benchmarks.peers.pytorch_examples import make_loader
from vaebench import Dataset, DeviceLoader

COUNT = 10_000  # images: a pass of the slowest takes about a second


def images_to_tensor(images: Tensor, device: torch.device) -> Callable[[], int]:
    """PIL and ToTensor per image, as pytorch/examples has it."""
    loader = make_loader(images, device, shuffle=True)
    return lambda: sum(len(x.to(device)) for x, _ in loader)


def tensor_dataset(images: Tensor, device: torch.device) -> Callable[[], int]:
    """A DataLoader over the array, scaled batch by batch."""
    loader = DataLoader(TensorDataset(images), BATCH, shuffle=True)
    return lambda: sum(len(x.to(device).float() / 255) for (x,) in loader)


def device_loader(images: Tensor, device: torch.device) -> Callable[[], int]:
    """This package's."""
    loader = DeviceLoader(images, batch_size=BATCH, device=device)
    return lambda: sum(len(x) for x in loader)


@pytest.mark.benchmark(group="loader")
@pytest.mark.parametrize("make", [images_to_tensor, tensor_dataset, device_loader])
def test_loader(
    measure: Measure,
    device: torch.device,
    make: Callable[[Tensor, torch.device], Callable[[], int]],
    data: Dataset,
) -> None:
    images = data.train.images[:COUNT]
    count = measure(
        make(images, device), images=len(images), loader=make.__name__, device=device.type
    )
    assert count == len(images)
