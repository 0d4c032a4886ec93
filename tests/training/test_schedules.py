"""Schedules of the learning rate and the KL's weight: formulas, every engine, and going on."""

import copy
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vaebench
from tests.tiers import first
from vaebench.cli import train
from vaebench.config import BETA_SCHEDULES, SCHEDULES, TrainConfig
from vaebench.errors import InputError, TrainingError
from vaebench.runs.folder import read_json
from vaebench.training.schedules import as_schedule, beta_factor, lr_factor


def test_learning_rates_are_torchs() -> None:
    """At each step of a training of 200 steps."""
    steps = 200
    parameter = nn.Parameter(torch.zeros(()))

    def torchs(make: Any) -> list[float]:
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        schedule = make(optimizer)
        found = []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return found

    rates = torch.optim.lr_scheduler
    times = [4 * i / steps for i in range(steps)]
    for name, make, off in (
        ("linear", lambda o: rates.LinearLR(o, 1.0, 0.0, steps), 1e-9),
        ("cosine", lambda o: rates.CosineAnnealingLR(o, steps), 1e-9),
        ("one-cycle", lambda o: rates.OneCycleLR(o, 1.0, steps + 1), 2e-2),  # ends one step later
    ):
        mine = [lr_factor(name, time, 4) for time in times]
        assert mine == pytest.approx(torchs(make), abs=off), name
    assert lr_factor("one-cycle", 0, 4) == pytest.approx(1 / 25)
    assert lr_factor("one-cycle", 1.2, 4) == 1
    for name in ("linear", "cosine", "one-cycle"):
        assert lr_factor(name, 4, 4) == pytest.approx(0, abs=1e-12)


def test_warm_ups_and_cycles() -> None:
    assert [lr_factor("constant", t, 9, 2) for t in (0, 1, 2, 3)] == [0.01, 0.505, 1, 1]
    assert lr_factor("linear", 1, 4, 2) == pytest.approx(0.505 * 0.75)
    assert [beta_factor("warmup", t, 4) for t in (0, 1, 4, 9)] == [0, 0.25, 1, 1]
    assert [beta_factor("cyclical", t, 4) for t in (0, 1, 2, 3, 4, 5)] == [0, 0.5, 1, 1, 0, 0.5]
    assert all(beta_factor("constant", t, 4) == 1 for t in (0, 5))
    for name, time in itertools.product(SCHEDULES, (0, 0.3, 7, 12)):
        assert 0 <= lr_factor(name, time, 10, 1) <= 1
    for name in BETA_SCHEDULES:
        assert 0 <= beta_factor(name, 3.7, 2.5) <= 1


def test_what_a_caller_gives() -> None:
    listed = as_schedule("lr", [0.1, 0.2])
    assert listed is not None
    assert [listed(t) for t in (0, 0.95, 1, 7)] == [0.1, 0.1, 0.2, 0.2]
    given = as_schedule("beta", lambda t: t / 2)
    assert given is not None
    assert given(3) == 1.5
    assert as_schedule("lr", 0.1) is as_schedule("lr", None) is as_schedule("lr", "x") is None


MANY: dict[str, Any] = {"epochs": 3, "batch_size": 32, "device": "cpu", "seed": 4}
CHANGING: dict[str, Any] = {
    "schedule": "one-cycle", "lr": 3e-3, "warmup": 0.5, "beta_schedule": "warmup", "beta": 2.0,
    "beta_epochs": 2.0, "ema_decay": 0.9,
}  # fmt: skip
ENGINES: dict[str, dict[str, Any]] = {
    "eager": {},
    "native": {"compile": True},
    "compiled": {"compile": True, "native": False},
    "listed": {"lr": [2e-3, 1e-3], "beta": [0.0, 1.0, 3.0], "schedule": "constant"},
}


def _fit(images: Tensor, **kwargs: Any) -> tuple[nn.Module, vaebench.History]:
    torch.manual_seed(2)
    model = vaebench.VAE(hidden_dims=(40,), latent_dim=4)
    options = {**MANY, **CHANGING, **kwargs}
    if isinstance(options.get("beta"), list):
        options.pop("beta_schedule")
    return model, vaebench.fit(model, images, **options)


@pytest.mark.parametrize("name", first(2, ENGINES))
def test_every_engine_follows(name: str, strokes: Tensor) -> None:
    """L3, and what the last epoch leaves, beside the reference."""
    options = ENGINES[name]
    plain = {k: v for k, v in options.items() if k in ("lr", "beta", "schedule")}
    want_model, want = _fit(strokes, engine="reference", **plain)
    model, got = _fit(strokes, **options)
    assert got.actual["native"] is (name == "native")
    assert got.actual["compile"] is (name in ("native", "compiled"))
    for a, b in zip(got.epochs, want.epochs, strict=True):
        assert a.train_elbo == pytest.approx(b.train_elbo, rel=1e-4)
        assert a.kl == pytest.approx(b.kl, rel=1e-3)
    for p, q in zip(model.parameters(), want_model.parameters(), strict=True):
        assert float((p - q).detach().norm()) <= 2e-3 * float(q.detach().norm())


def test_an_end_that_moved_is_told(strokes: Tensor) -> None:
    kept: list[vaebench.TrainState] = []
    _fit(strokes[:64], epochs=2, on_state=lambda state: kept.append(copy.deepcopy(state)))
    same = _fit(strokes[:64], epochs=2, resume=kept[0])[1]
    assert not any("was to be 0" in note for note in same.notes)
    longer = _fit(strokes[:64], epochs=4, resume=kept[0])[1]
    assert any("was to be 0 after 2 epochs, and now is after 4" in note for note in longer.notes)


def test_it_changes_what_is_trained(strokes: Tensor) -> None:
    """A weight of zero lets the KL grow; a rate of zero leaves the model as it is."""
    without = _fit(strokes, beta=[0.0])[1].epochs[-1].kl
    heavy = _fit(strokes, beta=[4.0])[1].epochs[-1].kl
    assert without > 2 * heavy
    torch.manual_seed(2)
    fresh = vaebench.VAE(hidden_dims=(40,), latent_dim=4)
    model, _ = _fit(strokes, lr=lambda time: 0.0)
    for p, q in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_constant_schedule_is_the_constant(strokes: Tensor) -> None:
    """To the bit; and one of epochs is set where an epoch begins."""
    kwargs: dict[str, Any] = {"schedule": "constant", "warmup": 0.0, "beta_schedule": "constant"}
    want, _ = _fit(strokes, lr=1e-3, **{**kwargs, "beta": 2.0})
    got, _ = _fit(strokes, lr=lambda time: 1e-3, **{**kwargs, "beta": [2.0]})
    for p, q in zip(got.parameters(), want.parameters(), strict=True):
        assert torch.equal(p, q)
    seen: list[float] = []

    def rate(time: float) -> float:
        seen.append(time)
        return 1e-3

    _fit(strokes, lr=rate)
    assert len(seen) == 3 * 16  # 32 batches, two at a time
    assert seen[:2] == [0, 64 / 1000]
    assert seen[16] == 1


@pytest.mark.parametrize("stop", [1, 2])
def test_it_goes_on_within_a_warm_up(stop: int, strokes: Tensor) -> None:
    """To the same bits."""
    states: list[Any] = []
    want, _ = _fit(strokes, on_state=lambda state: states.append(_kept(state)))
    torch.manual_seed(99)
    model = vaebench.VAE(hidden_dims=(40,), latent_dim=4)
    vaebench.fit(model, strokes, resume=states[stop - 1], **{**MANY, **CHANGING})
    for p, q in zip(model.parameters(), want.parameters(), strict=True):
        assert torch.equal(p, q)


def _kept(state: Any) -> Any:
    """A state apart: its tensors go on changing."""
    import copy

    return copy.deepcopy(state)


def test_a_longer_run_is_another_schedule(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (200, 6, 6), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x_train=images[:160], x_test=images[160:])
    small = "--hidden-dim 8 --latent-dim 2 --batch-size 32 --device cpu --quiet --epochs 2".split()
    data = ["--data", str(tmp_path / "x.npz")]
    for name, status in (("cosine", 2), ("constant", 0)):
        run = str(tmp_path / name)
        told = ["--schedule", name, "--warmup", "1", "--beta-schedule", "cyclical"]
        assert train.main([*small, *data, *told, "--beta-epochs", "2", "--out", run]) == 0
        assert train.main(["--resume", run, "--epochs", "3"]) == status
        stored = read_json(Path(run) / "config.json")
        assert (stored["schedule"], stored["beta_schedule"]) == (name, "cyclical")
    epochs = (tmp_path / "constant" / "metrics.jsonl").read_text().splitlines()
    assert len([json.loads(line) for line in epochs]) == 3


def test_divergence_names_the_step(strokes: Tensor) -> None:
    """That of the learning rate which was set there."""
    with pytest.raises(TrainingError, match=r"epoch 2 from step (1[7-9]|[23]\d) of 32"):
        _fit(strokes, lr=lambda time: 1e-3 if time < 1.5 else 1e12, beta=1.0)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"lr": []}, "lr is an empty list"),
        ({"lr": [0.1, -1]}, "lr of epoch 2 is -1"),
        ({"lr": lambda time: math.nan}, "lr after 0 epochs is nan"),
        ({"beta": [1.0, "x"]}, "beta of epoch 2 is 'x'"),
        ({"beta": [1.0], "objective": "iwae", "samples": 2}, "beta has a schedule"),
        ({"schedule": "exponential"}, "choose from constant, linear, cosine, one-cycle"),
        ({"beta_schedule": "warmup", "objective": "iwae"}, "no separate KL"),
        ({"warmup": -1}, "warmup is -1"),
        ({"beta_epochs": 0}, "beta_epochs is 0"),
    ],
)
def test_bad_input_is_said(kwargs: dict[str, Any], said: str) -> None:
    model = vaebench.VAE((4, 4), hidden_dims=(4,), latent_dim=2)
    with pytest.raises(InputError, match=said):
        vaebench.fit(model, torch.zeros(8, 4, 4), batch_size=4, device="cpu", **kwargs)


def test_the_config_has_them() -> None:
    config = TrainConfig(schedule="cosine", warmup=1, beta_schedule="warmup", beta_epochs=3)
    assert config.optimizer.warmup == 1.0
    assert config.objective.beta_epochs == 3.0
