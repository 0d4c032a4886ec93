"""How long, and how much memory, until the first step of a fresh process is done, and after it?

*cold*: the compiler's cache is an empty folder; *warm*: it is the folder that a cold start filled;
*none*: nothing is compiled; *reference*: plain eager PyTorch. ``first_step_seconds`` start with the
process; ``peak_bytes_until_first_step`` is where a compiler needs its own, ``peak_bytes_training``
what training holds. When compiling has paid is asked by ``python -m benchmarks.whole``.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.conftest import Measure, Size
from benchmarks.harness import in_fresh_process
from benchmarks.rungs import find, top
from benchmarks.statistics import summary
from vaebench import Dataset

full = pytest.mark.full
ROUNDS = {"none": 3, "reference": 1, "cold": 2, "warm": 3}


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder for compilers' caches of this module alone."""
    return tmp_path_factory.mktemp("compiler-caches")


@pytest.mark.benchmark(group="startup: process start to first step")
@pytest.mark.parametrize(
    "start", ["none", *(pytest.param(s, marks=full) for s in ("reference", "cold", "warm"))]
)
def test_first_step(
    benchmark: BenchmarkFixture, measure: Measure, device: torch.device, start: str, caches: Path,
    pytestconfig: pytest.Config, data: Dataset, size: Size,
) -> None:  # fmt: skip
    name = {"none": "plain", "reference": start}.get(start, top(device.type))
    task = {
        "rung": name, "device": device.type, "data": pytestconfig.getoption("--bench-data"),
        "images": size.images, "block": min(size.block, len(data.train)),
        "flush": find(name, device.type).switches.get("flush_denormal", False),
    }  # fmt: skip
    answers: list[dict[str, Any]] = []
    warm = caches / device.type

    def run() -> None:
        cache = caches / f"{len(answers)}" if start == "cold" else warm
        answers.append(in_fresh_process("child:first_step", task, str(cache)))

    if start == "warm":
        in_fresh_process("child:first_step", task, str(warm))
    measure(
        run, rounds=min(size.rounds, ROUNDS[start]), warm_up=False,
        start=start, rung=name, device=device.type,
    )  # fmt: skip
    for fact in sorted({*answers[0]} - {"elbo", "device_peak_bytes"}):
        benchmark.extra_info[fact] = summary([answer[fact] for answer in answers]).median
    benchmark.extra_info["device_peak_bytes"] = answers[0]["device_peak_bytes"]
    assert answers[0]["peak_bytes_training"] > data.train.images.nbytes
