"""Optimisers: torch.optim's steps, in every engine, and what is remembered."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vaebench
from vaebench.config import OptimizerConfig
from vaebench.fast.optimizer import OptimizerState, clipped
from vaebench.proof.subject import Subject
from vaebench.proof.verify import Proof
from vaebench.reference import OPTIMIZERS
from vaebench.training.follow import torch_words

LR = 1e-2
SETTINGS: dict[str, dict[str, Any]] = {
    "adam": {},
    "adam, decayed": {"weight_decay": 0.1, "adam_betas": (0.8, 0.99), "adam_eps": 1e-4},
    "adamw": {"name": "adamw", "weight_decay": 0.1, "adam_betas": (0.7, 0.9)},
    "adamax": {"name": "adamax", "weight_decay": 0.1},
    "adagrad": {"name": "adagrad", "weight_decay": 0.1},
    "rmsprop": {"name": "rmsprop"},
    "rmsprop, momentum": {"name": "rmsprop", "momentum": 0.9, "weight_decay": 0.1},
    "sgd": {"name": "sgd", "weight_decay": 0.1},
    "sgd, momentum": {"name": "sgd", "momentum": 0.9},
    "clipped": {"name": "sgd", "clip_norm": 2.0, "clip_value": 0.5},
}


def _torchs(settings: OptimizerConfig, params: list[nn.Parameter]) -> torch.optim.Optimizer:
    make: Any = OPTIMIZERS[settings.name]
    made: torch.optim.Optimizer = make(params, lr=settings.lr, **torch_words(settings))
    return made


def _step(
    optimizer: torch.optim.Optimizer, settings: OptimizerConfig, params: list[nn.Parameter]
) -> None:
    """A step as torch's users write it."""
    if settings.clip_norm:
        nn.utils.clip_grad_norm_(params, settings.clip_norm)
    if settings.clip_value:
        nn.utils.clip_grad_value_(params, settings.clip_value)
    optimizer.step()


def _grads(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(5, 3, generator=generator),
        1e-4 * torch.randn(7, generator=generator),
        torch.zeros(2),
    ]


@pytest.mark.parametrize("words", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_steps_are_torchs(words: dict[str, Any], compile: bool) -> None:
    """60 steps with changing gradients beside torch.optim in float64, one gradient always zero."""
    torch.manual_seed(0)
    settings = OptimizerConfig(**{"lr": LR, **words})
    ours = [torch.randn(5, 3), torch.randn(7), torch.randn(2)]
    theirs = [nn.Parameter(p.double()) for p in ours]
    state, optimizer = OptimizerState.of(ours, settings), _torchs(settings, theirs)
    torch._dynamo.reset()  # it compiles one function for so many different states, and no more
    update = torch.compile(state.update, fullgraph=True) if compile else state.update
    for seed in range(60):
        grads = _grads(seed)
        update(tuple(grads))
        for parameter, grad in zip(theirs, grads, strict=True):
            parameter.grad = grad.double()
        _step(optimizer, settings, theirs)
    for p, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, want.detach().float(), rtol=2e-5, atol=2e-6)


def test_clipping_leaves_what_is_small_alone() -> None:
    grads = tuple(_grads(0))
    assert clipped(grads, None, None) is grads
    for got, want in zip(clipped(grads, 100.0, 10.0), grads, strict=True):
        assert torch.equal(got, want)
    short = clipped(grads, 1.0, None)
    assert math.sqrt(sum(float(g.square().sum()) for g in short)) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("words", SETTINGS.values(), ids=SETTINGS)
def test_what_is_remembered_goes_with_its_parameter(words: dict[str, Any]) -> None:
    """A parameter that rests for three steps, as torch.optim passes over one without gradient."""
    settings = OptimizerConfig(**{"lr": LR, **words})
    ours = [torch.ones(5, 3), torch.ones(7), torch.ones(2)]
    theirs = [nn.Parameter(p.double()) for p in ours]
    state, optimizer = OptimizerState.of(ours, settings), _torchs(settings, theirs)
    for seed in range(9):
        resting = 3 <= seed < 6
        if seed in (3, 6):
            state = state.following(ours[:1] + ours[2:] if resting else ours)
        grads = _grads(seed)
        for parameter, grad in zip(theirs, grads, strict=True):
            parameter.grad = grad.double()
        if resting:
            theirs[1].grad, grads = None, grads[:1] + grads[2:]
        state.update(tuple(grads))
        _step(optimizer, settings, theirs)
    for p, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, want.detach().float(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"adam_betas": (0.8, 0.99), "weight_decay": 0.05},
        {"optimizer": "adamw", "adam_betas": (0.7, 0.95), "weight_decay": 0.5, "lr": 3e-3},
        {"optimizer": "sgd", "momentum": 0.9, "clip_norm": 1.0},
    ],
    ids=["adam", "adamw", "sgd"],
)
def test_the_native_steps_have_it_too(options: dict[str, Any], strokes: Tensor) -> None:
    torch.manual_seed(0)
    model = vaebench.VAE(hidden_dims=(20,), latent_dim=3)
    config = vaebench.TrainConfig(batch_size=32, device="cpu", **options)
    proof = Proof(Subject(model, strokes, None, config))
    assert proof.compare(["compile", "native"]) == "compile+native"
    assert [str(check) for check in proof.checks if not check.passed] == []
    assert {check.level for check in proof.checks} == {"L1", "L3"}
