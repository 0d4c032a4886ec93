"""The step on a CUDA device that is not there: nothing of the host's is in it, nothing is read."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.fast.ghost import GHOST, ghost
from vaebench import ConvVAE
from vaebench.config import OPTIMIZERS, OptimizerConfig
from vaebench.fast.capture import Chunk
from vaebench.fast.graph import GraphEngine
from vaebench.fast.optimizer import OptimizerState
from vaebench.fast.step import StepEngine, make_step
from vaebench.models.mlp import VAE
from vaebench.objective import Objective
from vaebench.problem import Problem

IMAGES, BATCH, Z = 50, 16, 6  # the last batch is short


class BatchNorm(VAE):
    """With statistics that every step changes."""

    def __init__(self) -> None:
        super().__init__(hidden_dims=(32,), latent_dim=Z)
        self.encoder = nn.Sequential(*self.encoder, nn.BatchNorm1d(32))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: VAE(hidden_dims=(32,), latent_dim=Z),
    "deep": lambda: VAE(hidden_dims=(32, 16), latent_dim=Z, activation="tanh"),
    "batch norm": BatchNorm,
    "conv": lambda: ConvVAE(latent_dim=Z),
}
OBJECTIVES = {
    "vae": Objective(),
    "gaussian": Objective("gaussian", sigma=0.5, beta=4.0),
    "3 samples": Objective(samples=3),
    "iwae": Objective(bound="iwae"),
    "iwae, 3 samples": Objective(bound="iwae", samples=3),
}


def _engine(
    model: nn.Module,
    objective: Objective,
    dtype: torch.dtype = torch.uint8,
    **of_optimizer: Any,
) -> StepEngine:
    """Make an engine of which everything is on the device."""
    images = torch.zeros(IMAGES, 28, 28, dtype=dtype, device=GHOST)
    vae: Any = model
    settings = OptimizerConfig(batch_size=BATCH, **of_optimizer)
    state = OptimizerState.of(list(model.parameters()), settings)
    # Not by Problem.of, which reads what it tries.
    problem = Problem(
        model, vae, images, None, objective, settings, GHOST, Z, state.params,
        torch.zeros(2, 28, 28, device=GHOST),
    )  # fmt: skip
    return StepEngine(problem, make_step(vae, objective, state), state)


def _made(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device(GHOST):
        return make()


def _train(engine: StepEngine) -> None:
    """An epoch, up to where its sums are read."""
    order = torch.randperm(IMAGES, device=GHOST)
    engine.set_lr(1e-4)
    sums = engine.epoch(order, torch.randn_like(engine.no_noise(IMAGES)))
    assert sums.recon.device == sums.kl.device == GHOST


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_steps_stay_on_the_device(model: Callable[[], nn.Module], objective: Objective) -> None:
    with ghost() as device:
        engine = _engine(_made(model), objective)
        with device.closed():
            _train(engine)


@pytest.mark.parametrize(
    "optimizer",
    [{"name": name} for name in OPTIMIZERS]
    + [{"name": "sgd", "momentum": 0.9}, {"clip_norm": 1.0, "clip_value": 0.1}],
    ids=lambda words: " ".join(map(str, words.values())),
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_so_do_those_of_other_images_and_optimisers(
    dtype: torch.dtype, optimizer: dict[str, Any]
) -> None:
    with ghost() as device:
        engine = _engine(_made(MODELS["mlp"]), Objective(), dtype, **optimizer)
        with device.closed():
            _train(engine)


class Unrecorded:
    """Runs work in place of recording it, and replays nothing."""

    def warm_up(self, work: Callable[[], None]) -> None:
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        work()
        return lambda: None


@pytest.mark.parametrize("samples", [1, 3])
def test_so_does_what_is_recorded_and_what_replays(samples: int) -> None:
    with ghost() as device:
        plain = _engine(_made(MODELS["mlp"]), Objective(samples=samples))
        with device.closed():
            engine = GraphEngine(plain, Unrecorded())
            words = (engine, engine.totals)
            engine.chunks = {k: Chunk(*words, k, BATCH, engine.capture) for k in (1, 2)}
            engine.short = Chunk(*words, 1, IMAGES % BATCH, engine.capture)
            _train(engine)
            engine.epoch(torch.arange(5, device=GHOST), engine.no_noise(5))  # never recorded


# What must be seen: each in the middle of a step.
WRONG: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda mu: mu * mu.sum().item(),
    "float": lambda mu: mu * float(mu[0, 0]),
    "bool": lambda mu: mu if mu.sum() > 0 else -mu,
    "list": lambda mu: mu + mu[0].tolist()[0],
    "constants on the host": lambda mu: mu * torch.ones(Z),
    "a constant on the host": lambda mu: mu * torch.tensor(2.0),
    "constants brought along": lambda mu: mu * torch.tensor([2.0] * Z, device=mu.device),
    "index from the host": lambda mu: mu[:, torch.arange(Z)],
    "mask": lambda mu: mu + mu[mu > 0].sum(),
    "there and back": lambda mu: mu.cpu().to(mu.device),
    "noise of the host": lambda mu: mu + torch.randn(Z),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_does_not_is_seen(wrong: Callable[[Tensor], Any]) -> None:
    class Wrong(VAE):
        def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
            mu, logvar = super().encode(x)
            return wrong(mu), logvar

    with ghost() as device:
        engine = _engine(_made(lambda: Wrong(hidden_dims=(32,), latent_dim=Z)), Objective())
        with device.closed(), pytest.raises(RuntimeError):
            _train(engine)
