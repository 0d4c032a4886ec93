"""The machine we run on: devices and threads, fingerprint, measured peak, a true clock."""

import contextlib
import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from vaebench.errors import InputError


def resolve_device(name: str | torch.device) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` into a device that is there.

    Raises:
        InputError: no such device; says which there are.
    """
    if not isinstance(name, str | torch.device):
        raise InputError(f"device {name!r} is not known: choose from auto, cpu, cuda, cuda:N")
    count = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if count else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(
            f"device {name!r} is not known: choose from auto, cpu, cuda, cuda:N"
        ) from None
    if device.type == "cpu" and not device.index:
        return torch.device("cpu")
    if device.type != "cuda":
        raise InputError(f"device {name!r} is not supported: choose from auto, cpu, cuda, cuda:N")
    index = device.index or 0
    if index >= count:
        there = f"CUDA devices cuda:0 to cuda:{count - 1}" if count else "no CUDA device"
        raise InputError(f"device {name!r} was asked for, but torch sees {there}")
    return torch.device("cuda", index)


def available_cpus() -> int:
    """Count the CPUs this process may use: its affinity, cut by the cgroup's quota.

    A container on a large host sees all of the host's cores, and more threads than quota make
    every parallel region wait for the scheduler.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, math.ceil(min(allowed or 1, _cgroup_quota())))


def _cgroup_quota() -> float:
    """CPUs' worth of time the cgroup (version 2, else 1) grants; infinity where it sets none."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        base = Path("/sys/fs/cgroup/cpu")
        quota_us = int((base / "cpu.cfs_quota_us").read_text())
        period_us = int((base / "cpu.cfs_period_us").read_text())
        return quota_us / period_us if quota_us > 0 else math.inf
    except (OSError, ValueError):
        return math.inf


def require_memory(make: Callable[[], torch.nn.Module], device: torch.device) -> None:
    """Raise InputError if a model is too large to be trained here; says how large it may be.

    ``make`` builds the model. It is called where tensors take no memory: asked for more than there
    is, a system may grant it, and end the process once it is used.
    """
    with torch.device("meta"):
        parameters = sum(p.numel() for p in make().parameters())
    needed = 16 * parameters  # float32: the parameter, its gradient and Adam's two moments
    free = free_memory(device)
    if needed > free:
        raise InputError(
            f"the model has {parameters:,} parameters, which take {needed / 1e9:,.1f} GB to train, "
            f"and {device} has {free / 1e9:,.1f} GB free: make --hidden-dim or --latent-dim smaller"
        )


def free_memory(device: torch.device) -> float:
    """Bytes that can still be had on the device; infinity where the system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    free = math.inf
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024.0 * int(s.split()[1]) for s in lines if s.startswith("MemAvailable"))
    with contextlib.suppress(OSError, ValueError):  # "max", where the cgroup sets no limit
        base = Path("/sys/fs/cgroup")
        limit = int((base / "memory.max").read_text())
        free = min(free, float(limit - int((base / "memory.current").read_text())))
    return free


def synchronize(device: torch.device) -> None:
    """Wait for everything queued on the device, so that a host clock read next is true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def process_age() -> float:
    """Seconds since this process was started, the interpreter's own start included.

    Where the system does not tell (it does on Linux): the processor time used so far, which is
    less, but not by much in a process that has only imported things.
    """
    try:
        fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, ValueError, AttributeError):
        return time.process_time()


def best_seconds(
    work: Callable[[], object], device: torch.device, *, budget: float, repeats: int = 50
) -> float:
    """Shortest time of one call, in seconds, over calls that fit in ``budget`` seconds.

    The first call warms up and is not counted, unless it alone spends the budget. The minimum is
    right for a peak: noise only ever adds.
    """
    best, spent = math.inf, 0.0
    for call in range(repeats + 1):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        seconds = time.perf_counter() - start
        spent += seconds
        if call or spent >= budget:
            best = min(best, seconds)
        if spent >= budget:
            break
    return best


def peak_flops(
    device: torch.device, dtype: torch.dtype = torch.float32, budget: float = 0.25
) -> float:
    """Measured rate of a large square matrix product, FLOP/s, as torch's library does it here."""
    n = 1024 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device).to(dtype)
    b = torch.randn(n, n, device=device).to(dtype)
    return 2 * n**3 / best_seconds(lambda: a @ b, device, budget=budget)


def count_flops(work: Callable[[], object]) -> int:
    """FLOP of the matrix products and convolutions that ``work`` runs eagerly, counted by torch."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def fingerprint(device: torch.device) -> dict[str, Any]:
    """What a figure depends on besides the code: hardware, versions, threads, precision."""
    machine: dict[str, Any] = {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpus": available_cpus(),
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "device": str(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine["gpu"] = properties.name
        machine["gpu_memory_bytes"] = properties.total_memory
        machine["gpu_capability"] = f"{properties.major}.{properties.minor}"
        machine["cuda"] = torch.version.cuda
        machine["driver"] = _driver_version()
    return machine


def _driver_version() -> str | None:
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        return None


def _cpu_name() -> str:
    """The processor's own name; Python's ``platform`` gives only its architecture on Linux."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
