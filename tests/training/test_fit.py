"""fit, evaluate and the model as a library's user meets them."""

import itertools
import math
import signal
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vaebench
from tests.engines import problem_of
from vaebench.config import TrainConfig
from vaebench.errors import InputError, TrainingError
from vaebench.system.random import EVALUATION, TRAINING, random_stream
from vaebench.training.fit import training_flops


def _vae(**words: Any) -> vaebench.VAE:
    torch.manual_seed(0)
    return vaebench.VAE(**{"hidden_dims": (48,), "latent_dim": 6, **words})


def _parameters(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_fit_learns_and_reports(strokes: Tensor) -> None:
    model = _vae()
    before = vaebench.evaluate(model, strokes[900:])
    seen: list[vaebench.EpochRecord] = []
    history = vaebench.fit(
        model,
        strokes[:900],
        epochs=3,
        batch_size=50,
        device="cpu",
        test_images=strokes[900:],
        on_epoch=seen.append,
    )
    assert seen == history.epochs
    assert [r.epoch for r in seen] == [1, 2, 3]
    for r in seen:
        assert r.train_elbo == pytest.approx(r.recon - r.kl)
        assert r.images_per_second == pytest.approx(900 / r.seconds)
    assert seen[2].train_elbo > seen[1].train_elbo > seen[0].train_elbo
    assert seen[2].test_elbo is not None
    assert seen[2].test_elbo > before.elbo + 100
    assert history.actual["engine"] == "fast"
    assert history.actual["compile"] is False
    assert set(history.seconds) == {"compile", "train", "eval"}
    assert history.seconds["train"] == pytest.approx(sum(r.seconds for r in seen))


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_seeds_repeat_bit_for_bit(strokes: Tensor, engine: str) -> None:
    results = []
    for seed in (7, 7, 8):
        model = _vae()
        vaebench.fit(
            model, strokes, epochs=2, batch_size=64, seed=seed, device="cpu", engine=engine
        )
        results.append(_parameters(model))
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(results[0], results[2], strict=True))


def test_fast_fit_follows_the_reference_fit(strokes: Tensor) -> None:
    records = {}
    for engine, compile in (("reference", False), ("fast", False), ("fast", True)):
        history = vaebench.fit(
            _vae(),
            strokes[:900],
            epochs=3,
            batch_size=64,
            device="cpu",
            engine=engine,
            compile=compile,
            test_images=strokes[900:],
        )
        records[engine, compile] = history.epochs
    want = records.pop(("reference", False))
    for got in records.values():
        assert [r.train_elbo for r in got] == pytest.approx([r.train_elbo for r in want], rel=1e-3)
        assert [r.test_elbo for r in got] == pytest.approx([r.test_elbo for r in want], rel=1e-3)


def test_global_random_state_is_left_alone(strokes: Tensor) -> None:
    model = _vae()
    torch.manual_seed(9)
    state = torch.get_rng_state()
    vaebench.fit(model, strokes, epochs=1, device="cpu")
    vaebench.evaluate(model, strokes)
    model.sample(2, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_numpy_arrays_and_flat_float_images_do(strokes: Tensor) -> None:
    flat = (strokes.flatten(1).float() / 255).numpy().astype(np.float64)
    model = _vae(image_shape=(784,))
    history = vaebench.fit(model, flat, epochs=1, device="cpu")  # type: ignore[arg-type]
    same = _vae()
    want = vaebench.fit(same, strokes, epochs=1, device="cpu")
    assert history.epochs[0].train_elbo == pytest.approx(want.epochs[0].train_elbo, rel=1e-5)


def test_gaussian_data(strokes: Tensor) -> None:
    x = torch.randn(500, 12) * 3 + 1
    model = _vae(image_shape=(12,), likelihood="gaussian")
    history = vaebench.fit(model, x, epochs=5, lr=1e-2, device="cpu", sigma=3.0)
    assert history.epochs[-1].train_elbo > history.epochs[0].train_elbo
    # An optimal model of noise scores its negative entropy: log N(x; 1, 3), 12 numbers.
    assert vaebench.evaluate(model, x, sigma=3.0).elbo == pytest.approx(
        -12 * (0.5 * math.log(2 * math.pi * 9) + 0.5), rel=0.05
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 1001}, "more than the 1000 images"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"beta": -1.0}, "beta"),
        ({"sigma": -1.0}, "sigma"),
        ({"likelihood": "categorical"}, "bernoulli, gaussian"),
        ({"device": "tpu9"}, "auto, cpu, cuda"),
        ({"device": "meta"}, "auto, cpu, cuda"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"amp": "fp16"}, "loss scaler"),
        ({"amp": "int8"}, "auto, bf16"),
        ({"engine": "warp"}, "fast, reference"),
        ({"optimizer": "lbfgs"}, "adam, adamw"),
        ({"schedule": "step"}, "one-cycle, iwae, pythae"),
        ({"objective": "elbo"}, "vae, iwae"),
        ({"samples": 0}, "samples is 0"),
        ({"engine": "reference", "compile": True}, "drop compile"),
        ({"test_images": torch.zeros(0, 28, 28)}, "empty|no images|0"),
    ],
)
def test_fit_refuses(strokes: Tensor, words: dict[str, Any], said: str) -> None:
    model = _vae()
    before = _parameters(model)
    with pytest.raises(InputError, match=said) as caught:
        vaebench.fit(model, strokes, **{"device": "cpu", **words})
    assert "\n" not in str(caught.value)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.full((200, 28, 28), 1.5), "Bernoulli likelihood takes"),
        (torch.full((200, 28, 28), -0.1), "Bernoulli likelihood takes"),
        (torch.zeros(200, 27, 28), "does not take images of shape"),
        (torch.full((200, 28, 28), math.nan), "NaN|nan"),
        (torch.zeros(200, 28, 28, dtype=torch.int64), "int64"),
    ],
)
def test_fit_refuses_images(images: Tensor, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        vaebench.fit(_vae(), images, device="cpu")
    assert "\n" not in str(caught.value)


def test_fit_refuses_what_is_no_vae(strokes: Tensor) -> None:
    with pytest.raises(InputError, match="no method encode"):
        vaebench.fit(nn.Linear(784, 3), strokes, device="cpu")


def test_fit_refuses_a_decoder_of_another_size(strokes: Tensor) -> None:
    model = _vae()
    decode = model.decode
    model.decode = lambda z, y=None: decode(z).flatten(1)[:, :700]  # type: ignore[method-assign]
    with pytest.raises(InputError, match="700 numbers per image"):
        vaebench.fit(model, strokes, device="cpu")


def test_divergence_is_said(strokes: Tensor) -> None:
    with pytest.raises(TrainingError, match=r"epoch 1 .*lower the learning rate"):
        vaebench.fit(_vae(), strokes, lr=1e6, device="cpu")


def test_ctrl_c_ends_after_the_epoch(strokes: Tensor) -> None:
    calls = itertools.count()  # those of trials, and 8 an epoch

    class Interrupting(vaebench.VAE):
        def decode(self, z: Tensor) -> Any:
            if next(calls) == 30:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            return super().decode(z)

    model = Interrupting((28, 28), (16,), 4)
    with pytest.raises(vaebench.TrainingInterrupted) as caught:
        vaebench.fit(model, strokes, epochs=9, device="cpu")
    assert 1 <= len(caught.value.history.epochs) <= 4


def test_evaluate_uses_every_image_and_no_gradient(strokes: Tensor) -> None:
    model = _vae()
    whole = vaebench.evaluate(model, strokes, batch_size=300)
    assert whole.images == 1000
    assert whole.elbo == whole.recon - whole.kl
    pieces = vaebench.evaluate(model, strokes, batch_size=77)
    assert pieces.elbo == pytest.approx(whole.elbo, rel=1e-6)
    assert all(p.grad is None for p in model.parameters())


def test_evaluate_averages_over_samples(strokes: Tensor) -> None:
    model = _vae()
    one = [vaebench.evaluate(model, strokes, seed=s).recon for s in range(40)]
    many = vaebench.evaluate(model, strokes, samples=40, seed=99)
    spread = float(np.std(one))
    assert many.recon == pytest.approx(float(np.mean(one)), abs=4 * spread / math.sqrt(40))
    assert vaebench.evaluate(model, strokes, seed=1).recon == one[1]
    assert many.samples == 40


def test_evaluate_restores_the_mode_and_ignores_autocast(strokes: Tensor) -> None:
    model = _vae().train()
    plain = vaebench.evaluate(model, strokes)
    assert model.training
    with torch.autocast("cpu", torch.bfloat16):
        assert vaebench.evaluate(model, strokes) == plain


def test_evaluate_refuses(strokes: Tensor) -> None:
    with pytest.raises(InputError, match="samples is 0"):
        vaebench.evaluate(_vae(), strokes, samples=0)
    with pytest.raises(InputError, match="is empty"):
        vaebench.evaluate(_vae(), strokes[:0])


def test_flops_are_those_counted_by_hand() -> None:
    """Forward 2 W, weight gradients 2 W, input gradients 2 (W - first layer); nats aside."""
    images = torch.zeros(128, 28, 28, dtype=torch.uint8)
    assert training_flops(problem_of(vaebench.VAE(), images, batch_size=128)) == 3_280_000


def test_model_shapes() -> None:
    model = _vae(image_shape=(5, 7), hidden_dims=(9, 8, 7), latent_dim=3)
    mu, logvar = model.encode(torch.rand(4, 5, 7))
    assert mu.shape == logvar.shape == (4, 3)
    assert model.decode(mu).shape == (4, 5, 7)
    widths = [m.out_features for m in model.modules() if isinstance(m, nn.Linear)]
    assert widths == [9, 8, 7, 3, 3, 7, 8, 9, 35]
    pixels = model.sample(6, torch.Generator().manual_seed(1))
    assert pixels.shape == (6, 5, 7)
    assert 0 <= pixels.min() <= pixels.max() <= 1


@pytest.mark.parametrize(
    "words",
    [
        {"image_shape": ()},
        {"image_shape": (28, 0)},
        {"hidden_dims": ()},
        {"hidden_dims": (0,)},
        {"latent_dim": 0},
        {"activation": "gelu"},
        {"likelihood": "laplace"},
    ],
)
def test_model_refuses(words: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(words))):
        _vae(**words)


def test_streams_differ_by_purpose_and_seed() -> None:
    cpu = torch.device("cpu")
    draws = {
        (seed, purpose): random_stream(seed, purpose, cpu).initial_seed()
        for seed in (0, 1, 2**63 - 1)
        for purpose in (TRAINING, EVALUATION)
    }
    assert len(set(draws.values())) == len(draws)


@pytest.mark.parametrize(
    "words",
    [
        {"epochs": 0},
        {"batch_size": -3},
        {"batch_size": True},
        {"latent_dim": 0},
        {"hidden_dim": ()},
        {"hidden_dim": (400, 0)},
        {"threads": 0},
        {"lr": math.inf},
        {"lr": "fast"},
        {"sigma": 0.0},
        {"beta": -0.5},
        {"seed": -1},
        {"seed": 2**63},
        {"workload": "gan"},
        {"activation": "gelu"},
        {"likelihood": "laplace"},
        {"engine": "warp"},
        {"amp": "fp16"},
        {"amp": "fp8"},
        {"engine": "reference", "amp": "auto"},
        {"samples": 0},
        {"adam_eps": 0.0},
        {"holdout": -1},
        {"optimizer": "lbfgs"},
        {"momentum": 0.9},
        {"momentum": 1.0, "optimizer": "sgd"},
        {"adam_betas": (0.9,)},
        {"adam_betas": (0.9, 1.0)},
        {"adam_betas": 0.9},
        {"weight_decay": -0.1},
        {"clip_norm": 0.0},
        {"clip_value": math.inf},
        {"ema_decay": 1.0},
        {"ema_decay": "long"},
        {"schedule": "step"},
        {"objective": "elbo"},
        {"binarize": "fixed"},
        {"beta": 2.0, "objective": "iwae"},
    ],
)
def test_config_refuses(words: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        TrainConfig(**words)
    message = str(caught.value)
    assert "\n" not in message
    assert "--" + next(iter(words)).replace("_", "-") in message
