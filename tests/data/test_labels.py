"""Labels: of every type that numbers have, as long as the images, within the classes."""

from typing import Any

import numpy as np
import pytest
import torch

from vaebench.data.labels import check_labels
from vaebench.errors import InputError


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", ">i4", "i8", "u2", "?"])
def test_whole_numbers_become_int64(dtype: str) -> None:
    array = (np.arange(6) % 2).astype(dtype)
    for given in (array, array[::-1][::-1], torch.from_numpy(array.astype(np.dtype(dtype).type))):
        y = check_labels(given, 6, classes=2)
        assert y.dtype == torch.int64
        assert y.is_contiguous()
        assert y.tolist() == [0, 1] * 3


def test_without_classes_other_labels_are_a_models_own_affair() -> None:
    soft = np.full((4, 3), 1 / 3)
    y = check_labels(soft, 4)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, torch.full((4, 3), 1 / 3))
    assert check_labels(torch.tensor([-3, 99]), 2).tolist() == [-3, 99]
    assert not check_labels(torch.ones(2, requires_grad=True), 2).requires_grad


REFUSED: dict[str, tuple[Any, int | None, str]] = {
    "a list": ([0, 1, 2], None, "list is not accepted"),
    "text": (np.array(["a", "b", "c"]), None, "<U1 is not accepted"),
    "complex": (torch.zeros(3, dtype=torch.complex64), None, "complex64 is not accepted"),
    "sparse": (torch.eye(3).to_sparse(), None, "is not accepted"),
    "one number": (torch.tensor(3), None, r"shape \(\), for 3 images"),
    "too few": (torch.zeros(2), None, r"shape \(2,\), for 3 images"),
    "one-hot": (torch.eye(3).long(), 3, r"int64 of shape \(3, 3\): .* one whole number"),
    "floats": (torch.zeros(3), 3, "float32 of shape"),
    "below 0": (torch.tensor([0, -1, 2]), 3, "between -1 and 2"),
    "too large": (torch.tensor([0, 1, 3]), 3, "from 0 to 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    labels, classes, said = REFUSED[name]
    with pytest.raises(InputError, match=f"^y.*{said}"):
        check_labels(labels, 3, classes=classes, name="y")
