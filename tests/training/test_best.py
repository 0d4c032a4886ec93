"""Images held out: which epoch is the best, whose weights are kept, and when to stop."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vaebench
from tests.tiers import first
from vaebench.cli import evaluate, train
from vaebench.data.binarize import binarize
from vaebench.runs.folder import read_json
from vaebench.system.random import TRAINING_PIXELS

WORDS: dict[str, Any] = {"batch_size": 32, "device": "cpu", "seed": 3}
SMALL = ["--hidden-dim", "20", "--latent-dim", "3", "--batch-size", "32", "--device", "cpu"]


def _vae() -> vaebench.VAE:
    torch.manual_seed(0)
    return vaebench.VAE(hidden_dims=(20,), latent_dim=3)


@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_it_is_as_if_they_were_not_there(engine: str, strokes: Tensor) -> None:
    """They are not trained on; what is told of them is what evaluate says."""
    alone, beside = _vae(), _vae()
    plain = vaebench.fit(alone, strokes[:700], epochs=2, engine=engine, **WORDS)
    history = vaebench.fit(beside, strokes, epochs=2, engine=engine, holdout=300, **WORDS)
    assert [e.train_elbo for e in history.epochs] == [e.train_elbo for e in plain.epochs]
    for mine, other in zip(beside.parameters(), alone.parameters(), strict=True):
        assert torch.equal(mine, other)
    told = vaebench.evaluate(alone, strokes[700:], seed=3).elbo
    assert history.epochs[-1].validation_elbo == pytest.approx(told, rel=1e-6)
    assert plain.best is None
    assert plain.epochs[0].validation_elbo is None


def test_the_best_epochs_weights_are_kept_and_patience_ends_it(strokes: Tensor) -> None:
    model, images, held = _vae(), strokes[:700], strokes[700:]
    weights: list[dict[str, Tensor]] = []

    def keep(state: vaebench.TrainState) -> None:
        weights.append({name: t.clone() for name, t in state.model.items()})

    def spoil(record: vaebench.EpochRecord) -> None:
        if record.epoch == 3:
            pixels = [p for p in model.parameters() if p.shape == (784,)]
            torch.nn.init.constant_(pixels[0], 5.0)

    lr = [1e-2] * 3 + [1e-5] * 9
    words = {**WORDS, "lr": lr, "holdout": len(held), "on_state": keep, "on_epoch": spoil}
    history = vaebench.fit(model, torch.cat([images, held]), epochs=12, patience=4, **words)
    best = history.best
    assert best is not None
    assert best.epoch == 3
    assert best.elbo == history.epochs[2].validation_elbo
    assert history.stopped_early
    assert len(history.epochs) == 7
    assert "stopped after epoch 7: 4 without a better ELBO" in history.notes[-1]
    for name, t in best.weights.items():
        assert torch.equal(t, weights[2][name])
    for name, t in model.state_dict().items():  # the model itself is what the last epoch left
        assert torch.equal(t, weights[-1][name])


def test_an_average_is_what_is_judged(strokes: Tensor) -> None:
    averaged = _vae()
    history = vaebench.fit(averaged, strokes, epochs=2, holdout=300, ema_decay=0.9, **WORDS)
    assert history.best is not None
    assert history.best.epoch == 2
    for name, t in averaged.state_dict().items():
        assert torch.equal(t, history.best.weights[name])
    told = vaebench.evaluate(averaged, strokes[700:], seed=3).elbo
    assert history.best.elbo == pytest.approx(told, rel=1e-6)


def test_with_labels_and_binary_pixels(strokes: Tensor) -> None:
    torch.manual_seed(0)
    model = vaebench.VAE(hidden_dims=(20,), latent_dim=3, classes=10)
    labels = torch.arange(1000) % 10
    words = {**WORDS, "labels": labels, "holdout": 300, "binarize": "dynamic", "epochs": 1}
    history = vaebench.fit(model, strokes, **words)
    pixels = binarize(strokes, "static", TRAINING_PIXELS)
    told = vaebench.evaluate(model, pixels[700:], labels=labels[700:], seed=3).elbo
    assert history.epochs[0].validation_elbo == pytest.approx(told, rel=1e-6)


@pytest.fixture
def npz(strokes: Tensor, tmp_path: Path) -> Path:
    """840 images to train on, 160 to test."""
    np.savez(tmp_path / "x.npz", x_train=strokes[:840].numpy(), x_test=strokes[840:].numpy())
    return tmp_path / "x.npz"


@pytest.mark.parametrize("compile", first(1, [False, True]))
def test_a_run_that_goes_on_knows_its_best(compile: bool, npz: Path, tmp_path: Path) -> None:
    """Broken off after the best epoch: the same bits, the same best, the same end."""
    words = ["--data", str(npz), "--holdout", "200", "--patience", "2", "--lr", "0.05", "--quiet",
             *SMALL, *(["--compile"] if compile else [])]  # fmt: skip
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train.main([*words, "--epochs", "30", "--out", str(whole)]) == 0
    end = read_json(whole / "result.json")
    best = end["best"]["epoch"]
    assert end["epochs"] == best + 2 < 30
    assert train.main([*words, "--epochs", str(best + 1), "--out", str(broken)]) == 0
    assert train.main(["--resume", str(broken), "--epochs", "30", "--quiet"]) == 0
    for name in ("model", "best"):
        models = [(run / f"{name}.safetensors").read_bytes() for run in (whole, broken)]
        assert models[0] == models[1]
    again = read_json(broken / "result.json")
    assert [again[key] for key in ("epochs", "best")] == [end[key] for key in ("epochs", "best")]


def test_a_run_that_stopped_is_complete_until_it_is_given_more_patience(
    npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    words = ["--data", str(npz), "--holdout", "200", "--patience", "1", "--lr", "0.05", *SMALL]
    assert train.main([*words, "--epochs", "20", "--out", run]) == 0
    told = capsys.readouterr().out
    epochs = read_json(tmp_path / "run" / "result.json")["epochs"]
    assert f"best epoch by the images held out: {epochs - 1}" in told
    assert f"stopped after epoch {epochs}: 1 without a better ELBO" in told
    assert train.main(["--resume", run]) == 0
    said = capsys.readouterr().err
    assert f"is complete: it stopped after epoch {epochs}, its patience of 1 at an end" in said
    assert train.main(["--resume", run, "--patience", "3", "--quiet"]) == 0
    assert read_json(tmp_path / "run" / "result.json")["epochs"] > epochs


def test_the_best_is_loaded_and_evaluated(
    npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["--data", str(npz), "--holdout", "200", "--patience", "2", "--lr", "0.05", *SMALL]
    assert train.main([*words, "--epochs", "30", "--out", str(run), "--quiet"]) == 0
    end = read_json(run / "result.json")
    told = vaebench.evaluate(vaebench.load(run, best=True), np.load(npz)["x_train"][640:], seed=0)
    assert told.elbo == pytest.approx(end["best"]["validation_elbo"], rel=1e-5)
    split = [str(run), "--split", "holdout", "--samples", "1", "--device", "cpu"]
    assert evaluate.main([*split, "--best"]) == 0
    assert f"{end['best']['epoch']} epochs" in capsys.readouterr().out
    assert read_json(run / "evaluation.json")["elbo"] == pytest.approx(told.elbo, rel=1e-5)


def test_without_images_held_out_there_is_none(
    npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["--data", str(npz), "--epochs", "1", "--quiet", *SMALL]
    assert train.main([*words, "--out", str(run)]) == 0
    with pytest.raises(vaebench.InputError, match=r"holds no best.safetensors: no images were"):
        vaebench.load(run, best=True)
    assert train.main([*words, "--patience", "3"]) == 2
    assert "--patience is 3, and no images are set aside" in capsys.readouterr().err
