"""Devices, threads, the clock and the counted work."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vaebench.errors import InputError
from vaebench.models.conv import ConvVAE
from vaebench.system import device, info, start, threads, timing
from vaebench.training import loop

CPU = torch.device("cpu")


def test_auto_is_the_gpu_where_there_is_one() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert device.resolve_device("auto").type == expected
    assert device.resolve_device(torch.device("cpu")) == CPU
    assert device.resolve_device("cpu:0") == CPU


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device.resolve_device("cuda") == torch.device("cuda", 0)
    assert device.resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(InputError, match="cuda:0 to cuda:1"):
        device.resolve_device("cuda:2")


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"/sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"/sys/fs/cgroup/cpu.max": "max 100000\n"}, float("inf")),
        (
            {
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            3.0,
        ),
        (
            {
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            float("inf"),
        ),
        ({}, float("inf")),
    ],
)
def test_cgroup_quota(files: dict[str, str], quota: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_text(self: Path, *_: Any, **__: Any) -> str:
        if str(self) not in files:
            raise FileNotFoundError
        return files[str(self)]

    monkeypatch.setattr(Path, "read_text", read_text)
    assert threads._cgroup_quota() == quota
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert threads.available_cpus() == (64 if quota == float("inf") else {1.5: 2, 3.0: 3}[quota])


def test_process_age_is_that_of_the_process() -> None:
    first = timing.process_age()
    assert first > 0
    time.sleep(0.05)
    assert 0.01 < timing.process_age() - first < 5


def _started(before: str, code: str = "") -> tuple[float, float]:
    """Of a program that a shell became: what its clock said at once, and the system's."""
    code += (
        "import vaebench, time; from vaebench.system import start\n"
        "print(time.monotonic() - start.STARTED, start._age_of_process())"
    )
    line = f"{before} exec {sys.executable} -c {shlex.quote(code)}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    ours, systems = map(float, done.stdout.split())
    return ours, systems


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process's age")
def test_what_a_shell_waited_for_is_not_the_programs_time() -> None:
    ours, systems = _started("sleep 1;")
    assert 0.01 < ours < systems - 0.95  # the interpreter takes some 20 ms to start


def test_what_the_program_computed_before_the_import_is_its_time() -> None:
    ours, _ = _started("", "import time\nwhile time.process_time() < 0.5: pass\n")
    assert ours > 0.5


def test_a_system_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", missing)
    assert start._age_of_process() == float("inf")
    assert 0 < start._already_taken() <= time.process_time()


def test_best_seconds_is_the_shortest_call_after_the_first() -> None:
    naps = iter([0.0, 0.03, 0.01, 0.02])

    def work() -> None:
        time.sleep(next(naps))

    best = timing.best_seconds(work, CPU, budget=10, repeats=3)
    assert 0.01 <= best < 0.02


def test_best_seconds_keeps_its_budget() -> None:
    start = time.perf_counter()
    best = timing.best_seconds(lambda: time.sleep(0.05), CPU, budget=0.04)
    assert 0.05 <= best <= time.perf_counter() - start < 0.5


def test_counted_flops_are_those_of_the_product() -> None:
    assert timing.count_flops(lambda: torch.ones(3, 5) @ torch.ones(5, 7)) == 2 * 3 * 5 * 7


def test_flops_are_counted_as_torch_counts_them() -> None:
    """Whose counter loads the compiler, which a command would wait for."""
    model, x = ConvVAE(), torch.rand(4, 28, 28)
    attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)

    def work() -> None:
        mu, logvar = model.encode(x)
        queries = torch.rand(2, 5, 8)
        (model.decode(mu).sum() + logvar.sum()).backward()
        attention(queries, queries, queries)[0].sum().backward()

    found = timing.count_flops(work)
    with FlopCounterMode(display=False) as counter:
        work()
    assert found == counter.get_total_flops() > 1e6


def test_peak_and_fingerprint() -> None:
    assert timing.peak_flops(CPU, budget=0.05) > 1e8
    found = info.fingerprint(CPU)
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["cpu"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux tells it")
def test_waiting_for_a_core_is_seen() -> None:
    """Two programs on one core: each waits about half of the time."""
    before = os.sched_getaffinity(0)
    core = {min(before)}
    code = "while True: pass"
    try:
        os.sched_setaffinity(0, core)
        with subprocess.Popen([sys.executable, "-c", code]) as other:
            time.sleep(0.3)
            waited, end = threads.waited_seconds(), time.perf_counter() + 1
            while time.perf_counter() < end:
                pass
            waited = threads.waited_seconds() - waited
            other.kill()
    finally:
        os.sched_setaffinity(0, before)
    assert waited > 0.1


def test_a_busy_machine_is_said() -> None:
    many = torch.get_num_threads()
    assert loop._disturbed(0.01, 60.0) == []
    assert loop._disturbed(many * 2.0, 4.0) == []  # too short to tell
    (note,) = loop._disturbed(many * 30.0, 60.0)
    assert "threads waited for one for 50% of the training" in note
    assert loop._disturbed(0.0, 0.0) == []
