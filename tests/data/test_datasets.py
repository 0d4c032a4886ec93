"""Data sets of torchvision and of others in DeviceLoader: what a DataLoader gives, or a refusal."""

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset
from torchvision import transforms as tv
from torchvision.datasets import MNIST, FakeData, FashionMNIST, VisionDataset
from torchvision.transforms import v2

import vaebench
from tests.data.test_loader import assert_same
from vaebench.data import datasets
from vaebench.data.datasets import read
from vaebench.errors import InputError

N, BATCH = 40, 16


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder in which torchvision finds a tiny MNIST and FashionMNIST."""
    draw = np.random.default_rng(0)
    for name in ("MNIST", "FashionMNIST"):
        raw = tmp_path / name / "raw"
        raw.mkdir(parents=True)
        for part in ("train", "t10k"):
            images = draw.integers(0, 256, (N, 9, 8), dtype=np.uint8)
            labels = draw.integers(0, 10, N, dtype=np.uint8)
            head = struct.pack(">IIII", 0x803, N, 9, 8)
            (raw / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
            head = struct.pack(">II", 0x801, N)
            (raw / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
    return tmp_path


NORMAL = tv.Normalize((0.13,), (0.31,))
# What is done to each image, and whether the tensors that the data set holds can be used as such.
TRANSFORMS: dict[str, tuple[Any, bool]] = {
    "ToTensor": (tv.ToTensor(), True),
    "normalised": (tv.Compose([tv.ToTensor(), NORMAL]), True),
    # Its pixels differ from ToTensor's in their last bit.
    "v2": (v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]), False),
    "v2 unscaled": (v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32)]), False),
    "padded": (tv.Compose([tv.Pad(2), tv.ToTensor()]), False),
    "resized": (tv.Compose([tv.Resize(16), tv.ToTensor(), NORMAL]), False),
    "flat": (tv.Compose([tv.ToTensor(), tv.Lambda(lambda x: x.flatten())]), False),
    "binary": (tv.Compose([tv.ToTensor(), tv.Lambda(lambda x: (x > 0.5).float())]), False),
    "a function": (lambda image: torch.tensor(image.getpixel((3, 2))).float().view(1), False),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("kind", [MNIST, FashionMNIST])
def test_a_transform_on_torchvisions_data_sets_is_honoured(
    kind: type[MNIST], name: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transform, held = TRANSFORMS[name]
    reading: list[Any] = []
    by_item = datasets._read_items

    def noted(data: Any) -> datasets.Source:
        reading.append(data)
        return by_item(data)

    monkeypatch.setattr(datasets, "_read_items", noted)
    data = kind(str(root), transform=transform)
    ours = vaebench.DeviceLoader(data, batch_size=BATCH, shuffle=False)
    assert_same(ours, DataLoader(data, BATCH))
    assert (not reading) == held
    assert ours.dataset is data


def test_without_a_transform_images_come_as_to_tensor_gives_them(root: Path) -> None:
    plain, scaled = MNIST(str(root)), MNIST(str(root), transform=tv.ToTensor())
    ours = vaebench.DeviceLoader(plain, batch_size=BATCH, shuffle=False)
    assert ours.images.dtype == torch.uint8
    assert_same(ours, DataLoader(scaled, BATCH))


def test_a_part_of_a_set_is_taken_from_what_it_holds(root: Path) -> None:
    part = Subset(MNIST(str(root), transform=tv.Compose([tv.ToTensor(), NORMAL])), [9, 0, 3, 3])
    ours = vaebench.DeviceLoader(part, batch_size=BATCH, shuffle=False)
    assert ours.images.dtype == torch.uint8
    assert_same(ours, DataLoader(part, BATCH))


def test_labels_changed_by_the_set_are_honoured(root: Path) -> None:
    data = MNIST(str(root), transform=tv.ToTensor(), target_transform=lambda label: label % 2)
    assert_same(
        vaebench.DeviceLoader(data, batch_size=BATCH, shuffle=False), DataLoader(data, BATCH)
    )


class Inverted(MNIST):  # type: ignore[misc]
    """Gives other images than it holds."""

    def __getitem__(self, i: int) -> Any:
        image, label = super().__getitem__(i)
        return 1 - image, label


Inverted.__module__ = MNIST.__module__  # as a version of torchvision might


def test_what_a_set_holds_is_compared_with_what_it_gives(root: Path) -> None:
    (root / "Inverted").symlink_to(root / "MNIST")
    data = Inverted(str(root), transform=tv.ToTensor())
    assert_same(
        vaebench.DeviceLoader(data, batch_size=BATCH, shuffle=False), DataLoader(data, BATCH)
    )


class Colours(VisionDataset):  # type: ignore[misc]
    """Holds what CIFAR10 holds."""

    def __init__(self, transform: Any) -> None:
        super().__init__("", transform=transform)
        self.data = np.random.default_rng(0).integers(0, 256, (N, 6, 7, 3), dtype=np.uint8)
        self.targets = [i % 10 for i in range(N)]

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        image = Image.fromarray(self.data[i])
        return self.transform(image) if self.transform else image, self.targets[i]


@pytest.mark.parametrize("module", ["torchvision.datasets.cifar", "elsewhere"])
def test_colours(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Colours, "__module__", module)
    data, plain = Colours(tv.ToTensor()), Colours(None)
    for given in (data, plain):
        ours = vaebench.DeviceLoader(given, batch_size=BATCH, shuffle=False)
        assert_same(ours, DataLoader(data, BATCH))
    assert ours.images.dtype == torch.uint8
    assert ours.images.shape == (N, 3, 6, 7)


class Items(Dataset[Any]):
    """Whatever a function gives for an index."""

    def __init__(self, give: Callable[[int], Any], count: int = N) -> None:
        self.give, self.count = give, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        if i >= self.count:
            raise IndexError(i)
        return self.give(i)


def test_items_of_every_kind_that_a_data_loader_makes_tensors_of() -> None:
    gives: list[Callable[[int], Any]] = [
        lambda i: torch.full((3, 2), float(i)),
        lambda i: [np.full((3, 2), i / 7), i],
        lambda i: (np.full((3, 2), i / 7, np.float32), np.int32(i), i / 3, i > 5),
        lambda i: (torch.full((2,), float(i)), torch.arange(i, i + 3), torch.tensor(i)),
    ]
    for give in gives:
        data = Items(give)
        ours = vaebench.DeviceLoader(data, batch_size=BATCH, shuffle=False)
        assert_same(ours, DataLoader(data, BATCH))


generator = np.random.default_rng(0)
DRAWING: dict[str, Callable[[Tensor], Any]] = {
    "torch": lambda x: torch.bernoulli(x),
    "torchvision": lambda x: tv.RandomErasing(p=0.001)(x.view(1, 4, 4)),
    "random": lambda x: x * random.random(),
    "numpy": lambda x: x * np.random.rand(),
    "a generator of its own": lambda x: x * generator.random(),
}


@pytest.mark.parametrize("name", DRAWING)
def test_a_set_that_draws_is_refused_and_not_frozen(name: str) -> None:
    x = torch.rand(N, 16)
    torch.manual_seed(0)
    before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    with pytest.raises(InputError, match="draws random numbers for its items") as caught:
        vaebench.DeviceLoader(Items(lambda i: (DRAWING[name](x[i]), i)), batch_size=BATCH)
    assert "data set Items" in str(caught.value)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (random.getstate(), repr(np.random.get_state())) == before[1:]


@pytest.mark.parametrize("name", ["torch", "torchvision", "random", "numpy"])
def test_a_set_that_draws_for_a_late_item_only_is_refused(name: str) -> None:
    x = torch.zeros(16)
    data = Items(lambda i: DRAWING[name](x).view(16) if i == N - 1 else x)
    with pytest.raises(InputError, match="draws random numbers"):
        read(data)


def test_fake_data_seeds_itself_and_is_told_so() -> None:
    """FakeData draws each image from torch's generator, which it sets and puts back."""
    data = FakeData(N, (1, 5, 5), transform=tv.ToTensor())
    assert_same(
        vaebench.DeviceLoader(data, batch_size=BATCH, shuffle=False), DataLoader(data, BATCH)
    )


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield torch.zeros(3)


REFUSED: dict[str, tuple[Any, str]] = {
    "endless": (Endless(), "has no length and items"),
    "empty": (Items(lambda i: torch.zeros(3), 0), "no images in the data set Items"),
    "a dict": (Items(lambda i: {"image": torch.zeros(3)}), "holds a dict"),
    "text": (Items(lambda i: (torch.zeros(3), "seven")), "holds a str"),
    "nothing": (Items(lambda i: (torch.zeros(3), None)), "holds a NoneType"),
    "nested": (Items(lambda i: (torch.zeros(3), (1, 2))), "holds a tuple"),
    "ragged": (Items(lambda i: torch.zeros(3 + i // 9)), r"item 9 .* is float32 \(4,\).*alike"),
    "mixed": (Items(lambda i: (torch.zeros(2), i if i < 7 else 0.5)), "item 7"),
    "counted": (Items(lambda i: torch.zeros(3).long()), "only uint8 and floats"),
    "lists": ([(torch.zeros(3), 1)], "a list is not accepted"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_said(name: str) -> None:
    data, said = REFUSED[name]
    with pytest.raises(InputError, match=said) as caught:
        vaebench.DeviceLoader(data, batch_size=BATCH)
    assert str(caught.value).isprintable()
