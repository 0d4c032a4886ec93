"""DeviceLoader in the place of a DataLoader: the same batches, in the same order, from anything."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, StackDataset, Subset, TensorDataset, random_split
from torchvision import transforms as tv

import vaebench
from vaebench.data import loader as loader_module
from vaebench.data.images import gather, to_unit
from vaebench.data.loader import DeviceLoader
from vaebench.data.transforms import Binarize, PadTo, RandomCrop, RandomHorizontalFlip
from vaebench.errors import InputError

N, BATCH = 50, 16


@pytest.fixture
def x() -> Tensor:
    return torch.rand(N, 1, 6, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def y() -> Tensor:
    return torch.arange(N) % 10


def all_of(loader: vaebench.DeviceLoader) -> Tensor:
    """An epoch of a loader of images alone."""
    return torch.cat([batch for batch in loader if isinstance(batch, Tensor)])


def assert_same(ours: Any, theirs: Any, epochs: int = 2) -> None:
    """Both give the same batches, in values and types, epoch after epoch."""
    for _ in range(epochs):
        mine, right = list(ours), list(theirs)
        assert len(mine) == len(right) == len(ours) == len(theirs)
        for a, b in zip(mine, right, strict=True):
            assert isinstance(a, tuple) == isinstance(b, list)
            for p, q in zip(*((a, b) if isinstance(b, list) else ([a], [b])), strict=True):
                assert p.dtype == q.dtype
                assert torch.equal(p, q)


@pytest.mark.parametrize("words", [{}, {"drop_last": True}, {"shuffle": False}], ids=str)
@pytest.mark.parametrize("by", ["torch.manual_seed", "generator"])
def test_batches_are_the_data_loaders(x: Tensor, y: Tensor, words: Any, by: str) -> None:
    """Order, short last batch and what is drawn from torch's generator are all the same."""
    data, found = TensorDataset(x, y), []
    for kind in (vaebench.DeviceLoader, DataLoader):
        torch.manual_seed(3)
        own: Any = {"seed": None} if kind is vaebench.DeviceLoader else {"shuffle": True}
        if by == "generator":
            own = {"generator": torch.Generator().manual_seed(7), "shuffle": True}
        loader: Any = kind(data, batch_size=BATCH, **{**own, **words})
        batches = [b for _ in range(2) for b in loader]
        # Two at once, each of which draws in its turn.
        pairs = [part for two in zip(loader, loader, strict=True) for part in two]
        found.append(([t for b in (*batches, *pairs) for t in b], torch.rand(3)))
    (ours, drawn), (theirs, right) = found
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert torch.equal(drawn, right)


def test_todays_arguments_give_todays_batches(y: Tensor) -> None:
    """Written down from 0.1.0: the order of seeds 0 and 4, two epochs."""
    for seed, first in ((0, ORDER_0), (4, ORDER_4)):
        loader = vaebench.DeviceLoader(y[:10].float(), y[:10], batch_size=5, seed=seed)
        order = [n for _ in range(2) for _, label in loader for n in label.tolist()]
        assert order == first


ORDER_0 = [4, 1, 7, 5, 3, 9, 0, 8, 6, 2, 3, 9, 4, 2, 7, 8, 6, 0, 5, 1]
ORDER_4 = [0, 4, 9, 6, 7, 3, 2, 8, 1, 5, 1, 5, 6, 8, 0, 4, 9, 2, 7, 3]


def test_len_and_the_other_attributes_that_loops_read(x: Tensor, y: Tensor) -> None:
    data = TensorDataset(x, y)
    for given in ((x, y), (data,), (x.numpy(), y.numpy())):
        loader = vaebench.DeviceLoader(*given, batch_size=BATCH, drop_last=True)
        assert (len(loader.dataset), loader.batch_size, loader.drop_last) == (N, BATCH, True)
        image, label = loader.dataset[3]
        assert torch.equal(image, x[3])
        assert label == y[3]
    assert vaebench.DeviceLoader(data, batch_size=BATCH).dataset is data


@pytest.mark.parametrize("kind", ["uint8", "float32", "float64", ">f4", "reversed", "read-only"])
def test_numpy_arrays(x: Tensor, kind: str) -> None:
    array = (x * 255).byte().numpy() if kind == "uint8" else x.numpy()
    if kind not in ("uint8", "reversed", "read-only"):
        array = array.astype(kind)
    if kind == "reversed":
        array = array[::-1]
    if kind == "read-only":
        array.flags.writeable = False
    got = all_of(vaebench.DeviceLoader(array, batch_size=BATCH, shuffle=False))
    want = array / np.float32(255) if kind == "uint8" else array
    assert got.dtype == (torch.float64 if kind == "float64" else torch.float32)
    np.testing.assert_array_equal(got.numpy(), want)


@pytest.mark.parametrize(
    "dtype", [np.int64, np.int32, np.uint8, np.int16, np.float64, np.bool_, ">i4"]
)
def test_labels_keep_their_type(x: Tensor, dtype: Any) -> None:
    labels = (np.arange(N) % 2).astype(dtype)
    for given in (labels, torch.from_numpy(labels.astype(labels.dtype.newbyteorder("=")))):
        loader = vaebench.DeviceLoader(x, given, batch_size=BATCH, shuffle=False)
        got = torch.cat([label for _, label in loader])
        assert got.numpy().dtype == np.dtype(dtype).newbyteorder("=")
        np.testing.assert_array_equal(got.numpy(), labels)


def test_tuples(x: Tensor, y: Tensor) -> None:
    def first(*given: Any, **words: Any) -> Any:
        return next(iter(vaebench.DeviceLoader(*given, batch_size=BATCH, **words)))

    assert isinstance(first(x), Tensor)
    assert isinstance(first(x, as_tuple=True), tuple)
    assert len(first(x, as_tuple=True)) == 1
    assert len(first(x, y)) == len(first(x, y, as_tuple=True)) == 2
    assert len(first(TensorDataset(x))) == 1  # as a DataLoader gives [x]
    assert isinstance(first(TensorDataset(x), as_tuple=False), Tensor)
    assert len(first(TensorDataset(x, y), torch.arange(N))) == 3
    with pytest.raises(InputError, match="as_tuple is False"):
        first(x, y, as_tuple=False)


def test_subsets(x: Tensor, y: Tensor) -> None:
    part, _ = random_split(TensorDataset(x, y), [30, 20], torch.Generator().manual_seed(1))
    twice = Subset(part, range(3, 20))
    for data in (part, twice):
        ours = vaebench.DeviceLoader(data, batch_size=BATCH, shuffle=False)
        assert_same(ours, DataLoader(data, BATCH))


class Halved:
    """Not of torch's class: a length and items, as a list of files has."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return self.x[i] / 2, int(i), float(i) / 3, {"n": i}["n"] > 2


def test_a_data_set_of_ones_own_is_read_once(x: Tensor, y: Tensor) -> None:
    ours = vaebench.DeviceLoader(Halved(x), batch_size=BATCH, shuffle=False)  # type: ignore[arg-type]
    assert_same(ours, DataLoader(Halved(x), BATCH))  # type: ignore[arg-type]
    stacked: Any = StackDataset(x, y)  # type: ignore[arg-type]
    assert_same(
        vaebench.DeviceLoader(stacked, batch_size=BATCH, shuffle=False), DataLoader(stacked, BATCH)
    )


def test_transform_is_run_on_whole_batches_on_the_device(
    x: Tensor, y: Tensor, device: torch.device
) -> None:
    seen: list[tuple[torch.Size, torch.device]] = []

    def double(batch: Tensor) -> Tensor:
        seen.append((batch.shape, batch.device))
        return 2 * batch

    pixels = (x * 255).byte()
    transforms: list[Any] = [double, [double, PadTo(8)], Twice()]
    for transform in transforms:
        loader = vaebench.DeviceLoader(
            pixels, y, batch_size=BATCH, shuffle=False, device=device, transform=transform
        )
        got = torch.cat([batch for batch, _ in loader]).cpu()
        want = 2 * (pixels.to(device).float() / 255).cpu()
        assert torch.equal(got, PadTo(8)(want) if isinstance(transform, list) else want)
    assert [shape[0] for shape, _ in seen] == [16, 16, 16, 2] * 2
    assert {where.type for _, where in seen} == {device.type}


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_a_transform_that_works_in_place_leaves_the_data_alone(x: Tensor) -> None:
    kept = x.clone()
    loader = vaebench.DeviceLoader(x, batch_size=BATCH, transform=lambda batch: batch.mul_(0))
    assert not all_of(loader).any()
    assert torch.equal(x, kept)


def test_what_transforms_draw_follows_the_seed(x: Tensor, device: torch.device) -> None:
    def epochs(**words: Any) -> Tensor:
        loader = vaebench.DeviceLoader(
            x, batch_size=BATCH, device=device, shuffle=False,
            transform=[RandomCrop(4, 1), RandomHorizontalFlip(), Binarize()], **words,
        )  # fmt: skip
        return torch.stack([all_of(loader) for _ in range(2)])

    a = epochs(seed=3)
    assert torch.equal(a, epochs(seed=3))
    assert not torch.equal(a, epochs(seed=4))
    assert not torch.equal(a[0], a[1])
    torch.manual_seed(3)
    b = epochs(seed=None)
    assert not torch.equal(b, epochs(seed=None))
    torch.manual_seed(3)
    assert torch.equal(b, epochs(seed=None))
    c, d, e = (epochs(generator=torch.Generator().manual_seed(n)) for n in (1, 1, 2))
    assert torch.equal(c, d)
    assert not torch.equal(c, e)


def test_transforms_do_not_change_the_order(x: Tensor, y: Tensor) -> None:
    plain = vaebench.DeviceLoader(x, y, batch_size=BATCH, seed=2)
    cropped = vaebench.DeviceLoader(x, y, batch_size=BATCH, seed=2, transform=RandomCrop(4))
    for _ in range(2):
        labels = [torch.cat([label for _, label in loader]) for loader in (plain, cropped)]
        assert torch.equal(*labels)


@pytest.mark.parametrize("floats", [True, False])
def test_streamed_with_labels_and_transform(
    x: Tensor, y: Tensor, floats: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = x if floats else (x * 255).byte()
    words: dict[str, Any] = {"batch_size": BATCH, "seed": None, "transform": RandomCrop(4, 1)}

    def batches() -> list[Tensor]:
        torch.manual_seed(0)
        loader = vaebench.DeviceLoader(TensorDataset(images, y), **words)
        return [t for _ in range(2) for batch in loader for t in batch]

    resident = batches()
    monkeypatch.setattr(loader_module, "fits", lambda images, device: False)
    streamed = batches()
    assert all(torch.equal(a, b) for a, b in zip(streamed, resident, strict=True))


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        (lambda x: x[:1], "of as many images"),
        (lambda x: None, "gave NoneType"),
        (lambda x: x.sum(), r"gave shape \(\)"),
        (tv.ToTensor(), "ToTensor takes no batch of scaled floats"),
        (tv.RandomCrop(4), "draws once for a whole batch"),
        (nn.Sequential(tv.RandomHorizontalFlip(0.01)), "draws once for a whole batch"),
        (tv.Compose([tv.CenterCrop(4), tv.RandomRotation(5)]), "draws once for a whole batch"),
        (PadTo(4), "cannot be padded to 4x4"),
        (RandomCrop(9), "cannot be cropped to 9x9"),
    ],
)
def test_transforms_that_cannot_be(x: Tensor, transform: Any, said: str) -> None:
    loader = vaebench.DeviceLoader(x, batch_size=BATCH, transform=transform)
    with pytest.raises(InputError, match=said) as caught:
        list(loader)
    assert "\n" not in str(caught.value)


def test_torchvisions_transforms_that_draw_nothing_are_run(x: Tensor) -> None:
    loader = vaebench.DeviceLoader(
        x, batch_size=BATCH, shuffle=False, transform=[tv.CenterCrop(4), tv.Normalize(0.5, 2.0)]
    )
    want = torch.stack([tv.Normalize(0.5, 2.0)(tv.CenterCrop(4)(image)) for image in x])
    assert torch.equal(all_of(loader), want)


def test_loader_gives_every_image_once_with_its_label(
    strokes: Tensor, device: torch.device
) -> None:
    index = torch.arange(len(strokes))
    loader = DeviceLoader(strokes, index, batch_size=64, device=device)
    batches = list(loader)
    assert len(loader) == len(batches) == 16
    assert [len(x) for x, _ in batches] == [64] * 15 + [40]
    seen = torch.cat([i for _, i in batches]).cpu()
    assert not torch.equal(seen, index)
    assert torch.equal(seen.sort().values, index)
    for x, i in batches:
        assert x.device == loader.images.device
        torch.testing.assert_close(x.cpu(), strokes[i.cpu()].float() / 255)


def test_loader_orders(strokes: Tensor) -> None:
    first = DeviceLoader(strokes, seed=4, batch_size=64)
    again = DeviceLoader(strokes, seed=4, batch_size=64)
    orders = [first.order(), first.order()]
    assert not torch.equal(*orders)
    assert torch.equal(again.order(), orders[0])
    assert torch.equal(again.order(), orders[1])
    plain = DeviceLoader(strokes, shuffle=False, drop_last=True, batch_size=64)
    assert torch.equal(torch.cat(list(plain)), to_unit(strokes[: 15 * 64]))  # type: ignore[arg-type]


def test_gather_passes_floats_as_they_are() -> None:
    images = torch.randn(5, 3)
    assert torch.equal(gather(images, torch.tensor([4, 0])), images[[4, 0]])


@pytest.mark.parametrize(
    ("count", "others", "batch_size", "said"),
    [(4, (), 0, "batch_size is 0"), (0, (), 2, "no images"), (4, (torch.zeros(3),), 2, "length 3")],
)
def test_loader_refuses(count: int, others: tuple[Tensor, ...], batch_size: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        DeviceLoader(torch.zeros(count, 2), *others, batch_size=batch_size)
