"""Log-likelihood by importance weighting: against models whose log p(x) is known otherwise."""

import importlib
import json
import math
import runpy
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vaebench
from vaebench.data.binarize import binarize
from vaebench.data.strokes import make_strokes
from vaebench.likelihoods import bernoulli_log_likelihood, bernoulli_value
from vaebench.system.random import TEST_PIXELS

SIGMA, PIXELS, LATENTS = 0.5, 12, 3


class LinearGaussian(nn.Module):
    """x = W z + b + sigma noise, W's columns orthogonal: p(z|x) is Gaussian with independent z.

    ``shift`` and ``stretch`` put q(z|x) beside the exact posterior.
    """

    likelihood = "gaussian"

    def __init__(self, shift: float = 0.0, stretch: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        q, _ = torch.linalg.qr(torch.randn(PIXELS, LATENTS, generator=generator))
        self.w = nn.Parameter(q * torch.tensor([0.3, 1.0, 2.0]))
        self.b = nn.Parameter(torch.randn(PIXELS, generator=generator))
        self.shift, self.stretch = shift, stretch

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        variance = 1 / (1 + self.w.square().sum(0) / SIGMA**2)
        mu = variance * ((x - self.b) @ self.w) / SIGMA**2
        return mu + self.shift, (variance * self.stretch).log().expand_as(mu)

    def decode(self, z: Tensor) -> Tensor:
        return z @ self.w.T + self.b

    def draw(self, n: int) -> Tensor:
        z, noise = torch.randn(n, LATENTS), SIGMA * torch.randn(n, PIXELS)
        return (self.decode(z) + noise).detach()

    def log_p(self, x: Tensor) -> Tensor:
        covariance = self.w @ self.w.T + SIGMA**2 * torch.eye(PIXELS)
        normal = torch.distributions.MultivariateNormal(self.b, covariance)
        value: Tensor = normal.log_prob(x).detach()
        return value


@pytest.mark.parametrize("samples", [1, 7])
def test_exact_with_the_exact_posterior(samples: int) -> None:
    """Every weight is p(x): any number of samples, any noise gives it, for each image."""
    torch.manual_seed(1)
    model = LinearGaussian()
    x = model.draw(40)
    truth = model.log_p(x)
    for seed in (0, 1):
        found = vaebench.evaluate(model, x, samples=samples, sigma=SIGMA, seed=seed)
        assert found.log_likelihood == pytest.approx(truth.mean().item(), abs=2e-5)
        assert found.standard_error == pytest.approx(truth.std().item() / math.sqrt(40), rel=1e-4)
    single = vaebench.evaluate(model, x[:1], samples=samples, sigma=SIGMA)
    assert single.log_likelihood == pytest.approx(truth[0].item(), abs=2e-5)
    assert math.isnan(single.standard_error)


def test_tends_to_the_truth_with_another_posterior() -> None:
    torch.manual_seed(2)
    model = LinearGaussian(shift=0.3, stretch=1.5)
    x = model.draw(200)
    truth = model.log_p(x).mean().item()
    found = vaebench.evaluate(model, x, samples=600, sigma=SIGMA)
    assert found.log_likelihood == pytest.approx(truth, abs=0.03)
    assert found.elbo < truth - 0.5


def test_equals_an_integral_over_z() -> None:
    """Bernoulli, one latent: log p(x) by the trapezoid rule."""
    torch.manual_seed(3)
    model = vaebench.VAE((4, 4), (8,), 1, "tanh")
    with torch.no_grad():
        model.output.weight.mul_(4)
    x = torch.randint(0, 2, (50, 4, 4)).float()
    z = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    with torch.no_grad():
        logits = model.double().decode(z[:, None]).flatten(1)  # (points, 16)
    log_p_x = x.flatten(1).double() @ logits.T - nn.functional.softplus(logits).sum(1)
    density = (log_p_x - z**2 / 2).exp() / math.sqrt(2 * math.pi)
    truth = torch.trapezoid(density, z).log().mean().item()
    found = vaebench.evaluate(model.float(), x, samples=1000)
    assert found.log_likelihood == pytest.approx(truth, abs=0.03)


def _model() -> vaebench.VAE:
    torch.manual_seed(0)
    return vaebench.VAE(hidden_dims=(48,), latent_dim=6)


def test_one_sample_is_the_elbo_in_mean(strokes: Tensor) -> None:
    x = binarize(strokes, "static", TEST_PIXELS)
    gaps = []
    for seed in range(15):
        found = vaebench.evaluate(_model(), x[:200], seed=seed)
        gaps.append(found.log_likelihood - found.elbo)
    spread = float(np.std(gaps, ddof=1)) / math.sqrt(len(gaps))
    assert abs(float(np.mean(gaps))) < 4 * spread < 0.2


def test_more_samples_never_lower_it(strokes: Tensor) -> None:
    model = _model()
    vaebench.fit(model, strokes, epochs=3, lr=3e-3, device="cpu", binarize="static")
    x = binarize(strokes[:200], "static", TEST_PIXELS)
    rising = [vaebench.evaluate(model, x, samples=k).log_likelihood for k in (1, 4, 16)]
    assert all(b > a + 0.1 for a, b in pairwise(rising)), rising


def test_what_is_encoded_by_chance_is_encoded_for_each_z() -> None:
    """Else one draw would stand for all; and what is printed is printed each time."""
    calls: list[int] = []

    class Chance(vaebench.VAE):
        own: torch.Generator | None = None

        def encode(self, x: Tensor) -> Any:
            calls.append(len(x))
            return super().encode(x * (torch.rand(x.shape, generator=self.own) < 0.5))

    for own in (None, torch.Generator()):
        model = Chance((6, 6), (8,), 2)
        model.own = own
        vaebench.evaluate(model, torch.rand(30, 6, 6), samples=7)
    assert calls.count(30) == 14


def test_how_many_at_a_time_makes_no_difference(strokes: Tensor) -> None:
    for model, usual in ((_model(), 1000), (vaebench.ConvVAE(hidden_dims=(8,) * 5), 100)):
        sizes = (None, usual, 37)
        default, same, other = (vaebench.evaluate(model, strokes, batch_size=n) for n in sizes)
        assert default == same
        assert other.elbo == pytest.approx(default.elbo, rel=1e-5)


def test_latents_apart(strokes: Tensor) -> None:
    model = _model()
    with torch.no_grad():
        model.mu.weight[2:].zero_()  # four means that do not depend on x
        model.mu.weight[:2].mul_(20)
    found = vaebench.evaluate(model, strokes[:100])
    assert found.active_units == 2
    assert len(found.kl_per_latent) == 6
    assert sum(found.kl_per_latent) == pytest.approx(found.kl)
    mu, logvar = (t.detach() for t in model.encode(strokes[:100] / 255))
    prior, posterior = (
        torch.distributions.Normal(m, s) for m, s in ((0, 1), (mu, (logvar / 2).exp()))
    )
    want = torch.distributions.kl_divergence(posterior, prior).mean(0)
    assert found.kl_per_latent == pytest.approx(want.tolist(), rel=1e-4)


def test_the_quick_value_is_the_same_number() -> None:
    torch.manual_seed(0)
    logits = torch.cat([torch.randn(50, 30) * 5, torch.tensor([[-1e4, -40.0, 0.0, 41.0, 1e4] * 6])])
    for dtype, bar in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        x, out = torch.rand(51, 30).to(dtype), logits.to(dtype)
        torch.testing.assert_close(
            bernoulli_value(out, x),
            bernoulli_log_likelihood(out, x),
            rtol=bar,
            atol=1e-4 if bar > 1e-9 else 1e-10,
        )


# The command line.


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on dynamic binary strokes: 700 trained on, 100 held out, 100 to test."""
    folder = tmp_path_factory.mktemp("run")
    images = make_strokes(900, seed=3)[0].numpy()
    np.savez(folder / "small.npz", x_train=images[:800], x_test=images[800:])
    words = "--epochs 1 --hidden-dim 24 --latent-dim 3 --binarize dynamic --holdout 100 --quiet"
    line = [sys.executable, "-m", "vaebench.train", "--data", str(folder / "small.npz")]
    done = subprocess.run([*line, "--device", "cpu", "--out", str(folder / "run"), *words.split()])
    assert done.returncode == 0
    return folder / "run"


@pytest.fixture
def evaluate_main(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run ``python -m vaebench.evaluate`` in this process; give its exit status."""
    threads, handler, show = (
        torch.get_num_threads(),
        signal.getsignal(signal.SIGTERM),
        warnings.showwarning,
    )

    def main(*args: object) -> int:
        monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, args)])
        try:
            with pytest.raises(SystemExit) as ended:
                runpy.run_module("vaebench.evaluate", run_name="__main__")
        finally:
            torch.set_num_threads(threads)
            signal.signal(signal.SIGTERM, handler)
            warnings.showwarning = show
        return int(str(ended.value.code))

    return main


def test_the_command_says_what_it_did(run: Path) -> None:
    line = [sys.executable, "-m", "vaebench.evaluate", str(run), "--samples", "30", "--seed", "5"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "importance-weighted log-likelihood" in done.stdout
    assert "± is the standard error over images" in done.stdout
    result = json.loads((run / "evaluation.json").read_text())
    images = np.load(run.parent / "small.npz")["x_test"]
    x = binarize(torch.from_numpy(images), "static", TEST_PIXELS)
    want = vaebench.evaluate(vaebench.load(run), x, samples=30, seed=5)
    assert result["log_likelihood"] == pytest.approx(want.log_likelihood, rel=1e-6)
    assert result["standard_error"] == pytest.approx(want.standard_error, rel=1e-4)
    assert result["elbo"] == pytest.approx(want.elbo, rel=1e-6)
    assert (result["samples"], result["seed"], result["images"]) == (30, 5, 100)
    assert result["meaning"] == "bound on log-likelihood"
    assert result["binarize"] == "dynamic"
    assert "one fixed sample" in result["binarization"]
    assert result["epochs"] == 1
    # The training's own test ELBO is of the same pixels.
    trained = json.loads((run / "result.json").read_text())
    one = vaebench.evaluate(vaebench.load(run), x)
    assert trained["test_elbo"] == pytest.approx(one.elbo, rel=1e-5)
    assert trained["meaning"] == "bound on log-likelihood"
    assert any("sampled anew each epoch" in note for note in trained["notes"])


def test_splits(run: Path, tmp_path: Path, evaluate_main: Callable[..., int]) -> None:
    for split, count in (("holdout", 100), ("train", 700)):
        out = tmp_path / f"{split}.json"
        assert evaluate_main(run, "--samples", 2, "--split", split, "--out", out, "--quiet") == 0
        assert json.loads(out.read_text())["images"] == count


BAD = {
    "no run": (["nowhere"], "no run folder"),
    "no samples": (["RUN", "--samples", "0"], "--samples is 0"),
    "no images": (["RUN", "--images", "-1"], "--images is -1"),
    "bad seed": (["RUN", "--seed", "-1"], "--seed is -1"),
    "unknown flag": (["RUN", "--sample", "3"], "--help lists the options"),
    "unknown split": (["RUN", "--split", "valid"], "test"),
    "unwritable": (["RUN", "--out", "/proc/x/result.json"], "cannot be written"),
    "no such data": (["RUN", "--data", "nowhere.npy"], "nowhere.npy"),
}


@pytest.mark.parametrize(("args", "said"), BAD.values(), ids=BAD)
def test_bad_input(
    args: list[str],
    said: str,
    run: Path,
    evaluate_main: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert evaluate_main(*(run if a == "RUN" else a for a in args)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("vaebench: ")
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_the_function_is_not_shadowed_by_the_command() -> None:
    with pytest.raises(ImportError, match=r"vaebench\.evaluate is a function"):
        importlib.import_module("vaebench.evaluate")
    assert callable(vaebench.evaluate)
    code = "import vaebench.evaluation; from vaebench import evaluate; evaluate.__kwdefaults__"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
