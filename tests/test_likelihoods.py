"""L0 of each likelihood, prior and penalty: known integrals, and the reference, in float64."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vaebench
from tests.engines import make_engine
from tests.tiers import first
from vaebench import likelihoods
from vaebench.config import LIKELIHOODS, TrainConfig
from vaebench.errors import InputError
from vaebench.models.mlp import VAE
from vaebench.models.protocol import Gaussian, Logistic
from vaebench.objective import Objective, loss_terms, mixture_log_density
from vaebench.problem import Problem
from vaebench.training.fit import objective_of
from vaebench.training.follow import reference_of

BAR = 1e-10
CPU = torch.device("cpu")


@pytest.mark.parametrize("logit", [-30.0, -3.0, -0.51, -0.49, 0.0, 1e-4, 0.3, 2.0, 40.0])
def test_the_continuous_bernoulli_is_a_density(logit: float) -> None:
    # Gauss-Legendre is exact to the last digits for anything so smooth.
    nodes, weights = (torch.from_numpy(t) for t in _legendre(200))
    logits = torch.full((200, 1), logit, dtype=torch.float64)
    x = nodes[:, None]
    density = likelihoods.log_likelihood("continuous-bernoulli", logits, x).exp()
    assert (density * weights).sum().item() == pytest.approx(1, rel=BAR)
    mean = likelihoods.mean_pixels("continuous-bernoulli", logits[:1]).item()
    assert (density * weights * nodes).sum().item() == pytest.approx(mean, rel=BAR)


def _legendre(count: int) -> Any:
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (nodes + 1) / 2, weights / 2


def test_its_gradient_is_right_on_both_sides_of_where_it_changes_its_formula() -> None:
    bound = likelihoods.NEAR_ZERO
    logits = torch.tensor([-1e-8, 0.0, bound * 0.999, bound * 1.001, 50.0], dtype=torch.float64)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(likelihoods.continuous_bernoulli_log_norm, logits)
    far = torch.tensor([-1e30, -3e4, -200.0, 200.0, 3e4, 1e30], requires_grad=True)
    value = likelihoods.continuous_bernoulli_log_norm(far)
    (grad,) = torch.autograd.grad(value.sum(), far)
    torch.testing.assert_close(value, far.abs().log())
    torch.testing.assert_close(grad, 1 / far)
    near = torch.tensor([bound - 1e-9, bound + 1e-9], dtype=torch.float64)
    for formula in (
        likelihoods.continuous_bernoulli_log_norm, likelihoods.continuous_bernoulli_mean,
    ):  # fmt: skip
        below, above = formula(near).tolist()
        assert above == pytest.approx(below, rel=1e-9)


@pytest.mark.parametrize(
    ("mean", "logscale"), [(0.5, -2.0), (-0.3, -4.5), (1.02, -6.0), (0.0, 1.0)]
)
def test_grey_levels_have_probabilities_that_add_up_to_1(mean: float, logscale: float) -> None:
    x = torch.arange(256, dtype=torch.float64)[:, None] / 255
    output = Logistic(torch.full_like(x, mean), torch.full_like(x, logscale))
    found = likelihoods.log_likelihood("logistic", output, x)
    assert found.exp().sum().item() == pytest.approx(1, rel=BAR)
    assert found.isfinite().all()


def test_a_learned_variance_is_that_of_torch_distributions() -> None:
    mean, logvar, x = torch.randn(3, 4, 9, dtype=torch.float64)
    want = torch.distributions.Normal(mean, torch.exp(logvar / 2)).log_prob(x).sum(1)
    found = likelihoods.log_likelihood("learned-gaussian", Gaussian(mean, logvar), x)
    torch.testing.assert_close(found, want, rtol=BAR, atol=0)


def test_a_mixture_is_that_of_torch_distributions() -> None:
    import torch.distributions as dist

    mu, logvar, z = torch.randn(7, 3), torch.randn(7, 3), 3 * torch.randn(5, 3)
    each = dist.Independent(dist.Normal(mu.double(), torch.exp(logvar.double() / 2)), 1)
    want = dist.MixtureSameFamily(dist.Categorical(torch.ones(7)), each).log_prob(z.double())
    found = mixture_log_density(z, (mu, logvar)) - 1.5 * torch.log(torch.tensor(2 * torch.pi))
    torch.testing.assert_close(found, want.float(), rtol=1e-6, atol=1e-6)


# What is new beside the plain VAE: of the network, and of the objective.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vamp, gated, limited": (
        {"activation": "gated", "prior": "vamp", "pseudo_inputs": 9, "logvar_range": (-3, 0.1)},
        {"beta": 0.7},
    ),
    "continuous Bernoulli, free bits": (
        {"likelihood": "continuous-bernoulli"}, {"free_bits": 0.05, "beta": 2.0},
    ),
    "logistic, vamp": ({"likelihood": "logistic", "prior": "vamp", "pseudo_inputs": 4}, {}),
    "learned Gaussian": ({"likelihood": "learned-gaussian"}, {}),
    "vamp, several z": ({"prior": "vamp", "pseudo_inputs": 5}, {"samples": 3}),
    "vamp, importance weights": (
        {"prior": "vamp", "pseudo_inputs": 5}, {"samples": 3, "objective": "iwae"},
    ),
    "free bits, several z": ({}, {"free_bits": 0.2, "samples": 2}),
    "continuous Bernoulli, importance weights": (
        {"likelihood": "continuous-bernoulli"}, {"samples": 3, "objective": "iwae"},
    ),
}  # fmt: skip


def _case(name: str) -> tuple[VAE, TrainConfig, Objective]:
    network, options = CASES[name]
    torch.manual_seed(0)
    model = VAE((5, 6), (16,), 4, **network)
    config = TrainConfig.of(batch_size=7, **options)
    return model, config, objective_of(config, model)


@pytest.mark.parametrize("name", CASES)
def test_l0(name: str) -> None:
    """Loss and gradients, of the objective and of the reference."""
    model, config, objective = _case(name)
    model = model.double()
    x = torch.randint(0, 256, (7, 5, 6)).double() / 255
    eps = torch.randn(objective.noise_shape(7, 4), dtype=torch.float64)
    problem = Problem.of(model, x, objective, config.optimizer, CPU)
    assert problem.vae is model or "learned" in name
    loss, recon, kl = loss_terms(problem.vae, objective, x, eps)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    reference = reference_of(problem)
    sums = reference.epoch(torch.arange(7), eps)
    assert float(sums.recon) == pytest.approx(recon.sum().item(), rel=BAR)
    assert float(sums.kl) == pytest.approx(kl.sum().item(), rel=BAR)
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert parameter.grad is not None
        scale = grad.abs().max().item()
        torch.testing.assert_close(parameter.grad, grad, rtol=BAR, atol=BAR * scale)


@pytest.mark.parametrize("name", first(1, CASES))
def test_all_levels_compiled(name: str, strokes: Tensor) -> None:
    """As a user would ask: eagerly and compiled, beside the reference and float64."""
    network, options = CASES[name]
    torch.manual_seed(1)
    model = VAE(hidden_dims=(24,), latent_dim=4, **network)
    report = vaebench.verify(
        model, strokes[:300], compile=True, batch_size=32, device="cpu", **options
    )
    assert report.passed, report.table()
    assert {"L0", "L1", "L3"} <= {check.level for check in report.checks}


@pytest.mark.parametrize("name", CASES)
def test_the_native_kernel_stands_aside(name: str, strokes: Tensor) -> None:
    network, options = CASES[name]
    model = VAE(hidden_dims=(24,), latent_dim=4, **network)
    config = TrainConfig.of(**options)
    objective = objective_of(config, model)
    built = make_engine(
        model, strokes[:128], objective, 64, 1e-3, CPU, compile=False, native=True, amp=None
    )
    from vaebench.fast.chain.read import read
    from vaebench.fast.native import unsupported

    chain = read(built.engine.problem)
    assert chain is None or unsupported(built.engine.problem, chain, built.engine.optimizer)


def test_free_bits_leave_no_gradient_below_them() -> None:
    torch.manual_seed(0)
    model, x, eps = VAE((5, 6), (16,), 4), torch.rand(9, 5, 6), torch.randn(9, 4)
    free, _, kl = loss_terms(model, Objective(free_bits=100.0), x, eps)
    none, recon, _ = loss_terms(model, Objective(beta=0.0), x, eps)
    assert free.item() == pytest.approx(400 - recon.mean().item())
    assert kl.mean() < 100
    params = list(model.parameters())
    for a, b in zip(*(torch.autograd.grad(t, params) for t in (free, none)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_trains_evaluates_and_loads(likelihood: str, tmp_path: Any, strokes: Tensor) -> None:
    torch.manual_seed(0)
    model = VAE(
        hidden_dims=(32,), latent_dim=3, likelihood=likelihood, prior="vamp", pseudo_inputs=6
    )
    history = vaebench.fit(
        model, strokes[:512], epochs=3, test_images=strokes[512:700], device="cpu"
    )
    elbos = [epoch.train_elbo for epoch in history.epochs]
    assert elbos == sorted(elbos)
    found = vaebench.evaluate(model, strokes[512:700], samples=30)
    assert found.kl_per_latent == ()
    assert found.log_likelihood >= found.elbo
    pixels = model.sample(5, torch.Generator().manual_seed(0))
    assert pixels.shape == (5, 28, 28)
    if likelihood in likelihoods.OF_LOGITS:
        assert 0 <= pixels.min() <= pixels.max() <= 1


def test_what_cannot_be() -> None:
    x, eps = torch.rand(3, 5, 6), torch.randn(3, 4)
    with pytest.raises(
        InputError, match=r"learned-gaussian likelihood needs a decoder.*mean and logvar"
    ):
        loss_terms(VAE((5, 6), (16,), 4), Objective("learned-gaussian"), x, eps)
    logistic = VAE((5, 6), (16,), 4, likelihood="logistic")
    with pytest.raises(InputError, match=r"gives a vaebench\.Logistic"):
        loss_terms(logistic, Objective("gaussian"), x, eps)
    with pytest.raises(InputError, match='pass likelihood="logistic"'):
        vaebench.fit(logistic, x, epochs=1, likelihood="bernoulli", batch_size=3, device="cpu")
    vamp = VAE((5, 6), (16,), 4, prior="vamp", pseudo_inputs=3)
    with pytest.raises(InputError, match="no latent has a KL of its own"):
        vaebench.fit(vamp, x, epochs=1, batch_size=3, free_bits=0.1, device="cpu")
    with pytest.raises(InputError, match="no separate KL to leave free"):
        Objective(bound="iwae", free_bits=0.1)
    with pytest.raises(InputError, match="have no labels"):
        VAE((5, 6), (16,), 4, prior="vamp", classes=3)
    for words, said in (
        ({"logvar_range": (1, 1)}, "the first must be below the second"),
        ({"logvar_range": 3}, "it must be two numbers"),
        ({"prior": "vampire"}, "standard, vamp"),
        ({"pseudo_inputs": 0, "prior": "vamp"}, "pseudo_inputs is 0"),
    ):
        with pytest.raises(InputError, match=said):
            VAE((5, 6), (16,), 4, **words)


class Densities(nn.Module):
    """Somebody's, whose decoder gives probabilities, as the paper's own does."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(30, 8), nn.Linear(4, 30)

    def encode(self, x: Tensor) -> Any:
        return self.into(x.flatten(1)).chunk(2, 1)

    def decode(self, z: Tensor) -> Any:
        return self.out(z).sigmoid()


def test_somebodys_probabilities_are_taken_as_logits() -> None:
    torch.manual_seed(0)
    model, x, eps = Densities(), torch.rand(6, 5, 6), torch.randn(6, 4)
    objective = Objective("continuous-bernoulli")
    problem = Problem.of(model, x, objective, TrainConfig().optimizer, CPU)
    assert any("ends in sigmoid" in note for note in problem.notes)
    _, recon, _ = loss_terms(problem.vae, objective, x, eps)
    mu, logvar = model.encode(x)
    p = model.decode(mu + torch.exp(logvar / 2) * eps)
    want = torch.distributions.ContinuousBernoulli(p).log_prob(x.flatten(1)).sum(1)
    torch.testing.assert_close(recon, want, rtol=1e-5, atol=1e-4)


def test_a_copy_has_its_own_pseudo_inputs() -> None:
    model = VAE((5, 6), (16,), 4, prior="vamp", pseudo_inputs=3)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        assert twin.pseudo_inputs is not None
        twin.pseudo_inputs.fill_(1)
    assert twin.mixture_prior is not None
    assert model.mixture_prior is not None
    assert not torch.equal(twin.mixture_prior()[0], model.mixture_prior()[0])
    assert "pseudo_inputs" not in VAE((5, 6), (16,), 4).state_dict()
