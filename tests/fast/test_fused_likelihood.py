"""The kernel of the Bernoulli log-likelihood: the textbook's value and gradient, in one pass."""

import pytest
import torch
from torch import Tensor

from tests.engines import adam_of, draft_of, problem_of
from vaebench.fast.fused_likelihood import FusedObjective, part
from vaebench.likelihoods import bernoulli_log_likelihood
from vaebench.models.mlp import VAE
from vaebench.models.protocol import Gaussian
from vaebench.objective import Objective


def _both(logits: Tensor, x: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(value, gradient) by the kernel, and by the textbook form in float64."""
    found = []
    exact = logits.double().detach().requires_grad_()
    near = logits.detach().requires_grad_()
    weight = torch.linspace(0.5, 2, len(logits))
    for value, inputs in (
        (FusedObjective().log_likelihood(near, x), near),
        (bernoulli_log_likelihood(exact, x.double()), exact),
    ):
        (grad,) = torch.autograd.grad((value * weight).sum(), inputs)
        found.append((value.detach().double(), grad.double()))
    return found[0], found[1]


# Vectors of 8 or 16, chunks of 64 vectors: whole, short, several, none.
@pytest.mark.parametrize("pixels", [1, 7, 8, 16, 100, 784, 3072])
@pytest.mark.parametrize("spread", [0.01, 1.0, 10.0])
def test_equals_the_textbook_form(pixels: int, spread: float) -> None:
    torch.manual_seed(pixels)
    logits, x = spread * torch.randn(37, pixels), torch.rand(37, pixels)
    (value, grad), (exact, exact_grad) = _both(logits, x)
    torch.testing.assert_close(value, exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad, exact_grad, rtol=1e-6, atol=5e-7)


def test_no_logit_is_too_large() -> None:
    sizes = torch.tensor([0.0, 1e-30, 1e-8, 1e-3, 16.0, 40.0, 86.9, 87.1, 200.0, 1e4, 1e30])
    logits = torch.cat([sizes, -sizes]).repeat_interleave(3).unsqueeze(1)
    x = torch.tensor([0.0, 0.25, 1.0]).repeat(22).unsqueeze(1)
    (value, grad), (exact, exact_grad) = _both(logits, x)
    torch.testing.assert_close(value, exact, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(grad, exact_grad, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("place", [0, 9])  # within a vector, and after the last whole one
def test_not_a_number_stays_one(place: int) -> None:
    logits = torch.zeros(2, 10)
    logits[1, place] = torch.nan
    value, slope = torch.ops.vaebench.bernoulli(logits, torch.ones(2, 10))
    assert value[0].isfinite()
    assert slope[0].isfinite().all()
    assert value[1].isnan()
    assert slope[1, place].isnan()


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_other_likelihoods_are_left_alone(likelihood: str) -> None:
    images, aim = torch.zeros(4, 5, 5, dtype=torch.uint8), Objective(likelihood, sigma=2.0)
    problem = problem_of(VAE((5, 5), (8,), 2, likelihood=likelihood), images, aim)
    draft = draft_of(problem, adam_of(problem.params, 1e-3))
    changed = part(draft, draft.plan)
    assert (changed is None) is (likelihood == "gaussian")
    if changed:
        assert isinstance(changed[0].objective, FusedObjective)


def test_other_outputs_and_dtypes_are_left_alone() -> None:
    output, pixels = torch.rand(3, 4), torch.rand(3, 4)
    own = Gaussian(output, output)
    want = Objective().log_likelihood(own, pixels)
    assert torch.equal(FusedObjective().log_likelihood(own, pixels), want)
    fused = FusedObjective(beta=2.0, samples=3)
    x = torch.rand(3, 4, dtype=torch.float64)
    assert torch.equal(fused.log_likelihood(x, x), Objective().log_likelihood(x, x))
