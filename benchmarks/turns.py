"""Which of some engines is faster, where processes differ by more: ``python -m benchmarks.turns``.

Engines of some rungs live in one process and take turns, a dozen steps each, in alternating order:
whatever the machine does besides hits all alike. On the clock: the steps alone. Given are, for each
rung, its step's median and least time, and its time over the first rung's, turn by turn.
"""

import argparse
import sys
from functools import partial

import torch

from benchmarks.harness import BATCH, load_data, new_model, numbers, prepared, take_turns
from benchmarks.rungs import build_rung, find
from benchmarks.statistics import paired_ratio, summary
from vaebench.config import FastConfig
from vaebench.fast.threads import thread_settings
from vaebench.system.device import resolve_device
from vaebench.system.threads import available_cpus
from vaebench.system.worker import run_apart

# Steps of a turn; steps of every engine before the first, which also spread Adam's moments out.
STEPS, BEFORE = 12, 100


def steps_in_turns(words: argparse.Namespace) -> dict[str, list[float]]:
    """Give the seconds per step of every turn, rung by rung."""
    device = resolve_device(words.device)
    images = load_data(words.data).train.images
    rungs = [find(name, device.type) for name in words.rungs]
    engines = {r.name: build_rung(r, new_model(), images, device)[0] for r in rungs}
    turn = numbers(len(images), BATCH * STEPS, device)
    one = [part[:BATCH] for part in turn]  # brings an engine's weights into the cache
    for engine in engines.values():
        engine.epoch(*numbers(len(images), BATCH * BEFORE, device))
    seconds = take_turns(
        {name: partial(engine.epoch, *turn) for name, engine in engines.items()},
        device,
        words.turns,
        around={n: prepared(partial(e.epoch, *one), e.training) for n, e in engines.items()},
    )
    return {name: [s / STEPS for s in taken] for name, taken in seconds.items()}


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
    parser.add_argument("rungs", nargs="+", help="rungs of the ladder, or some joined: native+amp")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data", default="auto", help="auto: MNIST if on disk, else strokes")
    parser.add_argument("--turns", type=int, default=41)
    words = parser.parse_args(argv)
    torch.set_num_threads(available_cpus())
    settings, _ = thread_settings(FastConfig(), resolve_device(words.device))
    print(told(run_apart(lambda: steps_in_turns(words), *settings)))


if __name__ == "__main__":
    main(sys.argv[1:])
