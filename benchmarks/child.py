"""A child process: ``python -m benchmarks.child MODULE:FUNCTION TASK``.

It calls the function with its task, which is JSON, and answers in lines of JSON on its standard
output; all else that it writes goes to standard error. A generator answers once for each value.
"""

import contextlib
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import (
    BATCH,
    elbo,
    load_data,
    new_model,
    numbers,
    peak_memory,
    seconds_of,
)
from benchmarks.rungs import RungError, build_rung, find
from vaebench.config import FastConfig
from vaebench.fast.threads import thread_settings
from vaebench.system.threads import available_cpus
from vaebench.system.timing import process_age
from vaebench.system.worker import run_apart

Answer = dict[str, Any]


def main() -> None:
    """Run a function; see above."""
    where, task = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(available_cpus())
    module, name = where.split(":")
    function = getattr(importlib.import_module(f"benchmarks.{module}"), name)

    def work() -> None:
        found = function(task)
        for answer in [found] if isinstance(found, dict) else found:
            print(json.dumps(answer), flush=True)

    # One thread for all of it: threads inherit their settings from the one that makes them.
    settings, _ = thread_settings(FastConfig(), torch.device("cpu"))
    run_apart(work, *settings * bool(task.get("flush")))


def compete(task: Answer) -> Iterator[Answer]:
    """Keep a contender ready, and train an epoch, or put its start back, whenever told to.

    Each line that comes in is ``restore`` or ``epoch``, and is answered when that is done. First
    it says why there is none, or what ELBO its first epoch had.
    """
    from benchmarks.peers import make

    data = load_data(task["data"], task["images"])
    device = torch.device(task["device"])
    try:
        contender = make(task["peer"], data.train.images, task["count"], device)
    except RungError as error:
        yield {"refused": str(error)}
        return
    contender.restore()
    found = contender.epoch()  # which also compiles
    contender.restore()
    torch.compiler.set_stance("fail_on_recompile")
    yield {"refused": None, "elbo": found, "data": data.name}
    words = {"restore": contender.restore, "epoch": contender.epoch}
    for line in sys.stdin:
        yield {"elbo": words[line.strip()]()}


def first_step(task: Answer) -> Answer:
    """Train a rung's first step, then ``block`` images; give seconds, images/s, bytes, the ELBO.

    The clock of the first starts with the process, interpreter and imports included.
    """
    device = torch.device(task["device"])
    images = load_data(task["data"], task["images"]).train.images
    rung = find(task["rung"], device.type)
    engine, _, _ = build_rung(rung, new_model(), images, device)
    order, noise = numbers(len(images), task["block"], device)
    float(engine.epoch(order[:BATCH], noise[:BATCH]).recon)
    soon, before = process_age(), reset_peak(device)
    found: list[float] = []
    took = seconds_of(lambda: found.append(elbo(engine.epoch(order, noise))))
    return {
        "first_step_seconds": soon,
        "images_per_second": task["block"] / took,
        "elbo": found[0],
        "peak_bytes_until_first_step": before,
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
