"""Rates over batch, widths, latents and channels: ``python -m benchmarks.scaling``.

One size of a recipe is changed at a time. At each a plain eager loop over resident tensors, with
fused Adam, and vaebench's engine take turns, as in ``modules``. An axis is then described by what a
step takes at least, and by what it takes more for each unit.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import nnls

from benchmarks.harness import (
    build,
    described,
    load_data,
    new_model,
    numbers,
    prepared,
    problem_of,
    seconds_of,
    store,
    take_turns,
)
from benchmarks.modules import techniques
from benchmarks.peers.eager import Loop
from benchmarks.statistics import paired_ratio, summary
from vaebench import TrainConfig
from vaebench.config import FastConfig, recipe
from vaebench.fast.threads import thread_settings
from vaebench.system.device import resolve_device
from vaebench.system.threads import available_cpus
from vaebench.system.worker import run_apart

SCHEMA = 1
TURN, STEPS, BEFORE = 0.1, 24, 10  # seconds of a turn, about; steps it has at most; steps before
CHANNELS = recipe("conv").network.hidden_dim


class Axis(NamedTuple):
    """What is changed: values, the recipe at one of them, and the powers of it that cost time."""

    values: Sequence[float]
    workload: str
    options: Any  # value -> options of TrainConfig
    powers: Sequence[int] = (0, 1)


AXES: Mapping[str, Axis] = {
    "batch": Axis((8, 32, 128, 512, 2048, 8192), "mlp", lambda n: {"batch_size": n}),
    "hidden": Axis((64, 256, 1024, 4096), "mlp", lambda n: {"hidden_dim": (n,)}),
    "latent": Axis((2, 16, 64, 256), "mlp", lambda n: {"latent_dim": n}),
    "channels": Axis(
        (0.25, 0.5, 1, 2, 4),
        "conv",
        lambda n: {"hidden_dim": tuple(round(n * c) for c in CHANNELS)},
        (0, 1, 2),
    ),
}


def measured(config: TrainConfig, data: str, device: str, turns: int, budget: float) -> Any:
    """Let a plain loop and the engine take turns; give images per second, and the ratio."""
    place, size = resolve_device(device), config.optimizer.batch_size
    images = load_data(data).train.images
    loop = Loop(problem_of(new_model(config=config), images, config, place))
    engine, actual, _ = build(new_model(config=config), images, config, place)
    works, draw = {"plain": loop.epoch, "vaebench": engine.epoch}, partial(numbers, len(images))
    one, before = (draw(n * size, place, config) for n in (1, BEFORE))
    for epoch in works.values():
        epoch(*before)
    took = min(seconds_of(partial(loop.epoch, *one)) for _ in range(3))
    steps = max(1, min(STEPS, round(TURN / took)))
    turn = draw(steps * size, place, config)
    seconds = take_turns(
        {name: partial(epoch, *turn) for name, epoch in works.items()},
        place,
        turns,
        budget=budget,
        around={
            "plain": prepared(partial(loop.epoch, *one)),
            "vaebench": prepared(partial(engine.epoch, *one), engine.training),
        },
    )
    each = {name: summary([s / steps for s in taken]) for name, taken in seconds.items()}
    return {
        "batch": size,
        "engine": techniques(actual),
        "seconds_per_step": {name: asdict(figure) for name, figure in each.items()},
        "ratio": asdict(paired_ratio(seconds["plain"], seconds["vaebench"])),
    }


def fitted(values: Sequence[float], seconds: Sequence[float], powers: Sequence[int]) -> list[float]:
    """Coefficients, none below 0, of the powers of a value whose sum is nearest to the seconds.

    Nearest by shares of each: the small ones would not count otherwise.
    """
    x, y = np.asarray(values, float), np.asarray(seconds, float)
    terms = np.stack([x**power for power in powers], 1)
    found, _ = nnls(terms / y[:, None], np.ones_like(y))
    return [float(c) for c in found]


def law(name: str, rows: Sequence[Mapping[str, Any]], powers: Sequence[int]) -> str:
    """An axis in a line: milliseconds of a step by what they depend on, and how far it is off."""
    values = [row["value"] for row in rows]
    said = []
    for who in ("plain", "vaebench"):
        seconds = [row["seconds_per_step"][who]["median"] for row in rows]
        found = fitted(values, seconds, powers)
        parts = [
            f"{1e3 * c:.3g}" + ("" if not power else f" {name}" + f"^{power}" * (power > 1))
            for c, power in zip(found, powers, strict=True)
        ]
        near = [sum(c * v**p for c, p in zip(found, powers, strict=True)) for v in values]
        off = max(abs(a / b - 1) for a, b in zip(near, seconds, strict=True))
        said.append(f"{who} {' + '.join(parts)} ms a step, off by {off:.0%} at most")
    return f"{name}: {'; '.join(said)}"


def line(row: Mapping[str, Any]) -> str:
    """A point in words."""
    rates = [row["batch"] / row["seconds_per_step"][who]["median"] for who in ("plain", "vaebench")]
    ratio = "{median:.2f} ({low:.2f} to {high:.2f})".format(**row["ratio"])
    return (
        f"{row['axis']} {row['value']:g}: {rates[0]:,.0f} images/s by a plain loop, "
        f"{rates[1]:,.0f} by vaebench, {ratio} times; {', '.join(row['engine']) or 'plain step'}"
    )


def main(argv: list[str]) -> int:
    """Measure the grid and print it; 1 if vaebench is slower anywhere."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--axes", nargs="+", choices=tuple(AXES), default=list(AXES))
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--turns", type=int, default=21)
    parser.add_argument("--budget", type=float, default=4, help="seconds of a point's turns")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data", default="auto", help="auto: MNIST if on disk, else strokes")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    words = parser.parse_args(argv)
    torch.set_num_threads(available_cpus())
    settings, _ = thread_settings(FastConfig(), resolve_device(words.device))
    command = "python -m benchmarks.scaling" + " --amp" * words.amp
    show = partial(print, flush=True)
    record = {
        "kind": "scaling",
        "schema": SCHEMA,
        **described(words.device, load_data(words.data, 1, 1).name, command),
    }
    rows: list[dict[str, Any]] = []
    laws: list[str] = []
    for name in words.axes:
        axis = AXES[name]
        for value in axis.values:
            options = {"compile": True, "amp": "auto" if words.amp else None}
            config = recipe(axis.workload).replace(**options, **axis.options(value))
            work = partial(measured, config, words.data, words.device, words.turns, words.budget)
            rows.append({"axis": name, "value": value, **run_apart(work, *settings)})
            show(line(rows[-1]))
            if words.out:
                store(words.out, {**record, "rows": rows, "laws": laws})
        laws.append(law(name, [row for row in rows if row["axis"] == name], axis.powers))
        show(laws[-1])
    if words.out:
        store(words.out, {**record, "rows": rows, "laws": laws})
    slower = [f"{r['axis']} {r['value']:g}" for r in rows if r["ratio"]["high"] < 1]
    show(f"slower than a plain loop: {', '.join(slower) or 'nowhere'}")
    return int(bool(slower))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
