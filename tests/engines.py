"""Engines for tests: the fast one, by what it is to train and switches for its techniques."""

from typing import Any

import torch
from torch import Tensor, nn

from vaebench.config import FastConfig, OptimizerConfig, without
from vaebench.fast.build import Built
from vaebench.fast.build import make_engine as make
from vaebench.fast.draft import Draft, Plan
from vaebench.fast.optimizer import OptimizerState
from vaebench.fast.register import TECHNIQUES
from vaebench.objective import Objective
from vaebench.problem import Problem
from vaebench.system.distributed import Group

PLAIN = without(FastConfig(), *(t.name for t in TECHNIQUES))


def problem_of(
    model: nn.Module,
    images: Tensor,
    objective: Objective | None = None,
    batch_size: int = 16,
    lr: float = 1e-3,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Problem:
    """Check a problem; ``kwargs`` are those of OptimizerConfig and of Problem.of."""
    of = {name: kwargs.pop(name) for name in ("labels", "resident") if name in kwargs}
    settings = OptimizerConfig(batch_size=batch_size, lr=lr, **kwargs)
    return Problem.of(model, images, objective or Objective(), settings, torch.device(device), **of)


def make_engine(
    model: nn.Module,
    images: Tensor,
    objective: Objective,
    batch_size: int,
    lr: float,
    device: torch.device,
    *,
    group: Group | None = None,
    optimizer: str = "adam",
    resident: bool | None = None,
    **more: Any,
) -> Built:
    """Build the fast engine; ``more`` are of OptimizerConfig, or switches of techniques."""
    switches = {t.name: more.pop(t.name) for t in TECHNIQUES if t.name in more}
    settings: dict[str, Any] = {"name": optimizer, "resident": resident, **more}
    problem = problem_of(model, images, objective, batch_size, lr, device, **settings)
    return make(problem, FastConfig(**switches), group)


def adam_of(params: list[Tensor], lr: float, **settings: Any) -> OptimizerState:
    """Adam's state, or that of the optimiser called ``name``, at the beginning."""
    return OptimizerState.of(params, OptimizerConfig(lr=lr, **settings))


def draft_of(problem: Problem, optimizer: OptimizerState, **switches: Any) -> Draft:
    """A draft of nothing but the plain step."""
    return Draft(problem, FastConfig(**switches), None, optimizer, Plan(problem.objective))
