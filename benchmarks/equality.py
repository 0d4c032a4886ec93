"""Are whole trainings equal, fast against reference? ``python -m benchmarks.equality``.

Paired by seed: a pair starts from the same weights and sees the same images in the same order
with the same noise; its two test ELBOs are estimated with the same draws. What remains is
rounding, amplified by thousands of steps. The result: the mean difference over seeds, its 95 %
interval, and two one-sided t tests at ±0.1 nat per image.

Each training is stored as soon as it is done; the same command goes on where it stopped.
"""

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import (
    BATCH,
    DEFAULT,
    RESULTS,
    ROOT,
    SAMPLES,
    commit,
    described,
    load_data,
    say,
    store,
)
from benchmarks.ladder import train
from benchmarks.rungs import find, top
from benchmarks.statistics import equivalence
from vaebench import Dataset, InputError
from vaebench.system.device import resolve_device
from vaebench.system.threads import available_cpus

MARGIN = 0.1  # nats per image
ARMS = ("reference", "fast")
Run = dict[str, Any]


def plan(seeds: int, done: list[Run]) -> list[tuple[int, str]]:
    """Give the trainings still to be run, (seed, arm), pair by pair."""
    finished = {(run["seed"], run["arm"]) for run in done}
    wanted = [(seed, arm) for seed in range(seeds) for arm in ARMS]
    return [pair for pair in wanted if pair not in finished]


def train_arm(seed: int, arm: str, data: Dataset, settings: Mapping[str, Any]) -> Run:
    """Train one arm from one seed: the reference, or what plain ``--compile`` runs."""
    device = torch.device(settings["device"])
    rung = find("reference" if arm == "reference" else top(device.type), device.type)
    batch = min(BATCH, len(data.train))
    config = DEFAULT.replace(epochs=settings["epochs"], batch_size=batch, seed=seed)
    found = train(rung, data, device, config)
    kept = {fact: found[fact] for fact in ("test_elbo", "train_seconds")}
    return {"seed": seed, "arm": arm, **kept, "commit": commit()}


def read(path: Path, settings: Mapping[str, Any]) -> list[Run]:
    """Read the trainings done so far.

    Raises:
        InputError: they were made with other settings.
    """
    if not path.exists():
        return []
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored["settings"] != settings:
        raise InputError(
            f"{path} holds trainings made with {stored['settings']}, not {dict(settings)}: "
            "name another file with --runs"
        )
    runs: list[Run] = stored["runs"]
    return runs


def result(runs: list[Run], margin: float = MARGIN) -> dict[str, Any]:
    """Compare the arms over the seeds that have both; ELBOs in nats per image."""
    elbos: dict[str, dict[int, float]] = {arm: {} for arm in ARMS}
    for run in runs:
        elbos[run["arm"]][run["seed"]] = run["test_elbo"]
    seeds = sorted(set(elbos["reference"]) & set(elbos["fast"]))
    if len(seeds) < 2:
        raise InputError("at least two seeds must have been trained by both arms")
    by_arm = {arm: [elbos[arm][seed] for seed in seeds] for arm in ARMS}
    pairs = [{"seed": seed, **{arm: elbos[arm][seed] for arm in ARMS}} for seed in seeds]
    test = equivalence([pair["fast"] - pair["reference"] for pair in pairs], margin)
    return {
        "difference": dataclasses.asdict(test),
        "arms": {
            arm: {"mean": statistics.mean(values), "sd": statistics.stdev(values)}
            for arm, values in by_arm.items()
        },
        "pairs": pairs,
        "commits": sorted({run["commit"] for run in runs}),
    }


def compare(words: argparse.Namespace) -> dict[str, Any]:
    """Train what is missing; give the result to store."""
    torch.set_num_threads(available_cpus())
    data = load_data(words.data, words.images, words.images)
    settings = {
        "epochs": words.epochs,
        "data": data.name,
        "images": len(data.train),
        "device": str(resolve_device(words.device)),
        "torch": torch.__version__,
    }
    runs = read(words.runs, settings)
    for seed, arm in plan(words.seeds, runs):
        runs.append(train_arm(seed, arm, data, settings))
        store(words.runs, {"settings": settings, "runs": runs})
        found, took = runs[-1]["test_elbo"], runs[-1]["train_seconds"]
        say(f"seed {seed}, {arm}: test ELBO {found:.3f}, {took:.0f} s of training")
    about = described(words.device, data.name, "python -m benchmarks.equality")
    facts = {"images": len(data.train), "epochs": words.epochs, "samples": SAMPLES}
    counted = [run for run in runs if run["seed"] < words.seeds]
    return {"kind": "equality", **about, **facts, **result(counted)}


def main(argv: list[str]) -> None:
    """Run, or go on, and store the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.equality")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--images", type=int, default=None, help="fewer than all")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/equality.json")
    parser.add_argument("--out", type=Path, default=RESULTS / "equality.json")
    words = parser.parse_args(argv)
    store(words.out, compare(words))


if __name__ == "__main__":
    main(sys.argv[1:])
