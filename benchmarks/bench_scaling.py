"""How does cost grow with hidden width, latent size, batch size, data-set size and threads?

Seconds for a fixed number of images, eager with resident data (nothing to compile for each
point), but for the data set's size: there an epoch of each size. The exponent of a power law is
fitted to each axis: 1 is cost in proportion, 0 no cost, -1 for threads a perfect division.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.conftest import Measure, Size
from benchmarks.rungs import BATCH, RUNGS, build, new_model
from benchmarks.state import numbers, restorer
from vaebench import Dataset
from vaebench.system.threads import available_cpus

full = pytest.mark.full
WIDTHS = [100, pytest.param(400, marks=full), pytest.param(1600, marks=full)]
LATENTS = [2, pytest.param(20, marks=full), pytest.param(200, marks=full)]
BATCHES = [32, *(pytest.param(n, marks=full) for n in (128, 512, 2048))]
COUNTS = [200, *(pytest.param(n, marks=full) for n in (2000, 20_000))]
THREADS = [n for n in (1, 2, 4, 8, 16, 32) if n <= available_cpus()]


def time_epoch(
    measure: Measure, images: Tensor, count: int, device: torch.device, batch: int = BATCH,
    rounds: int = 1, axis: str = "", value: int = 0, **sizes: Any,
) -> None:  # fmt: skip
    """Time training on ``count`` of the images and store it as a point of an axis."""
    model = new_model(**sizes)
    engine, _ = build(RUNGS["resident"], model, images, min(batch, len(images)), device)
    order, noise = numbers(len(images), count, device)
    noise = noise.repeat(1, -(-model.latent_dim // noise.shape[1]))[:, : model.latent_dim]
    measure(
        lambda: engine.epoch(order, noise.contiguous()),
        setup=restorer(engine),
        rounds=rounds,
        images=count,
        axis=f"{axis} ({device.type})",
        value=value,
    )


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Compute with so many threads, and afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.benchmark(group="scaling: hidden width")
@pytest.mark.parametrize("width", WIDTHS)
def test_width(
    measure: Measure, device: torch.device, width: int, data: Dataset, size: Size
) -> None:
    time_epoch(
        measure, data.train.images, size.block, device,
        rounds=size.rounds, axis="hidden width", value=width, hidden_dims=(width,),
    )  # fmt: skip


@pytest.mark.benchmark(group="scaling: latent size")
@pytest.mark.parametrize("latent", LATENTS)
def test_latent(
    measure: Measure, device: torch.device, latent: int, data: Dataset, size: Size
) -> None:
    time_epoch(
        measure, data.train.images, size.block, device,
        rounds=size.rounds, axis="latent size", value=latent, latent_dim=latent,
    )  # fmt: skip


@pytest.mark.benchmark(group="scaling: batch size")
@pytest.mark.parametrize("batch", BATCHES)
def test_batch(
    measure: Measure, device: torch.device, batch: int, data: Dataset, size: Size
) -> None:
    time_epoch(
        measure, data.train.images, size.block, device,
        batch=batch, rounds=size.rounds, axis="batch size", value=batch,
    )  # fmt: skip


@pytest.mark.benchmark(group="scaling: data-set size")
@pytest.mark.parametrize("count", COUNTS)
def test_images(
    measure: Measure, device: torch.device, count: int, data: Dataset, size: Size
) -> None:
    images = data.train.images[:count]
    time_epoch(
        measure, images, len(images), device,
        rounds=size.rounds, axis="images", value=len(images),
    )  # fmt: skip


@pytest.mark.benchmark(group="scaling: threads")
@pytest.mark.parametrize("threads", THREADS, indirect=True)
def test_threads(measure: Measure, threads: int, data: Dataset, size: Size) -> None:
    time_epoch(
        measure, data.train.images, size.block, torch.device("cpu"),
        rounds=size.rounds, axis="threads", value=threads,
    )  # fmt: skip
