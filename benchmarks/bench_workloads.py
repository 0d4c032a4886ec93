"""How much faster than plain eager PyTorch does each workload of the literature train?

Before every timed block of the reference the compiled engine trains the same images, off that
block's clock and on its own. The ratio is the median over the pairs, from the same weights each.
If their ELBOs differ it is no figure but a failure. The default workload is asked by ``ladder``.
"""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.conftest import Measure, Size
from benchmarks.harness import differ, elbo, new_model, numbers, pixels, restorer_of
from benchmarks.rungs import build_rung, find, tolerance
from vaebench import Dataset
from vaebench.config import recipe

CASES = {
    "iwae": recipe("iwae"),
    "iwae k=5": recipe("iwae", samples=5),
    "iwae k=5 iwae": recipe("iwae", samples=5, objective="iwae"),
    "flax": recipe("flax"),
    "aevb": recipe("aevb"),
    "pythae": recipe("pythae"),
    "vampprior": recipe("vampprior"),
}
SHARE = 4  # of the other benchmarks' blocks: several steps take longer
# Steps that are compared: of a hundred, rounding makes 2 % in the importance-weighted bound.
COMPARED = 10


@pytest.mark.benchmark(group="workloads")
@pytest.mark.parametrize(
    "name", [n if n == "iwae" else pytest.param(n, marks=pytest.mark.full) for n in CASES]
)
def test_workload(
    benchmark: BenchmarkFixture, measure: Measure, device: torch.device, name: str, data: Dataset,
    size: Size,
) -> None:  # fmt: skip
    config = CASES[name]
    images, batch = pixels(data.train.images, config), config.optimizer.batch_size
    count = min(max(1, size.block // SHARE // batch) * batch, len(images))
    order, noise = numbers(len(images), count, device, config)
    rungs = [find(rung, device.type) for rung in ("reference", "plain+compile")]
    (plain, _, _), (fast, actual, _) = (
        build_rung(rung, new_model(config=config), images, device, config) for rung in rungs
    )
    restores = [restorer_of(plain), restorer_of(fast)]
    few = order[: COMPARED * batch], noise[: COMPARED * batch]
    wrong = differ(elbo(fast.epoch(*few)), elbo(plain.epoch(*few)), tolerance(actual))
    assert wrong is None, wrong

    def restore() -> None:
        for each in restores:
            each()

    with fast.training():
        measure(
            lambda: plain.epoch(order, noise), setup=restore,
            beside=lambda: fast.epoch(order, noise), images=count, workload=name, batch=batch,
            steps=count / batch, device=device.type,
        )  # fmt: skip
    if "ratio" in benchmark.extra_info:
        ratio = benchmark.extra_info["ratio"]
        print(
            f"\n{name} on {device.type}: the reference takes {ratio['median']:.2f} times as long "
            f"({ratio['low']:.2f} to {ratio['high']:.2f}, {ratio['level']:.0%}, n={ratio['n']})"
        )
