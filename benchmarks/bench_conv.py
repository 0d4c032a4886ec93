"""How does the conv workload compare with the loop of the repository that it is taken from?

Both train the same images from the same weights, in turns, in one process: before each timed round
of the original's loop, vaebench trains, and the ratio is taken round by round. Denormals are
flushed for both, which that loop does not ask for: if anything, it gains by it.
"""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.conftest import Measure, Size, clock
from benchmarks.examples_vae import Digits
from benchmarks.intervals import paired_ratio, summary
from benchmarks.rungs import make_engine
from benchmarks.state import module_restorer, restorer
from vaebench import ConvVAE, Dataset
from vaebench.config import WORKLOADS
from vaebench.engine import Sums
from vaebench.objective import Objective

RECIPE = WORKLOADS["conv"].settings
KL_WEIGHT = 128 / 60_000
SHARE = 20  # one twentieth of the other peers' images: a step costs that many times theirs
AGREES = 0.05  # of the mean losses, the two drawing orders and noise of their own


def loss_of(sums: Sums) -> float:
    """The original's loss: mean squared error plus weighted KL, from the Gaussian's terms."""
    objective = Objective("gaussian", RECIPE["sigma"])
    at_zero_error = objective.log_likelihood(torch.zeros(1, 784), torch.zeros(1, 784)).item()
    return KL_WEIGHT * (at_zero_error - float(sums.recon - sums.kl) / sums.images)


class Original:
    """That loop: PIL and ToTensor per image, DataLoader, eager, plain Adam, ``item`` thrice."""

    def __init__(self, model: ConvVAE, images: Tensor) -> None:
        self.model = model
        self.loader: DataLoader[Any] = DataLoader(
            Digits(images), RECIPE["batch_size"], shuffle=True
        )
        self.optimizer = torch.optim.Adam(model.parameters(), lr=RECIPE["lr"])
        self.restore = module_restorer(model, self.optimizer)

    def epoch(self) -> float:
        """Train; give the mean loss of the steps."""
        self.model.train()
        losses, errors, kls = 0.0, 0.0, 0.0
        for x, _ in self.loader:
            self.optimizer.zero_grad()
            mu, logvar = self.model.encode(x)
            std = torch.exp(0.5 * logvar)
            output = self.model.decode(torch.randn_like(std) * std + mu)
            error = F.mse_loss(output, x)
            kl = torch.mean(-0.5 * torch.sum(1 + logvar - mu**2 - logvar.exp(), dim=1), dim=0)
            loss = error + KL_WEIGHT * kl
            loss.backward()
            self.optimizer.step()
            losses += loss.item()
            errors += error.detach().item()
            kls += kl.detach().item()
        return losses / len(self.loader)


class Ours:
    """vaebench's fast engine, as ``--workload conv`` makes it."""

    def __init__(self, model: ConvVAE, images: Tensor, words: dict[str, Any]) -> None:
        cpu = torch.device("cpu")
        objective = Objective("gaussian", RECIPE["sigma"])
        built = make_engine(
            model, images, objective, RECIPE["batch_size"], RECIPE["lr"], cpu, **words
        )
        # A fallback is never timed under this name.
        assert built.actual["compile"] is words["compile"], built.notes
        self.engine = built.engine
        self.order = torch.randperm(len(images), generator=torch.Generator().manual_seed(2))
        self.noise = torch.randn(len(images), RECIPE["latent_dim"])
        self.restore = restorer(self.engine)

    def epoch(self) -> float:
        """Train; give the mean loss of the images."""
        return loss_of(self.engine.epoch(self.order, self.noise))


def timed(work: Callable[[], float]) -> tuple[float, float]:
    """Give what ``work`` gives, and its seconds."""
    begun = clock()
    value = work()
    return value, clock() - begun


# Eager: compiling takes minutes, more than it saves in ten epochs (LOG.md).
CASES: dict[str, dict[str, Any]] = {"eager": {"compile": False}}


@pytest.mark.benchmark(group="conv")
@pytest.mark.parametrize("case", list(CASES))
def test_the_original(
    benchmark: BenchmarkFixture, measure: Measure, data: Dataset, size: Size, case: str
) -> None:
    torch.manual_seed(0)
    model = ConvVAE((1, 28, 28))
    images = data.train.images[: max(64, size.peers // SHARE)].reshape(-1, 1, 28, 28)
    theirs = Original(copy.deepcopy(model), images.squeeze(1))
    ours = Ours(model, images, CASES[case])
    expected, found = theirs.epoch(), ours.epoch()
    assert abs(found - expected) <= AGREES * expected, f"loss {found}, not {expected}"
    our_seconds: list[float] = []

    def before() -> None:
        ours.restore()
        our_seconds.append(timed(ours.epoch)[1])
        theirs.restore()

    measure(
        theirs.epoch, setup=before, rounds=size.rounds, images=len(images),
        case=case, loss=expected, our_loss=found, device="cpu",
    )  # fmt: skip
    if benchmark.stats is not None:
        ratio = paired_ratio(benchmark.stats.stats.data, our_seconds)
        benchmark.extra_info["ratio"] = dataclasses.asdict(ratio)
        benchmark.extra_info["our_images_per_second"] = len(images) / summary(our_seconds).median
