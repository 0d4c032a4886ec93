"""What is odd but harmless is accepted, with the same result."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vaebench
from tests.bad_input.refusal import Own, pixels, small_vae
from tests.tiers import first

TWINS: dict[str, Callable[[Tensor], Any]] = {
    "not contiguous": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "every other of twice as many": lambda x: x.repeat_interleave(2, 0)[::2],
    "with a gradient": lambda x: x.clone().requires_grad_(),
    "a parameter": lambda x: nn.Parameter(x.clone()),
    "made by something with a gradient": lambda x: x.clone().requires_grad_() * 1,
    "float64": lambda x: x.double(),
    "NumPy": lambda x: x.numpy(),
    "NumPy, big-endian": lambda x: x.numpy().astype(">f4"),
    "NumPy, by columns": lambda x: np.asfortranarray(x.numpy()),
    "NumPy, backwards": lambda x: x.numpy()[::-1].copy()[::-1],
    "NumPy, read-only": lambda x: np.frombuffer(x.numpy().tobytes(), np.float32).reshape(x.shape),
    "uint8": lambda x: (x * 255).round().to(torch.uint8),
}


@pytest.mark.parametrize("name", first(4, TWINS))
def test_twins_give_the_same_bits(name: str) -> None:
    plain = pixels().float() / 255
    results = []
    for images in (plain, TWINS[name](plain)):
        model = small_vae()
        history = vaebench.fit(model, images, batch_size=8, epochs=2, device="cpu")
        results.append((history.epochs[-1].train_elbo, vaebench.evaluate(model, images).elbo))
    assert results[0] == results[1]


def test_numpy_numbers_are_numbers() -> None:
    words: dict[str, Any] = {
        "epochs": np.int64(1),
        "batch_size": np.uint8(8),
        "lr": np.float32(1e-3),
    }
    words |= {"seed": np.int32(5), "beta": np.float64(1), "sigma": 1}
    assert len(vaebench.fit(small_vae(), pixels(), device="cpu", **words).epochs) == 1
    two: Any = np.int64(2)
    assert vaebench.evaluate(small_vae(), pixels(), samples=two).samples == 2


def test_parameters_out_of_reach_stay_as_they_are() -> None:
    """A head that the ELBO does not use: the reference leaves it alone, and so does the fast."""
    histories = []
    for engine in ("fast", "reference"):
        torch.manual_seed(0)
        model = Own()
        model.head = nn.Linear(2, 10)
        before = model.head.weight.detach().clone()
        history = vaebench.fit(model, pixels(), batch_size=8, epochs=2, device="cpu", engine=engine)
        histories.append(history.epochs[-1].train_elbo)
        assert torch.equal(model.head.weight, before)
    assert histories[0] == pytest.approx(histories[1], rel=1e-5)
