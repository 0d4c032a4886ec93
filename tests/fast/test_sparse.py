"""The kernel that skips dark pixels: the dense products, to rounding, whatever the sizes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.engines import make_engine, problem_of
from vaebench import VAE
from vaebench.fast import sparse
from vaebench.fast.kernels.nonzero import dark, nonzero_fraction
from vaebench.objective import Objective

CPU = torch.device("cpu")


def _images(count: int, pixels: int, lit: float) -> Tensor:
    torch.manual_seed(0)
    return torch.rand(count, pixels) * (torch.rand(count, pixels) < lit)


# Blocks of 128 images, groups of 2 pixels, tiles of vectors of columns: whole, short, several.
@pytest.mark.parametrize("lit", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(
    ("count", "pixels", "width"),
    [(128, 784, 400), (1, 1, 1), (130, 6, 50), (300, 11, 24), (7, 8, 97)],
)
def test_products_equal_dense_ones(count: int, pixels: int, width: int, lit: float) -> None:
    x, dense = _images(count, pixels, lit), nn.Linear(pixels, width)
    weight, bias = (p.detach().double().requires_grad_() for p in (dense.weight, dense.bias))
    expected = F.linear(x.double(), weight, bias)
    with sparse._as_sparse(dense):
        out = dense(x)
    grad = torch.randn(count, width)
    out.backward(grad)
    expected.backward(grad.double())
    assert type(dense) is nn.Linear
    for ours, exact in (
        (out, expected),
        (dense.weight.grad, weight.grad),
        (dense.bias.grad, bias.grad),
    ):
        assert ours is not None
        assert exact is not None
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5 * count**0.5)


def test_not_a_number_is_not_left_out() -> None:
    x = torch.zeros(2, 8)
    x[1, 5] = torch.nan
    out = sparse.SparseLinear(8, 4)(x)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


def test_many_lit_pixels_are_left_to_the_dense_product(strokes: Tensor) -> None:
    assert dark(torch.full_like(strokes, 255)) is None
    note = dark(strokes)
    assert note is not None
    assert f"{nonzero_fraction(strokes):.0%}" in note


class Shifted(VAE):
    """Feeds its first layer something other than the pixels."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().encode(x - 0.5)


def test_only_the_layer_that_gets_the_pixels_as_they_are(strokes: Tensor) -> None:
    model = VAE(hidden_dims=(16,))
    assert sparse.input_layer(problem_of(model, strokes)) is model.encoder[0]
    assert sparse.input_layer(problem_of(Shifted(hidden_dims=(16,)), strokes)) is None
    vamp = VAE(hidden_dims=(16,), prior="vamp", pseudo_inputs=3)  # which encodes those too
    assert sparse.input_layer(problem_of(vamp, strokes)) is None
    double = problem_of(VAE(hidden_dims=(16,)).double(), strokes.double() / 255)
    assert sparse.input_layer(double) is None


@pytest.mark.slow
def test_it_is_said_and_can_be_switched_off(strokes: Tensor) -> None:
    def built(switch: bool) -> tuple[bool, int]:
        model = VAE(hidden_dims=(16,), latent_dim=2)
        words: dict[str, Any] = {"compile": True, "native": False, "sparse": switch}
        made = make_engine(model, strokes, Objective(), 64, 1e-3, CPU, **words)
        return made.actual["sparse"], sum("dark pixels" in note for note in made.notes)

    assert built(True) == (True, 1)
    assert built(False) == (False, 0)
