"""Engines with graphs and without, the same pieces of epochs for both; see ``test_graph.py``."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tests.engines import make_engine
from vaebench.fast import capture as recording
from vaebench.fast.graph import GraphEngine
from vaebench.fast.step import StepEngine
from vaebench.models.mlp import VAE
from vaebench.objective import Objective

BATCH, Z = 64, 6
CPU = torch.device("cpu")
Where = tuple[torch.device, Callable[[torch.device], recording.Capture]]


class BatchNorm(VAE):
    """With statistics that every step changes."""

    def __init__(self) -> None:
        super().__init__(hidden_dims=(32,), latent_dim=Z)
        self.encoder = nn.Sequential(*self.encoder, nn.BatchNorm1d(32))


class Dropout(VAE):
    """With random numbers of its own."""

    def __init__(self) -> None:
        super().__init__(hidden_dims=(32,), latent_dim=Z)
        self.encoder = nn.Sequential(*self.encoder, nn.Dropout(0.3))


class Waiting(VAE):
    """Waits for how large a tensor becomes, in the middle of a step."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = super().encode(x)
        return mu * len(torch.nonzero(mu.sum().view(1) < 1e30)), logvar


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: VAE(hidden_dims=(32,), latent_dim=Z),
    "batch norm": BatchNorm,
}


def plain_of(
    images: Tensor, device: torch.device, model: str = "mlp", batch: int = BATCH, **words: Any
) -> StepEngine:
    torch.manual_seed(1)
    objective = Objective(samples=words.pop("samples", 1))
    made = MODELS[model]()
    # No joint update: whether it pays is measured, so that two engines may round otherwise.
    words = {"graph": False, "joint_update": False, **words}
    return make_engine(made, images, objective, batch, 1e-3, device, **words).engine


def replayed_of(plain: StepEngine, where: Where) -> GraphEngine:
    engine = GraphEngine(plain, where[1](where[0]))
    engine.warm_up()
    return engine


def state_of(engine: StepEngine) -> list[Tensor]:
    return [t.detach().clone() for t in (*engine.optimizer.tensors(), *engine.model.buffers())]


def all_equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def pieces_of(
    engine: StepEngine, sizes: list[int], seed: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    numbers = torch.Generator().manual_seed(seed)
    for size in sizes:
        order = torch.randperm(len(engine.images), generator=numbers)[:size]
        shape = engine.no_noise(size).shape
        yield order.to(engine.device), torch.randn(shape, generator=numbers).to(engine.device)


def train(engine: StepEngine, sizes: list[int], seed: int = 0) -> list[float]:
    sums = [engine.epoch(*piece) for piece in pieces_of(engine, sizes, seed)]
    assert [part.images for part in sums] == sizes
    return [float(value) for part in sums for value in (part.recon, part.kl)]
