"""The average of the weights: its formula, what is evaluated and kept, and going on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vaebench
from tests.tiers import first
from vaebench.cli import evaluate, train
from vaebench.runs.folder import read_json

DECAY = 0.9
FOUND = ("evaluation.json", "elbo"), ("result.json", "test_elbo")
WORDS: dict[str, Any] = {"epochs": 2, "device": "cpu", "seed": 3}


def _vae() -> vaebench.VAE:
    torch.manual_seed(0)
    return vaebench.VAE(hidden_dims=(20,), latent_dim=3)


@pytest.fixture
def npz(strokes: Tensor, tmp_path: Path) -> Path:
    """640 images to train on, 360 to test."""
    np.savez(tmp_path / "x.npz", x_train=strokes[:640].numpy(), x_test=strokes[640:].numpy())
    return tmp_path / "x.npz"


def _values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_the_formula(engine: str, strokes: Tensor) -> None:
    """Twenty steps an epoch: each is taken in. Weighed by hand, newest first: 1, d, d^2, ..."""
    images, model = strokes[:640], _vae()
    steps: list[list[Tensor]] = []

    class Counting(vaebench.VAE):
        def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
            steps.append(_values(self))
            return super().encode(x)

    plain = Counting(hidden_dims=(20,), latent_dim=3)
    plain.load_state_dict(model.state_dict())
    vaebench.fit(plain, images, batch_size=32, engine="reference", **WORDS)
    # What each step left is what the next one found; steps that tried the model out come first.
    after = [*steps[-39:], _values(plain)]
    weights = [DECAY**i for i in range(40)][::-1]
    vaebench.fit(model, images, batch_size=32, engine=engine, ema_decay=DECAY, **WORDS)
    for i, p in enumerate(_values(model)):
        values = torch.stack([each[i].double() for each in after])
        want = torch.tensordot(torch.tensor(weights).double(), values, 1) / sum(weights)
        assert float((p - want).abs().max()) < 1e-5
        assert float((p - after[-1][i]).abs().max()) > 1e-4  # and not simply the last ones


def test_it_is_what_is_evaluated_and_training_goes_on_with_its_own(strokes: Tensor) -> None:
    images, test = strokes[:640], strokes[640:]
    alone, averaged = _vae(), _vae()
    states: list[vaebench.TrainState] = []

    def keep(state: vaebench.TrainState) -> None:
        weights = {name: t.clone() for name, t in state.weights.items()}
        states.append(vaebench.TrainState((), weights, {}, {}, {}))

    words = {"batch_size": 32, "test_images": test, **WORDS}
    last = vaebench.fit(alone, images, **words)
    history = vaebench.fit(averaged, images, ema_decay=DECAY, on_state=keep, **words)
    assert [e.train_elbo for e in history.epochs] == [e.train_elbo for e in last.epochs]
    for record, state in zip(history.epochs, states, strict=True):
        model = _vae()
        model.load_state_dict(state.model)
        found = vaebench.evaluate(model, test, seed=3).elbo
        assert record.test_elbo == pytest.approx(found, rel=1e-6)
    for name, t in averaged.state_dict().items():
        assert torch.equal(t, states[-1].model[name])


def test_batch_norms_statistics_are_averaged_too(strokes: Tensor) -> None:
    class Normed(vaebench.VAE):
        def __init__(self) -> None:
            super().__init__(hidden_dims=(20,), latent_dim=3)
            self.encoder = nn.Sequential(*self.encoder, nn.BatchNorm1d(20))

    torch.manual_seed(0)
    model = Normed()
    vaebench.fit(model, strokes[:640], batch_size=32, ema_decay=DECAY, **WORDS)
    norm: Any = model.encoder[2]
    assert int(norm.num_batches_tracked) == 40
    assert torch.isfinite(norm.running_var).all()


@pytest.mark.parametrize("compile", first(1, [False, True]))
def test_resumed_to_the_same_bits(compile: bool, npz: Path, tmp_path: Path) -> None:
    words = ["--data", str(npz), "--epochs", "3", "--ema-decay", "0.95", "--device", "cpu",
             "--hidden-dim", "20", "--latent-dim", "3", "--batch-size", "32", "--quiet",
             *(["--compile"] if compile else [])]  # fmt: skip
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train.main([*words, "--out", str(whole)]) == 0
    assert train.main([*words, "--out", str(broken), "--epochs", "2"]) == 0
    assert train.main(["--resume", str(broken), "--epochs", "3", "--quiet"]) == 0
    models = [(run / "model.safetensors").read_bytes() for run in (whole, broken)]
    assert models[0] == models[1]
    elbos = [read_json(run / "result.json")["test_elbo"] for run in (whole, broken)]
    assert elbos[0] == elbos[1]


def test_evaluate_finds_what_the_training_told(npz: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--data", str(npz), "--epochs", "1", "--ema-decay", "0.9", "--device", "cpu"]
    assert train.main([*words, "--hidden-dim", "20", "--quiet", "--out", str(run)]) == 0
    assert evaluate.main([str(run), "--data", str(npz), "--quiet", "--device", "cpu"]) == 0
    elbos = [read_json(run / name)[key] for name, key in FOUND]
    assert elbos[0] == pytest.approx(elbos[1], rel=3e-3)
