"""The native steps: the plain eager twin's, to rounding, whatever the sizes; what is declined."""

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
from vaebench import VAE, InputError, fit
from vaebench.fast import admit
from vaebench.fast.native import NativeEngine, supports_bf16, unsupported
from vaebench.fast.native.chain import read
from vaebench.fast.optimizer import OptimizerState
from vaebench.fast.step import StepEngine
from vaebench.objective import Objective

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_race(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let native steps win against eager ones, which on a busy machine the smallest may not."""
    monkeypatch.setattr(admit.Verdict, "wins", property(lambda _: True))


def _images(count: int, shape: tuple[int, ...], lit: float, dtype: torch.dtype) -> Tensor:
    torch.manual_seed(0)
    x = torch.rand(count, *shape) * (torch.rand(count, *shape) < lit)
    return (255 * x).byte() if dtype == torch.uint8 else x.to(dtype)


def _engine(
    model: nn.Module, images: Tensor, aim: Objective, batch: int, **words: Any
) -> StepEngine:
    built = make_engine(model, images, aim, batch, 1e-3, CPU, **{"compile": True, **words})
    assert built.actual["native"] is isinstance(built.engine, NativeEngine)
    return built.engine


def _native(model: nn.Module, images: Tensor, aim: Objective, batch: int, **words: Any) -> Any:
    engine = _engine(model, images, aim, batch, **words)
    assert isinstance(engine, NativeEngine)
    return engine


def _numbers(engine: StepEngine, count: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    order = torch.randint(len(engine.images), (count,))
    return order, torch.randn(count, engine.latent_dim)


def _trained(engine: StepEngine, count: int) -> tuple[Tensor, list[Tensor]]:
    """Train on so many images; give (recon, kl) per image, and parameters and moments."""
    order, noise = _numbers(engine, count)
    if next(engine.model.parameters()).dtype == torch.float64:
        noise = noise.double()
    sums = engine.epoch(order, noise)
    tensors = [
        *engine.model.parameters(),
        *(t for ts in _adam(engine).moments.values() for t in ts),
    ]
    return torch.stack((sums.recon, sums.kl)).double() / count, [
        t.detach().double() for t in tensors
    ]


def _adam(engine: StepEngine) -> OptimizerState:
    return engine.optimizer


def _supported(model: nn.Module, images: Tensor, objective: Objective) -> bool:
    problem = problem_of(model, images, objective, 2)
    chain = read(problem)
    if chain is None:
        return False
    return unsupported(problem, chain, adam_of(problem.params, 1e-3)) is None


Make = Callable[[], VAE]
# Vectors of 8 or 16, tiles of 6 rows, groups of 2 pixels, blocks of 128 images: whole and short.
CASES: dict[str, tuple[Make, Objective, int, int]] = {
    "default": (lambda: VAE(), Objective(), 128, 300),
    "one of each": (lambda: VAE((4, 1), (1,), 1), Objective(), 1, 3),
    "odd": (lambda: VAE((7, 9), (37,), 3), Objective(beta=0.5), 20, 50),
    "several blocks": (lambda: VAE((5, 6), (50,), 7), Objective(), 300, 700),
    "deep": (lambda: VAE((8, 9), (33, 20, 18), 5, "tanh"), Objective(), 64, 200),
    "leaky": (lambda: VAE((8, 8), (30, 17), 2, "leaky_relu"), Objective(), 130, 270),
    "gaussian": (
        lambda: VAE((6, 11), (40,), 20, "tanh", "gaussian"),
        Objective("gaussian", sigma=0.3, beta=2.0),
        150,
        400,
    ),
}


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=["bytes", "floats"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_eager_step(case: str, dtype: torch.dtype, sparse: bool) -> None:
    make, aim, batch, count = CASES[case]
    torch.manual_seed(2)
    model = make()
    images = _images(310, model.image_shape, 0.1, dtype)
    eager = make_engine(copy.deepcopy(model), images, aim, batch, 1e-3, CPU).engine
    exact_images = images.double() / 255 if dtype == torch.uint8 else images.double()
    exact = make_engine(copy.deepcopy(model).double(), exact_images, aim, batch, 1e-3, CPU).engine
    native = _native(model, images, aim, batch, sparse=sparse)
    assert native.sparse is sparse

    (got, ours), (plain, theirs), (true, truth) = (
        _trained(engine, count) for engine in (native, eager, exact)
    )
    torch.testing.assert_close(got, true, rtol=1e-5, atol=1e-6)
    assert _adam(native).step.item() == -(-count // batch)
    for i, (a, b, t) in enumerate(zip(ours, theirs, truth, strict=True)):
        near = 2 * (b - t).square().mean().sqrt() + 1e-5 * t.square().mean().sqrt()
        assert (a - t).square().mean().sqrt() <= near + 1e-9, i
    torch.testing.assert_close(plain, true, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("case", CASES)
def test_bf16_is_as_near_as_autocast(case: str, sparse: bool) -> None:
    if not supports_bf16():
        pytest.skip("this processor does not multiply bfloat16")
    make, aim, batch, count = CASES[case]
    torch.manual_seed(2)
    model = make()
    images = _images(310, model.image_shape, 0.1, torch.uint8)
    words: dict[str, Any] = {"amp": "bf16"}
    eager = make_engine(copy.deepcopy(model), images, aim, batch, 1e-3, CPU, **words).engine
    exact_model = copy.deepcopy(model).double()
    exact = make_engine(exact_model, images.double() / 255, aim, batch, 1e-3, CPU).engine
    native = _native(model, images, aim, batch, sparse=sparse, **words)
    assert native.bf16
    count = min(count, batch)  # one step: what follows is of other weights
    (got, ours), (plain, theirs), (true, truth) = (
        _trained(engine, count) for engine in (native, eager, exact)
    )
    torch.testing.assert_close(got, true, rtol=2e-3, atol=1e-6)
    assert (got - true).norm() <= 3 * (plain - true).norm() + 2e-4 * true.norm()
    moments = slice(len(list(model.parameters())), None)
    for i, (a, b, t) in enumerate(zip(ours[moments], theirs[moments], truth[moments], strict=True)):
        near = 3 * (b - t).square().mean().sqrt() + 1e-4 * t.square().mean().sqrt()
        assert (a - t).square().mean().sqrt() <= near + 1e-9, i
    # They are bfloat16: float32 would be nearer by far.
    assert (got[0] - true[0]).abs() > 1e-7 * true[0].abs()


@pytest.mark.parametrize("amp", [None, "bf16"])
def test_what_threads_do_does_not_matter(amp: str | None) -> None:
    """The same bits, run by run and thread by thread; batches of one block and of several."""
    if amp and not supports_bf16():
        pytest.skip("this processor does not multiply bfloat16")
    images = _images(500, (28, 28), 0.2, torch.uint8)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            torch.manual_seed(3)
            engine = _native(VAE(), images, Objective(), 200, amp=amp)
            found.append(_trained(engine, 500))
    finally:
        torch.set_num_threads(threads)
    for sums, tensors in found[1:]:
        assert torch.equal(sums, found[0][0])
        for a, b in zip(tensors, found[0][1], strict=True):
            assert torch.equal(a, b)


def test_pieces_of_an_epoch_are_the_epoch() -> None:
    images = _images(300, (8, 8), 0.3, torch.uint8)
    models = []
    for cuts in ([300], [64, 128, 108]):
        torch.manual_seed(4)
        model = VAE((8, 8), (20,), 3)
        engine = _native(model, images, Objective(), 64)
        order, noise = _numbers(engine, 300)
        for index, eps in zip(order.split(cuts), noise.split(cuts), strict=True):
            engine.epoch(index, eps)
        models.append(model)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_changed_learning_rate_acts() -> None:
    images = _images(40, (6, 6), 0.3, torch.uint8)
    model = VAE((6, 6), (16,), 2)
    engine = _native(model, images, Objective(), 40)
    before = [p.detach().clone() for p in model.parameters()]
    engine.set_lr(0.0)
    engine.epoch(*_numbers(engine, 40))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    engine.set_lr(1e-2)
    engine.epoch(*_numbers(engine, 40))
    pairs = zip(before, model.parameters(), strict=True)
    moved = max(float((a - b.detach()).abs().max()) for a, b in pairs)
    assert 5e-3 < moved < 2e-2  # Adam's second step is about as long as the learning rate


def test_parameters_may_move_in_memory() -> None:
    """As by ``model.to`` or by assigning data: nothing is written where they once were."""
    images = _images(40, (6, 6), 0.3, torch.uint8)
    model = VAE((6, 6), (16,), 2)
    engine = _native(model, images, Objective(), 20)
    old = model.output.weight.data
    model.output.weight.data = old.clone()
    kept = old.clone()
    engine.epoch(*_numbers(engine, 40))
    assert torch.equal(old, kept)
    assert not torch.equal(model.output.weight, kept)


@pytest.mark.parametrize("logvar", [100.0, -200.0, float("nan")])
def test_what_is_not_finite_shows(logvar: float) -> None:
    """Overflow and NaN reach the sums, where training looks for them; underflow is no fault."""
    images = _images(40, (6, 6), 0.3, torch.uint8)
    model = VAE((6, 6), (16,), 2)
    engine = _native(model, images, Objective(), 40)
    model.logvar.bias.data.fill_(logvar)
    sums = engine.epoch(*_numbers(engine, 40))
    assert bool((sums.recon - sums.kl).isfinite()) is (logvar == -200.0)


def test_huge_logits() -> None:
    images = _images(40, (6, 6), 0.3, torch.float32)
    torch.manual_seed(5)
    model = VAE((6, 6), (16,), 2)
    model.output.bias.data.copy_(torch.linspace(-1e4, 1e4, 36))
    twin = copy.deepcopy(model)
    native = _native(model, images, Objective(), 40)
    eager = make_engine(twin, images, Objective(), 40, 1e-3, CPU).engine
    (got, _), (want, _) = _trained(native, 40), _trained(eager, 40)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_an_order_that_cannot_be_is_refused() -> None:
    """The kernel itself would read beyond the images."""
    images = _images(40, (6, 6), 0.3, torch.uint8)
    engine = _native(VAE((6, 6), (16,), 2), images, Objective(), 20)
    noise = torch.zeros(2, 2)
    for order in (torch.tensor([0, 40]), torch.tensor([-1, 0])):
        with pytest.raises(IndexError, match="0 to 39"):
            engine.epoch(order, noise)
    with pytest.raises(ValueError, match="2 x 2"):
        engine.epoch(torch.tensor([0, 1]), noise[:1])
    with pytest.raises(ValueError, match="float32"):
        engine.epoch(torch.tensor([0, 1]), noise.double())


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
    images = _images(90, (6, 6), 0.1, torch.uint8)
    if isinstance(model, Halves):
        images = images.unsqueeze(1)
    eager = make_engine(copy.deepcopy(model), images, Objective(), 40, 1e-3, CPU).engine
    native = _native(model, images, Objective(), 40, sparse=sparse)
    (got, ours), (want, theirs) = (_trained(engine, 200) for engine in (native, eager))
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
    assert not _supported(make(), _images(4, (6, 6), 0.3, torch.uint8), Objective())


@pytest.mark.parametrize("aim", [Objective(samples=2), Objective(bound="iwae", samples=3)])
def test_other_objectives_are_left_to_the_compiler(aim: Objective) -> None:
    assert not _supported(VAE((6, 6), (16,), 2), _images(4, (6, 6), 0.3, torch.uint8), aim)


@pytest.mark.slow
@pytest.mark.parametrize("words", [{"native": False}, {"optimizer": "adagrad"}])
def test_other_settings_are_left_to_the_compiler(words: dict[str, Any]) -> None:
    images = _images(20, (6, 6), 0.3, torch.uint8)
    assert not isinstance(
        _engine(VAE((6, 6), (16,), 2), images, Objective(), 20, **words), NativeEngine
    )


@pytest.mark.slow
def test_bf16_without_its_instructions_is_left_to_the_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vaebench.fast.native.supports_bf16", lambda: False)
    images = _images(20, (6, 6), 0.3, torch.uint8)
    engine = _engine(VAE((6, 6), (16,), 2), images, Objective(), 20, amp="bf16")
    assert not isinstance(engine, NativeEngine)


def test_what_is_built_before_the_engine_counts_as_compiling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether bfloat16 is to be had is found out by building the kernel."""
    images = _images(20, (6, 6), 0.3, torch.uint8)
    _native(VAE((6, 6), (16,), 2), images, Objective(), 20)  # so that the kernel itself is built
    monkeypatch.setattr("vaebench.fast.native.dark", lambda _: time.sleep(1))
    built = make_engine(VAE((6, 6), (16,), 2), images, Objective(), 20, 1e-3, CPU, compile=True)
    (took,) = re.findall(r"--compile: (?:took|a compiled step took) ([\d.]+)", built.notes[-1])
    assert float(took) >= 1


def test_fit_trains_by_it_and_says_so() -> None:
    images = _images(60, (6, 6), 0.3, torch.uint8)
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
