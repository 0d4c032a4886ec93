"""The recipes, trained from the command line, beside textbook versions written out here.

The textbook has the literature's numbers as literals, layers put together by hand, densities of
torch.distributions and torch's optimisers. It shares the random numbers, and nothing else.
"""

import json
import math
import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from vaebench.cli.train import main, parse
from vaebench.config import WORKLOADS, recipe
from vaebench.data.binarize import Sampler, binarize
from vaebench.data.strokes import make_strokes
from vaebench.errors import InputError
from vaebench.system.random import TRAINING, TRAINING_PIXELS, random_stream
from vaebench.training.schedules import lr_factor

TRAINED, HELD_OUT = 210, 50


@dataclass
class Textbook:
    """A workload by its paper. ``args`` select it beside ``--workload``; widths are 784-...-Z."""

    widths: list[int]
    activation: type[nn.Module]
    batch: int
    optimizer: Any
    pixels: str
    args: str = ""
    k: int = 1
    iwae: bool = False
    sigma: float = 0.0
    # By the share of one epoch that is done: learning rate, and the KL's weight.
    rate: Callable[[float], float] | None = None
    beta: Callable[[float], float] = lambda done: 1.0
    gated: bool = False
    components: int = 0  # of a VampPrior; 0: N(0, I)


def _adam(lr: float, eps: float = 1e-8, beta2: float = 0.999) -> Any:
    return lambda p: torch.optim.Adam(p, lr, (0.9, beta2), eps)


def _falling(done: float) -> float:
    """6e-3 within half an epoch, from a hundredth of it; and straight down to 0 all the while."""
    return 6e-3 * min(1, 0.01 + 0.99 * done / 0.5) * (1 - done)


def _slowly(done: float) -> float:
    """3e-3 in proportion, from a hundredth of it; and straight down to 0 all the while."""
    return 3e-3 * (0.01 + 0.99 * done) * (1 - done)


def _adagrad(p: Any) -> Any:
    return torch.optim.Adagrad(p, 0.01)


RELU, TANH = nn.ReLU, nn.Tanh
IWAE = Textbook([784, 200, 200, 50], TANH, 20, _adam(1e-3, 1e-4), "dynamic")
TEXTBOOK = {
    "mlp": Textbook([784, 400, 20], RELU, 128, _adam(1e-3), "none"),
    "flax": Textbook([784, 500, 20], RELU, 128, _adam(1e-3), "static"),
    "aevb": Textbook([784, 500, 20], TANH, 100, _adagrad, "none"),
    "aevb z=2": Textbook([784, 500, 2], TANH, 100, _adagrad, "none", "--latent-dim 2"),
    "aevb gaussian": Textbook(
        [784, 500, 20],
        TANH,
        100,
        _adagrad,
        "none",
        "--likelihood gaussian --sigma 0.5",
        sigma=0.5,
    ),
    "iwae": IWAE,
    "iwae k=5": replace(IWAE, args="--samples 5", k=5),
    "iwae k=5 iwae": replace(IWAE, args="--samples 5 --objective iwae", k=5, iwae=True),
    "record": Textbook([784, 400, 20], RELU, 64, _adam(6e-3, beta2=0.98), "none", rate=_falling),
    "likelihood": Textbook(
        *([784, 500, 500, 40], RELU, 128, _adam(3e-3), "dynamic"),
        rate=_slowly,
        beta=lambda done: done / 20,
    ),
    "vampprior": Textbook(
        *([784, 300, 300, 40], nn.GLU, 100, _adam(5e-4), "dynamic"),
        beta=lambda done: done / 100,
        gated=True,
        components=500,
    ),
    "vampprior standard": Textbook(
        *([784, 300, 300, 40], nn.GLU, 100, _adam(5e-4), "dynamic", "--prior standard"),
        beta=lambda done: done / 100,
        gated=True,
    ),
    "pythae": Textbook([784, 400, 40], RELU, 100, _adam(1e-4), "static"),
}


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small strokes: some to train on, some held out, some to test."""
    images = make_strokes(TRAINED + HELD_OUT + 20, seed=3)[0].numpy()
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(path, x_train=images[:-20], x_test=images[-20:])
    return path


def _layers(book: Textbook) -> nn.ModuleDict:
    """Layers in the order in which the package makes them: one seed then gives equal weights."""
    torch.manual_seed(0)
    z, *hidden = book.widths[::-1]

    def chain(widths: list[int]) -> nn.Sequential:
        parts: list[nn.Module] = []
        for a, b in pairwise(widths):
            parts += [nn.Linear(a, (1 + book.gated) * b), book.activation()]
        return nn.Sequential(*parts)

    net = nn.ModuleDict(
        {
            "encoder": chain(book.widths[:-1]),
            "mu": nn.Linear(hidden[0], z),
            "logvar": nn.Linear(hidden[0], z),
            "decoder": chain([z, *hidden[:-1]]),
            "output": nn.Linear(hidden[-2], 784),
        }
    )
    if book.components:
        noise = torch.randn(book.components, 28, 28)
        net.register_parameter("pseudo_inputs", nn.Parameter(0.01 * noise - 0.05))
    return net


def _posterior(net: nn.ModuleDict, book: Textbook, x: Tensor) -> Normal:
    h = net["encoder"](x)
    logvar = net["logvar"](h)
    return Normal(net["mu"](h), (logvar.clamp(-6, 2) if book.gated else logvar).div(2).exp())


def _loss(
    net: nn.ModuleDict, book: Textbook, x: Tensor, eps: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """(loss, ELBO summed over the batch)."""
    q = _posterior(net, book, x)
    prior = Normal(torch.zeros_like(q.mean), 1.0)
    recons, log_ws = [], []
    for draw in eps.reshape(len(x), book.k, -1).unbind(1):
        z = q.mean + q.stddev * draw
        out = net["output"](net["decoder"](z))
        if book.sigma:
            recon = Normal(out, book.sigma).log_prob(x).sum(1)
        else:
            recon = Bernoulli(logits=out, validate_args=False).log_prob(x).sum(1)
        recons.append(recon)
        log_ws.append(recon + prior.log_prob(z).sum(1) - q.log_prob(z).sum(1))
    recon, kl = sum(recons, torch.zeros(len(x))) / book.k, kl_divergence(q, prior).sum(1)
    if book.components:
        vamp = _posterior(net, book, net.get_parameter("pseudo_inputs").sigmoid().flatten(1))
        each = Normal(vamp.mean, vamp.stddev).log_prob(z[:, None]).sum(2)
        kl = q.log_prob(z).sum(1) - each.logsumexp(1) + math.log(book.components)
    elbo = recon - kl
    if book.iwae:
        return -(torch.stack(log_ws).logsumexp(0) - math.log(book.k)).mean(), elbo.sum()
    return (beta * kl - recon).mean(), elbo.sum()


def _train(book: Textbook, grey: Tensor) -> tuple[float, nn.ModuleDict]:
    """One epoch; (training ELBO, weights)."""
    x = grey
    if book.pixels == "static":
        x = binarize(grey, "static", TRAINING_PIXELS)
    if book.pixels == "dynamic":
        x = torch.empty_like(grey)
        Sampler(grey, 0, torch.device("cpu")).draw(1, x)
    x = x.flatten(1) / 255
    numbers = random_stream(0, TRAINING, torch.device("cpu"))
    order = torch.randperm(len(x), generator=numbers)
    net = _layers(book)
    optimizer = book.optimizer(net.parameters())
    total, z = 0.0, book.widths[-1]
    # The trainer draws an epoch's noise at once for k = 1, else in pieces of whole batches.
    steps = math.ceil(len(x) / book.batch)
    piece = len(x) if book.k == 1 else math.ceil(steps / 20) * book.batch
    noise = torch.cat(
        [torch.randn(len(p), book.k, z, generator=numbers) for p in order.split(piece)]
    )
    batches = zip(order.split(book.batch), noise.split(book.batch), strict=True)
    for step, (index, eps) in enumerate(batches):
        done = step * book.batch / len(x)
        if book.rate:
            optimizer.param_groups[0]["lr"] = book.rate(done)
        loss, elbo = _loss(net, book, x[index], eps, book.beta(done))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += elbo.item()
    return total / len(x), net


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            n, marks=[pytest.mark.slow] * (n not in ("mlp", "flax", "iwae", "record", "vampprior"))
        )
        for n in TEXTBOOK
    ],
)
def test_trains_as_its_textbook(name: str, npz: Path, tmp_path: Path) -> None:
    book = TEXTBOOK[name]
    words = f"--workload {name.split()[0]} --epochs 1 --holdout {HELD_OUT} --device cpu --quiet"
    threads, handler, show = (
        torch.get_num_threads(),
        signal.getsignal(signal.SIGTERM),
        warnings.showwarning,
    )
    try:
        args = [*words.split(), *book.args.split(), "--data", str(npz)]
        assert main([*args, "--out", str(tmp_path / "run")]) == 0
    finally:
        torch.set_num_threads(threads)
        signal.signal(signal.SIGTERM, handler)
        warnings.showwarning = show
    grey = torch.from_numpy(np.load(npz)["x_train"])[:TRAINED]
    elbo, net = _train(book, grey)

    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert {n: tuple(w.shape) for n, w in weights.items()} == {
        n: tuple(w.shape) for n, w in net.named_parameters()
    }
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["train_elbo"] == pytest.approx(elbo, rel=1e-5)
    grey_scored = book.pixels == "none" and not book.sigma
    assert result["meaning"].startswith("score") is grey_scored
    start = dict(_layers(book).named_parameters())
    for n, want in net.named_parameters():
        # Adam's first steps are of full size whatever the gradient: where that is rounding, not.
        off = (weights[n] - want).abs()
        assert off.mean() < 0.01 * (want - start[n]).abs().mean(), n
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["batch_size"] == book.batch
    assert config["holdout"] == HELD_OUT


def test_every_recipe_has_its_textbook() -> None:
    assert {name.split()[0] for name in TEXTBOOK} | {"conv"} >= set(WORKLOADS)


def test_passes_and_images() -> None:
    """What the tests above cut short."""
    want = {"mlp": (10, 0), "flax": (30, 10_000), "iwae": (3280, 400), "pythae": (500, 10_000)}
    want["vampprior"] = (2000, 10_000)
    for name, (epochs, holdout) in want.items():
        config = recipe(name)
        assert (config.optimizer.epochs, config.data.holdout) == (epochs, holdout), name
    assert recipe("aevb").optimizer.epochs * 60_000 == pytest.approx(1e8, rel=1e-3)


def test_what_is_given_goes_before_the_recipe() -> None:
    config = parse(["--lr", "0.5", "--workload", "iwae", "--hidden-dim", "9"])
    network = config.network
    assert (config.optimizer.lr, network.hidden_dim, network.latent_dim) == (0.5, (9,), 50)
    assert config == recipe("iwae", lr=0.5, hidden_dim=(9,), likelihood="bernoulli")
    with pytest.raises(InputError, match="--workload is 'gan'"):
        recipe("gan")


def test_schedules() -> None:
    """Burda's stages: 3^i epochs at 10^(-i/7), 3,280 in all. Pythae's: five steps."""
    burda = [10 ** (-i / 7) for i in range(8) for _ in range(3**i)]
    assert len(burda) == 3280
    found = [lr_factor("iwae", epoch) for epoch in range(3280)]
    assert found == pytest.approx(burda)
    assert lr_factor("iwae", 4000) == pytest.approx(0.1)
    parameter = nn.Parameter(torch.zeros(()))
    torchs = torch.optim.SGD([parameter], lr=1.0)
    steps = torch.optim.lr_scheduler.MultiStepLR(
        torchs, [200, 350, 500, 750, 1000], gamma=10 ** (-1 / 5)
    )
    for epoch in range(1100):
        assert lr_factor("pythae", epoch) == pytest.approx(torchs.param_groups[0]["lr"])
        torchs.step()
        steps.step()
    assert lr_factor("constant", 99) == 1


def test_the_schedule_reaches_the_engine(npz: Path) -> None:
    import vaebench

    grey = torch.from_numpy(np.load(npz)["x_train"])
    moved = []
    for engine in ("fast", "reference"):
        torch.manual_seed(0)
        model = vaebench.VAE(hidden_dims=(16,), latent_dim=2)
        steps: list[list[Tensor]] = [[p.detach().clone() for p in model.parameters()]]
        vaebench.fit(
            model,
            grey,
            epochs=2,
            batch_size=len(grey),
            schedule="iwae",
            device="cpu",
            engine=engine,
            on_epoch=lambda _, m=model, s=steps: s.append(
                [p.detach().clone() for p in m.parameters()]
            ),  # type: ignore[misc]
        )
        sizes = [
            max((a - b).abs().max().item() for a, b in zip(*pair, strict=True))
            for pair in pairwise(steps)
        ]
        moved.append(sizes)
        # Adam's first step is as long as the rate; its second nearly so.
        assert sizes[0] == pytest.approx(1e-3, rel=1e-2)
        assert sizes[1] == pytest.approx(1e-3 * 10 ** (-1 / 7), rel=0.1)
    assert moved[0] == pytest.approx(moved[1], rel=1e-3)


def test_help_states_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, entry in WORKLOADS.items():
        assert f"{name}: {entry.source}" in text
    assert "--batch-size 20 --adam-eps 0.0001 --schedule iwae --latent-dim 50" in text


def test_a_holdout_that_leaves_nothing(
    npz: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    show = warnings.showwarning
    handler = signal.getsignal(signal.SIGTERM)
    try:
        out = tmp_path / "run"
        args = ["--data", str(npz), "--workload", "flax", "--device", "cpu", "--out", str(out)]
        assert main(args) == 2
    finally:
        warnings.showwarning = show
        signal.signal(signal.SIGTERM, handler)
    assert "holdout is 10000, which leaves none of the 260" in capsys.readouterr().err
    assert not out.exists()
