"""A release in figures, small enough to keep for each: ``python -m benchmarks.release``.

Engines of a few workloads take turns in one process, from the same weights, on the same images.
Kept are their rates, and how many times the plain reference's each is, which a faster machine
changes little. The plot over releases is drawn by ``scripts/report.py``.
"""

import argparse
import dataclasses
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import (
    RESULTS,
    described,
    differ,
    elbo,
    load_data,
    new_model,
    numbers,
    pixels,
    prepared,
    restorer_of,
    say,
    store,
    take_turns,
)
from benchmarks.rungs import RungError, build_rung, find, tolerance
from benchmarks.statistics import paired_ratio, summary
from vaebench import InputError, __version__
from vaebench.config import FastConfig, recipe
from vaebench.engine import Engine
from vaebench.fast.threads import thread_settings
from vaebench.system.device import resolve_device
from vaebench.system.threads import available_cpus
from vaebench.system.worker import run_apart

SCHEMA = 1
RUNGS = ("reference", "plain", "plain+compile", "plain+compile+amp")
# Images of a turn: about half a second by the reference.
IMAGES = {"mlp": 10_000, "iwae": 2_000, "conv": 640}


def compared(
    workload: str, words: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    """Let a workload's engines take turns; give a row for each."""
    config = recipe(workload)
    batch = config.optimizer.batch_size
    images = pixels(load_data(words.data, words.images).train.images, config)
    count = min(IMAGES[workload], len(images)) // batch * batch
    order, noise = numbers(len(images), count, device, config)
    engines: dict[str, Engine] = {}
    rows: dict[str, dict[str, Any]] = {}
    elbos: dict[str, float] = {}
    for name in RUNGS:
        rows[name] = {"workload": workload, "rung": name, "refused": None}
        try:
            found = build_rung(
                find(name, device.type), new_model(config=config), images, device, config
            )
        except RungError as error:
            rows[name]["refused"] = str(error)
            continue
        engine, actual, _ = found
        restore = restorer_of(engine)
        elbos[name] = elbo(engine.epoch(order, noise))
        restore()
        wrong = differ(elbos[name], elbos[RUNGS[0]], tolerance(actual))
        rows[name]["refused"] = wrong
        if wrong is None:
            engines[name] = engine
    seconds = take_turns(
        {name: partial(engine.epoch, order, noise) for name, engine in engines.items()},
        device,
        words.turns,
        around={n: prepared(restorer_of(e), e.training) for n, e in engines.items()},
    )
    for name, mine in seconds.items():
        rows[name]["images_per_second"] = dataclasses.asdict(summary([count / s for s in mine]))
        rows[name]["ratio"] = dataclasses.asdict(paired_ratio(seconds[RUNGS[0]], mine))
        say(f"{workload}, {name}: {rows[name]['ratio']['median']:.2f} times the reference")
    return list(rows.values())


def measure(words: argparse.Namespace) -> dict[str, Any]:
    """All workloads; give the result to store."""
    device = resolve_device(words.device)
    rows = [row for name in words.workloads for row in compared(name, words, device)]
    data = load_data(words.data, 1, 1).name
    return {
        "kind": "release",
        "schema": SCHEMA,
        **described(words.device, data, "python -m benchmarks.release"),
        "version": words.version,
        "date": time.strftime("%Y-%m-%d"),
        "turns": words.turns,
        "rows": rows,
    }


def main(argv: list[str]) -> int:
    """Measure, and store the result under the version's name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.release", description=__doc__)
    parser.add_argument("--workloads", nargs="+", choices=list(IMAGES), default=list(IMAGES))
    parser.add_argument("--turns", type=int, default=11)
    parser.add_argument("--data", default="auto", help="auto: MNIST if on disk, else strokes")
    parser.add_argument("--images", type=int, help="the first so many (default: all)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--version", default=__version__)
    parser.add_argument(
        "--out", type=Path, help="(default: benchmarks/results/release-VERSION.json)"
    )
    words = parser.parse_args(argv)
    torch.set_num_threads(available_cpus())
    try:
        settings, _ = thread_settings(FastConfig(), resolve_device(words.device))
        result = run_apart(lambda: measure(words), *settings)
    except InputError as error:
        say(str(error))
        return 2
    store(words.out or RESULTS / f"release-{words.version}.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
