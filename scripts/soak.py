"""Train for a thousand epochs, checkpoints and all; show that nothing grows and nothing slows.

    python scripts/soak.py --epochs 1000

Prints memory and speed by tenths of the way, and ends with status 1 if memory grew, the median
epoch of the last tenth took over half as long again as that of the second, or a file is not whole.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch

import vaebench
from vaebench.data.strokes import make_strokes

GROWTH = 8 << 20  # bytes that are no leak: the allocator's own coming and going


def resident() -> int:
    """Bytes of memory that this process holds (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=1000, metavar="N")
    parser.add_argument("--images", type=int, default=256, metavar="N")
    parser.add_argument("--hidden-dim", type=int, default=32, metavar="N")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    model = vaebench.VAE(hidden_dims=(given.hidden_dim,), latent_dim=6)
    images = make_strokes(given.images, seed=3)[0]
    memory, saving, clock = [], [], [time.perf_counter()]
    with tempfile.TemporaryDirectory(prefix="vaebench-soak-") as folder:
        checkpoints = vaebench.Checkpoints(folder)

        def keep(state: vaebench.TrainState) -> None:
            start = time.perf_counter()
            checkpoints.save(state)
            clock.append(time.perf_counter())
            saving.append(clock[-1] - start)
            memory.append(resident())

        vaebench.fit(model, images, epochs=given.epochs, device="cpu", on_state=keep)
        state = vaebench.Checkpoints(folder).newest()
        files = sorted(p.name for p in Path(folder).iterdir())
        lines = [json.loads(line)["epoch"] for line in checkpoints.metrics.splitlines()]
    whole = [b - a for a, b in pairwise(clock)]
    tenth = max(1, given.epochs // 10)
    medians = []
    for start in range(0, given.epochs, tenth):
        part = slice(start, start + tenth)
        medians.append(statistics.median(whole[part]))
        print(
            f"to epoch {min(start + tenth, given.epochs):5d}: {memory[part][-1] / 2**20:7.1f} MiB,"
            f" {medians[-1] * 1e3:7.2f} ms an epoch, of which the checkpoint "
            f"{statistics.median(saving[part]) * 1e3:6.2f} ms"
        )
    wrong = []
    if memory[-1] - memory[tenth] > GROWTH:
        wrong.append(f"memory grew by {(memory[-1] - memory[tenth]) / 2**20:.1f} MiB")
    if medians[-1] > 1.5 * medians[min(1, len(medians) - 1)]:
        wrong.append("epochs became slower")
    if state is None or [r.epoch for r in state.epochs] != list(range(1, given.epochs + 1)):
        wrong.append("the last checkpoint does not hold every epoch")
    if lines != list(range(1, given.epochs + 1)) or len(files) != min(2, given.epochs):
        wrong.append(f"metrics or files are not whole: {files}")
    print("; ".join(wrong) or "memory flat, speed flat, files whole")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
