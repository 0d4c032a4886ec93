"""The ladder: from the reference up, one technique a rung: ``python -m benchmarks.ladder``.

Each rung trains in a fresh process, through :func:`vaebench.fit`; a repeat runs all of them once,
every other repeat in the opposite order, so that a drift of the machine favours none. Before it is
timed a rung must agree with the reference on the ELBO of a few steps, or it is refused.

On the clock: the epochs' training alone. Off it: start-up, compiling, the gate, evaluation.
"""

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import (
    RESULTS,
    SAMPLES,
    described,
    in_fresh_process,
    load_data,
    new_model,
    peak_memory,
    say,
    store,
    up_and_down,
)
from benchmarks.rungs import Rung, RungError, check, find, ladder, refusal
from benchmarks.statistics import paired_ratio, summary
from vaebench import Dataset, TrainConfig, evaluate, fit
from vaebench.config import WORKLOADS, recipe
from vaebench.system.device import resolve_device
from vaebench.system.timing import peak_flops

Run = dict[str, Any]


def train_rung(task: dict[str, Any]) -> Run:
    """Pass the gate, train, evaluate; run in a fresh process. Times in seconds, ELBO in nats."""
    device = resolve_device(task["device"])
    data = load_data(task["data"], task["images"], task["images"])
    rung, config = find(task["rung"], device.type), recipe(task["workload"], epochs=task["epochs"])
    config = config.replace(
        batch_size=min(config.optimizer.batch_size, len(data.train)), seed=task["seed"]
    )
    refused = refusal(rung, data.train.images, device, config)
    if refused:
        return {"rung": rung.name, "refused": refused}
    try:
        # The gate has compiled all that there is to compile.
        with torch.compiler.set_stance("fail_on_recompile"):
            return train(rung, data, device, config)
    except RungError as error:
        return {"rung": rung.name, "refused": str(error)}


def train(rung: Rung, data: Dataset, device: torch.device, config: TrainConfig) -> Run:
    """Train by ``fit`` and evaluate; times in seconds, ELBO in nats per image.

    Raises:
        RungError: what trained is not what the rung is named for.
    """
    images, epochs, seed = data.train.images, config.optimizer.epochs, config.run.seed
    model = new_model(seed, config, image_shape=tuple(images.shape[1:]))
    history = fit(model, images, config=config.replace(device=str(device), **rung.switches))
    check(rung, history.actual, history.notes)
    memory, cuda = peak_memory(), device.type == "cuda"
    return {
        "rung": rung.name,
        "refused": None,
        "train_seconds": history.seconds["train"],
        "build_seconds": history.seconds["compile"],
        "images_per_second": epochs * len(images) / history.seconds["train"],
        "epoch_seconds": [record.seconds for record in history.epochs],
        "test_elbo": evaluate(model, data.test.images, samples=SAMPLES, seed=seed).elbo,
        "peak_memory_bytes": memory,
        "device_memory_bytes": torch.cuda.max_memory_allocated(device) if cuda else None,
        "flops_per_image": history.flops_per_image,
        "peak_flops": peak_flops(device),
        "actual": history.actual,
        "notes": history.notes,
    }


def rows(runs: list[Run], kind: str) -> list[dict[str, Any]]:
    """Make a row per rung of all its runs, in the ladder's order; then what is made of several."""
    by_rung: dict[str, list[Run]] = {}
    for run in runs:
        by_rung.setdefault(run["rung"], []).append(run)
    names = list(dict.fromkeys([*(n for n in ladder(kind) if n in by_rung), *by_rung]))
    return [row(by_rung, name, kind) for name in names]


def row(by_rung: dict[str, list[Run]], name: str, kind: str) -> dict[str, Any]:
    """Summarise a rung: medians over its runs, and ratios taken repeat by repeat."""
    mine, rung = by_rung[name], find(name, kind)
    refused = [run["refused"] for run in mine if run["refused"]]
    if refused:
        head = {"rung": name, "adds": rung.adds, "builds_on": rung.builds_on}
        return {**head, "refused": refused[0]}
    below = rung.builds_on
    while below and not trained(by_rung, below):  # the next that was
        below = find(below, kind).builds_on
    rates = [run["images_per_second"] for run in mine]
    gain = ratio_to(by_rung, rates, below)
    # Noise only ever lowers a measured peak: the highest that any run has seen is nearest.
    peak = max(run["peak_flops"] for runs in by_rung.values() for run in runs if not run["refused"])
    found: dict[str, Any] = {
        "rung": name,
        "adds": rung.adds,
        "builds_on": below,
        "refused": None,
        "images_per_second": dataclasses.asdict(summary(rates)),
        "ratio": ratio_to(by_rung, rates, "reference"),
        "gain": gain,
        "verdict": verdict(gain),
        "peak_share": statistics.median(rates) * mine[0]["flops_per_image"] / peak,
        "actual": mine[0]["actual"],
        "notes": mine[0]["notes"],
    }
    for fact in ("test_elbo", "peak_memory_bytes", "device_memory_bytes"):
        values = [run[fact] for run in mine if run[fact] is not None]
        found[fact] = statistics.median_high(values) if values else None
    return found


def trained(by_rung: dict[str, list[Run]], name: str) -> bool:
    """Whether every run of a rung was trained."""
    return name in by_rung and not any(run["refused"] for run in by_rung[name])


def ratio_to(
    by_rung: dict[str, list[Run]], rates: list[float], other: str | None
) -> dict[str, Any] | None:
    """Ratio of rates to another rung's, run beside them in each repeat; None without that rung."""
    if other is None or not trained(by_rung, other):
        return None
    theirs = [run["images_per_second"] for run in by_rung[other]]
    return dataclasses.asdict(paired_ratio(rates, theirs))


def verdict(gain: dict[str, Any] | None) -> str:
    """Say in words whether a rung helped, by the interval of its gain over the one below it."""
    if gain is None:
        return ""
    if gain["n"] > 1 and gain["low"] > 1:
        return "helps"
    return "hurts" if gain["n"] > 1 and gain["high"] < 1 else "no difference detected"


def climb(
    words: argparse.Namespace, run: Callable[[dict[str, Any]], Run] | None = None
) -> dict[str, Any]:
    """Run the ladder; give the result to store. ``run`` trains a rung, in a fresh process."""
    run = run or (lambda task: in_fresh_process("ladder:train_rung", task))
    kind = resolve_device(words.device).type
    names = [find(name, kind).name for name in words.rungs or ladder(kind)]
    asked = ("device", "data", "images", "epochs", "seed", "workload")
    task = {key: getattr(words, key) for key in asked}
    runs: list[Run] = []
    for repeat, name in up_and_down(names, words.repeats):
        runs.append(run({**task, "rung": name}))
        say(f"repeat {repeat + 1}, {name}: {brief(runs[-1])}")
    data = load_data(words.data, words.images, 1)
    return {
        "kind": "ladder",
        **described(words.device, data.name, "python -m benchmarks.ladder"),
        "workload": words.workload,
        "images": len(data.train),
        "batch_size": recipe(words.workload).optimizer.batch_size,
        "epochs": words.epochs,
        "repeats": words.repeats,
        "samples": SAMPLES,
        "peak_flops": max((r["peak_flops"] for r in runs if not r["refused"]), default=None),
        "rows": rows(runs, kind),
        "runs": [{k: r.get(k) for k in ("rung", "refused", "epoch_seconds")} for r in runs],
    }


def brief(run: Run) -> str:
    """Put a run in a few words."""
    if run["refused"]:
        return f"refused: {run['refused']}"
    return f"{run['images_per_second']:,.0f} images/s, test ELBO {run['test_elbo']:.2f}"


def main(argv: list[str]) -> None:
    """Run the ladder and store its result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ladder")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data", default="auto", help="auto: MNIST if on disk, else strokes")
    parser.add_argument("--workload", default="mlp", choices=list(WORKLOADS))
    parser.add_argument("--images", type=int, default=None, help="fewer than all")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rungs", nargs="+", help="some only, or some joined: triton+tf32")
    parser.add_argument("--out", type=Path, default=RESULTS / "ladder.json")
    words = parser.parse_args(argv)
    store(words.out, climb(words))


if __name__ == "__main__":
    main(sys.argv[1:])
