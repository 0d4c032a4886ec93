"""What a model's own forward tells of mu and its spread: how z is drawn."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal

import vaebench
from tests.models.others.plain import LATENTS, Plain
from vaebench.errors import InputError
from vaebench.models.adapt import adapt, adapted
from vaebench.models.adapt.read import STDS

STD_OF: dict[str, Callable[[Tensor], Tensor]] = {
    "logvar": lambda t: torch.exp(t / 2),
    "logstd": torch.exp,
    "std": lambda t: t,
    "variance": torch.sqrt,
    "softplus": F.softplus,
}


class Unnamed(Plain):
    """Names say nothing; z is drawn by ``std``."""

    def __init__(self, std: Callable[[Tensor], Tensor] = STD_OF["logvar"]) -> None:
        super().__init__()
        self.std = std

    def encode(self, x: Tensor) -> Any:
        h = self.hidden(x)
        return tuple([self.mean(h), self.second(h)])

    def second(self, h: Tensor) -> Tensor:
        spread: Tensor = self.spread(h)
        return spread.abs() if self.std in (STD_OF["std"], STD_OF["variance"]) else spread

    def noise(self, like: Tensor) -> Tensor:
        return torch.randn_like(like)

    def z(self, a: Tensor, b: Tensor) -> Tensor:
        return a + self.std(b) * self.noise(a)

    def forward(self, x: Tensor) -> Any:
        return self.decode(self.z(*self.encode(x)))


def _std(model: Any, x: Tensor) -> Tensor:
    std: Tensor = (model.encode(x)[1] / 2).exp()
    return std


@pytest.mark.parametrize("spread", STD_OF)
def test_the_second_value_is_what_forward_makes_of_it(spread: str, x: Tensor) -> None:
    assert STD_OF.keys() == STDS.keys()
    model = Unnamed(STD_OF[spread])
    vae: Any
    vae, notes = adapted(model, x, "bernoulli")
    mu, second = model.encode(x)
    torch.testing.assert_close(_std(vae, x), STD_OF[spread](second))
    torch.testing.assert_close(vae.encode(x)[0], mu)
    assert notes == (
        [] if spread == "logvar" else [f"encode gives a {spread}: logvar is computed from it"]
    )


def test_what_the_caller_says_is_believed(x: Tensor) -> None:
    model = Unnamed(torch.exp)
    vae = adapted(adapt(model, encode="mu, logvar"), x, "bernoulli")[0]
    torch.testing.assert_close(_std(vae, x), (model.encode(x)[1] / 2).exp())


class CalledLogvar(Unnamed):
    def encode(self, x: Tensor) -> Any:
        mu, logvar = super().encode(x)
        return mu, logvar


class CalledSigma(Unnamed):
    def encode(self, x: Tensor) -> Any:
        mu, sigma = super().encode(x)
        return mu, sigma


@pytest.mark.parametrize(("kind", "called"), [(CalledLogvar, "logvar"), (CalledSigma, "std")])
def test_a_name_that_forward_contradicts(kind: type[Unnamed], called: str, x: Tensor) -> None:
    model = kind(torch.exp)
    vae, notes = adapted(model, x, "bernoulli")
    torch.testing.assert_close(_std(vae, x), model.encode(x)[1].exp())
    assert f"what is called {called} is a logstd where z is drawn: taken for that" in notes


class Backwards(Unnamed):
    def encode(self, x: Tensor) -> Any:
        return tuple(reversed(super().encode(x)))

    def z(self, a: Tensor, b: Tensor) -> Tensor:
        return super().z(b, a)


class OneTensor(Unnamed):
    def encode(self, x: Tensor) -> Any:
        return torch.cat(super().encode(x), 1)

    def forward(self, x: Tensor) -> Any:
        return self.decode(self.z(*self.encode(x).chunk(2, 1)))


class OnlyItsMethod(Unnamed):
    """Forward wants what nobody knows, but a method draws z; from whichever comes first."""

    def reparametrize(self, second: Tensor, first: Tensor) -> Tensor:
        return self.z(first, second)

    def forward(self, x: Tensor, epoch: int) -> Any:
        raise NotImplementedError


class Inference(OnlyItsMethod):
    """Forward gives what mu is decoded to."""

    def forward(self, x: Tensor) -> Any:
        return self.decode(self.encode(x)[0])


class InTrainingOnly(Unnamed):
    def z(self, a: Tensor, b: Tensor) -> Tensor:
        return super().z(a, b) if self.training else a


class InEvaluationOnly(Unnamed):
    def z(self, a: Tensor, b: Tensor) -> Tensor:
        return a if self.training else super().z(a, b)


class ItsMethodInTraining(InTrainingOnly, OnlyItsMethod):
    pass


class Picky(Unnamed):
    """Forward gives up images in another shape, having decoded something."""

    def forward(self, x: Tensor) -> Any:
        if x.dim() > 2:
            self.decode(torch.zeros(1, LATENTS))
            raise ValueError(x.shape)
        return super().forward(x)


class Pieces(Unnamed):
    """No methods by those names: parts, and z drawn between them."""

    encode = decode = None  # type: ignore[assignment]

    def __init__(self, std: Callable[[Tensor], Tensor]) -> None:
        super().__init__(std)
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(36, 2 * LATENTS))
        self.decoder = nn.Linear(LATENTS, 36)

    def forward(self, x: Tensor) -> Any:
        return self.decoder(self.z(*self.encoder(x).chunk(2, 1)))


FOUND = [
    Backwards, OneTensor, OnlyItsMethod, Inference, InTrainingOnly, ItsMethodInTraining,
    InEvaluationOnly, Picky, Pieces,
]  # fmt: skip


@pytest.mark.parametrize("kind", FOUND)
@pytest.mark.parametrize("training", [True, False])
def test_mu_and_its_spread_are_found(kind: type[Unnamed], training: bool, x: Tensor) -> None:
    model = kind(torch.exp).train(training)
    vae: Any = adapted(model, x, "bernoulli")[0]
    both = (getattr(model, "encoder", None) or model.encode)(x)
    mu, second = both.chunk(2, 1) if isinstance(both, Tensor) else both
    mu, second = (second, mu) if kind is Backwards else (mu, second)
    torch.testing.assert_close(vae.encode(x), (mu, 2 * second))


def test_what_is_other_in_training_is_not_mixed_up(x: Tensor) -> None:
    class Other(InTrainingOnly):
        def encode(self, x: Tensor) -> Any:
            a, b = super().encode(x)
            return {"mu": a, "log_sigma": b} if self.training else (a, b)

        def forward(self, x: Tensor) -> Any:
            both = self.encode(x)
            return self.decode(self.z(*(both.values() if isinstance(both, dict) else both)))

    model = Other(torch.exp)
    vae: Any = adapted(model, x, "bernoulli")[0]
    mu, second = model.encode(x).values()
    torch.testing.assert_close(vae.encode(x), (mu, 2 * second))


def _in_place(like: Tensor) -> Tensor:
    return like.new_empty(like.shape).normal_(0, std=1)


NOISES: dict[str, Callable[[Tensor], Tensor]] = {
    "randn": lambda t: torch.randn(t.shape, dtype=t.dtype),
    "normal_": _in_place,
    "normal of tensors": lambda t: torch.normal(torch.zeros_like(t), torch.ones_like(t)),
    "normal of a size": lambda t: torch.normal(0.0, 1.0, size=t.shape),
    "normal of a mean": lambda t: torch.normal(mean=torch.zeros_like(t)),
    "sample": lambda t: Normal(0, 1).sample(t.shape),
    "rsample": lambda t: Normal(torch.zeros_like(t), 1).rsample(),
}


@pytest.mark.parametrize("how", NOISES)
def test_noise_as_it_is_drawn(how: str, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Unnamed, "noise", lambda self, like: NOISES[how](like))
    notes = adapted(Unnamed(torch.exp), x, "bernoulli")[1]
    assert notes == ["encode gives a logstd: logvar is computed from it"]


class Several(Unnamed):
    def z(self, a: Tensor, b: Tensor) -> Tensor:
        return super().z(a.expand(4, *a.shape), b)


class Labelled(Unnamed):
    def decode(self, z: Tensor) -> Any:
        return super().decode(z[:, :LATENTS])

    def z(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([super().z(a, b), torch.ones(len(a), 4)], 1)


class LabelledFirst(Labelled):
    def z(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([torch.ones(len(a), LATENTS), Unnamed.z(self, a, b)], 1)


@pytest.mark.parametrize("kind", [Several, Labelled, LabelledFirst])
def test_more_than_one_z_of_each(kind: type[Unnamed], x: Tensor) -> None:
    notes = adapted(kind(torch.exp), x, "bernoulli")[1]
    assert notes == ["encode gives a logstd: logvar is computed from it"]


class Notebook(Unnamed):
    """Its encoder gives z, and keeps the divergence."""

    encode = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Drawing()

    def forward(self, x: Tensor) -> Any:
        return self.decode(self.encoder(x))


class Drawing(Unnamed):
    def forward(self, x: Tensor) -> Any:
        a, b = self.encode(x)
        self.kl = (b.exp() + a.square() - 1 - b).sum() / 2
        return self.z(a, b)


def test_an_encoder_that_gives_z_alone(x: Tensor) -> None:
    with pytest.raises(InputError, match=r"encoder gave z, drawn already.*lambda x: \(mu, logvar"):
        adapted(Notebook(), x, "bernoulli")


def test_a_distribution_that_is_no_normal(x: Tensor) -> None:
    class Full(Unnamed):
        def encode(self, x: Tensor) -> Any:
            mu, second = super().encode(x)
            return torch.distributions.MultivariateNormal(mu, torch.diag_embed(second.exp()))

    with pytest.raises(InputError, match=r"gave a MultivariateNormal, and of.*lambda x: \(mu,"):
        adapted(Full(), x, "bernoulli")


def test_heads_that_are_all_zeros_tell_nothing(x: Tensor) -> None:
    """Both readings of the second value give the same z; the name decides, or it is a logvar."""

    class CalledLogstd(Unnamed):
        def encode(self, x: Tensor) -> Any:
            mu, log_std = super().encode(x)
            return mu, log_std

    for kind in (Unnamed, CalledLogvar, CalledLogstd):
        model = kind(torch.exp)
        nn.init.zeros_(model.spread.weight)
        nn.init.zeros_(model.spread.bias)
        said = ["encode gives a logstd: logvar is computed from it"] * (kind is CalledLogstd)
        assert adapted(model, x, "bernoulli")[1] == said


def test_a_method_of_the_objects_own_stays(x: Tensor) -> None:
    class Without(Unnamed):
        def decode(self, z: Tensor) -> Any:
            raise NotImplementedError

    model = Without()
    model.decode = lambda z: Plain.decode(model, z)  # type: ignore[method-assign]
    assert adapted(model, x, "bernoulli")[1] == []


def test_no_trace_is_left(x: Tensor) -> None:
    model = InTrainingOnly(torch.exp).eval()
    before, state = dict(vars(model)), torch.get_rng_state()
    adapted(model, x, "bernoulli")
    assert vars(model) == before
    assert not model.training
    assert torch.equal(torch.get_rng_state(), state)
    model.decode = lambda z: Plain.decode(model, z)  # type: ignore[method-assign]
    before = dict(vars(model))
    adapted(model, x, "bernoulli")
    assert vars(model) == before


def test_it_is_trained_as_forward_draws_it(x: Tensor) -> None:
    """A logstd that nothing names, and the same network with its logvar: the same training."""

    class Twice(Unnamed):
        def encode(self, x: Tensor) -> Any:
            mu, second = super().encode(x)
            return mu, 2 * second

    elbos = []
    for kind, std in ((Unnamed, torch.exp), (Twice, STD_OF["logvar"])):
        torch.manual_seed(0)
        history = vaebench.fit(kind(std), x, epochs=3, batch_size=2, device="cpu", lr=1e-2)
        elbos.append([each.train_elbo for each in history.epochs])
    assert elbos[0] == pytest.approx(elbos[1], rel=1e-6)
    assert all(math.isfinite(each) for each in elbos[0])
