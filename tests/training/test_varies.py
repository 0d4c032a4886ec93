"""Models whose steps do not all use the same parameters: layers left out at times.

As in torch.optim, a parameter without a gradient is not updated, and its count of steps stays.
"""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vaebench
from vaebench.config import OptimizerConfig
from vaebench.fast.optimizer import OptimizerState
from vaebench.fast.step import make_step
from vaebench.objective import Objective

IMAGES = torch.rand(96, 6, 6, generator=torch.Generator().manual_seed(0))
COUNT = {"steps": 0}


class Net(nn.Module):
    """A hidden layer that a test leaves out at times, and one that nothing uses."""

    def __init__(self, skips: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2, self.head = nn.Linear(36, 16), nn.Linear(16, 16), nn.Linear(16, 6)
        self.fc3, self.fc4 = nn.Linear(3, 16), nn.Linear(16, 36)
        self.classifier = nn.Linear(16, 10)
        self.skips = skips

    def encode(self, x: Tensor) -> Any:
        hidden = F.relu(self.fc1(x.flatten(1)))
        if not (self.training and self.skips(x)):
            hidden = hidden + F.relu(self.fc2(hidden))
        return self.head(hidden).chunk(2, 1)

    def decode(self, z: Tensor) -> Tensor:
        return self.fc4(F.relu(self.fc3(z)))  # type: ignore[no-any-return]


def _counted(x: Tensor) -> bool:
    COUNT["steps"] += 1
    return COUNT["steps"] % 3 > 0


STEPS = 0


def _counted_in_a_global(x: Tensor) -> bool:
    global STEPS
    STEPS += 1
    return STEPS % 3 > 0


SKIPS: dict[str, Callable[[Tensor], Any]] = {
    "torch's chance": lambda x: torch.rand(()) < 0.5,
    "Python's chance": lambda x: random.random() < 0.5,
    "what the images are": lambda x: x.mean() < 0.5,
    "a count": _counted,
    "a global": _counted_in_a_global,
}
OPTIMIZERS: dict[str, Any] = {
    "adam": {},
    "decay": {"optimizer": "adamw", "weight_decay": 0.1},
    "momentum": {"optimizer": "sgd", "momentum": 0.9, "lr": 1e-4},
    "clipped": {"clip_norm": 1.0},
    "given": {"optimizer": lambda model: torch.optim.Adam(model.parameters(), 0.01)},
}


def _trained(skips: Callable[[Tensor], Any], **how: Any) -> tuple[list[float], list[Tensor]]:
    random.seed(0)
    COUNT["steps"] = 0
    globals()["STEPS"] = 0
    model = Net(skips)
    if callable(how.get("optimizer")):
        how = how | {"optimizer": how["optimizer"](model)}
    else:
        how = {"lr": 0.01, **how}
    history = vaebench.fit(model, IMAGES, epochs=3, batch_size=16, seed=1, device="cpu", **how)
    return [record.train_elbo for record in history.epochs], list(model.parameters())


@pytest.mark.filterwarnings("ignore:torch.compile failed")
@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
@pytest.mark.parametrize("skips", SKIPS.values(), ids=SKIPS)
def test_a_layer_left_out_at_times(skips: Callable[[Tensor], Any], compiled: bool) -> None:
    elbos, params = _trained(skips, engine="reference")
    always, _ = _trained(lambda x: False, engine="reference")
    got, mine = _trained(skips, compile=compiled)
    assert got == pytest.approx(elbos, rel=1e-5)
    for a, b in zip(mine, params, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert elbos != pytest.approx(always, rel=1e-5)


@pytest.mark.parametrize("how", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_what_has_no_gradient_is_not_updated(how: dict[str, Any]) -> None:
    skips = SKIPS["what the images are"]
    _, params = _trained(skips, engine="reference", **how)
    _, mine = _trained(skips, **how)
    for a, b in zip(mine, params, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_trials_take_no_random_numbers_of_anybodys() -> None:
    """Two steps draw one each, and the third is the caller's."""
    random.seed(0)
    third = [random.random() for _ in range(3)][2]
    random.seed(0)
    vaebench.fit(Net(SKIPS["Python's chance"]), IMAGES, epochs=1, batch_size=48, device="cpu")
    assert random.random() == third


def test_hooks_and_exchanges_of_what_has_no_gradient() -> None:
    """Other processes may have one, so they are handed zeros; a hook is not called for none."""
    seen: list[list[Tensor]] = []
    hooked: list[Tensor] = []

    def exchange(grads: tuple[Tensor, ...], images: int) -> tuple[Tensor, ...]:
        seen.append(list(grads))
        return grads

    hows: list[dict[str, Any]] = [{"exchange": exchange}, {}]
    for how in hows:
        model = Net(lambda x: True).train()
        model.fc2.weight.register_post_accumulate_grad_hook(hooked.append)
        state = OptimizerState.of(list(model.parameters()), OptimizerConfig(), apart=True)
        step = make_step(model, Objective(), state, varies=True, **how)
        step(IMAGES, torch.arange(4), torch.zeros(4, 3), torch.zeros(2).double())
        named = zip(model.named_parameters(), state.steps, strict=True)
        counts = {name: int(count) for (name, _), count in named}
        assert counts["fc1.weight"] == 1
        assert counts["fc2.weight"] == (1 if how else 0)
    (grads,) = seen
    assert torch.equal(grads[2], torch.zeros_like(model.fc2.weight))
    assert len(hooked) == 1  # by the zeros of the exchange
