"""Every layout that is accepted: MNIST on disk, the user's own files and arrays."""

import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.files.made import NAMES, four_files, idx, npy, npz, pixels, put, refusal
from vaebench.data import load as data_module
from vaebench.data.files import MNIST_MD5S
from vaebench.data.load import as_images, load_dataset, load_mnist, read_idx, read_images

REAL = os.environ.get("VAEBENCH_DATA")


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
