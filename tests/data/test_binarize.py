"""Binary pixels: drawn with the right chances, the same for everyone, anew when they should be."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vaebench
from vaebench.data import binarize as module
from vaebench.data.binarize import Sampler, binarize, is_binary, meaning
from vaebench.errors import InputError
from vaebench.system.random import TEST_PIXELS, TRAINING_PIXELS

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_pixel_is_lit_as_often_as_its_grey_says(dtype: torch.dtype) -> None:
    draws = 20_000
    grey = torch.arange(256, dtype=torch.uint8).repeat(draws, 1)  # (draws, 256)
    images = grey if dtype == torch.uint8 else grey / 255
    lit = binarize(images, "static", TRAINING_PIXELS)
    assert lit.dtype == torch.uint8
    assert set(lit.unique().tolist()) == {0, 255}
    share, p = (lit == 255).double().mean(0), torch.arange(256) / 255
    assert share[0] == 0
    assert share[255] == 1
    deviations = (share - p)[1:-1] / (p * (1 - p) / draws)[1:-1].sqrt()
    assert deviations.abs().max() < 5
    assert deviations.square().mean() < 1.4  # and not merely each within its bounds
    # Neighbours, which are cut from one random number, are independent.
    sample = (lit[:, 128:132] == 255).double()
    assert torch.corrcoef(sample.T).fill_diagonal_(0).abs().max() < 5 / math.sqrt(draws)


def test_threshold(strokes: Tensor) -> None:
    lit = binarize(strokes, "threshold", TRAINING_PIXELS)
    assert torch.equal(lit == 255, strokes >= 128)
    assert torch.equal(binarize(strokes / 255, "threshold", TRAINING_PIXELS), lit)


def test_the_fixed_sample_is_everyones(strokes: Tensor) -> None:
    before = strokes.clone()
    first = binarize(strokes, "static", TRAINING_PIXELS)
    assert torch.equal(binarize(strokes, "dynamic", TRAINING_PIXELS), first)
    assert not torch.equal(binarize(strokes, "static", TEST_PIXELS), first)
    assert torch.equal(strokes, before)
    assert torch.equal(binarize(strokes[:333], "static", TRAINING_PIXELS), first[:333])
    assert len(first.flatten()) < module.CHUNK
    big = strokes.repeat(2, 1, 1)  # two chunks
    assert torch.equal(binarize(big, "static", TRAINING_PIXELS)[:1000], first)
    # A change here changes the data set of every earlier result.
    assert int((first == 255).sum()) == 100140


def test_a_new_sample_every_epoch(strokes: Tensor) -> None:
    out = torch.empty_like(strokes)
    sampler = Sampler(strokes, 7, CPU)
    seen = []
    for epoch in (1, 2, 1):
        sampler.draw(epoch, out)
        seen.append(out.clone())
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])
    Sampler(strokes, 8, CPU).draw(1, out)
    assert not torch.equal(out, seen[0])


class Still(nn.Module):
    """No noise reaches z, no gradient changes much: what an epoch scores depends on its pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(784, 2), nn.Linear(2, 784)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu = self.into(x.flatten(1))
        return mu, torch.full_like(mu, -80.0)

    def decode(self, z: Tensor) -> Any:
        return self.out(z)


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_fit_trains_on_them(strokes: Tensor, engine: str) -> None:
    recons = {}
    before = strokes.clone()
    for how in ("static", "dynamic"):
        torch.manual_seed(0)
        history = vaebench.fit(
            Still(), strokes, epochs=3, lr=1e-12, binarize=how, device="cpu", engine=engine
        )
        recons[how] = [r.recon for r in history.epochs]
        assert any(f"--binarize {how}" in note for note in history.notes)
    assert torch.equal(strokes, before)
    assert recons["static"] == pytest.approx([recons["static"][0]] * 3, rel=1e-7)
    assert len({round(r, 3) for r in recons["dynamic"]}) == 3


def test_engines_see_the_same_pixels(strokes: Tensor) -> None:
    elbos: list[list[float | None]] = []
    for engine in ("fast", "reference"):
        torch.manual_seed(0)
        model = vaebench.VAE(hidden_dims=(32,), latent_dim=4)
        history = vaebench.fit(
            model,
            strokes[:800],
            epochs=2,
            binarize="dynamic",
            device="cpu",
            engine=engine,
            test_images=strokes[800:],
        )
        elbos.append([*(r.train_elbo for r in history.epochs), history.epochs[-1].test_elbo])
    assert elbos[0] == pytest.approx(elbos[1], rel=1e-5)
    x = binarize(strokes[800:], "static", TEST_PIXELS)
    assert vaebench.evaluate(model, x).elbo == pytest.approx(elbos[1][-1])


def test_what_an_elbo_is(strokes: Tensor) -> None:
    binary = binarize(strokes, "threshold", TRAINING_PIXELS)
    assert is_binary(binary)
    assert is_binary(binary / 255)
    assert not is_binary(strokes)
    assert meaning("bernoulli", strokes, "none") == "score of grey pixels, no likelihood"
    assert meaning("bernoulli", strokes, "dynamic") == "bound on log-likelihood"
    assert meaning("bernoulli", binary, "none") == "bound on log-likelihood"
    assert meaning("gaussian", strokes, "none") == "bound on log-density"


def test_refused(strokes: Tensor) -> None:
    with pytest.raises(InputError, match="cannot be binarised"):
        vaebench.fit(
            vaebench.VAE(likelihood="gaussian"), strokes * 1.0, binarize="dynamic", device="cpu"
        )
    with pytest.raises(InputError, match="none, threshold, static, dynamic"):
        vaebench.fit(vaebench.VAE(), strokes, binarize="fixed", device="cpu")
