"""assert_equal_training: anybody's two steps, and mistakes that people make in the fast one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vaebench
from vaebench.errors import InputError
from vaebench.proof.report import Report

Step = Callable[..., Tensor]


class Net(nn.Module):
    """Somebody's VAE, with its loss; a part of the decoder insists on float32."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Sequential(nn.Linear(36, 24), nn.BatchNorm1d(24), nn.Tanh())
        self.heads, self.up = nn.Linear(24, 8), nn.Linear(4, 24)
        self.out = nn.Linear(24, 36)

    def forward(self, x: Tensor, eps: Tensor) -> Tensor:
        mu, logvar = self.heads(self.into(x)).chunk(2, 1)
        z = mu + torch.exp(0.5 * logvar) * eps
        logits = self.out(torch.tanh(self.up(z)))
        recon = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        loss: Tensor = (recon - 0.5 * (1 + logvar - mu**2 - logvar.exp()).sum()) / len(x)
        return loss


def plain(model: nn.Module) -> Step:
    """A training loop's body, as everybody writes it."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(x: Tensor, eps: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = model(x, eps)
        loss.backward()
        optimizer.step()
        return loss  # type: ignore[no-any-return]

    return step


def _changed(how: str) -> Callable[[nn.Module], Step]:
    """The same with something else in it."""

    def make(model: nn.Module) -> Step:
        lr = 1.1e-3 if how == "another learning rate" else 1e-3
        fused = how == "a fused optimiser"
        optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=fused)
        calls = 0

        def step(x: Tensor, eps: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if not (how == "gradients that add up" and calls > 1):
                optimizer.zero_grad()
            if how == "noise used again":
                eps = eps[:1].expand_as(eps)
            if how == "evaluation mode":
                model.eval()
            with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
                loss: Tensor = model(x, eps).float()
            (loss / 2 if how == "half the loss" else loss).backward()
            if how == "clipped gradients":
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            if how == "a frozen bias":
                model.out.bias.grad = None  # type: ignore[union-attr]
            optimizer.step()
            return loss

        return step

    return make


def _batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.rand(16, 36, generator=generator), torch.randn(16, 4, generator=generator))
        for _ in range(count)
    ]


def _hold(fast: Any, **kwargs: Any) -> Report:
    torch.manual_seed(0)
    return vaebench.assert_equal_training(plain, fast, Net(), _batches(), **kwargs)


@pytest.mark.parametrize("how", ["the same", "a fused optimiser"])
def test_equal_steps_pass(how: str) -> None:
    report = _hold(_changed(how))
    assert report.passed
    assert {check.level for check in report.checks} == {"L1", "L3"}


WRONG = {
    "another learning rate": "param",
    "gradients that add up": "param",
    "noise used again": "loss",
    "evaluation mode": "loss",
    "autocast": "grad",
    "half the loss": "grad into.0.weight",
    "clipped gradients": "grad into.0.weight",
    "a frozen bias": "param out.bias",
}


@pytest.mark.parametrize("how", WRONG)
def test_what_is_wrong_is_named(how: str) -> None:
    with pytest.raises(AssertionError, match=f"fast, L[13]: {WRONG[how]}.* is off by .* let pass"):
        _hold(_changed(how))


class Exact(Net):
    """Insists on float32."""

    def forward(self, x: Tensor, eps: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(x, eps)


@pytest.mark.slow
def test_a_compiled_step_with_a_leaking_autocast() -> None:
    """The forward pass is float32, and so it looks; the compiled backward pass is bfloat16."""

    def fast(model: nn.Module) -> Step:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
        compiled = torch.compile(model)

        def step(x: Tensor, eps: Tensor) -> Tensor:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss: Tensor = compiled(x, eps)
            loss.backward()
            optimizer.step()
            return loss

        return step

    torch.manual_seed(0)
    with pytest.raises(AssertionError, match="L1: grad"):
        vaebench.assert_equal_training(plain, fast, Exact(), _batches())


def test_rounded_steps() -> None:
    report = _hold(_changed("autocast"), rounded=True)
    assert {check.level for check in report.checks} == {"L2"}
    for how in ("half the loss", "noise used again", "clipped gradients"):
        with pytest.raises(AssertionError, match="fast, L2"):
            _hold(_changed(how), rounded=True)


def test_the_model_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = Net()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    vaebench.assert_equal_training(plain, plain, model, _batches())
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name])
    assert all(p.grad is None for p in model.parameters())


def test_bad_input_is_said() -> None:
    with pytest.raises(InputError, match="batches is empty"):
        vaebench.assert_equal_training(plain, plain, Net(), [])
    with pytest.raises(InputError, match="fast gave None: it must give a step"):
        _hold(lambda model: None)
    with pytest.raises(InputError, match="the fast step gave None: it must give the loss"):
        _hold(lambda model: lambda *batch: None)

    def failing(model: nn.Module) -> Step:
        return lambda x, eps: model(x, eps[:, :2])

    with pytest.raises(InputError, match="the fast step failed: RuntimeError"):
        _hold(failing)
