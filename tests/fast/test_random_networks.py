"""Networks that nobody thought of: every engine against the reference, at the bars of L1 and L3.

What a technique cannot do for a network it is to leave, with a note; what is trained must be what
the reference trains. Kernels and compiler win every race here, so that they are used.
"""

import warnings

import pytest
import torch
from hypothesis import HealthCheck, Phase, event, given, settings
from torch import Tensor, nn

from tests.engines import PLAIN, problem_of
from tests.fast.networks import SIDE, Network, RandomVAE, Z, networks
from vaebench.config import FastConfig, without
from vaebench.data.strokes import make_strokes
from vaebench.fast.build import make_engine
from vaebench.fast.step import StepEngine
from vaebench.objective import Objective
from vaebench.reference import ReferenceEngine

pytestmark = pytest.mark.usefixtures("kernels_win")

BATCH, LR, IMAGES = 16, 1e-3, 53  # the last batch has five
EPOCHS = 13  # of four steps: 52 in all
EPS = 1e-4  # Adam's: what is but rounding, as a bias's gradient before batch norm, makes no step
KINK = 5e-6  # nearer to 0, the sign of a ReLU's input may be rounding's
CPU = torch.device("cpu")
FAST = without(FastConfig(), "flush_denormal", "amp")
# What is asked for, and whether the images stay on the device.
ENGINES: dict[str, tuple[FastConfig, bool]] = {
    "eager": (PLAIN, True),
    "products": (FAST, True),
    "streamed": (FAST, False),
}
COMPILED = {"compiled": (FastConfig(compile=True), True)}
SETTINGS = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "phases": [Phase.generate],  # a smaller network fails no plainer, and takes minutes to find
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Networks this small gain nothing by more, and threads that wait for one another lose."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def small() -> Tensor:
    """Strokes of 8 by 8 pixels, (53, 8, 8) uint8."""
    images = make_strokes(IMAGES, seed=4)[0][:, 2:26, 2:26]
    return images.unfold(1, 3, 3).unfold(2, 3, 3).amax((3, 4)).contiguous()


def _reference(network: Network, images: Tensor, dtype: torch.dtype) -> ReferenceEngine:
    images = images if dtype == torch.float32 else images.to(dtype) / 255
    return ReferenceEngine(
        RandomVAE(network).to(dtype), images, batch_size=BATCH, lr=LR, device=CPU,
        likelihood="bernoulli", sigma=1.0, beta=1.0, words={"eps": EPS},
    )  # fmt: skip


def _numbers(epoch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(epoch)
    order = torch.randperm(IMAGES, generator=generator)
    return order, torch.randn(IMAGES, Z, generator=generator)


def _elbo(engine: "StepEngine | ReferenceEngine", order: Tensor, noise: Tensor) -> list[float]:
    torch.manual_seed(1)  # dropout's
    sums = engine.epoch(order, noise)
    return [float(sums.recon - sums.kl), float(sums.recon), float(sums.kl)]


def _watch_kinks(model: nn.Module) -> list[float]:
    """Give a list that is told, in each call, how near to 0 a ReLU's inputs come.

    So near, rounding decides on which side they are: gradients differ by more than rounding, and
    trainings part.
    """
    nearest = [1.0]

    def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nearest.append(float(inputs[0].detach().abs().min()))

    for module in model.modules():
        if isinstance(module, (nn.ReLU, nn.LeakyReLU)):
            module.register_forward_pre_hook(look)
    return nearest


def _rmse(a: Tensor, truth: Tensor) -> float:
    return (a.detach().double() - truth.detach().double()).square().mean().sqrt().item()


def _check_step(
    network: Network, images: Tensor, engine: StepEngine, plain: ReferenceEngine
) -> ReferenceEngine:
    """L1: one step; ELBO and gradients. Return the reference in float64, trained as far."""
    order, noise = (t[:BATCH] for t in _numbers(0))
    want, got = _elbo(plain, order, noise), _elbo(engine, order, noise)
    assert got[0] == pytest.approx(want[0], rel=1e-5)
    truth = _reference(network, images, torch.float64)
    _elbo(truth, order, noise.double())
    true = dict(truth.model.named_parameters())
    theirs = dict(plain.model.named_parameters())
    # A gradient that is 0, as a bias's before batch norm, is a sum of others that cancel out.
    sizes = {name: _rmse(p.grad, 0 * p.grad) for name, p in true.items() if p.grad is not None}
    names = {id(p): name for name, p in engine.model.named_parameters()}
    for p, m in zip(engine.optimizer.params, engine.optimizer.moments["m"], strict=True):
        name = names[id(p)]
        assert true[name].grad is not None, name
        grad = m / 0.1  # moments start at zero
        size = max(1.0, sizes[name] if sizes[name] > 1e-9 else max(sizes.values()))
        allowed = 2 * _rmse(theirs[name].grad, true[name].grad) + 1e-5 * size
        assert _rmse(grad, true[name].grad) <= allowed, name
    trained = {names[id(p)] for p in engine.optimizer.params}
    assert trained == {name for name, p in theirs.items() if p.grad is not None}
    return truth


def _check_network(
    network: Network, images: Tensor, engines: dict[str, tuple[FastConfig, bool]]
) -> None:
    for name, (fast, resident) in engines.items():
        model = RandomVAE(network)
        problem = problem_of(model, images, Objective(), BATCH, LR, resident=resident, adam_eps=EPS)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            built = make_engine(problem, fast)
        for warning in told:
            event(f"{name} stood aside: {str(warning.message)[:60]}")
        event(f"{name}: {', '.join(k for k, v in built.actual.items() if v is True) or 'plain'}")
        plain = _reference(network, images, torch.float32)
        nearest = _watch_kinks(plain.model)
        truth = _check_step(network, images, built.engine, plain)
        for epoch in range(1, EPOCHS + 1):
            order, noise = _numbers(epoch)
            want, got = _elbo(plain, order, noise), _elbo(built.engine, order, noise)
            true = _elbo(truth, order, noise.double())
            wider = 10 if min(nearest) < KINK else 1
            for a, b, t, bar in zip(got, want, true, (1e-3, 1e-3, 1e-2), strict=True):
                # What magnifies rounding moves the reference as far from float64.
                assert abs(a - b) <= wider * bar * abs(b) + 2 * abs(b - t), (name, epoch)


@settings(max_examples=2, **SETTINGS)  # type: ignore[arg-type]
@given(network=networks())
def test_a_few_networks(network: Network, small: Tensor) -> None:
    _check_network(network, small, ENGINES)


@pytest.mark.slow
@settings(max_examples=200, **SETTINGS)  # type: ignore[arg-type]
@given(network=networks())
def test_200_networks(network: Network, small: Tensor) -> None:
    _check_network(network, small, ENGINES)


@pytest.mark.slow
@settings(max_examples=8, **SETTINGS)  # type: ignore[arg-type]
@given(network=networks())
def test_networks_compiled(network: Network, small: Tensor) -> None:
    _check_network(network, small, COMPILED)


def test_small_pictures_are_pictures(small: Tensor) -> None:
    assert small.shape == (IMAGES, SIDE, SIDE)
    assert small.float().std() > 50
