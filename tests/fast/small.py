"""A small VAE's engine, and an epoch of it."""

from typing import Any

import torch
from torch import Tensor

from tests.engines import make_engine
from vaebench.fast.optimizer import OptimizerState
from vaebench.fast.step import StepEngine
from vaebench.models.mlp import VAE
from vaebench.objective import Objective

CPU = torch.device("cpu")


def engine_of(
    images: Tensor, *, batch_size: int = 64, compile: bool = True, native: bool = False
) -> StepEngine:
    torch.manual_seed(1)
    model = VAE(hidden_dims=(48,), latent_dim=6)
    words: dict[str, Any] = {"compile": compile, "native": native}
    built = make_engine(model, images, Objective(), batch_size, 1e-3, CPU, **words)
    assert built.actual["compile"] is compile
    return built.engine


def epoch(engine: StepEngine) -> float:
    n = len(engine.images)
    sums = engine.epoch(torch.randperm(n), torch.randn(n, engine.latent_dim))
    return float(sums.recon - sums.kl) / n


def optimizer_of(engine: StepEngine) -> OptimizerState:
    return engine.optimizer
