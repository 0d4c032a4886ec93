"""Data: every layout that is accepted, and one clear line for everything that is not."""

import gzip
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vaebench.data import load as data_module
from vaebench.data.arrays import read_npy
from vaebench.data.download import DownloadError
from vaebench.data.files import MNIST_MD5S
from vaebench.data.load import as_images, load_dataset, load_mnist, read_idx, read_images
from vaebench.errors import InputError

NAMES = list(MNIST_MD5S)
REAL = os.environ.get("VAEBENCH_DATA")
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


def header(descr: str, shape: object, body: bytes = b"", version: int = 1) -> bytes:
    """Return a .npy file with a header of one's own."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + body


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


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep every test away from the network, the environment and the repository's ``data``."""

    def offline(root: Path, md5s: object) -> None:
        raise DownloadError("no network")

    monkeypatch.setattr(data_module, "fetch_mnist", offline)
    monkeypatch.delenv("VAEBENCH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Return a tiny set that passes for MNIST."""
    files = four_files()
    for name, content in files.items():
        monkeypatch.setitem(MNIST_MD5S, name, md5(content).hexdigest())
    return files


@pytest.fixture
def small_strokes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the built-in digits a handful."""

    def load() -> tuple[torch.Tensor, ...]:
        images, labels = torch.zeros(4, 28, 28, dtype=torch.uint8), torch.arange(4)
        return images, labels, images[:2], labels[:2]

    monkeypatch.setattr("vaebench.data.strokes.load_strokes", load)


# MNIST on disk


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("layout", ["MNIST/raw", "."])
def test_mnist_layouts(tmp_path: Path, tiny: dict[str, bytes], layout: str, packed: bool) -> None:
    put(tmp_path / "root" / layout, tiny, packed)
    found = load_mnist("root")
    assert (found.name, found.notice, len(found.train), len(found.test)) == ("mnist", None, 12, 3)
    assert torch.equal(found.train.images, torch.from_numpy(pixels(12)))
    assert torch.equal(found.test.images, torch.from_numpy(pixels(3, seed=1)))
    assert found.train.labels is not None
    assert found.train.labels.tolist() == [*range(10), 0, 1]
    assert load_dataset("auto", "root").name == "mnist"


def test_mnist_may_be_packed_in_part(tmp_path: Path, tiny: dict[str, bytes]) -> None:
    put(tmp_path, {name: tiny[name] for name in NAMES[:2]}, packed=True)
    put(tmp_path, {name: tiny[name] for name in NAMES[2:]})
    assert len(load_mnist(tmp_path).train) == 12


def test_first_folder_set_is_the_only_place(
    tmp_path: Path, tiny: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "data", tiny)
    assert load_mnist().name == "mnist"
    monkeypatch.setenv("VAEBENCH_DATA", "")
    assert load_mnist().name == "mnist"
    monkeypatch.setenv("VAEBENCH_DATA", "elsewhere")
    refusal(load_mnist, str(tmp_path / "elsewhere"), "no network")
    assert load_mnist("data").name == "mnist"
    monkeypatch.setenv("VAEBENCH_DATA", "data")
    refusal(lambda: load_mnist("elsewhere"), str(tmp_path / "elsewhere"))


def test_absent_mnist_names_files_place_and_remedy(tmp_path: Path) -> None:
    words = (*NAMES, str(tmp_path / "data"), "--data-dir", "VAEBENCH_DATA", "no network")
    refusal(lambda: load_dataset("mnist"), *words)
    refusal(lambda: load_mnist(download=False), *words[:-1], "download=False")


@pytest.mark.usefixtures("small_strokes")
def test_auto_falls_back_with_a_notice(tmp_path: Path) -> None:
    found = load_dataset("auto")
    assert found.name == "strokes"
    assert found.notice is not None
    assert found.notice.isprintable()
    for word in (str(tmp_path / "data"), "no network", "ELBO is not MNIST's"):
        assert word in found.notice
    assert load_dataset("strokes").notice is None


@pytest.mark.parametrize("name", NAMES)
def test_damaged_mnist_is_never_replaced(
    tmp_path: Path, tiny: dict[str, bytes], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, {**tiny, name: tiny[name][:-1] + bytes([tiny[name][-1] ^ 1])})
    for data in ("auto", "mnist"):
        refusal(partial(load_dataset, data, tmp_path), name, "md5", "delete it")
    (tmp_path / name).unlink()
    for data in ("auto", "mnist"):
        refusal(partial(load_dataset, data, tmp_path), name, "a part of", "no network")

    def fetch(root: Path, md5s: object) -> None:
        put(root / "MNIST" / "raw", tiny)

    monkeypatch.setattr(data_module, "fetch_mnist", fetch)
    assert load_dataset("auto", tmp_path).name == "mnist"


def test_files_on_disk_need_no_torchvision(tmp_path: Path) -> None:
    put(tmp_path / "Fashion" / "raw", four_files(), packed=True)
    code = (
        "import sys; import vaebench.data.load as d; late = {'torchvision', 'matplotlib'}\n"
        "assert not late & set(sys.modules); assert len(d.load_dataset('Fashion').train) == 12\n"
        "assert not late & set(sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(data_module.__file__).parents[2])}
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env=env, timeout=60)


@pytest.mark.skipif(not REAL, reason="VAEBENCH_DATA does not name a folder with MNIST")
def test_real_mnist() -> None:
    found = load_mnist(REAL, download=False)
    assert tuple(found.train.images.shape) == (60_000, 28, 28)
    assert tuple(found.test.images.shape) == (10_000, 28, 28)
    assert found.train.images.dtype == torch.uint8
    assert found.train.images.is_contiguous()
    assert found.train.labels is not None
    assert found.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert found.train.labels.bincount().sum() == 60_000
    assert found.train.images.float().mean() == pytest.approx(33.3184, abs=1e-3)


# The user's own files and arrays


@pytest.mark.parametrize("layout", [".", "raw", "KMNIST/raw"])
def test_folder_of_a_set_like_mnist(tmp_path: Path, layout: str) -> None:
    put(tmp_path / "own" / layout, four_files())
    found = load_dataset("own")
    assert found.name == ("KMNIST" if layout == "KMNIST/raw" else "own")
    assert (len(found.train), len(found.test), found.notice) == (12, 3, None)


def test_folder_called_mnist_must_be_mnist(tmp_path: Path, tiny: dict[str, bytes]) -> None:
    put(tmp_path / "mnist", tiny)
    assert load_dataset("./mnist").name == "mnist"
    put(tmp_path / "mnist", four_files(11))
    refusal(lambda: load_dataset("./mnist"), "md5")
    os.rename("mnist", "mine")
    assert len(load_dataset("mine").train) == 11


@pytest.mark.parametrize("write", [npy, idx, lambda a: npz(any=a), lambda a: gzip.compress(idx(a))])
def test_one_array_is_split_the_same_way_every_time(
    tmp_path: Path, write: Callable[[Any], bytes]
) -> None:
    (tmp_path / "own.bin").write_bytes(write(pixels(15)))
    first, second = load_dataset("own.bin"), load_dataset(tmp_path / "own.bin")
    assert (first.name, len(first.train), len(first.test)) == ("own.bin", 13, 2)
    assert first.notice is not None
    assert "2 of its 15" in first.notice
    assert torch.equal(first.test.images, second.test.images)
    together = torch.cat([first.train.images, first.test.images]).flatten(1).tolist()
    assert sorted(together) == sorted(pixels(15).reshape(15, -1).tolist())
    assert torch.equal(read_images("own.bin"), torch.from_numpy(pixels(15)))


def test_archives_with_two_sets_and_labels(tmp_path: Path) -> None:
    a, b, labels = pixels(7), pixels(2, seed=1), np.arange(7, dtype=">i2")
    path = tmp_path / "own.npz"
    path.write_bytes(npz(x_train=a, x_test=b, y_train=labels, other=np.array(["x"])))
    found = load_dataset(path)
    assert (len(found.train), len(found.test), found.notice) == (7, 2, None)
    assert found.train.labels is not None
    assert found.train.labels.tolist() == list(range(7))
    assert found.test.labels is None
    path.write_bytes(npz(train=a, test=b))
    assert torch.equal(load_dataset(path).test.images, torch.from_numpy(b))
    path.write_bytes(npz(x_train=a, y_train=labels))
    found = load_dataset(path)
    assert found.train.labels is not None
    assert found.notice is not None
    assert found.train.images[0].tolist() == a[int(found.train.labels[0])].tolist()
    with open(path, "wb") as file:
        np.savez(file, x_train=a, x_test=b)
    assert torch.equal(read_images(path), torch.from_numpy(a))


@pytest.mark.parametrize("dtype", ["f2", "<f4", ">f4", "<f8", ">f8", "g"])
def test_floats_become_float32(tmp_path: Path, dtype: str) -> None:
    values = np.linspace(-3, 3, 24).reshape(2, 3, 4).astype(dtype)
    for given_ in (values, values[:, ::-1], np.asfortranarray(values)):
        expected = torch.from_numpy(given_.astype(np.float32).copy())
        assert torch.equal(as_images(given_), expected)
        (tmp_path / "own.npy").write_bytes(npy(given_))
        assert torch.equal(read_images("own.npy"), expected)
    assert as_images(values).dtype == torch.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_idx_of_floats(tmp_path: Path, dtype: Any) -> None:
    values = np.linspace(0, 1, 24).reshape(2, 3, 4).astype(dtype)
    (tmp_path / "own").write_bytes(idx(values))
    assert torch.equal(read_idx("own"), torch.from_numpy(values))
    assert torch.equal(read_images("own"), torch.from_numpy(values).float())


def test_tensors_and_views_are_accepted() -> None:
    leaf = torch.rand(3, 4, 5, requires_grad=True)
    images = as_images(leaf.transpose(1, 2))
    assert not images.requires_grad
    assert images.is_contiguous()
    assert as_images(torch.rand(2, 6, dtype=torch.bfloat16)).dtype == torch.float32
    assert as_images(pixels(2)[::-1, ::2]).shape == (2, 3, 4)
    assert as_images(pixels(2, (1, 5, 4))).shape == (2, 1, 5, 4)
    own = torch.zeros(2, 6, dtype=torch.uint8)
    assert as_images(own).data_ptr() == own.data_ptr()
    frozen = pixels(2)
    frozen.flags.writeable = False
    assert as_images(frozen).shape == (2, 5, 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tensors_stay_on_their_device() -> None:
    assert as_images(torch.zeros(2, 6, device="cuda")).is_cuda
    assert not read_images(torch.zeros(2, 6, device="cuda")).is_cuda


# What is refused

NAN = np.float32("nan")
GOOD = pixels(4)
BAD_ARRAYS: dict[str, tuple[Any, str]] = {
    "list": ([[1.0, 2.0]], "list"),
    "none": (None, "NoneType"),
    "number": (3, "int"),
    "int64": (GOOD.astype(np.int64), "int64"),
    "int8": (GOOD.astype(np.int8), "int8"),
    "uint16": (GOOD.astype(">u2"), "u2"),
    "bool": (GOOD > 9, "multiply by 255"),
    "complex": (GOOD.astype(np.complex64), "complex64"),
    "object": (GOOD.astype(object), "object"),
    "string": (GOOD.astype(str), "<U"),
    "bytes": (GOOD.astype("S3"), "S3"),
    "datetime": (np.zeros((2, 3), "M8[s]"), "datetime64"),
    "structured": (np.zeros((2, 3), [("a\n", "u1")]), "only uint8 and floats"),
    "masked": (np.ma.masked_array(GOOD, mask=False), "masked"),
    "0-d": (np.array(1.0), "shape ()"),
    "1-d": (GOOD.ravel(), "shape (80,)"),
    "5-d": (GOOD[None, None], "shape (1, 1, 4, 5, 4)"),
    "no images": (GOOD[:0], "shape (0, 5, 4)"),
    "no pixels": (GOOD[:, :0], "shape (4, 0, 4)"),
    "nan": (np.array([[1, 2], [NAN, NAN]], np.float32), "2 of 4 values"),
    "inf": (np.array([[1, 2], [3, -np.inf]]), "(1, 1)"),
    "too large": (np.full((1, 2), 1e300), "2 of 2 values"),
    "tensor int64": (torch.zeros(2, 3, dtype=torch.int64), "int64"),
    "tensor bool": (torch.zeros(2, 3, dtype=torch.bool), "multiply by 255"),
    "tensor complex": (torch.zeros(2, 3, dtype=torch.complex64), "complex64"),
    "tensor 1-d": (torch.zeros(3), "shape (3,)"),
    "tensor empty": (torch.zeros(0, 3), "empty"),
    "tensor nan": (torch.full((2, 3), float("nan")), "(0, 0)"),
    "tensor half inf": (torch.full((2, 3), float("inf")).half(), "6 of 6"),
    "tensor sparse": (torch.eye(3).to_sparse(), "to_dense"),
    "tensor meta": (torch.zeros(2, 3, device="meta"), "meta"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(case: str) -> None:
    array, word = BAD_ARRAYS[case]
    refusal(lambda: read_images(array), "images", word)


PLAIN, PACKED = idx(GOOD), gzip.compress(idx(GOOD))
NPY, NPZ = npy(GOOD), npz(x_train=GOOD, x_test=GOOD)


def zipped(content: bytes, method: int = zipfile.ZIP_DEFLATED, name: str = "x_train.npy") -> bytes:
    """Return a zip archive of one member."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr(name, content)
    return out.getvalue()


def patched(content: bytes, at: int, new: bytes) -> bytes:
    """Return ``content`` with the bytes from ``at`` on replaced by ``new``."""
    at %= len(content)
    return content[:at] + new + content[at + len(new) :]


def lying_zip(size: int) -> bytes:
    """Return an archive that claims one member of ``size`` bytes, in both places."""
    content = zipped(header("'|u1'", (1 << 40, 1)))
    new = struct.pack("<I", size)
    return patched(patched(content, 22, new), content.rindex(b"PK\x01\x02") + 24, new)


HUGE = struct.pack(">BBBBIII", 0, 0, 8, 3, 4_000_000_000, 4_000_000_000, 4_000_000_000)
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "begins with nothing"),
    "text": (b"label,pixel0\n5,0\n", "neither .npy, .npz nor IDX"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(50), "neither .npy"),
    "pickle": (pickle.dumps(GOOD), "neither .npy"),
    "idx magic only": (b"\0\0", "IDX"),
    "idx magic not zero": (b"\0\1\x08\3" + PLAIN[4:], "begins with"),
    "idx int8": (idx(GOOD, 0x09), "int8"),
    "idx int16": (idx(GOOD, 0x0B), "int16"),
    "idx int32": (idx(GOOD, 0x0C), "int32"),
    "idx unknown type": (idx(GOOD, 0x77), "0x77"),
    "idx no dimensions": (b"\0\0\x08\0", "no values"),
    "idx 5 dimensions": (idx(GOOD[None, None]), "5 dimensions"),
    "idx 255 dimensions": (b"\0\0\x08\xff" + bytes(100), "too short"),
    "idx zero size": (idx(GOOD[:, :0]), "no values"),
    "idx header cut": (PLAIN[:9], "within its header"),
    "idx no body": (PLAIN[:16], "too short"),
    "idx short by one": (PLAIN[:-1], "too short"),
    "idx long by one": (PLAIN + b"\0", "too long"),
    "idx absurd size": (HUGE + bytes(100), "too short"),
    "idx labels": (idx(GOOD.ravel()), "shape (80,)"),
    "idx one image": (idx(GOOD[:1]), "at least 2"),
    "idx nan": (idx(np.full((2, 2), np.nan)), "NaN"),
    "gz absurd size": (gzip.compress(HUGE + bytes(100)), "too short"),
    "gz of short": (gzip.compress(PLAIN[:-1]), "too short"),
    "gz of long": (gzip.compress(PLAIN + b"\0"), "too long"),
    "gz bomb": (gzip.compress(PLAIN + bytes(1 << 24)), "too long"),
    "gz of nothing": (gzip.compress(b""), "begins with nothing"),
    "gz of npy": (gzip.compress(NPY), "not an IDX file"),
    "gz cut in header": (PACKED[:5], "damaged"),
    "gz cut in body": (PACKED[:40], "damaged"),
    "gz cut in checksum": (PACKED[:-3], "damaged"),
    "gz wrong checksum": (patched(PACKED, -8, b"\0\0\0\0"), "CRC"),
    "gz wrong length": (patched(PACKED, -4, b"\0\0\0\0"), "damaged"),
    "gz wrong method": (patched(PACKED, 2, b"\7"), "damaged"),
    "gz garbage in body": (patched(PACKED, 12, b"\xff" * 20), "damaged"),
    "gz garbage behind": (PACKED + b"garbage", "damaged"),
    "npy magic only": (NPY[:6], "damaged"),
    "npy header cut": (NPY[:40], "damaged"),
    "npy no body": (NPY[:128], "it holds 0"),
    "npy short": (NPY[:-1], "too short"),
    "npy long": (NPY + b"\0", "too long"),
    "npy absurd size": (header("'|u1'", (1 << 40, 1 << 40)), "too short"),
    "npy negative size": (header("'|u1'", (-1, -4), bytes(4)), "shape (-1, -4)"),
    "npy zero size": (npy(GOOD[:0]), "empty"),
    "npy version 9": (patched(NPY, 6, b"\x09"), "(9, 0)"),
    "npy version 3": (header("'|u1'", (2, 2), bytes(4), version=3), "(3, 0)"),
    "npy object": (header("'|O'", (2, 2), pickle.dumps([1])), "object"),
    "npy void": (header("'|V0'", (2, 2)), "type"),
    "npy string": (npy(GOOD.astype(str)), "<U3"),
    "npy fields": (npy(np.zeros((2, 2), [("a", "u1")])), "type"),
    "npy int32": (npy(GOOD.astype(np.int32)), "int32"),
    "npy bool": (npy(GOOD > 9), "bool"),
    "npy complex": (npy(GOOD.astype(complex)), "complex128"),
    "npy 1-d": (npy(GOOD.ravel()), "shape (80,)"),
    "npy nan": (npy(np.full((2, 2), np.nan)), "4 of 4"),
    "npy one image": (npy(GOOD[:1]), "at least 2"),
    "npy header no dict": (b"\x93NUMPY\1\0\x04\0[1]\n", "damaged"),
    "npy header no python": (b"\x93NUMPY\1\0\x06\0{'a':\n" + bytes(9), "damaged"),
    "npy header code": (header("__import__('os').abort()", (2, 2)), "damaged"),
    "npy header nested": (header("(" * 3000, (2, 2)), "damaged"),
    "npy shape no tuple": (header("'|u1'", "'x'"), "damaged"),
    "npz no zip": (b"PK\3\4" + bytes(60), "damaged"),
    "npz cut": (NPZ[:-10], "damaged"),
    "npz empty": (zipped(b"", name="readme.txt"), "no arrays"),
    "npz other names": (npz(a=GOOD, b=GOOD), "a, b"),
    "npz only test": (npz(x_test=GOOD, y_test=GOOD[:, 0, 0]), "x_train"),
    "npz damaged member": (patched(NPZ, 60, b"\xff" * 30), "own"),
    "npz member not npy": (zipped(b"no array"), "damaged"),
    "npz member short": (zipped(NPY[:-1]), "too short"),
    "npz member long": (zipped(NPY + b"\0"), "too long"),
    "npz member absurd": (zipped(header("'|u1'", (1 << 40, 1))), "too short"),
    "npz lying directory": (lying_zip(0xFFFF_0000), "more than the file can hold"),
    "npz bzip2": (zipped(NPY, zipfile.ZIP_BZIP2), "compressed"),
    "npz object": (zipped(header("'|O'", (2, 2), pickle.dumps([1]))), "object"),
    "npz encrypted": (patched(zipped(NPY), zipped(NPY).rindex(b"PK\1\2") + 8, b"\1"), "damaged"),
    "npz shapes differ": (npz(x_train=GOOD, x_test=GOOD[:, 1:]), "shape (5, 4)"),
    "npz types differ": (npz(train=GOOD, test=GOOD / 2), "float32"),
    "npz labels short": (npz(x_train=GOOD, y_train=np.arange(3)), "labels"),
    "npz labels float": (npz(x_train=GOOD, y_train=np.ones(4)), "labels"),
    "npz labels columns": (npz(x_train=GOOD, y_train=np.ones((4, 1), int)), "labels"),
    "npz one image": (npz(images=GOOD[:1]), "at least 2"),
    "npz int64": (npz(x_train=GOOD.astype(int)), "int64"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(tmp_path: Path, case: str) -> None:
    content, word = BAD_FILES[case]
    (tmp_path / "own").write_bytes(content)
    refusal(lambda: load_dataset("./own"), "own", word)


def test_bad_paths(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    os.symlink("nowhere", tmp_path / "link")
    put(tmp_path / "empty", {})
    put(tmp_path / "both" / "A" / "raw", four_files())
    put(tmp_path / "both" / "B" / "raw", four_files())
    part = four_files()
    del part[NAMES[3]]
    put(tmp_path / "part", part)
    put(tmp_path / "labels", {**four_files(), NAMES[1]: idx(np.zeros(7, np.uint8))})
    (put(tmp_path / "folder", part) / NAMES[3]).mkdir()
    accepted = ("auto, mnist, strokes", ".npz", NAMES[0])
    for data, words in {
        "foo": ("'foo'", *accepted),
        "MNIST": ("'MNIST'", *accepted),
        "": ("''", *accepted),
        "new\nline": ("new", *accepted),
        "nul\0": accepted,
        "\ud800": accepted,
        "x" * 5000: ("xxx", *accepted),
        "pipe": ("pipe", "regular file"),
        "/dev/zero": ("/dev/zero", "regular file"),
        "link": ("link", "No such file"),
        "empty": ("empty", "no set", *NAMES),
        "both": ("more than one set", "A", "B"),
        "part": ("part", NAMES[3], "missing"),
        "labels": ("labels", "12 images"),
        "folder": (NAMES[3], "regular file"),
    }.items():
        refusal(partial(load_dataset, data), *words)
    refusal(lambda: load_dataset(3), "int")  # type: ignore[arg-type]
    refusal(lambda: read_images(tmp_path / "none"), "none", "No such file")
    refusal(lambda: read_idx(tmp_path), "regular file")


def test_bad_data_dirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    folders: list[Any] = ["file", "", 3, "nul\0", "\ud800"]
    for folder in folders:
        for data in ("auto", "mnist"):
            refusal(partial(load_dataset, data, folder), "data_dir", "folder")
    monkeypatch.setenv("VAEBENCH_DATA", "file")
    refusal(load_dataset, "data_dir")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.npy").write_bytes(NPY)

    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("vaebench.data.idx.open", refuse, raising=False)
    refusal(lambda: load_dataset("own.npy"), "own.npy", "Permission denied")


# Damage of any kind

SETTINGS = settings(max_examples=200, deadline=None)


@st.composite
def damaged(draw: st.DrawFn, *originals: bytes) -> bytes:
    """Return a valid file cut off, or with bits flipped, or random from some byte on."""
    content = bytearray(draw(st.sampled_from(originals)))
    kind = draw(st.sampled_from(["random", "cut", "flip"]))
    if kind == "random":
        return bytes(content[: draw(st.integers(0, 24))]) + draw(st.binary(max_size=80))
    if kind == "cut":
        return bytes(content[: draw(st.integers(0, len(content)))])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(len(content) - 1, draw(st.sampled_from([10, 130, 10**6])))))
        content[at] ^= 1 << draw(st.integers(0, 7))
    return bytes(content)


def valid_or_refused(read: Callable[[], Any]) -> None:
    """Call ``read``: it returns values or raises an InputError of one line, nothing else."""
    try:
        said = None if read().size else "nothing was read and nothing said\n"
    except InputError as error:
        said = str(error)
    assert said is None or said.isprintable()


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "own"


@SETTINGS
@given(content=damaged(PLAIN, PACKED, idx(np.ones((2, 3)))))
def test_fuzz_idx(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(content)
    valid_or_refused(lambda: read_idx(scratch).numpy())


@SETTINGS
@given(content=damaged(NPY, npy(np.ones((2, 3), ">f8")), npy(np.asfortranarray(GOOD))))
def test_fuzz_npy(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(content)
    valid_or_refused(lambda: read_npy(scratch))
    valid_or_refused(lambda: read_images(scratch).numpy())


@SETTINGS
@given(content=damaged(NPZ, zipped(NPY, zipfile.ZIP_STORED)))
def test_fuzz_npz(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(content)
    valid_or_refused(lambda: read_images(scratch).numpy())
