"""Taps that meet nothing but padding are left out of updates, and no bit is another for it."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.engines import adam_of, make_engine
from vaebench.fast.optimizer import OptimizerState, rule_of
from vaebench.fast.products import Shape, idle, operators
from vaebench.fast.products.idle import IdleTaps, WithoutIdle
from vaebench.objective import Objective

pytestmark = pytest.mark.usefixtures("kernels_win")
CPU = torch.device("cpu")
Z = 2


class Pixels(nn.Module):
    """2x2 pixels to one and back: each layer has five idle taps of nine.

    ``elsewhere`` uses the first weight once more, and so gives all its taps a gradient.
    """

    def __init__(self, elsewhere: bool = False) -> None:
        super().__init__()
        self.elsewhere = elsewhere
        self.down = nn.Conv2d(1, 8, 3, 2, 1)
        self.mu, self.logvar = nn.Linear(8, Z), nn.Linear(8, Z)
        self.into = nn.Linear(Z, 8)
        self.up = nn.ConvTranspose2d(8, 1, 3, 2, 1, 1)

    def encode(self, x: Tensor) -> Any:
        hidden = self.down(x.unsqueeze(1)).tanh().flatten(1)
        if self.elsewhere:
            hidden = hidden + self.down.weight.sum()
        return self.mu(hidden), self.logvar(hidden)

    def decode(self, z: Tensor) -> Any:
        return self.up(self.into(z)[:, :, None, None]).squeeze(1)


def _trained(elsewhere: bool, monkeypatch: pytest.MonkeyPatch, whole: bool) -> OptimizerState:
    """After some epochs; ``whole`` updates go over everything."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (20, 2, 2), dtype=torch.uint8)
    order, noise = torch.arange(20), torch.randn(20, Z)
    with monkeypatch.context() as patch:
        if whole:
            patch.setattr(IdleTaps, "of", lambda *_: None)
        engine = make_engine(Pixels(elsewhere), images, Objective(), 8, 1e-2, CPU).engine
        assert whole is not any(isinstance(c, WithoutIdle) for c in engine.contexts)
        for _ in range(3):
            engine.epoch(order, noise)
    return engine.optimizer


@pytest.mark.parametrize("elsewhere", [False, True])
def test_training_is_the_same_to_the_bit(elsewhere: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    run = WithoutIdle.update

    def update(self: WithoutIdle, given: Any) -> None:
        run(self, given)
        seen.append(len(self.resting))

    monkeypatch.setattr(WithoutIdle, "update", update)
    ours, theirs = (_trained(elsewhere, monkeypatch, whole) for whole in (False, True))
    for mine, other in zip(ours.tensors(), theirs.tensors(), strict=True):
        assert torch.equal(mine, other)
    assert set(seen) == ({1} if elsewhere else {2})  # weights that were left out of in part


def test_less_is_gone_over(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counted(settings: Any) -> Any:
        def rule(update: Any) -> None:
            sizes.append(sum(p.numel() for p in update.params))
            rule_of(settings)(update)

        return rule

    monkeypatch.setattr(idle, "rule_of", counted)
    params = _trained(False, monkeypatch, whole=False).params
    assert set(sizes) == {sum(p.numel() for p in params) - 2 * 5 * 8}


def test_what_was_remembered_before_is_not_forgotten() -> None:
    """As of a training elsewhere in which those taps had a gradient."""
    shape = Shape(False, (4, 1, 2, 2), 8, (3, 3), (2, 2), (1, 1))
    weight = operators.empty_weight(torch.zeros(0), 8, 1, (3, 3)).normal_()
    ours, theirs = adam_of([weight], 1e-2), adam_of([weight.clone()], 1e-2)
    for state in (ours, theirs):
        for moments in state.moments.values():
            moments[0].fill_(1.0)
    taps = IdleTaps.of(ours.belonging_to(weight), shape)
    assert taps
    assert not taps.at_rest()
    grad = torch.zeros_like(weight)
    with WithoutIdle(ours, [taps])():
        ours.update((grad,))
    theirs.update((grad,))
    assert torch.equal(ours.params[0], theirs.params[0])
    assert (ours.params[0] != weight.mean()).all()


def test_weight_decay_reaches_every_tap() -> None:
    images = torch.randint(0, 256, (20, 2, 2), dtype=torch.uint8)
    built = make_engine(Pixels(), images, Objective(), 8, 1e-2, CPU, weight_decay=0.1)
    assert built.actual["products"]
    assert not any(isinstance(c, WithoutIdle) for c in built.engine.contexts)


def test_live_taps_are_those_that_have_a_gradient() -> None:
    draw = random.Random(0)
    idle_ones = 0
    for case in range(60):
        kernel, stride, padding = (
            (draw.randint(*bounds), draw.randint(*bounds)) for bounds in ((1, 5), (1, 3), (0, 3))
        )
        size = draw.randint(1, 4), draw.randint(1, 4)
        extra = (draw.randrange(stride[0]), draw.randrange(stride[1])) if case % 2 else (0, 0)
        shape = Shape(bool(case % 2), (2, 1, *size), 1, kernel, stride, padding, extra)
        layer = shape.layer()
        try:
            y = layer(torch.ones(shape.x))
        except RuntimeError:
            continue  # nothing is left of so small an image
        if y.numel():
            grad = torch.autograd.grad(y.sum(), layer.weight)[0]  # type: ignore[arg-type]
            assert idle.live_taps(shape) == (grad[0, 0] != 0).flatten().tolist()
            idle_ones += int((grad == 0).sum())
    assert idle_ones > 20
