"""Models that take labels, as people write them, against the same network written plainly."""

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vaebench
from tests.engines import PLAIN, problem_of
from vaebench.errors import InputError
from vaebench.fast.build import make_engine
from vaebench.models.adapt import Adapted, adapt, adapted
from vaebench.models.protocol import as_vae
from vaebench.objective import Objective, loss_terms

CLASSES, LATENTS, SHAPE = 4, 3, (6, 6)


class Plain(nn.Module):
    """Label one-hot beside the pixels and beside z, as the trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2 = nn.Linear(36 + CLASSES, 16), nn.Linear(16, 2 * LATENTS)
        self.fc3, self.fc4 = nn.Linear(LATENTS + CLASSES, 16), nn.Linear(16, 36)

    def encode(self, x: Tensor, y: Tensor) -> Any:
        given = torch.cat([x.flatten(1), F.one_hot(y, CLASSES)], 1)
        return self.fc2(F.relu(self.fc1(given))).chunk(2, 1)

    def decode(self, z: Tensor, y: Tensor) -> Any:
        return self.fc4(F.relu(self.fc3(torch.cat([z, F.one_hot(y, CLASSES)], 1))))


class AList(Plain):
    def encode(self, x: Tensor, y: Tensor) -> Any:
        return list(super().encode(x, y))


class Drawn(Plain):
    def encode(self, x: Tensor, y: Tensor) -> Any:
        mu, logvar = super().encode(x, y)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        return z, mu, logvar


class ADict(Plain):
    def encode(self, x: Tensor, y: Tensor) -> Any:
        mu, logvar = super().encode(x, y)
        return {"mu": mu, "sigma": torch.exp(0.5 * logvar), "y": y}


class Flat(Plain):
    def encode(self, x: Tensor, y: Tensor) -> Any:
        assert x.shape[1:] == (36,)
        return super().encode(x, y)


class Sigmoid(Plain):
    def decode(self, z: Tensor, y: Tensor) -> Any:
        return torch.sigmoid(super().decode(z, y)).view(-1, *SHAPE)


class Reconstruction(NamedTuple):
    probs: Tensor
    y: Tensor


class Named(Plain):
    def decode(self, z: Tensor, y: Tensor) -> Any:
        return Reconstruction(super().decode(z, y).sigmoid(), y)


class OnlyForward(Plain):
    """Parts for encoder and decoder that take the label too."""

    encode = decode = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = _Part(self, "encode"), _Part(self, "decode")

    def forward(self, x: Tensor, y: Tensor) -> Any:
        mu, logvar = self.encoder(x, y)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        return self.decoder(z, y).sigmoid(), mu, logvar


class _Part(nn.Module):
    def __init__(self, whole: Plain, method: str) -> None:
        super().__init__()
        self.whole, self.method = [whole], method

    def forward(self, value: Tensor, y: Tensor) -> Any:
        return getattr(Plain, self.method)(self.whole[0], value, y)


OTHERS = [AList, Drawn, ADict, Flat, Sigmoid, Named, OnlyForward]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    x = torch.rand(7, *SHAPE, generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([0, 3, 1, 2, 3, 0, 1])


def _terms(vae: Any, x: Tensor, y: Tensor, samples: int = 1) -> list[Tensor]:
    shape = (len(x), samples, LATENTS) if samples > 1 else (len(x), LATENTS)
    eps = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    loss, recon, kl = loss_terms(vae, Objective(samples=samples), x, eps, y)
    inner = vae.model if isinstance(vae, Adapted) else vae
    return [recon, kl, *torch.autograd.grad(loss, list(inner.parameters()))]


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("kind", OTHERS)
def test_the_elbo_and_its_gradients_are_the_plain_networks(
    kind: type[Plain], samples: int, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    vae, notes = adapted(kind(), x[:2], "bernoulli", y[:2])
    assert isinstance(vae, Adapted) is bool(notes) is (kind is not AList)  # which unpacks as is
    for got, want in zip(_terms(vae, x, y, samples), _terms(Plain(), x, y, samples), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-5)


def test_what_is_written_as_wanted_is_taken_as_it_is(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    model = Plain()
    assert adapted(model, x, "bernoulli", y) == (model, [])


@pytest.mark.parametrize("kind", [Sigmoid, Drawn, OnlyForward])
def test_training_and_evaluation(kind: type[Plain]) -> None:
    x = torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(3))
    y = torch.arange(40) % CLASSES
    sums = []
    for model in (kind(), Plain()):
        history = vaebench.fit(
            model, x, labels=y, test_images=(x, y), epochs=3, batch_size=16, device="cpu", lr=0.01
        )
        elbo = vaebench.evaluate(model, x, labels=y).elbo
        sums.append([history.epochs[-1].train_elbo, history.epochs[-1].test_elbo, elbo])
    if kind is not Drawn:  # which draws from torch's numbers, as the package does not
        assert sums[0] == pytest.approx(sums[1], rel=1e-5)
    assert sums[0][0] == pytest.approx(sums[1][0], rel=1e-5)


def test_streamed(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    sums = []
    for resident in (True, False):
        problem = problem_of(Sigmoid(), x, batch_size=3, labels=y, resident=resident)
        engine = make_engine(problem, PLAIN).engine
        sums.append(float(engine.epoch(torch.arange(7), engine.no_noise(7)).recon))
    assert sums[0] == sums[1]


def test_what_the_caller_says_is_given_labels_too(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch

    class Own(Plain):
        def encode(self, x: Tensor) -> Any:
            raise NotImplementedError

        def q(self, x: Tensor, y: Tensor) -> Any:
            return super().encode(x, y)

    model = Own()
    for said in ("q", lambda x, y: model.q(x, y)):
        vae, _ = adapted(adapt(model, encode=said), x, "bernoulli", y)
        for got, want in zip(_terms(vae, x, y), _terms(Plain(), x, y), strict=True):
            torch.testing.assert_close(got, want)


def test_what_cannot_be_is_said_with_the_labels_in_it(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch

    class NoLabel(Plain):
        def decode(self, z: Tensor) -> Any:
            return z

    with pytest.raises(InputError, match=r"decode=lambda z, y: \.\.\."):
        adapted(NoLabel(), x, "bernoulli", y)
    with pytest.raises(InputError, match=r"labels of shape \(2,\): encode raised"):
        adapted(Plain(), x, "bernoulli", torch.zeros(7, 2, dtype=torch.int64))
    with pytest.raises(InputError, match=r"encode=lambda x, y: \.\.\."):
        adapted(nn.Linear(1, 1), x, "bernoulli", y)


def test_compiled_without_a_break(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    vae, _ = adapted(Sigmoid(), x, "bernoulli", y)
    eps = torch.zeros(len(x), LATENTS)
    torch._dynamo.reset()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return loss_terms(as_vae(vae), Objective(), x, eps, y)[0]

    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, y), loss(x, y))
