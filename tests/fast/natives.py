"""Native engines, and what they make of so many images; see ``test_native.py``."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.engines import make_engine
from vaebench.fast.native import NativeEngine
from vaebench.fast.optimizer import OptimizerState
from vaebench.fast.step import StepEngine
from vaebench.objective import Objective

CPU = torch.device("cpu")


def images_of(count: int, shape: tuple[int, ...], lit: float, dtype: torch.dtype) -> Tensor:
    torch.manual_seed(0)
    x = torch.rand(count, *shape) * (torch.rand(count, *shape) < lit)
    return (255 * x).byte() if dtype == torch.uint8 else x.to(dtype)


def engine_of(
    model: nn.Module, images: Tensor, aim: Objective, batch: int, **words: Any
) -> StepEngine:
    lr = words.pop("lr", 1e-3)
    built = make_engine(model, images, aim, batch, lr, CPU, **{"compile": True, **words})
    assert built.actual["native"] is isinstance(built.engine, NativeEngine)
    return built.engine


def native_of(model: nn.Module, images: Tensor, aim: Objective, batch: int, **words: Any) -> Any:
    engine = engine_of(model, images, aim, batch, **words)
    assert isinstance(engine, NativeEngine)
    return engine


def numbers_of(engine: StepEngine, count: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    order = torch.randint(len(engine.images), (count,))
    return order, torch.randn(count, engine.latent_dim)


def trained(engine: StepEngine, count: int) -> tuple[Tensor, list[Tensor]]:
    """Train on so many images; give (recon, kl) per image, and parameters and moments."""
    order, noise = numbers_of(engine, count)
    if next(engine.model.parameters()).dtype == torch.float64:
        noise = noise.double()
    sums = engine.epoch(order, noise)
    tensors = [
        *engine.model.parameters(),
        *(t for ts in optimizer_of(engine).moments.values() for t in ts),
    ]
    return torch.stack((sums.recon, sums.kl)).double() / count, [
        t.detach().double() for t in tensors
    ]


def optimizer_of(engine: StepEngine) -> OptimizerState:
    return engine.optimizer
