"""How much memory does an epoch hold at most, on the host and on the device?

Each rung in a fresh process; the figure in the table is that process's whole life in seconds, the
bytes are beside it: ``peak_bytes_training`` while training, ``peak_bytes_until_first_step`` before,
which is where a compiler needs its own.
"""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.conftest import Measure, Size
from benchmarks.processes import in_fresh_process
from vaebench import Dataset

full = pytest.mark.full


@pytest.mark.benchmark(group="memory")
@pytest.mark.parametrize(
    "rung", [pytest.param("reference", marks=full), "resident", pytest.param("compile", marks=full)]
)
def test_memory(
    benchmark: BenchmarkFixture, measure: Measure, device: torch.device, rung: str,
    pytestconfig: pytest.Config, data: Dataset, size: Size,
) -> None:  # fmt: skip
    task = {
        "rung": rung, "device": device.type, "data": pytestconfig.getoption("--bench-data"),
        "images": size.images, "block": min(size.block, len(data.train)),
    }  # fmt: skip
    answer = measure(
        lambda: in_fresh_process("probe", task), rounds=1, rung=rung, device=device.type
    )
    for fact in ("peak_bytes_training", "peak_bytes_until_first_step", "device_peak_bytes"):
        benchmark.extra_info[fact] = answer[fact]
    assert answer["peak_bytes_training"] > data.train.images.nbytes
