"""Files of images, made byte by byte, and what a refusal of one is."""

import gzip
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vaebench.data.files import MNIST_MD5S
from vaebench.errors import InputError

NAMES = list(MNIST_MD5S)
CODES = {"|u1": 0x08, ">f4": 0x0D, ">f8": 0x0E}


def idx(array: Any, code: int | None = None) -> bytes:
    """Return ``array`` as an IDX file's bytes."""
    array = np.asarray(array)
    stored = array if array.dtype == np.uint8 else array.astype(array.dtype.newbyteorder(">"))
    code = CODES[stored.dtype.str] if code is None else code
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return head + bytes(stored.tobytes())


def npy(array: Any) -> bytes:
    """Return ``array`` as a .npy file's bytes."""
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def npz(**arrays: Any) -> bytes:
    """Return ``arrays`` as a .npz file's bytes."""
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def pixels(n: int, shape: tuple[int, ...] = (5, 4), seed: int = 0) -> Any:
    """Return ``n`` random uint8 images."""
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def four_files(n_train: int = 12, n_test: int = 3) -> dict[str, bytes]:
    """Return the contents of a tiny set with MNIST's file names."""
    labels = np.arange(n_train + n_test, dtype=np.uint8) % 10
    arrays = (pixels(n_train), labels[:n_train], pixels(n_test, seed=1), labels[n_train:])
    return {name: idx(array) for name, array in zip(NAMES, arrays, strict=True)}


def put(folder: Path, files: dict[str, bytes], packed: bool = False) -> Path:
    """Write ``files`` into ``folder`` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(content) if packed else content)
    return folder


def refusal(call: Callable[[], object], *words: str) -> str:
    """Return the InputError message of ``call``: one printable line that holds ``words``."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert message.isprintable(), message
    assert len(message) < 1000
    for word in words:
        assert word in message
    return message
