"""L0: the objective and its gradients in float64, against the NumPy oracle and the reference."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from tests import oracle
from vaebench import likelihoods
from vaebench import objective as elbo
from vaebench.errors import InputError
from vaebench.models.mlp import VAE
from vaebench.objective import Objective
from vaebench.reference import ReferenceEngine

BAR = 1e-10

CASES = [
    ("relu", "bernoulli", 1.0, 1.0),
    ("tanh", "bernoulli", 1.0, 4.0),
    ("relu", "gaussian", 0.3, 1.0),
    ("tanh", "gaussian", 1.0, 0.0),
]


def _setting(
    activation: str, likelihood: str, batch: int = 7
) -> tuple[VAE, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = VAE((5, 6), (16,), 4, activation, likelihood).double()
    x = torch.rand(batch, 5, 6, dtype=torch.float64)
    return model, x, torch.randn(batch, 4, dtype=torch.float64)


@pytest.mark.parametrize(("activation", "likelihood", "sigma", "beta"), CASES)
def test_l0_equals_the_oracle(activation: str, likelihood: str, sigma: float, beta: float) -> None:
    model, x, eps = _setting(activation, likelihood)
    objective = Objective(likelihood, sigma, beta)
    recon, kl = elbo.elbo_terms(model, objective, x, eps)
    objective.loss(recon, kl).backward()

    weights = oracle.Weights({n: p.detach().numpy() for n, p in model.named_parameters()})
    want_recon, want_kl, want_grads = oracle.elbo(
        weights,
        x.flatten(1).numpy(),
        eps.numpy(),
        activation=activation,
        likelihood=likelihood,
        sigma=sigma,
        beta=beta,
    )
    np.testing.assert_allclose(recon.detach().numpy(), want_recon, rtol=BAR)
    np.testing.assert_allclose(kl.detach().numpy(), want_kl, rtol=BAR)
    assert set(want_grads) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        scale = np.abs(want_grads[name]).max()
        np.testing.assert_allclose(
            parameter.grad.numpy(), want_grads[name], rtol=BAR, atol=BAR * scale, err_msg=name
        )


@pytest.mark.parametrize(("activation", "likelihood", "sigma", "beta"), CASES)
def test_l0_equals_the_reference(
    activation: str, likelihood: str, sigma: float, beta: float
) -> None:
    model, x, eps = _setting(activation, likelihood)
    objective = Objective(likelihood, sigma, beta)
    recon, kl = elbo.elbo_terms(model, objective, x, eps)
    grads = torch.autograd.grad(objective.loss(recon, kl), list(model.parameters()))
    reference = ReferenceEngine(
        model,
        x,
        batch_size=len(x),
        lr=1e-3,
        likelihood=likelihood,
        sigma=sigma,
        beta=beta,
        device=torch.device("cpu"),
    )
    sums = reference.epoch(torch.arange(len(x)), eps)
    assert float(sums.recon) == pytest.approx(recon.sum().item(), rel=BAR)
    assert float(sums.kl) == pytest.approx(kl.sum().item(), rel=BAR)
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=BAR, atol=BAR)


def test_kl_is_that_of_torch_distributions() -> None:
    mu, logvar = torch.randn(2, 9, 3, dtype=torch.float64)
    prior = Normal(torch.zeros_like(mu), torch.ones_like(mu))
    want = kl_divergence(Normal(mu, torch.exp(logvar / 2)), prior).sum(1)
    torch.testing.assert_close(elbo.kl_divergence(mu, logvar), want, rtol=BAR, atol=0)


def test_kl_keeps_its_digits_near_the_prior() -> None:
    logvar = torch.tensor([[1e-4]])
    # exp(l) - 1 - l is l^2 / 2 there; in float32, exp(1e-4) - 1 alone is wrong in the 4th digit.
    assert elbo.kl_divergence(torch.zeros(1, 1), logvar).item() == pytest.approx(2.5e-9, rel=0.02)


def test_bernoulli_is_finite_and_right_for_extreme_logits() -> None:
    logits = torch.tensor([[-1e4], [-40.0], [0.0], [40.0], [1e4]], requires_grad=True)
    x = torch.tensor([[0.25]] * 5)
    value = likelihoods.bernoulli_log_likelihood(logits, x)
    want = [-2500.0, -10.0, -math.log(2), -30.0, -7500.0]
    assert value.tolist() == pytest.approx(want)
    (grad,) = torch.autograd.grad(value.sum(), logits)
    assert grad.flatten().tolist() == pytest.approx([0.25, 0.25, -0.25, -0.75, -0.75])


def test_gaussian_is_a_normalised_density() -> None:
    grid = torch.linspace(-6, 6, 20001, dtype=torch.float64)[:, None]
    density = likelihoods.gaussian_log_likelihood(torch.full_like(grid, 0.7), grid, 0.5).exp()
    assert torch.trapezoid(density, grid[:, 0]).item() == pytest.approx(1.0, abs=1e-9)


def test_objective_stays_float32_under_autocast() -> None:
    model = VAE((5, 6), (16,), 4)
    x, eps = torch.rand(3, 5, 6), torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        mu, _ = model.encode(x)
        recon, kl = elbo.elbo_terms(model, Objective(), x, eps)
    assert mu.dtype == torch.bfloat16
    assert recon.dtype == kl.dtype == torch.float32


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"likelihood": "poisson"}, "bernoulli, gaussian"),
        ({"sigma": 0.0}, "sigma"),
        ({"sigma": math.nan}, "sigma"),
        ({"beta": -1.0}, "beta"),
        ({"beta": math.inf}, "beta"),
    ],
)
def test_objective_refuses(words: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Objective(**words)  # type: ignore[arg-type]
