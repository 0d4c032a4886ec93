"""What does one optimiser step cost, on every rung, at batch sizes from 32 to 8192?

*Throughput*: a block of steps, synchronised once at its end; ``images_per_second``.
*Latency*: one step, synchronised; what somebody waits who looks at each. ``flush_denormal`` is
missing: denormals appear after an epoch or two, so only the ladder can show what it gains.
"""

import math

import pytest
import torch

from benchmarks.conftest import Measure, Size
from benchmarks.rungs import BATCH, RUNGS, build, new_model
from benchmarks.state import elbo, numbers, restorer
from vaebench import Dataset

full = pytest.mark.full
LADDER = ("reference", "resident", "compile")
CASES = [
    *((rung, BATCH) for rung in LADDER),
    *(pytest.param(r, batch, marks=full) for batch in (32, 512, 2048, 8192) for r in LADDER),
    *(pytest.param("bf16", batch, marks=full) for batch in (BATCH, 2048)),
    *(pytest.param(rung, BATCH, marks=full) for rung in ("triton", "persistent")),
]


@pytest.mark.benchmark(group="step: throughput")
@pytest.mark.parametrize(("rung", "batch"), CASES)
def test_throughput(
    measure: Measure, device: torch.device, rung: str, batch: int, data: Dataset, size: Size
) -> None:
    if device.type not in RUNGS[rung].devices:
        pytest.skip(f"{rung} is not for {device.type}")
    images = data.train.images
    engine, _ = build(RUNGS[rung], new_model(), images, batch, device)
    # Where bf16 is emulated it takes twenty times as long: enough to see that.
    share = 8 if rung == "bf16" else 1
    steps = max(1, size.block // share // batch)
    order, noise = numbers(len(images), steps * batch, device)
    sums = measure(
        lambda: engine.epoch(order, noise),
        setup=restorer(engine),
        rounds=max(1, size.rounds // min(share, 2)),
        images=steps * batch,
        rung=rung,
        batch=batch,
        steps=steps,
        device=device.type,
    )
    assert math.isfinite(elbo(sums))


@pytest.mark.benchmark(group="step: latency")
@pytest.mark.parametrize("rung", ["resident", pytest.param("compile", marks=full)])
def test_latency(
    measure: Measure, device: torch.device, rung: str, data: Dataset, size: Size
) -> None:
    images = data.train.images
    engine, _ = build(RUNGS[rung], new_model(), images, BATCH, device)
    order, noise = numbers(len(images), BATCH, device)
    sums = measure(
        lambda: engine.epoch(order, noise),
        setup=restorer(engine),
        rounds=20 * size.rounds,
        rung=rung,
        batch=BATCH,
        device=device.type,
    )
    assert math.isfinite(elbo(sums))
