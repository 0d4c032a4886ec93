"""Are whole trainings equal, fast against reference? ``python -m benchmarks.equality``.

Paired by seed: a pair starts from the same weights and sees the same images in the same order
with the same noise; its two test ELBOs are estimated with the same draws. What remains is
rounding, amplified by thousands of steps. The result: the mean difference over seeds, its 95 %
interval, and two one-sided t tests at ±0.1 nat per image.

Each training is a line in a file as soon as it is done; the same command goes on where it stopped.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.intervals import equivalence
from benchmarks.processes import ROOT, commit, described
from benchmarks.rungs import BATCH, LEARNING_RATE, RUNGS, load_data, new_model
from vaebench import Dataset, InputError, evaluate, fit
from vaebench.system.device import resolve_device
from vaebench.system.threads import available_cpus

MARGIN = 0.1  # nats per image
SAMPLES = 4  # z per test image
ARMS: dict[str, Mapping[str, Any]] = {
    "reference": RUNGS["reference"].words,
    "fast": RUNGS["compile"].words,
}
Line = dict[str, Any]


def plan(seeds: int, done: list[Line]) -> list[tuple[int, str]]:
    """Give the trainings still to be run, (seed, arm), pair by pair."""
    finished = {(line["seed"], line["arm"]) for line in done}
    wanted = [(seed, arm) for seed in range(seeds) for arm in ARMS]
    return [pair for pair in wanted if pair not in finished]


def train_arm(seed: int, arm: str, data: Dataset, settings: Mapping[str, Any]) -> Line:
    """Train one arm from one seed; give its line."""
    model = new_model(seed)
    images = data.train.images
    history = fit(
        model, images, epochs=settings["epochs"], batch_size=min(BATCH, len(images)),
        lr=LEARNING_RATE, seed=seed, device=settings["device"], **ARMS[arm],
    )  # fmt: skip
    wanted = {"engine": "reference" if arm == "reference" else "fast", "compile": arm == "fast"}
    if {key: history.actual[key] for key in wanted} != wanted:
        raise RuntimeError(f"arm {arm} ran as {history.actual}: {'; '.join(history.notes)}")
    return {
        "seed": seed,
        "arm": arm,
        "test_elbo": evaluate(model, data.test.images, samples=SAMPLES, seed=seed).elbo,
        "train_elbo": [record.train_elbo for record in history.epochs],
        "train_seconds": history.seconds["train"],
        "commit": commit(),
        "settings": dict(settings),
    }


def read(path: Path, settings: Mapping[str, Any]) -> list[Line]:
    """Read the trainings done so far; a last line cut short by a crash does not count.

    Raises:
        InputError: they were made with other settings.
    """
    lines: list[Line] = []
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if text.endswith("\n"):
                lines.append(json.loads(text))
    for line in lines:
        if line["settings"] != settings:
            raise InputError(
                f"{path} holds trainings made with {line['settings']}, not {dict(settings)}: "
                "name another file with --runs"
            )
    return lines


def append(path: Path, line: Line) -> None:
    """Add a training, whole and on disk; what a crash left of a line before it is cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.read_bytes() if path.exists() else b""
    with path.open("r+b" if old else "wb") as file:
        file.truncate(old.rfind(b"\n") + 1)
        file.seek(0, os.SEEK_END)
        file.write(json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def result(lines: list[Line], margin: float = MARGIN) -> dict[str, Any]:
    """Compare the arms over the seeds that have both; ELBOs in nats per image."""
    elbos: dict[str, dict[int, float]] = {arm: {} for arm in ARMS}
    for line in lines:
        elbos[line["arm"]][line["seed"]] = line["test_elbo"]
    seeds = sorted(set(elbos["reference"]) & set(elbos["fast"]))
    pairs = [{"seed": seed, **{arm: found[seed] for arm, found in elbos.items()}} for seed in seeds]
    if len(pairs) < 2:
        raise InputError("at least two seeds must have been trained by both arms")
    test = equivalence([pair["fast"] - pair["reference"] for pair in pairs], margin)
    return {
        "difference": dataclasses.asdict(test),
        "arms": {
            arm: {
                "mean": statistics.mean(pair[arm] for pair in pairs),
                "sd": statistics.stdev(pair[arm] for pair in pairs),
            }
            for arm in ARMS
        },
        "pairs": pairs,
        "commits": sorted({line["commit"] for line in lines}),
    }


def run(words: argparse.Namespace) -> dict[str, Any]:
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
    lines = read(words.runs, settings)
    for seed, arm in plan(words.seeds, lines):
        line = train_arm(seed, arm, data, settings)
        append(words.runs, line)
        lines.append(line)
        print(
            f"seed {seed}, {arm}: test ELBO {line['test_elbo']:.3f}, "
            f"{line['train_seconds']:.0f} s of training",
            file=sys.stderr,
            flush=True,
        )
    counted = [line for line in lines if line["seed"] < words.seeds]
    about = described(words.device, data.name, "python -m benchmarks.equality")
    facts = {"images": len(data.train), "epochs": words.epochs, "samples": SAMPLES}
    return {"kind": "equality", **about, **facts, **result(counted)}


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.equality")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--images", type=int, default=None, help="fewer than all")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/equality.jsonl")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/equality.json")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Run, or go on, and store the result."""
    words = parse(argv)
    text = json.dumps(run(words), indent=1)
    words.out.parent.mkdir(parents=True, exist_ok=True)
    words.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
