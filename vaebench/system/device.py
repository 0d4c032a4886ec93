"""Devices: which there are, what memory they have, and waiting for them."""

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

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


def synchronize(device: torch.device) -> None:
    """Wait for everything queued on the device, so that a host clock read next is true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Let convolutions on CUDA multiply all of float32's bits, as products do.

    Torch lets cuDNN round their factors to TF32 unless it is told not to. The switch is the whole
    process's, and is put back. Of the two ways to set it this is the one that leaves both readable;
    it sets recurrent layers too.
    """
    cudnn: Any = torch.backends.cudnn
    if cudnn.conv.fp32_precision != "tf32":
        yield
        return
    recurrent = cudnn.rnn.fp32_precision
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32 = True
        cudnn.rnn.fp32_precision = recurrent
