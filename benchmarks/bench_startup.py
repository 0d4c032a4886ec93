"""How long until the first step is done, and after how many epochs has compiling paid?

*cold*: the compiler's cache is an empty folder; *warm*: it is the folder that a cold start filled;
*none*: nothing is compiled. The clock starts with the process. Break-even is the epoch at which
the time spent on compiling equals what compiled epochs have saved since.
"""

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.conftest import Measure, Size
from benchmarks.intervals import break_even
from benchmarks.processes import in_fresh_process
from vaebench import Dataset

RUNG = {"none": "flush_denormal", "cold": "compile", "warm": "compile"}
full = pytest.mark.full
ROUNDS = {"none": 3, "cold": 2, "warm": 3}


Answers = list[dict[str, Any]]


class Starts:
    """Starts processes, keeping what they said and where compilers left their results."""

    def __init__(self, folder: Path, task: dict[str, Any]) -> None:
        self.folder, self.task = folder, task
        self.said: dict[tuple[str, str], Answers] = {}
        self.cold = 0

    def run(self, start: str, device: str) -> None:
        """Start a process and wait for its answer."""
        self.cold += start == "cold"
        cache = str(self.folder / f"{self.cold}-{device}")
        task = {"rung": RUNG[start], "device": device, **self.task}
        answer = in_fresh_process("probe", task, cache)
        self.said.setdefault((start, device), []).append(answer)

    def median(self, start: str, device: str, fact: str) -> float | None:
        """Median of what the processes said of a fact; None if there were none."""
        values = [answer[fact] for answer in self.said.get((start, device), ())]
        return statistics.median(values) if values else None


@pytest.fixture(scope="module")
def starts(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config, data: Dataset, size: Size
) -> Starts:
    """Start processes whose compilers see folders of this module's alone."""
    name = pytestconfig.getoption("--bench-data")
    task = {"data": name, "images": size.images, "block": min(size.block, len(data.train))}
    return Starts(tmp_path_factory.mktemp("compiler-caches"), task)


@pytest.mark.benchmark(group="startup: process start to first step")
@pytest.mark.parametrize(
    "start", ["none", *(pytest.param(s, marks=full) for s in ("cold", "warm"))]
)
def test_first_step(
    benchmark: BenchmarkFixture, measure: Measure, device: torch.device, start: str,
    starts: Starts, data: Dataset, size: Size,
) -> None:  # fmt: skip
    kind = device.type
    if start == "warm" and ("cold", kind) not in starts.said:
        starts.run("cold", kind)
    measure(
        lambda: starts.run(start, kind), rounds=min(size.rounds, ROUNDS[start]),
        start=start, device=kind,
    )  # fmt: skip
    facts = benchmark.extra_info
    for fact in ("first_step_seconds", "images_per_second"):
        facts[fact] = starts.median(start, kind, fact)
    facts["break_even_epochs"] = paid_after(starts, start, kind, len(data.train))


def paid_after(starts: Starts, start: str, kind: str, images: int) -> float | None:
    """Epochs after which this start has caught up with the one that compiles nothing."""
    soon, late = (starts.median(s, kind, "first_step_seconds") for s in ("none", start))
    slow, fast = (starts.median(s, kind, "images_per_second") for s in ("none", start))
    if start == "none" or not (soon and late and slow and fast):
        return None
    return break_even(late - soon, images / slow, images / fast)
