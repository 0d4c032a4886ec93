"""The built-in digits: the same bytes every time, shaped like MNIST, cached without harm."""

import hashlib
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import vaebench.data.strokes as strokes
from vaebench.data.strokes import load_strokes, make_strokes
from vaebench.errors import InputError

Pair = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def drawn() -> Pair:
    return make_strokes(2000, seed=0)


def same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_shapes_types_and_range(drawn: Pair) -> None:
    images, labels = drawn
    assert images.shape == (2000, 28, 28)
    assert labels.shape == (2000,)
    assert images.dtype == labels.dtype == torch.uint8
    assert images.is_contiguous()
    assert torch.all(images.amin((1, 2)) == 0)
    assert torch.all(images.amax((1, 2)) > 200)


def test_labels_are_balanced_and_shuffled(drawn: Pair) -> None:
    labels = drawn[1].long()
    assert torch.bincount(labels).tolist() == [200] * 10
    # In a random order a label equals the one before it about one time in ten.
    assert 0.06 < (labels[1:] == labels[:-1]).double().mean().item() < 0.14


def test_seed_decides_every_byte(drawn: Pair) -> None:
    assert same(make_strokes(2000, seed=0), drawn)
    other = make_strokes(2000, seed=1)
    assert not torch.equal(other[0], drawn[0])
    assert not torch.equal(other[1], drawn[1])


@pytest.mark.parametrize("n", [1, 7, strokes.BLOCK, strokes.BLOCK + 1])
def test_fewer_images_are_the_first_ones(drawn: Pair, n: int) -> None:
    assert same(make_strokes(n, seed=0), (drawn[0][:n], drawn[1][:n]))


def test_no_image_twice(drawn: Pair) -> None:
    train, _, test, _ = (*drawn, *map(torch.from_numpy, strokes._draw(2000, 0, strokes.TEST)))
    both = torch.cat([train, test]).flatten(1)
    assert len(torch.unique(both, dim=0)) == 4000


def test_global_generators_untouched() -> None:
    def states() -> tuple[bytes, ...]:
        tensor = torch.get_rng_state()
        return tuple(map(pickle.dumps, (random.getstate(), np.random.get_state(), tensor.tolist())))

    before = states()
    make_strokes(10, seed=12345)
    assert states() == before


def test_thread_count_changes_nothing(drawn: Pair) -> None:
    code = (
        "import hashlib; from vaebench.data.strokes import make_strokes;"
        "print(hashlib.sha256(make_strokes(1000, 0)[0].numpy().tobytes()).hexdigest())"
    )
    here = hashlib.sha256(drawn[0][:1000].numpy().tobytes()).hexdigest()
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **dict.fromkeys(names, "1")},
        cwd=Path(strokes.__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == here


def test_ink_as_mnist(drawn: Pair) -> None:
    """MNIST's training set: mean 0.131, 19.1 % of the pixels not 0, 12 % of them grey."""
    grey = drawn[0].double() / 255
    assert 0.12 < grey.mean().item() < 0.14
    assert 0.18 < (grey > 0).double().mean().item() < 0.20
    assert 0.08 < ((grey > 0) & (grey < 1)).double().mean().item() < 0.14


def test_size_and_place_as_mnist(drawn: Pair) -> None:
    images = drawn[0]
    inked = images > 0
    for axis in (1, 2):
        assert inked.any(axis).sum(1).max() <= 21
    longer = torch.maximum(inked.any(1).sum(1), inked.any(2).sum(1))
    assert longer.min() >= 17
    assert 19 <= longer.double().mean().item() <= 20.5
    mass = images.double() / images.sum((1, 2), dtype=torch.float64)[:, None, None]
    pixel = torch.arange(28, dtype=torch.float64)
    for axis in (1, 2):
        centre = mass.sum(axis) @ pixel
        assert (centre - 14).abs().max().item() < 1.6
        assert abs(centre.mean().item() - 14) < 0.1
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert not corners.any()


def test_lines_vary_in_width(drawn: Pair) -> None:
    """Twice the area over the outline is a line's width; MNIST's is 1.6 to 3.6 pixels (5-95 %)."""
    grey = drawn[0].double() / 255
    across, down = grey.diff(dim=2)[:, 1:], grey.diff(dim=1)[:, :, 1:]
    width = 2 * grey.sum((1, 2)) / torch.hypot(across, down).sum((1, 2))
    low, middle, high = width.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64))
    assert 1.4 < low < 1.9
    assert 2.2 < middle < 2.7
    assert 3.2 < high < 4.2


def test_classes_are_told_apart(drawn: Pair) -> None:
    """Nearest mean of the class; chance is 0.1, and MNIST itself gives 0.8."""
    images, labels = drawn[0].flatten(1).double(), drawn[1].long()
    means = torch.stack([images[:1000][labels[:1000] == k].mean(0) for k in range(10)])
    hit = torch.cdist(images[1000:], means).argmin(1) == labels[1000:]
    assert hit.double().mean().item() > 0.88
    for k in range(10):
        assert hit[labels[1000:] == k].double().mean().item() > 0.6, k


def test_every_template_is_written_and_keeps_its_digit() -> None:
    hand = strokes._hand()
    assert np.all(np.diff(hand.digit) >= 0)
    assert set(hand.digit.tolist()) == set(range(10))
    which = np.concatenate([strokes._choose(np.random.default_rng(i)) for i in range(8)])
    assert set(which.tolist()) == set(range(len(hand.digit)))
    assert np.all(np.bincount(hand.digit[which]) == 8 * strokes.BLOCK // 10)


@pytest.mark.parametrize(("n", "seed"), [(0, 0), (-3, 0), (5, -1)])
def test_bad_input_is_one_clear_line(n: int, seed: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"n={n} and seed={seed}"):
        make_strokes(n, seed)
    for sizes in ((n, 5), (5, n)):
        with pytest.raises(InputError, match=f"seed={seed}$"):
            load_strokes(*sizes, seed=seed, cache_dir=tmp_path)
    assert files(tmp_path) == []


def test_load_gives_make_and_a_test_set_of_its_own(tmp_path: Path) -> None:
    first = load_strokes(30, 20, seed=4, cache_dir=tmp_path)
    assert [tuple(t.shape) for t in first] == [(30, 28, 28), (30,), (20, 28, 28), (20,)]
    assert same(first[:2], make_strokes(30, 4))
    assert not torch.equal(first[0][:20], first[2])
    assert same(load_strokes(10, 20, seed=4, cache_dir=tmp_path)[2:], first[2:])


def test_second_load_reads_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "not" / "yet"
    first = load_strokes(30, 20, cache_dir=folder)
    (file,) = files(folder)  # and no temporary file beside it
    assert file.name == f"strokes-v{strokes.VERSION}-seed0-30+20.npz"
    monkeypatch.delattr(strokes, "_draw")
    second = load_strokes(30, 20, cache_dir=folder)
    assert same(first, second)
    second[0].zero_()  # what is returned may be written to, and the cache stays as it was
    assert same(first, load_strokes(30, 20, cache_dir=folder))


def spoil_by_cutting(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def spoil_one_pixel(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[5000] ^= 255
    file.write_bytes(data)


def spoil_by_emptying(file: Path) -> None:
    file.write_bytes(b"")


def spoil_with_a_plain_array(file: Path) -> None:
    with file.open("wb") as out:
        np.save(out, np.zeros((30, 28, 28), np.uint8))


def spoil_shape(file: Path) -> None:
    np.savez(file, *(np.zeros(30, np.uint8) for _ in range(4)))


def spoil_type(file: Path) -> None:
    shapes = ((30, 28, 28), 30, (20, 28, 28), 20)
    np.savez(file, *(np.zeros(shape, np.int8) for shape in shapes))


def spoil_with_objects(file: Path) -> None:
    np.savez(file, *(np.array([None]) for _ in range(4)))


SPOILERS = (
    spoil_by_cutting,
    spoil_one_pixel,
    spoil_by_emptying,
    spoil_with_a_plain_array,
    spoil_shape,
    spoil_type,
    spoil_with_objects,
)


@pytest.mark.parametrize("spoil", SPOILERS)
def test_damaged_cache_is_remade(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    first = load_strokes(30, 20, cache_dir=tmp_path)
    (file,) = files(tmp_path)
    good = file.read_bytes()
    spoil(file)
    assert same(first, load_strokes(30, 20, cache_dir=tmp_path))
    assert files(tmp_path) == [file]
    assert file.read_bytes() == good


def test_unwritable_cache_folder_is_tolerated(tmp_path: Path) -> None:
    wall = tmp_path / "file"
    wall.write_text("a file where a folder should be")
    assert same(load_strokes(5, 5, cache_dir=wall / "sub")[:2], make_strokes(5, 0))
    assert same(load_strokes(5, 5, cache_dir=wall)[:2], make_strokes(5, 0))


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert same(load_strokes(5, 5, cache_dir=tmp_path)[:2], make_strokes(5, 0))
    assert files(tmp_path) == []


def test_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value, root in (
        (str(tmp_path / "xdg"), tmp_path / "xdg"),
        ("", tmp_path / "home" / ".cache"),
        ("relative", tmp_path / "home" / ".cache"),
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        load_strokes(5, 5)
        assert len(files(root / "vaebench")) == 1
