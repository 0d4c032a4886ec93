"""The conv workload against a textbook version of the repository that it is taken from."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vaebench
from vaebench.cli.train import parse
from vaebench.config import NETWORKS, WORKLOADS
from vaebench.data.strokes import make_strokes
from vaebench.errors import InputError
from vaebench.models.networks import KINDS, make_network
from vaebench.objective import Objective, elbo_terms
from vaebench.plots import draw
from vaebench.runs.folder import RunFolder

KL_WEIGHT = 128 / 60_000
RECIPE = WORKLOADS["conv"].settings
OBJECTIVE = Objective("gaussian", RECIPE["sigma"])
SMALL = (4, 4, 8, 8, 16)


class Textbook(nn.Module):
    """The original's layers, named as its state_dict names them, and its loss."""

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Sequential(), nn.Sequential()
        for c_in, c_out in ((1, 32), (32, 64), (64, 128), (128, 256), (256, 512)):
            layer = nn.Conv2d(c_in, c_out, 3, 2, 1)
            self.encoder.append(nn.Sequential(layer, nn.BatchNorm2d(c_out), nn.LeakyReLU(0.01)))
        self.fc_mu, self.fc_var = nn.Linear(512, latents), nn.Linear(512, latents)
        self.decoder_input = nn.Linear(latents, 512)
        for c_in, c_out in ((512, 256), (256, 128), (128, 64), (64, 32)):
            up = nn.ConvTranspose2d(c_in, c_out, 3, 2, 1, 1)
            self.decoder.append(nn.Sequential(up, nn.BatchNorm2d(c_out), nn.LeakyReLU(0.01)))
        up = nn.ConvTranspose2d(32, 32, 3, 2, 1, 1)
        norm = (nn.BatchNorm2d(32), nn.LeakyReLU(0.01))
        end = (nn.Conv2d(32, 1, 5), nn.Tanh())
        self.final_layer = nn.Sequential(nn.Sequential(up, *norm, *end))

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.encoder(x).view(len(x), 512)
        mu, logvar = self.fc_mu(hidden), self.fc_var(hidden)
        hidden = self.decoder_input(mu + torch.sqrt(logvar.exp()) * eps)
        return self.final_layer(self.decoder(hidden.view(-1, 512, 1, 1))), mu, logvar

    def loss(self, x: Tensor, eps: Tensor) -> Tensor:
        output, mu, logvar = self(x, eps)
        kl = 0.5 * (logvar.exp() + mu**2 - logvar - 1).sum(1).mean()
        loss: Tensor = F.mse_loss(output, x) + KL_WEIGHT * kl
        return loss


@pytest.fixture
def textbook() -> Textbook:
    """Weights, and running statistics and scales of batch norm, that are nobody's defaults."""
    torch.manual_seed(4)
    model = Textbook(latents=3)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.3, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
                assert module.num_batches_tracked is not None
                module.num_batches_tracked.fill_(7)
    return model


@pytest.fixture
def saved(textbook: Textbook, tmp_path: Path) -> Path:
    path = tmp_path / "model_3lat.pth"
    torch.save(textbook.state_dict(), path)
    return path


def _loss(model: vaebench.ConvVAE, x: Tensor, eps: Tensor) -> Tensor:
    """The original's loss, from vaebench's: take the Gaussian's constant away, and multiply."""
    objective_loss = OBJECTIVE.loss(*elbo_terms(model, OBJECTIVE, x, eps))
    constant = 392 * math.log(2 * math.pi * OBJECTIVE.sigma**2)
    return KL_WEIGHT * (objective_loss - constant)


def _batch(latents: int, count: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    x = torch.rand(count, 1, 28, 28, generator=generator)
    return x, torch.randn(count, latents, generator=generator)


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_outputs_and_loss_are_the_originals(textbook: Textbook, saved: Path, train: bool) -> None:
    model = vaebench.load_state_dict_from(saved).train(train)
    textbook.train(train)
    x, eps = _batch(3)
    with torch.no_grad():
        output, mu, logvar = textbook(x, eps)
        got_mu, got_logvar = model.encode(x)
        got = model.decode(mu + torch.exp(logvar / 2) * eps)
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(got_mu, mu, **close)
    torch.testing.assert_close(got_logvar, logvar, **close)
    torch.testing.assert_close(got, output, rtol=0, atol=1e-5)
    assert got.shape == (9, 1, 28, 28)
    assert _loss(model, x, eps).item() == pytest.approx(textbook.loss(x, eps).item(), rel=1e-5)


def test_a_step_is_the_originals(textbook: Textbook, saved: Path) -> None:
    """In float64, where rounding hides nothing: loss, every gradient, batch norm's statistics."""
    model = vaebench.load_state_dict_from(saved).double().train()
    textbook.double().train()
    x, eps = (t.double() for t in _batch(3))
    want, got = textbook.loss(x, eps), _loss(model, x, eps)
    assert got.item() == pytest.approx(want.item(), rel=1e-10)
    want.backward()
    got.backward()
    ours = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, p in textbook.named_parameters():
        torch.testing.assert_close(ours.pop(name).grad, p.grad, rtol=1e-8, atol=1e-12, msg=name)
    for name, b in textbook.named_buffers():
        torch.testing.assert_close(ours.pop(name), b, rtol=1e-10, atol=1e-12, msg=name)
    assert not ours
    assert model.encoder[0][1].num_batches_tracked == 8  # type: ignore[index]


def test_the_recipes_objective_is_the_loss_by_its_numbers() -> None:
    """Beta 2 sigma^2 / D = 128 / 60000, the condition under which the two are one."""
    assert 2 * RECIPE["sigma"] ** 2 / 784 == pytest.approx(KL_WEIGHT, rel=1e-12)
    config = parse(["--workload", "conv"])
    assert (config.objective.beta, config.objective.likelihood) == (1, "gaussian")
    optimizer = config.optimizer
    assert (optimizer.batch_size, optimizer.lr, optimizer.epochs) == (32, 3e-4, 10)
    assert config.network.latent_dim == 2
    assert config.network.hidden_dim == (32, 64, 128, 256, 512)


@pytest.mark.parametrize("latents", [1, 20])
def test_the_latent_size_is_the_files(tmp_path: Path, latents: int) -> None:
    torch.save(Textbook(latents).state_dict(), tmp_path / "model.pth")
    model = vaebench.load_state_dict_from(tmp_path / "model.pth", image_shape=(28, 28))
    assert model.latent_dim == latents
    assert not model.training
    assert model.sample(2).shape == (2, 28, 28)


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


def test_what_is_no_such_state_dict_is_refused(
    textbook: Textbook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state = textbook.state_dict()
    bias = "decoder.2.0.bias"
    bad: dict[str, tuple[Any, str]] = {
        "a list": ([1, 2], "holds a list, no state_dict"),
        "a tensor": (torch.zeros(3), "holds a Tensor"),
        "nothing": ({}, "no state_dict"),
        "a wrapper": ({"state_dict": state}, "'state_dict' is no tensor"),
        "the model": (textbook, "code in files is not run"),
        "code": ({"fc_mu.weight": _Code()}, "code in files is not run"),
        "another model's": (vaebench.VAE().state_dict(), "fc_mu.weight is missing"),
        "a key less": ({k: v for k, v in state.items() if k != bias}, f"{bias} is missing"),
        "a key more": ({**state, "extra.bias": torch.zeros(1)}, "extra.bias is none"),
        "a shape": ({**state, bias: torch.zeros(63)}, rf"{bias} has the shape \(63,\), and not"),
        "a head": ({**state, "fc_mu.weight": torch.zeros(9)}, r"fc_mu.weight has the shape \(9,\)"),
        "heads that differ": (
            {**state, "fc_mu.weight": torch.zeros(4, 512)},
            r"fc_mu.bias has the shape \(3,\), and not \(4,\)",
        ),
        "whole numbers": ({**state, bias: torch.zeros(64).int()}, f"{bias} holds torch.int32"),
    }
    for name, (value, message) in bad.items():
        torch.save(value, "bad.pth")
        with pytest.raises(InputError, match=message) as caught:
            vaebench.load_state_dict_from("bad.pth")
        assert "\n" not in str(caught.value), name
    assert not Path("ran").exists()


@pytest.mark.parametrize("content", [None, b"", b"torch", b"PK\x03\x04 no archive", "cut", "dir"])
def test_what_is_no_file_of_torch_is_refused(saved: Path, content: bytes | str | None) -> None:
    if content == "cut":
        saved.write_bytes(saved.read_bytes()[:9999])
    elif isinstance(content, bytes):
        saved.write_bytes(content)
    else:
        saved.unlink()
        if content:
            saved.mkdir()
    with pytest.raises(InputError) as caught:
        vaebench.load_state_dict_from(saved)
    assert str(saved) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28), (784,)])
def test_every_form_of_the_images(shape: tuple[int, ...]) -> None:
    model = vaebench.ConvVAE(shape, SMALL)
    x = torch.rand(5, *shape)
    mu, logvar = model.encode(x)
    assert mu.shape == logvar.shape == (5, 2)
    assert model.decode(mu).shape == x.shape


def test_bernoulli_gives_logits() -> None:
    means, logits = (vaebench.ConvVAE(hidden_dims=SMALL, likelihood=w).eval()
                     for w in ("gaussian", "bernoulli"))  # fmt: skip
    logits.load_state_dict(means.state_dict())
    z = torch.randn(3, 2)
    torch.testing.assert_close(logits.decode(z).tanh(), means.decode(z))
    torch.testing.assert_close(logits.pixels(logits.decode(z)), logits.decode(z).sigmoid())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"image_shape": (32, 32)}, "28x28"),
        ({"image_shape": (3, 28, 28)}, "28x28"),
        ({"hidden_dims": (400,)}, "exactly 5 layers"),
        ({"hidden_dims": (8, 8, 8, 8, 0)}, "exactly 5 layers"),
        ({"latent_dim": 0}, "latent_dim is 0"),
        ({"activation": "gelu"}, "activation is 'gelu'"),
        ({"likelihood": "laplace"}, "likelihood is 'laplace'"),
    ],
)
def test_what_it_cannot_be_is_said(words: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        vaebench.ConvVAE(**words)


def test_networks_by_name() -> None:
    assert set(KINDS) == set(NETWORKS)
    assert isinstance(make_network({"latent_dim": 3}), vaebench.VAE)  # as old run folders say it
    with pytest.raises(InputError, match="the network is 'gan'"):
        make_network({"kind": "gan"})
    with pytest.raises(TypeError):
        make_network([1])  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = make_strokes(260, seed=3)[0].numpy()
    labels = np.arange(260) % 10
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(path, x_train=images[:200], x_test=images[200:], y_train=labels[:200],
             y_test=labels[200:])  # fmt: skip
    return path


@pytest.mark.slow
def test_trained_from_the_command_line(npz: Path, tmp_path: Path) -> None:
    """A run, its model, its pictures; the page that decodes in the browser is left out."""
    line = [sys.executable, "-m", "vaebench.train", "--workload", "conv", "--data", str(npz),
            "--device", "cpu", "--out", "run", "--epochs", "2", "--plot"]  # fmt: skip
    channels = ["--hidden-dim", *map(str, SMALL)]
    done = subprocess.run(
        [*line, *channels], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    (told,) = done.stderr.splitlines()
    assert told.startswith("vaebench: explore is left out: ")
    assert "ConvTranspose2d" in told
    run = tmp_path / "run"
    result = json.loads((run / "result.json").read_text())
    assert result["workload"] == "conv"
    model = vaebench.load(run)
    assert isinstance(model, vaebench.ConvVAE)
    x = torch.from_numpy(np.load(npz)["x_test"])
    again = vaebench.evaluate(model, x, sigma=RECIPE["sigma"])
    assert again.elbo == pytest.approx(result["test_elbo"], rel=1e-5)
    names = {path.stem for path in (run / "pictures").iterdir()}
    assert names == {"manifold", "latent", "reconstructions", "samples", "interpolate", "traverse",
                     "curves"}  # fmt: skip
    with pytest.raises(InputError, match="this model's decoder holds ConvTranspose2d"):
        draw(run, ["explore"])


@pytest.mark.slow
def test_a_run_of_a_model_loaded_from_elsewhere(saved: Path, tmp_path: Path) -> None:
    """What was trained there can be trained on here, and written as a run's model."""
    model = vaebench.load_state_dict_from(saved, image_shape=(28, 28))
    x = make_strokes(64, seed=3)[0]
    vaebench.fit(model, x, epochs=1, batch_size=32, lr=3e-4, sigma=RECIPE["sigma"], device="cpu")
    with RunFolder(tmp_path / "run") as folder:
        folder.write_config({}, {"kind": "conv", "latent_dim": 3})
        folder.write_model(model.state_dict())
    back = vaebench.load(tmp_path / "run")
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workload", "conv", "--hidden-dim", "400"], "exactly 5 layers"),
        (["--network", "conv"], "exactly 5 layers"),
        (["--network", "transformer"], "--network"),
    ],
)
def test_bad_words_are_one_line(
    words: list[str],
    message: str,
    npz: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vaebench.cli.train import main

    monkeypatch.chdir(tmp_path)
    assert main(["--data", str(npz), "--device", "cpu", *words]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
