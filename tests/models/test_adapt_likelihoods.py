"""Models that give a mean, a variance of their own or probabilities of any make."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

import vaebench
from tests.models import others
from tests.models.others import Output, Plain
from vaebench.errors import InputError
from vaebench.models.adapt import adapted
from vaebench.objective import Objective, loss_terms
from vaebench.reference import ReferenceEngine


class Spread(Plain):
    """A mean and a variance of its own, written as ``form`` says."""

    form: Callable[[Tensor, Tensor], Any]

    def __init__(self) -> None:
        super().__init__()
        self.fc5 = nn.Linear(16, 36)

    def decode(self, z: Tensor) -> Any:
        h = self.fc3(z).relu()
        return type(self).form(self.fc4(h), self.fc5(h))


def _pair(mean: Tensor, logvar: Tensor) -> Any:
    return {"mean": mean, "logvar": logvar}


FORMS = {
    "dict": _pair,
    "normal": lambda mean, logvar: Normal(mean, torch.exp(0.5 * logvar)),
    "output": lambda mean, logvar: (Output(loc=mean, scale=torch.exp(0.5 * logvar)), mean[:, :2]),
    "variance": lambda mean, logvar: {"mu": mean, "sigma2": logvar.exp()},
    "stdev": lambda mean, logvar: {"mean": mean, "stdev": torch.exp(0.5 * logvar)},
}


@pytest.mark.parametrize("name", FORMS)
def test_a_variance_of_its_own(name: str, x: Tensor) -> None:
    class Model(Spread):
        form = staticmethod(FORMS[name])

    torch.manual_seed(0)
    model = Model()
    vae: Any
    vae, notes = adapted(model, x, "gaussian")
    assert "decode gives a variance of its own: sigma is not used" in notes
    eps = torch.randn(5, 3)
    _, recon, _ = loss_terms(vae, Objective("gaussian", sigma=7.0), x, eps)
    mu, logvar = model.encode(x)
    h = model.fc3(mu + torch.exp(0.5 * logvar) * eps).relu()
    density = Normal(model.fc4(h), torch.exp(0.5 * model.fc5(h)))
    torch.testing.assert_close(recon, density.log_prob(x.flatten(1)).sum(1))
    engine = ReferenceEngine(
        vae, x, batch_size=5, lr=1e-3, likelihood="gaussian", sigma=7.0, beta=1.0,
        device=torch.device("cpu"),
    )  # fmt: skip
    torch.testing.assert_close(engine.loss(x, eps)[1], recon.sum())
    value = Objective("gaussian").value(vae.decode(mu), x)
    torch.testing.assert_close(value, Objective("gaussian").log_likelihood(vae.decode(mu), x))


def test_a_variance_of_its_own_is_trained_and_evaluated(x: Tensor) -> None:
    class Model(Spread):
        form = staticmethod(_pair)

    model = Model()
    histories = [
        vaebench.fit(copy.deepcopy(model), x, epochs=2, batch_size=2, device="cpu", engine=engine,
                     likelihood="gaussian", test_images=x)
        for engine in ("fast", "reference")
    ]  # fmt: skip
    elbos = [[e.test_elbo for e in history.epochs] for history in histories]
    assert elbos[0] == pytest.approx(elbos[1], rel=1e-4)


class Squashed(Plain):
    def __init__(self, squash: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.squash = squash

    def decode(self, z: Tensor) -> Any:
        return self.squash(super().decode(z))


@pytest.mark.parametrize("name", ["tanh", "relu", "exp"])
def test_what_can_be_no_logit_is_a_mean_or_is_refused(name: str, x: Tensor) -> None:
    model = Squashed(getattr(torch, name))
    with pytest.raises(InputError, match=f"decode ends in {name}.*likelihood=.gaussian.*remove"):
        adapted(model, x, "bernoulli")
    assert adapted(model, x, "gaussian") == (model, [])


def test_under_a_gaussian_likelihood_a_sigmoid_is_a_mean(x: Tensor) -> None:
    model = others.Probabilities()
    assert adapted(model, x, "gaussian") == (model, [])


def test_a_gate_is_no_end(x: Tensor) -> None:
    """Sigmoids inside a network, and the last layer's own."""
    model = Squashed(lambda a: a * torch.sigmoid(a))
    assert adapted(model, x, "bernoulli") == (model, [])
    gated = Squashed(lambda a: torch.sigmoid(a * torch.sigmoid(a)))
    a = torch.nn.functional.silu(Plain.decode(gated, torch.ones(1, 3)))
    vae: Any
    vae, _ = adapted(gated, x, "bernoulli")
    torch.testing.assert_close(vae.decode(torch.ones(1, 3)), a)


@pytest.mark.parametrize(
    "squash",
    [lambda a: 0.5 * a.tanh() + 0.5, lambda a: 0.9 * a.sigmoid(), lambda a: a.clamp(0, 1)],
)
def test_other_probabilities_have_their_exact_likelihood(squash: Any, x: Tensor) -> None:
    torch.manual_seed(0)
    model = Squashed(squash)
    vae: Any
    vae, notes = adapted(model, x, "bernoulli")
    assert "probabilities" in notes[0]
    z = torch.randn(5, 3)
    p, lit = model.decode(z).clamp(1e-12, 1 - 2**-24).double(), (x > 0.5).flatten(1)
    want = torch.where(lit, p, 1 - p).log().sum(1)
    got = Objective().log_likelihood(vae.decode(z), lit.float())
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)


def test_a_second_value_of_the_images_size_is_not_passed_over_in_silence(x: Tensor) -> None:
    """It may be a spread, under a name that says nothing."""

    class Model(Spread):
        form = staticmethod(lambda mean, logvar: (mean, logvar.exp()))

    torch.manual_seed(0)
    _, notes = adapted(Model(), x, "bernoulli")
    assert any("2 values of an image's size: number 1 is its output" in note for note in notes)
    with pytest.raises(InputError, match="decode gave 2 values"):
        adapted(Model(), x, "gaussian")

    class Named(Spread):
        form = staticmethod(lambda mean, logvar: {"mean": mean, "width": logvar.exp()})

    _, notes = adapted(Named(), x, "gaussian")
    assert any("2 values of an image's size: mean is its output" in note for note in notes)
    _, notes = adapted(vaebench.adapt(Named(), decode="mean, sigma"), x, "gaussian")
    assert not any("not used; adapt" in note for note in notes)
