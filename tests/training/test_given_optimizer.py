"""fit(optimizer=an object): any torch.optim.Optimizer, equal to a loop that uses it by hand."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vaebench
from tests.tiers import first
from vaebench.errors import InputError
from vaebench.models.mlp import VAE
from vaebench.objective import Objective, loss_terms

WORDS: dict[str, Any] = {"batch_size": 64, "device": "cpu"}


class Signs(torch.optim.Optimizer):
    """Somebody's own: steps by signs, the smaller the later; counts in Python."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr, "k": 0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        for group in self.param_groups:
            group["k"] += 1
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    state["seen"] = state.get("seen", 0) + 1
                    p.add_(p.grad.sign(), alpha=-group["lr"] / group["k"] ** 0.5)


class Counting(torch.optim.SGD):
    """Somebody's own, whose count is an attribute, and decides how far it steps."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=1e-2)
        self.seen, self.shares = 0, [1.0]
        self.lock = threading.Lock()  # which nobody can copy

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.seen += 1
        self.shares.append(1 / self.seen)
        for group in self.param_groups:
            group["lr"] = 1e-2 * self.shares[-1]
            group.setdefault("steps", []).append(self.seen)
            assert len(group["steps"]) == self.seen == len(self.shares) - 1
        super().step()


def two_groups(model: nn.Module) -> list[dict[str, Any]]:
    params = list(model.parameters())
    return [{"params": params[:4]}, {"params": params[4:], "lr": 5e-4}]


MAKERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "NAdam": lambda m: torch.optim.NAdam(m.parameters(), lr=2e-3),
    "somebody's": lambda m: Signs(m.parameters(), lr=1e-3),
    "counting": lambda m: Counting(m.parameters()),
    "two groups": lambda m: torch.optim.SGD(two_groups(m), lr=1e-3, momentum=0.9, nesterov=True),
    "amsgrad": lambda m: torch.optim.Adam(m.parameters(), amsgrad=True),
    "Rprop": lambda m: torch.optim.Rprop(m.parameters()),
    "fused": lambda m: torch.optim.AdamW(m.parameters(), fused=True),
    "Adafactor": lambda m: torch.optim.Adafactor(m.parameters()),
}


def _model() -> VAE:
    torch.manual_seed(0)
    return VAE(hidden_dims=(24,), latent_dim=3)


def _by_hand(model: VAE, optimizer: torch.optim.Optimizer, images: Tensor, epochs: int) -> None:
    """The loop of a tutorial, over fit's own order and noise."""
    seen: list[tuple[Tensor, Tensor]] = []

    from vaebench.training.numbers import Numbers

    take = Numbers.epoch

    def watched(self: Any, *given: Any) -> Any:
        for order, noise in take(self, *given):
            seen.append((order.clone(), noise.clone()))
            yield order, noise

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Numbers, "epoch", watched)
        vaebench.fit(copy.deepcopy(model), images, epochs=epochs, **WORDS)
    for order, noise in seen:
        for index, eps in zip(order.split(64), noise.split(64), strict=True):
            loss, _, _ = loss_terms(model, Objective(), images[index].float() / 255, eps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize("name", MAKERS)
def test_as_by_hand(name: str, engine: str, strokes: Tensor) -> None:
    images, want, got = strokes[:300], _model(), _model()
    _by_hand(want, MAKERS[name](want), images, 2)
    optimizer = MAKERS[name](got)
    vaebench.fit(got, images, epochs=2, optimizer=optimizer, engine=engine, **WORDS)
    for a, b in zip(got.parameters(), want.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        assert a.grad is None or engine == "reference"
    state = optimizer.state[next(got.parameters())]
    steps = [float(v) for k, v in state.items() if k in ("step", "seen")]
    assert steps == [10.0] * len(steps)  # the gate, and whatever was tried, left no trace


@pytest.mark.parametrize("name", first(3, MAKERS))
def test_compiled(name: str, strokes: Tensor) -> None:
    want, got = _model(), _model()
    plain, compiled = (
        vaebench.fit(
            model, strokes[:300], epochs=2, optimizer=MAKERS[name](model), compile=compile, **WORDS
        )
        for model, compile in ((want, False), (got, True))
    )
    notes = " ".join(compiled.notes)
    assert compiled.actual["compile"], notes
    assert not compiled.actual["native"]
    assert "went wrong" not in notes
    for a, b in zip(compiled.epochs, plain.epochs, strict=True):
        assert a.train_elbo == pytest.approx(b.train_elbo, rel=1e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_resumed_to_the_same_bits(name: str, strokes: Tensor) -> None:
    images, whole, parts = strokes[:300], _model(), _model()
    vaebench.fit(whole, images, epochs=4, optimizer=MAKERS[name](whole), **WORDS)
    kept: list[Any] = []
    vaebench.fit(
        parts, images, epochs=2, optimizer=MAKERS[name](parts),
        on_state=lambda state: kept.append(copy.deepcopy(state)), **WORDS,
    )  # fmt: skip
    again = _model()
    if name in ("somebody's", "counting"):  # its count is no parameter's
        pytest.skip("keeps a count that no checkpoint has")
    optimizer = MAKERS[name](again)
    vaebench.fit(again, images, epochs=4, optimizer=optimizer, resume=kept[-1], **WORDS)
    for a, b in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_scheduler_of_the_callers(strokes: Tensor) -> None:
    model = _model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    rates: list[float] = []

    def on_epoch(record: Any) -> None:
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()

    vaebench.fit(model, strokes[:128], epochs=3, optimizer=optimizer, on_epoch=on_epoch, **WORDS)
    assert rates == [1e-2, 5e-3, 2.5e-3]


def test_a_schedule_of_ours_multiplies_each_groups_rate(strokes: Tensor) -> None:
    model = _model()
    optimizer = torch.optim.SGD(two_groups(model), lr=1e-3)
    rates: list[list[float]] = []

    def on_epoch(record: Any) -> None:
        rates.append([group["lr"] for group in optimizer.param_groups])

    vaebench.fit(
        model, strokes[:128], epochs=2, optimizer=optimizer, schedule="linear", on_epoch=on_epoch,
        **WORDS,
    )  # fmt: skip
    for fast, slow in rates:
        assert slow == pytest.approx(fast / 2)
    assert 0 < rates[1][0] < rates[0][0] < 1e-3


def test_what_it_does_not_hold_is_not_trained(strokes: Tensor) -> None:
    model = _model()
    before = model.output.weight.detach().clone()
    optimizer = torch.optim.Adam(model.encoder.parameters())
    for compile in (False, True):
        vaebench.fit(model, strokes[:128], epochs=1, optimizer=optimizer, compile=compile, **WORDS)
    assert torch.equal(model.output.weight, before)


def test_what_cannot_be(strokes: Tensor) -> None:
    model, images = _model(), strokes[:128]
    params = list(model.parameters())

    def refused(said: str, **words: Any) -> None:
        with pytest.raises(InputError, match=said) as caught:
            vaebench.fit(model, images, epochs=1, **WORDS, **words)
        assert "\n" not in str(caught.value)

    refused("give an object, Adam", optimizer=torch.optim.Adam)
    refused("needs a closure", optimizer=torch.optim.LBFGS(params))
    refused("lr cannot be given beside", optimizer=torch.optim.Adam(params), lr=1e-3)
    refused("weight_decay cannot", optimizer=torch.optim.Adam(params), weight_decay=0.1)
    refused("holds none of", optimizer=torch.optim.Adam(_model().parameters()))
    refused("choose from adam", optimizer=3)

    class Faulty(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            raise RuntimeError("no")

    refused(r"Faulty.step\(\) raised RuntimeError: no", optimizer=Faulty(params))
