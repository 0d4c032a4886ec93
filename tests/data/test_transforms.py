"""Transforms of whole batches: exactly torchvision's of each image, or with its distribution."""

from collections import Counter
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from vaebench.data.transforms import Binarize, PadTo, RandomCrop, RandomHorizontalFlip, Resize
from vaebench.errors import InputError


def _images(count: int, *shape: int) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


SHAPES = [(28, 28), (1, 28, 28), (3, 27, 20)]


@pytest.mark.parametrize("shape", SHAPES)
def test_padding_is_torchvisions(shape: tuple[int, ...], device: torch.device) -> None:
    x = _images(5, *shape).to(device)
    got = PadTo(32, fill=0.25)(x)
    height, width = shape[-2:]
    left, top = (32 - width) // 2, (32 - height) // 2
    margins = [left, top, 32 - width - left, 32 - height - top]
    assert torch.equal(got, tvf.pad(x, margins, fill=0.25))
    assert torch.equal(PadTo(shape[-2:])(x), x)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [32, 14, (40, 20)])
@pytest.mark.parametrize("shape", SHAPES)
def test_resizing_is_torchvisions(
    shape: tuple[int, ...], size: int | tuple[int, int], device: torch.device
) -> None:
    x = _images(5, *shape).to(device)
    both = [size, size] if isinstance(size, int) else list(size)
    wanted = torch.stack([tvf.resize(i.unsqueeze(0) if i.dim() == 2 else i, both) for i in x])
    torch.testing.assert_close(Resize(size)(x), wanted.view(Resize(size)(x).shape))


def _chi_square(seen: list[Any], kinds: list[Any]) -> float:
    """How far the counts are from equal ones, in standard deviations of a chi-square; about."""
    counts, expected = Counter(seen), len(seen) / len(kinds)
    assert set(counts) <= set(kinds)
    square = sum((counts[kind] - expected) ** 2 / expected for kind in kinds)
    return float((square - len(kinds) + 1) / (2 * (len(kinds) - 1)) ** 0.5)


def _where(cut: Tensor, padded: Tensor) -> tuple[int, int]:
    """Where a crop lies in a padded image, all of whose pixels are different, by torchvision."""
    height, width = cut.shape[-2:]
    tops, lefts = padded.shape[-2] - height + 1, padded.shape[-1] - width + 1
    found = [
        (top, left)
        for top, left in product(range(tops), range(lefts))
        if torch.equal(tvf.crop(padded, top, left, height, width), cut)
    ]
    (place,) = found
    return place


@pytest.mark.parametrize("shape", [(6, 5), (2, 6, 5)])
def test_crops_are_torchvisions_at_places_equally_likely(
    shape: tuple[int, ...], device: torch.device
) -> None:
    x, generator = _images(900, *shape), torch.Generator(device).manual_seed(0)
    cuts = RandomCrop((6, 4), padding=1)(x.to(device), generator).cpu()
    assert cuts.is_contiguous()
    padded = tvf.pad(x, [1])
    places = [_where(cut, whole) for cut, whole in zip(cuts, padded, strict=True)]
    assert _chi_square(places, list(product(range(3), range(4)))) < 4
    theirs = v2.RandomCrop((6, 4), padding=1)
    torch.manual_seed(0)
    drawn = (theirs(image.unsqueeze(0)).squeeze(0) for image in x)
    right = {_where(cut, whole) for cut, whole in zip(drawn, padded, strict=True)}
    assert right == set(places)


def test_flips_are_torchvisions_with_its_probability(device: torch.device) -> None:
    x, generator = _images(2000, 3, 4, 5), torch.Generator(device).manual_seed(0)
    for p in (0.0, 0.3, 1.0):
        got = RandomHorizontalFlip(p)(x.to(device), generator).cpu()
        flipped = tvf.horizontal_flip(x)
        is_flipped = (got == flipped).flatten(1).all(1)
        assert torch.equal(got[~is_flipped], x[~is_flipped])
        assert abs(is_flipped.double().mean() - p) <= 4 * (p * (1 - p) / len(x)) ** 0.5


def test_binarising_draws_each_pixel_with_its_probability(device: torch.device) -> None:
    p = torch.linspace(0, 1, 11)
    x = p.expand(40_000, 11).to(device)
    drawn = Binarize()(x, torch.Generator(device).manual_seed(0)).cpu()
    assert set(drawn.unique().tolist()) == {0, 1}
    bar = 4.5 * (p * (1 - p) / len(x)).sqrt()
    assert ((drawn.mean(0) - p).abs() <= bar).all()
    assert not torch.equal(Binarize()(x), Binarize()(x))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PadTo(0), "size is"),
        (lambda: Resize((3, 4, 5)), "one number, or two"),  # type: ignore[arg-type]
        (lambda: Resize("big"), "size is"),  # type: ignore[arg-type]
        (lambda: RandomCrop(4, padding=-1), "padding is -1"),
        (lambda: RandomHorizontalFlip(1.5), "p is 1.5"),
        (lambda: RandomHorizontalFlip(-1), "p is -1"),
        (lambda: PadTo(32)(torch.zeros(3, 784)), "have no height and width"),
        (lambda: RandomHorizontalFlip()(torch.zeros(3, 784)), "have no height and width"),
    ],
)
def test_what_cannot_be(make: Callable[[], object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()
