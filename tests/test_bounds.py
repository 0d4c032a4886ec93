"""The objectives of k samples, L0 to L3: the NumPy oracle, and engines against each other."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import oracle
from tests.engines import make_engine
from vaebench.errors import InputError
from vaebench.models.mlp import VAE
from vaebench.objective import Objective, loss_terms
from vaebench.reference import ReferenceEngine

BAR = 1e-10
CPU = torch.device("cpu")
CASES = [
    ("vae", 1, "bernoulli", 1.0, 1.0),
    ("vae", 3, "bernoulli", 1.0, 2.0),
    ("vae", 3, "gaussian", 0.7, 1.0),
    ("iwae", 1, "bernoulli", 1.0, 1.0),
    ("iwae", 5, "bernoulli", 1.0, 1.0),
    ("iwae", 5, "gaussian", 0.7, 1.0),
]


def _reference(
    model: VAE,
    x: Tensor,
    objective: Objective,
    batch: int,
    adam_eps: float | None = None,
    **words: Any,
) -> Any:
    return ReferenceEngine(
        model,
        x,
        batch_size=batch,
        lr=1e-3,
        likelihood=objective.likelihood,
        sigma=objective.sigma,
        beta=objective.beta,
        bound=objective.bound,
        device=CPU,
        words={} if adam_eps is None else {"eps": adam_eps},
        **words,
    )


@pytest.mark.parametrize(("bound", "k", "likelihood", "sigma", "beta"), CASES)
def test_l0(bound: str, k: int, likelihood: str, sigma: float, beta: float) -> None:
    """Loss and gradients in float64: the objective, the reference and the oracle agree."""
    torch.manual_seed(0)
    model = VAE((5, 6), (16,), 4, "tanh", likelihood).double()
    x = torch.randint(0, 2, (7, 5, 6)).double()
    objective = Objective(likelihood, sigma, beta, bound, k)
    eps = torch.randn(objective.noise_shape(7, 4), dtype=torch.float64)
    loss, recon, kl = loss_terms(model, objective, x, eps)
    grads = torch.autograd.grad(loss, list(model.parameters()))

    want_loss, log_w, want_grads = oracle.bound(
        oracle.Weights({n: p.detach().numpy() for n, p in model.named_parameters()}),
        x.flatten(1).numpy(),
        eps.reshape(7, k, 4).numpy(),
        name=bound,
        likelihood=likelihood,
        sigma=sigma,
        beta=beta,
    )
    assert loss.item() == pytest.approx(want_loss, rel=BAR)
    if k > 1:  # the oracle's bounds are in order for these very samples, by Jensen
        assert log_w.mean() < np.log(np.exp(log_w).mean(1)).mean()
    reference = _reference(model, x, objective, 7)
    sums = reference.epoch(torch.arange(7), eps)
    assert float(sums.recon) == pytest.approx(recon.sum().item(), rel=BAR)
    assert float(sums.kl) == pytest.approx(kl.sum().item(), rel=BAR)
    for (name, parameter), grad in zip(model.named_parameters(), grads, strict=True):
        scale = np.abs(want_grads[name]).max()
        for found in (grad, parameter.grad):
            assert found is not None
            np.testing.assert_allclose(
                found.numpy(), want_grads[name], rtol=BAR, atol=BAR * scale, err_msg=name
            )


def test_k_equal_samples_are_one() -> None:
    torch.manual_seed(0)
    model, x, eps = VAE((5, 6), (16,), 4), torch.rand(3, 5, 6), torch.randn(3, 1, 4)
    for bound in ("vae", "iwae"):
        one, *terms = loss_terms(model, Objective(bound=bound), x, eps)
        five, *same = loss_terms(model, Objective(bound=bound), x, eps.expand(3, 5, 4))
        torch.testing.assert_close(five, one)
        torch.testing.assert_close(same, terms)


# One compiled graph each: the bound, and the other update rule.
ENGINES: dict[str, tuple[Objective, dict[str, Any]]] = {
    "iwae-k3": (Objective(bound="iwae", samples=3), {"adam_eps": 1e-4}),
    "vae-k3-adagrad": (Objective(samples=3), {"optimizer": "adagrad"}),
}


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ENGINES)
def test_l1_l3(name: str, compile: bool, strokes: Tensor) -> None:
    """A step, then ten more across two short last batches, beside the reference and float64."""
    objective, words = ENGINES[name]
    strokes = strokes[:300]
    torch.manual_seed(1)
    model = VAE(hidden_dims=(40, 24), latent_dim=6, activation="tanh")
    start = copy.deepcopy(model)
    plain = _reference(copy.deepcopy(model), strokes, objective, 64, **words)
    truth = _reference(copy.deepcopy(model).double(), strokes / 255, objective, 64, **words)
    truth.dataset.tensors = (truth.images.double(),)
    built = make_engine(model, strokes, objective, 64, 1e-3, CPU, compile=compile, **words)
    assert built.actual["compile"] is compile

    def epoch(count: int) -> list[float]:
        order = torch.randperm(len(strokes))[:count]
        noise = torch.randn(objective.noise_shape(count, 6))
        pairs = [(plain, noise), (built.engine, noise), (truth, noise.double())]
        sums = [engine.epoch(order, n) for engine, n in pairs]
        return [float(s.recon - s.kl) for s in sums]

    want, got, _ = epoch(64)
    assert got == pytest.approx(want, rel=1e-5)
    for p, w, t, s in zip(
        *(m.parameters() for m in (model, plain.model, truth.model, start)), strict=True
    ):
        error, allowed = ((v.detach().double() - t).square().mean().sqrt().item() for v in (p, w))
        assert error <= 2 * allowed + 1e-5
        assert (t - s).abs().max() > 1e-4  # a step was taken
    for engine in (plain, truth, built.engine):
        engine.set_lr(5e-4)
    for _ in range(2):
        want, got, _ = epoch(len(strokes))
        assert got == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"bound": "elbo"}, "vae, iwae"),
        ({"samples": 0}, "samples is 0"),
        ({"bound": "iwae", "beta": 2.0}, "no separate KL"),
    ],
)
def test_objective_refuses(words: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Objective(**words)


def test_noise_shapes() -> None:
    assert Objective(samples=1, bound="iwae").noise_shape(9, 4) == (9, 4)
    assert Objective(samples=2).noise_shape(9, 4) == (9, 2, 4)
    assert math.prod(Objective(samples=50).noise_shape(20, 50)) == 50_000
