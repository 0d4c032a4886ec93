"""Models that their owner changed, before the training or in a callback, in every engine.

The reference runs a model's own code, step by step: what it trains is what the owner means. Each
change is shown to matter: without it, the training is another.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vaebench

# A compiler that cannot follow a hook says so, and it is trained eagerly.
pytestmark = pytest.mark.filterwarnings("ignore:torch.compile failed")
SHAPE, Z = (6, 6), 3


class Net(nn.Module):
    """Something of everything that may be changed."""

    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.head = nn.Linear(36, 16), nn.Linear(16, 2 * Z)
        self.norm, self.drop = nn.BatchNorm1d(16), nn.Dropout(0.0)
        self.fc3, self.fc4 = nn.Linear(Z, 16), nn.Linear(16, 36)
        self.register_buffer("shift", torch.zeros(36))
        self.scale, self.settings, self.steps = 1.0, {"scale": 1.0}, [1.0]
        self.activation: Callable[[Tensor], Tensor] = F.relu

    def encode(self, x: Tensor) -> Any:
        return self.head(self.norm(F.relu(self.fc1(x.flatten(1))))).chunk(2, 1)

    def decode(self, z: Tensor) -> Tensor:
        output: Tensor = self.fc4(self.drop(self.activation(self.fc3(z))))
        return self.scale * self.settings["scale"] * self.steps[0] * output + self.shift


Change = Callable[[Any], object]


def _replaced(model: Net) -> None:
    model.fc4.weight = nn.Parameter(torch.zeros_like(model.fc4.weight))


def _relaid(model: Net) -> None:
    """Other memory, and other numbers in it."""
    for p in model.parameters():
        p.data = 0.5 * p.data


def _own_forward(model: Net) -> None:
    model.fc1.forward = lambda x: 0 * x[:, :16]  # type: ignore


def _own_method(model: Net) -> None:
    decode = model.decode
    model.decode = lambda z: 0.5 * decode(z)  # type: ignore[method-assign]


def _frozen_statistics(model: Net) -> None:
    """Batch norm stays in eval mode, as its owner's train() has it."""
    train = model.train

    def stays(mode: bool = True) -> Net:
        train(mode)
        model.norm.eval()
        return model

    model.train = stays  # type: ignore[method-assign]


def _accumulated(model: Net) -> None:
    def mask(p: Tensor) -> None:
        p.grad = torch.zeros_like(p)

    model.fc4.weight.register_post_accumulate_grad_hook(mask)


CHANGES: dict[str, Change] = {
    "attribute": lambda m: setattr(m, "scale", 0.2),
    "attribute of a layer": lambda m: setattr(m.norm, "eps", 1.0),
    "entry of a dict": lambda m: m.settings.update(scale=0.2),
    "entry of a list": lambda m: m.steps.__setitem__(0, 0.2),
    "function": lambda m: setattr(m, "activation", torch.tanh),
    "dropout": lambda m: setattr(m.drop, "p", 0.5),
    "batch norm in eval mode": _frozen_statistics,
    "gradient masked": lambda m: m.fc4.weight.register_hook(torch.zeros_like),
    "gradient clipped": lambda m: m.fc4.weight.register_hook(lambda g: g.clamp(max=0)),
    "gradient masked once it is there": _accumulated,
    "output of a layer": lambda m: m.fc1.register_forward_hook(lambda *a: 0 * a[2]),
    "input of a layer": lambda m: m.fc4.register_forward_pre_hook(lambda _, a: (0.2 * a[0],)),
    "gradient of a layer": lambda m: m.fc3.register_full_backward_hook(
        lambda *a: tuple(None if g is None else 0 * g for g in a[1])
    ),
    "frozen": lambda m: m.fc4.requires_grad_(False),
    "parameter replaced": _replaced,
    "parameters elsewhere": _relaid,
    "buffer replaced": lambda m: setattr(m, "shift", torch.full((36,), -1.0)),
    "layer replaced": lambda m: setattr(m, "fc4", nn.Sequential(m.fc4, nn.LayerNorm(36))),
    "forward of a layer": _own_forward,
    "method": _own_method,
}
ENGINES: dict[str, dict[str, Any]] = {"plain step": {}, "compiled": {"compile": True}}


@pytest.fixture(autouse=True)
def _traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the compiler assumes is what is tried here, not its code: no kernels."""
    lookup = torch._dynamo.lookup_backend
    monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda _: lookup("aot_eager"))


# Compiling anew for each change takes a minute in all: one of them is in the first tier.
EACH = [
    pytest.param(
        change, how, id=f"{change}-{engine}",
        marks=[pytest.mark.slow] if engine == "compiled" and k else [],
    )
    for k, change in enumerate(CHANGES)
    for engine, how in ENGINES.items()
]  # fmt: skip


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(50, *SHAPE, generator=torch.Generator().manual_seed(0))


def _elbos(
    images: Tensor, model: nn.Module, then: Change | None = None, after: int = 1, **how: Any
) -> list[float]:
    def on_epoch(record: vaebench.EpochRecord) -> None:
        if then and record.epoch == after:
            then(model)

    history = vaebench.fit(
        model, images, epochs=4, batch_size=16, lr=0.01, seed=1, device="cpu", on_epoch=on_epoch,
        native=False, sparse=False, fused_likelihood=False, **how,
    )  # fmt: skip
    return [record.train_elbo for record in history.epochs]


@pytest.fixture(scope="module")
def unchanged(images: Tensor) -> list[float]:
    return _elbos(images, Net(), engine="reference")


@pytest.mark.parametrize(("change", "how"), EACH)
def test_what_a_callback_changes_acts_from_the_next_epoch_on(
    change: str, how: dict[str, Any], images: Tensor, unchanged: list[float]
) -> None:
    then = CHANGES[change]
    plain = _elbos(images, Net(), then, engine="reference")
    assert _elbos(images, Net(), then, **how) == pytest.approx(plain, rel=2e-5)
    assert plain != pytest.approx(unchanged, rel=1e-4)


@pytest.mark.parametrize(("change", "how"), EACH)
def test_what_was_changed_before_is_trained_as_it_is(
    change: str, how: dict[str, Any], images: Tensor, unchanged: list[float]
) -> None:
    elbos = []
    for each in ({"engine": "reference"}, how):
        model = Net()
        CHANGES[change](model)
        elbos.append(_elbos(images, model, **each))
    assert elbos[1] == pytest.approx(elbos[0], rel=2e-5)
    assert elbos[0] != pytest.approx(unchanged, rel=1e-4)
