"""Files and folders of data: the images and labels they hold, to train on and to test on."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vaebench.data.arrays import NPY_MAGIC, ZIP_MAGIC, Array, as_images, read_npy, read_npz
from vaebench.data.idx import GZIP_MAGIC, open_file, read_idx, show
from vaebench.errors import InputError

# The four files and the md5 of their unpacked bytes, as published.
MNIST_MD5S = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
NAMES = ", ".join(MNIST_MD5S)
_NPZ_KEYS = "x_train and x_test (y_train and y_test for labels), train and test, or a single array"


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images (N, ...) in a contiguous uint8 or float32 CPU tensor; labels (N,) integers or None."""

    images: torch.Tensor
    labels: torch.Tensor | None = None

    def __len__(self) -> int:
        """Return N, the number of images."""
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images to train on and images to test on, of one shape and element type.

    ``name`` is "mnist", "mnist5k", "strokes" or the name of the user's file or folder; ``notice``
    is one line that the user should see, for instance why strokes stand in for MNIST, or None.
    """

    name: str
    train: ImageSet
    test: ImageSet
    notice: str | None = None


def load_path(data: str) -> Dataset:
    """Load the user's own file or folder."""
    path = Path(data)
    if not data or not os.path.lexists(path):
        raise InputError(
            f"data {show(repr(data), 120)} is neither a keyword nor a file that exists; "
            "accepted are auto, mnist, mnist5k, strokes, or the path of a .npy, .npz or IDX file, "
            f"or of a folder that holds {NAMES}"
        )
    if path.is_dir():
        return _load_folder(path)
    train, test = read_file(path)
    return _dataset(path.name, train, test)


def _load_folder(folder: Path) -> Dataset:
    """Load a folder that holds four files named as MNIST's, directly or in ``*/raw``."""
    candidates = [folder, folder / "raw", *sorted(folder.glob("*/raw"))]
    holding = [candidate for candidate in candidates if find_idx([candidate])]
    if len(holding) != 1:
        found = f"more than one set: {', '.join(map(show, holding))}" if holding else "no set"
        raise InputError(
            f"folder {show(folder)} holds {found}; name a folder that holds {NAMES} (plain or "
            ".gz), directly or in <name>/raw below it"
        )
    paths = find_idx(holding)
    absent = absent_idx(paths)
    if absent:
        raise InputError(incomplete(holding[0], absent, "not downloaded"))
    whole = Path(os.path.abspath(holding[0]))
    name = whole.parent.name if whole.name == "raw" else whole.name
    if name.lower() == "mnist":  # what goes by that name has to be it
        return load_idx("mnist", paths, MNIST_MD5S)
    return load_idx(name, paths, {})


def find_idx(folders: Iterable[Path]) -> dict[str, Path]:
    """Return which of the four files exist, plain or gzipped, each where it is found first."""
    paths = [folder / name for folder in folders for name in MNIST_MD5S]
    found: dict[str, Path] = {}
    for path in paths:
        for candidate in (path, path.with_name(f"{path.name}.gz")):
            if os.path.lexists(candidate):
                found.setdefault(path.name, candidate)
    return found


def absent_idx(found: dict[str, Path]) -> list[str]:
    """Return which of the four files were not found."""
    return [name for name in MNIST_MD5S if name not in found]


def incomplete(folder: Path, absent: list[str], why: str) -> str:
    """Say that ``absent`` are missing from a folder that holds the rest of the four files."""
    return (
        f"{show(folder)} holds a part of the four files; missing: {', '.join(absent)} (plain or "
        f".gz; {show(why)}); put them there too"
    )


def load_idx(name: str, paths: dict[str, Path], md5s: dict[str, str]) -> Dataset:
    """Read the four files; those named in ``md5s`` must have that md5."""

    def part(prefix: str) -> ImageSet:
        images, labels = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
        return _image_set(
            read_idx(paths[images], md5=md5s.get(images)),
            read_idx(paths[labels], md5=md5s.get(labels)),
            paths[images],
        )

    return _dataset(name, part("train"), part("t10k"))


def _image_set(images: object, labels: object, source: object) -> ImageSet:
    """Return checked CPU images and labels; InputErrors name ``source``."""
    name = f"images in {show(source)}"
    checked = as_images(images, name=name).cpu()
    if labels is None:
        return ImageSet(checked)
    array = np.asarray(labels)
    if array.dtype.kind not in "ui" or array.shape != (len(checked),):
        raise InputError(
            f"labels of {name}: {array.dtype} of shape {array.shape} for {len(checked)} images; "
            "give one integer an image, or no labels"
        )
    return ImageSet(checked, torch.from_numpy(array.astype(np.int64)))


def _dataset(name: str, train: ImageSet, test: ImageSet | None) -> Dataset:
    """Join two sets that must fit together; without a test set hold one seventh out."""
    if test is None:
        return _held_out(name, train)
    for what, a, b in (
        ("shape", tuple(train.images.shape[1:]), tuple(test.images.shape[1:])),
        ("element type", train.images.dtype, test.images.dtype),
    ):
        if a != b:
            raise InputError(
                f"{show(name)}: training images have {what} {a}, test images {b}; make them alike"
            )
    return Dataset(name, train, test)


def _held_out(name: str, everything: ImageSet) -> Dataset:
    """Split one set into training and test images, the same way every time."""
    n = len(everything)
    if n < 2:
        raise InputError(f"{show(name)} holds 1 image; at least 2 are needed, one of them to test")
    n_test = max(1, n // 7)
    # RandomState, because NumPy promises that its stream never changes.
    order = torch.from_numpy(np.random.RandomState(0).permutation(n)).long()

    def select(index: torch.Tensor) -> ImageSet:
        labels = everything.labels
        return ImageSet(everything.images[index], None if labels is None else labels[index])

    notice = f"{show(name)} has no test images: {n_test} of its {n}, always the same, are held out"
    return Dataset(
        name, select(order[n_test:].sort().values), select(order[:n_test].sort().values), notice
    )


def read_file(path: Path) -> tuple[ImageSet, ImageSet | None]:
    """Read training and, where there are any, test images from one file.

    What kind of file it is, its first bytes tell, not its name.
    """
    with open_file(path) as stream:
        start = stream.read(len(NPY_MAGIC))
    if start == NPY_MAGIC:
        return _image_set(read_npy(path), None, path), None
    if start.startswith(ZIP_MAGIC):
        return _read_archive(path)
    if start.startswith((GZIP_MAGIC, b"\0\0")):
        return _image_set(read_idx(path), None, path), None
    raise InputError(
        f"{show(path)} is neither .npy, .npz nor IDX: it begins with "
        f"{start.hex(' ') or 'nothing'}; write it with numpy.save(path, images)"
    )


def _read_archive(path: Path) -> tuple[ImageSet, ImageSet | None]:
    """Read the sets of an .npz file."""
    arrays = read_npz(path, lambda names: _wanted(names, path))

    def part(images: str, labels: str) -> ImageSet | None:
        found: Array | None = arrays.get(images)
        return None if found is None else _image_set(found, arrays.get(labels), path)

    for train, test in (("x_train", "x_test"), ("train", "test")):
        if train in arrays:
            first = part(train, "y_train")
            assert first is not None
            return first, part(test, "y_test")
    (only,) = arrays.values()
    return _image_set(only, None, path), None


def _wanted(names: list[str], path: Path) -> list[str]:
    """Return which arrays of an archive hold images and labels."""
    for train, test in (("x_train", "x_test"), ("train", "test")):
        if train in names:
            return [name for name in (train, test, "y_train", "y_test") if name in names]
    if len(names) == 1:
        return names
    raise InputError(
        f"{show(path)} holds {show(', '.join(names), 120) or 'no arrays'}; name them {_NPZ_KEYS}"
    )
