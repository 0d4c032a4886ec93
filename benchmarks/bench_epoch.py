"""What does one training epoch cost, on every rung? Here from fresh weights; see also the ladder.

*Throughput* is images/s over the epoch, stored beside it; *latency* is the epoch's own seconds,
which the table shows. ``flush_denormal`` is missing: in a first epoch there are no denormals; and
``bf16``, which may take minutes where it is emulated: see ``bench_step``.
"""

import math

import pytest
import torch

from benchmarks.conftest import Measure, Size
from benchmarks.rungs import BATCH, RUNGS, build, new_model
from benchmarks.state import elbo, numbers, restorer
from vaebench import Dataset

# The slow ones need the fewest rounds.
ROUNDS = {"reference": 3, "resident": 5, "compile": 5, "amp": 5}
FULL = [pytest.param(rung, marks=pytest.mark.full) for rung in ("compile", "amp")]


@pytest.mark.benchmark(group="epoch")
@pytest.mark.parametrize("rung", ["reference", "resident", *FULL])
def test_epoch(
    measure: Measure, device: torch.device, rung: str, data: Dataset, size: Size
) -> None:
    images = data.train.images
    engine, precision = build(RUNGS[rung], new_model(), images, BATCH, device)
    order, noise = numbers(len(images), len(images), device)
    sums = measure(
        lambda: engine.epoch(order, noise),
        setup=restorer(engine),
        rounds=min(ROUNDS[rung], size.rounds),
        images=len(images),
        rung=rung,
        precision=precision,
        device=device.type,
    )
    assert math.isfinite(elbo(sums))
