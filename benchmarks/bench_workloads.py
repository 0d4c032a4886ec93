"""How much faster than plain eager PyTorch does each workload of the literature train?

The reference and the fast engine take turns: before every timed block of the compiled engine the
reference trains the same images, off that block's clock and on its own. The ratio is the median
over the pairs. A pair whose ELBOs differ is no figure but a failure.
"""

import math
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.conftest import Measure, Size, clock
from benchmarks.intervals import paired_ratio
from benchmarks.rungs import TOLERANCE, RungError, make_engine, new_model
from benchmarks.state import elbo, restorer
from vaebench import Dataset
from vaebench.config import TrainConfig, recipe
from vaebench.data.binarize import binarize
from vaebench.engine import Engine
from vaebench.objective import Objective
from vaebench.reference import ReferenceEngine
from vaebench.system.random import TRAINING_PIXELS

full = pytest.mark.full
CASES = {
    "iwae": recipe("iwae"),
    "iwae k=5": recipe("iwae", samples=5),
    "iwae k=5 iwae": recipe("iwae", samples=5, objective="iwae"),
    "mlp": recipe("mlp"),
    "flax": recipe("flax"),
    "aevb": recipe("aevb"),
    "pythae": recipe("pythae"),
}


@pytest.mark.benchmark(group="workloads")
@pytest.mark.parametrize(
    "name", [name if name == "iwae" else pytest.param(name, marks=full) for name in CASES]
)
def test_workload(
    benchmark: BenchmarkFixture,
    measure: Measure,
    device: torch.device,
    name: str,
    data: Dataset,
    size: Size,
) -> None:
    config = CASES[name]
    plain, fast, objective = engines(config, data, device)
    steps = max(1, size.block // config.optimizer.batch_size)
    count = min(steps * config.optimizer.batch_size, len(data.train))
    generator = torch.Generator().manual_seed(2)
    order = torch.randperm(len(data.train), generator=generator)[:count].to(device)
    noise = torch.randn(
        objective.noise_shape(count, config.network.latent_dim), generator=generator
    ).to(device)
    restores = [restorer(plain), restorer(fast)]
    seconds, elbos = [], []

    def reference_block() -> None:
        for restore in restores:
            restore()
        start = clock()
        elbos.append(elbo(plain.epoch(order, noise)))
        seconds.append(clock() - start)

    plain.epoch(order, noise)  # the first block makes the optimiser's state
    sums = measure(
        lambda: fast.epoch(order, noise),
        setup=reference_block,
        rounds=3 * size.rounds,
        images=count,
        workload=name,
        batch=config.optimizer.batch_size,
        steps=count / config.optimizer.batch_size,
        device=device.type,
    )
    found = elbo(sums)
    assert math.isfinite(found)
    assert found == pytest.approx(elbos[-1], rel=TOLERANCE["float32"])
    if benchmark.stats is not None:
        timed: list[float] = benchmark.stats.stats.data
        ratio = paired_ratio(seconds[-len(timed) :], timed)
        benchmark.extra_info["reference_time_ratio"] = vars(ratio)
        print(
            f"\n{name} on {device.type}: the reference takes {ratio.median:.2f} times as long "
            f"({ratio.low:.2f} to {ratio.high:.2f}, {ratio.level:.0%}, n={ratio.n})"
        )


def engines(
    config: TrainConfig, data: Dataset, device: torch.device
) -> tuple[Engine, Engine, Objective]:
    """(reference, compiled engine, their objective): equal models on the same pixels."""
    objective = Objective(bound=config.objective.bound, samples=config.objective.samples)
    images = data.train.images
    if config.data.binarize != "none":
        images = binarize(images, config.data.binarize, TRAINING_PIXELS)
    sizes: dict[str, Any] = {
        "image_shape": tuple(images.shape[1:]),
        "hidden_dims": config.network.hidden_dim,
        "latent_dim": config.network.latent_dim,
        "activation": config.network.activation,
    }
    words: dict[str, Any] = {
        "optimizer": config.optimizer.name,
        "adam_eps": config.optimizer.adam_eps,
    }
    plain = ReferenceEngine(
        new_model(**sizes),
        images,
        batch_size=config.optimizer.batch_size,
        lr=config.optimizer.lr,
        likelihood="bernoulli",
        sigma=1.0,
        beta=1.0,
        bound=config.objective.bound,
        device=device,
        **words,
    )
    built = make_engine(
        new_model(**sizes),
        images,
        objective,
        config.optimizer.batch_size,
        config.optimizer.lr,
        device,
        compile=True,
        **words,
    )
    if not built.actual["compile"]:
        raise RungError(f"{config.workload} was not compiled: {'; '.join(built.notes)}")
    return plain, built.engine, objective
