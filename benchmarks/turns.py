"""Which of two engines is faster, where processes differ by more: ``python -m benchmarks.turns``.

Engines of some rungs live in one process and take turns, a dozen steps each, in alternating order:
whatever the machine does besides hits all alike. On the clock: the steps alone. Given are, for each
rung, its step's median and least time, and its time over the first rung's, turn by turn.
"""

import argparse
import sys
import time

import torch

from benchmarks.intervals import paired_ratio, summary
from benchmarks.rungs import BATCH, RUNGS, build, load_data, new_model
from benchmarks.state import numbers
from vaebench.fast import flush_denormal
from vaebench.system.device import resolve_device, synchronize
from vaebench.system.threads import available_cpus
from vaebench.system.worker import run_apart

# Steps of a turn; steps of every engine before the first, which also spread Adam's moments out.
STEPS, BEFORE = 12, 100


def take_turns(words: argparse.Namespace) -> dict[str, list[float]]:
    """Give the seconds per step of every turn, rung by rung."""
    device = resolve_device(words.device)
    images = load_data(words.data).train.images
    engines = {
        name: build(RUNGS[name], new_model(), images, BATCH, device)[0] for name in words.rungs
    }
    before, turn = (numbers(len(images), BATCH * n, device) for n in (BEFORE, STEPS))
    for engine in engines.values():
        engine.epoch(*before)
    found: dict[str, list[float]] = {name: [] for name in engines}
    for count in range(words.turns):
        order = list(engines) if count % 2 == 0 else list(engines)[::-1]
        for name in order:
            engines[name].epoch(*(part[:BATCH] for part in turn))  # its weights into the cache
            synchronize(device)
            start = time.perf_counter()
            engines[name].epoch(*turn)
            synchronize(device)
            found[name].append((time.perf_counter() - start) / STEPS)
    return found


def told(found: dict[str, list[float]]) -> str:
    """Put the turns in words, a line per rung."""
    first = next(iter(found))
    lines = []
    for name, seconds in found.items():
        ratio = paired_ratio(seconds, found[first])
        lines.append(
            f"{name:16s} {1e3 * summary(seconds).median:8.3f} ms a step, at least "
            f"{1e3 * min(seconds):.3f}; {ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f}) "
            f"of {first}'s time"
        )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Take turns and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.turns")
    parser.add_argument("rungs", nargs="+", choices=[r for r in RUNGS if r != "reference"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data", default="auto", help="auto: MNIST if on disk, else strokes")
    parser.add_argument("--turns", type=int, default=41)
    words = parser.parse_args(argv)
    torch.set_num_threads(available_cpus())
    print(told(run_apart(lambda: take_turns(words), flush_denormal.enter)))


if __name__ == "__main__":
    main(sys.argv[1:])
