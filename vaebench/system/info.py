"""What a figure depends on besides the code: hardware, versions, threads, precision."""

import platform
from pathlib import Path
from typing import Any

import torch

from vaebench.system.threads import available_cpus


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
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
