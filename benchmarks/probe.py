"""A child that trains a rung's first steps in a fresh process: how soon, how fast, how large?

Its clock starts with the process, interpreter and imports included.
"""

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.processes import peak_memory, reply
from benchmarks.rungs import BATCH, RUNGS, build, load_data, new_model
from benchmarks.state import elbo, numbers
from vaebench.fast import flush_denormal
from vaebench.system.device import synchronize
from vaebench.system.threads import available_cpus
from vaebench.system.timing import process_age
from vaebench.system.worker import run_apart


def main() -> None:
    """Answer once; see :func:`probe`."""
    task = json.loads(sys.argv[1])
    torch.set_num_threads(available_cpus())
    flush = RUNGS[task["rung"]].words.get("flush_denormal", True)
    reply(run_apart(lambda: probe(task), *[flush_denormal.enter] * flush))


def probe(task: dict[str, Any]) -> dict[str, Any]:
    """Train a step, then ``block`` images; give seconds, images/s, bytes and the ELBO."""
    device = torch.device(task["device"])
    images = load_data(task["data"], task["images"]).train.images
    engine, _ = build(RUNGS[task["rung"]], new_model(), images, BATCH, device)
    order, noise = numbers(len(images), task["block"], device)
    float(engine.epoch(order[:BATCH], noise[:BATCH]).recon)
    first_step = process_age()
    whole = reset_peak(device)
    start = time.perf_counter()
    found = elbo(engine.epoch(order, noise))
    synchronize(device)
    return {
        "first_step_seconds": first_step,
        "images_per_second": task["block"] / (time.perf_counter() - start),
        "elbo": found,
        "peak_bytes_until_first_step": whole,
        "peak_bytes_training": peak_since_reset(),
        "device_peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    }


def reset_peak(device: torch.device) -> int:
    """Give the peak of host memory so far, and start it anew where the system can (Linux)."""
    peak = peak_memory()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return peak


def peak_since_reset() -> int:
    """Bytes of host memory held at most since the reset; elsewhere than on Linux, ever."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return peak_memory()


if __name__ == "__main__":
    main()
