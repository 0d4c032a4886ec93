"""Whose models are trained by native steps, and what is left to the compiler."""

import copy
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.engines import adam_of, make_engine, problem_of
from tests.fast.natives import CPU, engine_of, images_of, native_of, trained
from vaebench import VAE, InputError, fit
from vaebench.fast.native import NativeEngine, unsupported
from vaebench.fast.native.chain import read
from vaebench.objective import Objective

pytestmark = pytest.mark.usefixtures("no_race")


def _supported(model: nn.Module, images: Tensor, objective: Objective) -> bool:
    problem = problem_of(model, images, objective, 2)
    chain = read(problem)
    if chain is None:
        return False
    return unsupported(problem, chain, adam_of(problem.params, 1e-3)) is None


class Plain(nn.Module):
    """As most people write it: layers by hand, functions between them, a sigmoid at the end."""

    def __init__(self, pixels: int = 36, width: int = 24, latent: int = 3) -> None:
        super().__init__()
        self.fc1 = nn.Linear(pixels, 16)
        self.fc21, self.fc22 = nn.Linear(16, latent), nn.Linear(16, latent)
        self.fc3, self.fc4 = nn.Linear(latent, width), nn.Linear(width, pixels)
        self.classifier = nn.Linear(latent, 10)  # which neither encode nor decode uses

    def encode(self, x: Tensor) -> Any:
        """Heads as two layers."""
        hidden = F.relu(self.fc1(x.flatten(1)))
        return self.fc21(hidden), self.fc22(hidden)

    def decode(self, z: Tensor) -> Tensor:
        """Probabilities."""
        return torch.sigmoid(self.fc4(torch.relu(self.fc3(z))))


class Halves(nn.Module):
    """Heads as the halves of one layer, logvar first in one of them; images as they are."""

    def __init__(self, swapped: bool = False) -> None:
        super().__init__()
        self.swapped = swapped
        leaky = [nn.LeakyReLU(0.2, inplace=True) for _ in range(3)]
        self.down = nn.Sequential(
            nn.Flatten(), nn.Linear(36, 20), leaky[0], nn.Linear(20, 9), leaky[1], nn.Linear(9, 6)
        )
        self.up = nn.Sequential(nn.Linear(3, 11), leaky[2], nn.Linear(11, 36))

    def encode(self, x: Tensor) -> Any:
        """Cut in two."""
        first, second = self.down(x).chunk(2, -1)
        return {"mu": second, "logvar": first} if self.swapped else (first, second[:, :3])

    def decode(self, z: Tensor) -> Tensor:
        """Logits, in the images' shape."""
        return self.up(z).view(-1, 1, 6, 6)  # type: ignore[no-any-return]


class Sub(VAE):
    """Somebody's own, that computes what the VAE computes."""


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "functions": Plain,
    "halves": Halves,
    "halves, swapped": lambda: Halves(swapped=True),
    "a subclass": lambda: Sub((6, 6), (16, 9), 2, "tanh"),
}


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_anybodys_network_equals_the_eager_step(
    make: Callable[[], nn.Module], sparse: bool
) -> None:
    torch.manual_seed(2)
    model = make()
    images = images_of(90, (6, 6), 0.1, torch.uint8)
    if isinstance(model, Halves):
        images = images.unsqueeze(1)
    eager = make_engine(copy.deepcopy(model), images, Objective(), 40, 1e-3, CPU).engine
    native = native_of(model, images, Objective(), 40, sparse=sparse)
    (got, ours), (want, theirs) = (trained(engine, 200) for engine in (native, eager))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    if isinstance(model, Plain):
        assert torch.equal(model.classifier.weight, eager.model.classifier.weight)  # type: ignore[arg-type, union-attr]


class Scaled(Plain):
    """The graph of images, which want no gradient, shows nothing of this."""

    def encode(self, x: Tensor) -> Any:
        """In [-1, 1]."""
        return super().encode(2 * x - 1)


class Turned(Plain):
    """Pixels in another order."""

    def encode(self, x: Tensor) -> Any:
        """Upside down."""
        return super().encode(x.flip(1))


class Skipping(Plain):
    """Not a chain."""

    def decode(self, z: Tensor) -> Tensor:
        """With a connection past the layer."""
        hidden = torch.relu(self.fc3(z))
        return self.fc4(hidden + hidden.roll(1, 1))  # type: ignore[no-any-return]


class Mixed(Plain):
    """Another activation in the decoder."""

    def decode(self, z: Tensor) -> Tensor:
        """Tanh, not ReLU."""
        return self.fc4(torch.tanh(self.fc3(z)))  # type: ignore[no-any-return]


class Tied(Plain):
    """The decoder's last weight is the encoder's first."""

    def __init__(self) -> None:
        super().__init__(width=16)
        self.fc4.weight = nn.Parameter(torch.zeros(1))

    def decode(self, z: Tensor) -> Tensor:
        """Logits."""
        return F.linear(torch.relu(self.fc3(z)), self.fc1.weight.t(), self.fc4.bias)


class Noisy(Plain):
    """Drops hidden values while it trains."""

    def decode(self, z: Tensor) -> Tensor:
        """Logits."""
        return self.fc4(F.dropout(torch.relu(self.fc3(z)), 0.1, self.training))  # type: ignore[no-any-return]


class Keeping(Plain):
    """Keeps what it computed, for somebody to look at."""

    def encode(self, x: Tensor) -> Any:
        """Kept."""
        self.kept = super().encode(x)
        return self.kept


class Reading(Plain):
    """A variance in logvar's place."""

    def encode(self, x: Tensor) -> Any:
        """A normal distribution."""
        mu, logvar = super().encode(x)
        return torch.distributions.Normal(mu, (0.5 * logvar).exp())


def _hooked() -> VAE:
    model = VAE((6, 6), (16,), 2)
    model.encoder[0].register_forward_hook(lambda *_: None)
    return model


def _overridden() -> VAE:
    model = VAE((6, 6), (16,), 2)
    plain = model.decode
    model.decode = lambda z, y=None: 2 * plain(z)  # type: ignore[method-assign]
    return model


def _frozen() -> VAE:
    model = VAE((6, 6), (16,), 2)
    model.mu.weight.requires_grad_(False)
    return model


def _extended() -> VAE:
    model = VAE((6, 6), (16,), 2)
    model.encoder.append(nn.Dropout(0.5))
    return model


def _shared() -> VAE:
    model = VAE((6, 6), (16,), 2)
    model.logvar.weight = model.mu.weight
    return model


def _parametrised() -> VAE:
    model = VAE((6, 6), (16,), 2)
    nn.utils.parametrizations.weight_norm(model.output)
    return model


@pytest.mark.parametrize(
    "make",
    [
        Scaled,
        Turned,
        Skipping,
        Mixed,
        Tied,
        Noisy,
        Keeping,
        Reading,
        _hooked,
        _overridden,
        _frozen,
        _extended,
        _shared,
        _parametrised,
    ],
)
def test_other_models_are_left_to_the_compiler(make: Callable[[], nn.Module]) -> None:
    assert not _supported(make(), images_of(4, (6, 6), 0.3, torch.uint8), Objective())


@pytest.mark.parametrize("aim", [Objective(samples=2), Objective(bound="iwae", samples=3)])
def test_other_objectives_are_left_to_the_compiler(aim: Objective) -> None:
    assert not _supported(VAE((6, 6), (16,), 2), images_of(4, (6, 6), 0.3, torch.uint8), aim)


@pytest.mark.slow
@pytest.mark.parametrize("words", [{"native": False}, {"optimizer": "adagrad"}])
def test_other_settings_are_left_to_the_compiler(words: dict[str, Any]) -> None:
    images = images_of(20, (6, 6), 0.3, torch.uint8)
    assert not isinstance(
        engine_of(VAE((6, 6), (16,), 2), images, Objective(), 20, **words), NativeEngine
    )


@pytest.mark.slow
def test_bf16_without_its_instructions_is_left_to_the_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vaebench.fast.native.supports_bf16", lambda: False)
    images = images_of(20, (6, 6), 0.3, torch.uint8)
    engine = engine_of(VAE((6, 6), (16,), 2), images, Objective(), 20, amp="bf16")
    assert not isinstance(engine, NativeEngine)


def test_what_is_built_before_the_engine_counts_as_compiling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether bfloat16 is to be had is found out by building the kernel."""
    images = images_of(20, (6, 6), 0.3, torch.uint8)
    native_of(VAE((6, 6), (16,), 2), images, Objective(), 20)  # so that the kernel itself is built
    monkeypatch.setattr("vaebench.fast.native.dark", lambda _: time.sleep(1))
    built = make_engine(VAE((6, 6), (16,), 2), images, Objective(), 20, 1e-3, CPU, compile=True)
    (took,) = re.findall(r"--compile: (?:took|a compiled step took) ([\d.]+)", built.notes[-1])
    assert float(took) >= 1


def test_fit_trains_by_it_and_says_so() -> None:
    images = images_of(60, (6, 6), 0.3, torch.uint8)
    found = {}
    for native in (True, False):
        torch.manual_seed(6)
        model = VAE((6, 6), (16,), 2)
        history = fit(
            model, images, epochs=2, batch_size=20, device="cpu", compile=native, native=native
        )
        assert history.actual["native"] is native
        found[native] = history.epochs[-1].train_elbo
    assert found[True] == pytest.approx(found[False], rel=1e-5)
    with pytest.raises(InputError, match="native"):
        fit(VAE((6, 6), (16,), 2), images, batch_size=20, native=1)
