"""A batch size for each epoch: the same training as one that is broken off and goes on with it."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vaebench
from tests.tiers import first
from vaebench.cli import train
from vaebench.runs.folder import read_json

WORDS: dict[str, Any] = {"device": "cpu", "seed": 3}
SIZES = [32, 64, 100]


def _vae() -> vaebench.VAE:
    torch.manual_seed(0)
    return vaebench.VAE(hidden_dims=(20,), latent_dim=3)


def _copied(state: vaebench.TrainState) -> vaebench.TrainState:
    parts = ("model", "engine", "random", "average", "best")
    copies: dict[str, Any] = {
        part: {n: t.clone() for n, t in getattr(state, part).items()} for part in parts
    }
    return dataclasses.replace(state, **copies)


@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_it_is_one_training_after_another(engine: str, strokes: Tensor) -> None:
    """Each epoch as a training of its own batch size that goes on where the last one ended."""
    whole, parts = _vae(), _vae()
    words = {**WORDS, "engine": engine, "ema_decay": 0.9}
    history = vaebench.fit(whole, strokes, epochs=4, batch_size=SIZES, **words)
    states: list[vaebench.TrainState] = []
    for epoch, size in enumerate([*SIZES, SIZES[-1]], start=1):
        before = states[-1] if states else None
        if before:
            parts.load_state_dict(before.model)
        # The average needs to know how many steps there were: so all sizes are named.
        sizes = [*SIZES[: epoch - 1], size]
        vaebench.fit(
            parts, strokes, epochs=epoch, batch_size=sizes, resume=before,
            on_state=lambda state: states.append(_copied(state)), **words,
        )  # fmt: skip
    assert [e.train_elbo for e in history.epochs] == [e.train_elbo for e in states[-1].epochs]
    for mine, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("compile", first(1, [False, True]))
def test_it_is_the_references(compile: bool, strokes: Tensor) -> None:
    """The engine is made anew for each size, and says nothing twice."""
    plain, fast = _vae(), _vae()
    steps: list[int] = []

    class Counting(vaebench.VAE):
        def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
            if self.training and torch.is_grad_enabled() and len(x) > 2:
                steps.append(len(x))
            return super().encode(x)

    counting = Counting(hidden_dims=(20,), latent_dim=3)
    counting.load_state_dict(plain.state_dict())
    words = {"epochs": 3, "batch_size": SIZES, **WORDS}
    want = vaebench.fit(counting, strokes, engine="reference", **words)
    cut = [32] * 31 + [8] + [64] * 15 + [40] + [100] * 10
    assert steps[-len(cut) :] == cut
    got = vaebench.fit(fast, strokes, compile=compile, **words)
    for mine, its in zip(got.epochs, want.epochs, strict=True):
        assert mine.train_elbo == pytest.approx(its.train_elbo, rel=1e-4)
    assert len(set(got.notes)) == len(got.notes)


def test_batch_norm_finds_a_batch_of_one_before_training(strokes: Tensor) -> None:
    class Normed(vaebench.VAE):
        def __init__(self) -> None:
            super().__init__(hidden_dims=(20,), latent_dim=3)
            self.encoder = nn.Sequential(*self.encoder, nn.BatchNorm1d(20))

    with pytest.raises(vaebench.InputError, match="cannot be trained on a batch of 1 image"):
        vaebench.fit(Normed(), strokes[:65], epochs=2, batch_size=[13, 64], **WORDS)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ([32, 2000], "batch_size is 2000, more than the 1000 images"),
        ([], "batch_sizes is .*: it must"),
        ([32, 0], "batch_sizes"),
        ([32, "many"], "batch_sizes"),
    ],
)
def test_sizes_that_cannot_be(sizes: list[Any], said: str, strokes: Tensor) -> None:
    with pytest.raises(vaebench.InputError, match=said):
        vaebench.fit(_vae(), strokes, batch_size=sizes, **WORDS)


def test_the_command_resumes_to_the_same_bits(strokes: Tensor, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x_train=strokes[:840].numpy(), x_test=strokes[840:].numpy())
    words = ["--data", str(tmp_path / "x.npz"), "--batch-sizes", "32", "64", "--quiet"]
    words += ["--hidden-dim", "20", "--latent-dim", "3", "--device", "cpu"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train.main([*words, "--epochs", "3", "--out", str(whole)]) == 0
    assert train.main([*words, "--epochs", "2", "--out", str(broken)]) == 0
    assert train.main(["--resume", str(broken), "--epochs", "3", "--quiet"]) == 0
    models = [(run / "model.safetensors").read_bytes() for run in (whole, broken)]
    assert models[0] == models[1]
    assert read_json(broken / "config.json")["batch_sizes"] == [32, 64]
