"""What does an optimiser step cost, on which rung, and how does that grow?

*Throughput*: a block of steps, synchronised once at its end; ``images_per_second``.
*Latency*: one step, synchronised; what somebody waits who looks at each.
*Growth*: eager with resident data, seconds for a fixed number of images against hidden width,
latent size, batch size and threads; for the data set's size an epoch of each. A power law is fitted
to each axis: 1 is cost in proportion, 0 no cost, -1 for threads a perfect division.

``flush_denormal`` is missing: denormals appear after an epoch or two, so only the ladder can show
what it gains.
"""

import math
from collections.abc import Callable

import pytest
import torch

from benchmarks.conftest import Measure, Size
from benchmarks.harness import BATCH, DEFAULT, elbo, new_model, numbers, restorer_of
from benchmarks.rungs import Rung, build_rung
from vaebench import Dataset
from vaebench.fast.register import TECHNIQUES
from vaebench.system.threads import available_cpus

full = pytest.mark.full
WIDTH, LATENT = DEFAULT.network.hidden_dim[0], DEFAULT.network.latent_dim
LADDER = ("reference", "resident", "top")
CASES = [
    *((rung, BATCH) for rung in LADDER),
    *(pytest.param(r, batch, marks=full) for batch in (32, 512, 2048, 8192) for r in LADDER),
    *(pytest.param("amp=bf16", batch, marks=full) for batch in (BATCH, 2048)),
    *(pytest.param(t.name, BATCH, marks=full) for t in TECHNIQUES if t.devices == ("cuda",)),
]
# The point that all axes share is the resident rung's throughput at the default batch size.
SHARED = {"hidden width": WIDTH, "latent size": LATENT, "threads": available_cpus()}
GROWTH = [
    ("hidden width", 100), ("latent size", 2), ("images", 200),
    *(pytest.param("hidden width", n, marks=full) for n in (1600,)),
    *(pytest.param("latent size", n, marks=full) for n in (200,)),
    *(pytest.param("images", n, marks=full) for n in (2000, 20_000)),
    *(("threads", n) for n in (1, 2, 4, 8, 16, 32) if n < available_cpus()),
]  # fmt: skip


@pytest.mark.benchmark(group="step: throughput")
@pytest.mark.parametrize(("rung", "batch"), CASES, indirect=["rung"])
def test_throughput(
    measure: Measure, device: torch.device, rung: Rung, batch: int, data: Dataset, size: Size
) -> None:
    images = data.train.images
    engine, _, _ = build_rung(rung, new_model(), images, device, DEFAULT.replace(batch_size=batch))
    # Where bf16 is emulated it takes twenty times as long: enough to see that.
    share = 8 if rung.name == "amp=bf16" else 1
    steps = max(1, size.block // share // batch)
    order, noise = numbers(len(images), steps * batch, device)
    axes = {"batch size": batch} if rung.name == "resident" else {}
    axes |= SHARED if axes and batch == BATCH else {}
    with engine.training():
        sums = measure(
            lambda: engine.epoch(order, noise), setup=restorer_of(engine), images=steps * batch,
            rung=rung.name, batch=batch, steps=steps, axes=axes, device=device.type,
        )  # fmt: skip
    assert math.isfinite(elbo(sums))


@pytest.mark.benchmark(group="step: latency")
@pytest.mark.parametrize("rung", ["resident", pytest.param("top", marks=full)], indirect=True)
def test_latency(
    measure: Measure, device: torch.device, rung: Rung, data: Dataset, size: Size
) -> None:
    engine, _, _ = build_rung(rung, new_model(), data.train.images, device)
    order, noise = numbers(len(data.train), BATCH, device)
    with engine.training():
        sums = measure(
            lambda: engine.epoch(order, noise), setup=restorer_of(engine), rounds=20 * size.rounds,
            rung=rung.name, batch=BATCH, device=device.type,
        )  # fmt: skip
    assert math.isfinite(elbo(sums))


@pytest.mark.benchmark(group="step: growth")
@pytest.mark.parametrize("rung", ["resident"], indirect=True)
@pytest.mark.parametrize(("axis", "value"), GROWTH)
def test_growth(
    measure: Measure, device: torch.device, axis: str, value: int, data: Dataset, size: Size,
    rung: Rung, threads: Callable[[int], None],
) -> None:  # fmt: skip
    if axis == "threads":
        if device.type != "cpu":
            pytest.skip("threads are the CPU's")
        threads(value)
    images = data.train.images[: value if axis == "images" else None]
    count = len(images) if axis == "images" else size.block
    config = DEFAULT.replace(
        hidden_dim=(value if axis == "hidden width" else WIDTH,),
        latent_dim=value if axis == "latent size" else LATENT,
        batch_size=min(BATCH, len(images)),
    )
    engine, _, _ = build_rung(rung, new_model(config=config), images, device, config)
    order, noise = numbers(len(images), count, device, config)
    sums = measure(
        lambda: engine.epoch(order, noise), setup=restorer_of(engine), images=count,
        axes={axis: len(images) if axis == "images" else value}, device=device.type,
    )  # fmt: skip
    assert math.isfinite(elbo(sums))
