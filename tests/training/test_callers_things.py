"""What is the caller's stays the caller's: images, modes, memory, threads, random numbers."""

import subprocess
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import vaebench
from tests.tiers import first

SHAPE, Z = (6, 6), 3
ENGINES: dict[str, dict[str, Any]] = {
    "reference": {"engine": "reference"}, "plain step": {}, "compiled": {"compile": True},
}  # fmt: skip


class Net(nn.Module):
    """Works on its images in place, and draws random numbers of its own."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.head = nn.Linear(36, 16), nn.Linear(16, 2 * Z)
        self.norm, self.drop = nn.BatchNorm1d(16), nn.Dropout(dropout)
        self.fc3, self.fc4 = nn.Linear(Z, 16), nn.Linear(16, 36)

    def encode(self, x: Tensor) -> Any:
        x = x.flatten(1).sub_(0.5)
        return self.head(self.norm(F.relu(self.fc1(x)))).chunk(2, 1)

    def decode(self, z: Tensor) -> Any:
        return self.fc4(self.drop(F.relu(self.fc3(z))))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(50, *SHAPE, generator=torch.Generator().manual_seed(0))


def _fit(model: nn.Module, images: Any, **how: Any) -> vaebench.History:
    how = {"epochs": 2, "batch_size": 16, "seed": 1, "device": "cpu", **how}
    return vaebench.fit(model, images, **how)


@pytest.mark.parametrize("kind", ["tensor", "array", "read-only array"])
@pytest.mark.parametrize("how", first(2, ENGINES.values()), ids=ENGINES)
def test_images_are_never_written(how: dict[str, Any], kind: str, images: Tensor) -> None:
    given: Any = images.clone() if kind == "tensor" else images.numpy().copy()
    if kind == "read-only array":
        given.flags.writeable = False
    model = Net()
    _fit(model, given, test_images=given, **how)
    vaebench.evaluate(model, given)
    assert np.array_equal(np.asarray(given), images.numpy())


@pytest.mark.parametrize("how", first(2, ENGINES.values()), ids=ENGINES)
def test_every_part_is_in_its_own_mode_again(how: dict[str, Any], images: Tensor) -> None:
    model = Net()
    model.norm.eval()
    model.drop.eval()
    modes = [module.training for module in model.modules()]
    _fit(model, images, **how)
    assert [module.training for module in model.modules()] == modes
    vaebench.evaluate(model, images)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("how", first(2, ENGINES.values()), ids=ENGINES)
def test_callbacks_are_called_in_the_callers_thread(how: dict[str, Any], images: Tensor) -> None:
    mark: ContextVar[str] = ContextVar("mark", default="another's")
    mark.set("the caller's")
    seen: list[tuple[str, int]] = []

    def note(_: object) -> None:
        seen.append((mark.get(), threading.get_ident()))

    _fit(Net(), images, on_epoch=note, on_state=note, **how)
    assert seen == [("the caller's", threading.get_ident())] * 4


@pytest.mark.parametrize("how", first(2, ENGINES.values()), ids=ENGINES)
def test_one_seed_one_result_with_a_models_own_draws(how: dict[str, Any], images: Tensor) -> None:
    found = []
    for own in (3, 4):
        model = Net(0.5)
        torch.manual_seed(own)  # the caller's, which decide nothing
        history = _fit(model, images, **how)
        found.append(([e.train_elbo for e in history.epochs], torch.rand(3).tolist()))
    assert found[0][0] == found[1][0]
    torch.manual_seed(3)
    assert found[0][1] == torch.rand(3).tolist()


@pytest.mark.parametrize("how", first(2, ENGINES.values()), ids=ENGINES)
def test_a_training_goes_on_to_the_same_bits_with_a_models_own_draws(
    how: dict[str, Any], images: Tensor
) -> None:
    states: list[vaebench.TrainState] = []
    whole = Net(0.5)
    _fit(whole, images, epochs=4, **how)
    parts = Net(0.5)
    _fit(parts, images, epochs=2, on_state=states.append, **how)
    torch.manual_seed(9)
    _fit(parts, images, epochs=4, resume=states[-1], **how)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True)
    )


@pytest.mark.parametrize("how", first(2, ENGINES.values()), ids=ENGINES)
@pytest.mark.parametrize("kind", ["own", "mlp", pytest.param("conv", marks=pytest.mark.slow)])
def test_trained_weights_are_plain_tensors(
    kind: str, how: dict[str, Any], strokes: Tensor, images: Tensor, tmp_path: Path
) -> None:
    model: nn.Module = Net()
    if kind == "mlp":
        model = vaebench.VAE(SHAPE, (16,), 3)
    elif kind == "conv":
        model = vaebench.ConvVAE(hidden_dims=(4, 4, 8, 8, 8), latent_dim=3)
    _fit(model, strokes[:40] if kind == "conv" else images, epochs=1, **how)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    nn.utils.parameters_to_vector(model.parameters())
    assert all(p.view(-1).is_contiguous() for p in model.parameters())


def test_a_batch_is_decoded_after_it_was_encoded(images: Tensor) -> None:
    """As where the decoder uses what the encoder saw: skips, sizes, masks."""

    class Skips(Net):
        def encode(self, x: Tensor) -> Any:
            self.seen = x.flatten(1).mean(1, keepdim=True)
            return super().encode(x)

        def decode(self, z: Tensor) -> Any:
            return super().decode(z) + self.seen

    vaebench.evaluate(Skips(), images, batch_size=16)


_FORKED = """
import faulthandler, multiprocessing, sys, torch, vaebench
def work():
    faulthandler.dump_traceback_later(100, exit=True)
    x = torch.full((64, 6, 6), 7, dtype=torch.uint8)
    history = vaebench.fit(vaebench.VAE((6, 6), (8,), 2), x, epochs=1, batch_size=16, device="cpu")
    sys.exit(0 if history.epochs[0].train_elbo < 0 else 1)
torch.set_num_threads(2)
torch.ones(2000, 2000) @ torch.ones(2000, 2000)  # by threads that the fork does not have
torch.ones(4_000_000).exp()
process = multiprocessing.get_context("fork").Process(target=work)
process.start()
process.join()
sys.exit(process.exitcode)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux")
def test_a_forked_worker_trains() -> None:
    subprocess.run([sys.executable, "-c", _FORKED], check=True, timeout=150)


class Drawing(Net):
    """Draws by a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def encode(self, x: Tensor) -> Any:
        return super().encode(x + 0.1 * torch.rand(x.shape, generator=self.generator))


@pytest.mark.filterwarnings("ignore:torch.compile failed")
def test_trials_draw_nothing_from_a_models_own_generator(images: Tensor) -> None:
    """So engines that are tried out more than others train on the same numbers."""
    elbos = []
    for how in ENGINES.values():
        history = _fit(Drawing(), images, **how)
        elbos.append([record.train_elbo for record in history.epochs])
    assert elbos[1] == pytest.approx(elbos[0], rel=1e-5)
    assert elbos[2] == pytest.approx(elbos[0], rel=1e-5)


def _resumed(make: Callable[[], nn.Module], images: Tensor) -> tuple[Any, Any]:
    """Four epochs, and two and two."""
    states: list[vaebench.TrainState] = []
    whole = _fit(make(), images, epochs=4)
    _fit(make(), images, epochs=2, on_state=states.append)
    return whole, _fit(make(), images, epochs=4, resume=states[-1])


def test_a_models_own_generator_is_resumed(images: Tensor) -> None:
    whole, parts = _resumed(Drawing, images)
    assert parts.epochs[-1].train_elbo == whole.epochs[-1].train_elbo
    assert not any("which no state holds" in note for note in parts.notes)


class Counting(Net):
    """Counts its steps where no state_dict has it."""

    count = 0

    def encode(self, x: Tensor) -> Any:
        self.count += self.training
        mu, logvar = super().encode(x)
        return mu * min(1, self.count / 10), logvar


def test_what_no_state_holds_is_said_on_resuming(images: Tensor) -> None:
    whole, parts = _resumed(Counting, images)
    assert parts.epochs[-1].train_elbo != whole.epochs[-1].train_elbo
    assert "Counting keeps Python state that changes" in parts.notes[-1]
    assert "(count), which no state holds" in parts.notes[-1]
