"""The ladder: from the reference up, one technique a rung: ``python -m benchmarks.ladder``.

Each rung trains in a fresh process, through :func:`vaebench.fit`; a repeat runs all of them once,
every other repeat in the opposite order, so that a drift of the machine favours none. Before it is
timed a rung must agree with the reference on the ELBO of a few steps, or it is refused.

On the clock: the epochs' training alone. Off it: start-up, compiling, the gate, evaluation.
"""

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.intervals import paired_ratio, summary
from benchmarks.processes import ROOT, described, in_fresh_process, peak_memory, reply
from benchmarks.rungs import (
    BATCH,
    LEARNING_RATE,
    RUNGS,
    ladder_for,
    load_data,
    new_model,
    previous,
    refusal,
)
from vaebench import evaluate, fit
from vaebench.system.device import resolve_device
from vaebench.system.threads import available_cpus
from vaebench.system.timing import peak_flops

SAMPLES = 4  # z per test image
Run = dict[str, Any]


def schedule(rungs: list[str], repeats: int) -> list[tuple[int, str]]:
    """Give (repeat, rung) in the order of running: up the ladder, down, up, ..."""
    return [
        (repeat, rung)
        for repeat in range(repeats)
        for rung in (rungs if repeat % 2 == 0 else rungs[::-1])
    ]


def train_rung(task: dict[str, Any]) -> Run:
    """Pass the gate, train, evaluate; run in a fresh process. Times in seconds, ELBO in nats."""
    device = resolve_device(task["device"])
    torch.set_num_threads(available_cpus())
    data = load_data(task["data"], task["images"], task["images"])
    images = data.train.images
    rung, batch = RUNGS[task["rung"]], min(BATCH, len(images))
    refused = refusal(rung, images, batch, device)
    if refused:
        return {"rung": rung.name, "refused": refused}
    model = new_model(task["seed"])
    # The gate has compiled all that there is to compile.
    with torch.compiler.set_stance("fail_on_recompile"):
        history = fit(
            model, images, epochs=task["epochs"], batch_size=batch, lr=LEARNING_RATE,
            seed=task["seed"], device=device, **rung.words,
        )  # fmt: skip
    memory = peak_memory()
    rate = task["epochs"] * len(images) / history.seconds["train"]
    return {
        "rung": rung.name,
        "refused": None,
        "images_per_second": rate,
        "epoch_seconds": [record.seconds for record in history.epochs],
        "test_elbo": evaluate(model, data.test.images, samples=SAMPLES, seed=task["seed"]).elbo,
        "peak_memory_bytes": memory,
        "device_memory_bytes": device_memory(device),
        "flops_per_image": history.flops_per_image,
        "peak_flops": peak_flops(device),
        "actual": history.actual,
        "notes": history.notes,
    }


def device_memory(device: torch.device) -> int | None:
    """Bytes of device memory that torch has held at most; None on the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def rows(runs: list[Run], device: torch.device) -> list[dict[str, Any]]:
    """Make a row per rung of all its runs, in the ladder's order."""
    by_rung: dict[str, list[Run]] = {}
    for run in runs:
        by_rung.setdefault(run["rung"], []).append(run)
    return [
        row(by_rung, rung.name, previous(rung, device))
        for rung in ladder_for(device)
        if rung.name in by_rung
    ]


def row(by_rung: dict[str, list[Run]], name: str, before: str | None) -> dict[str, Any]:
    """Summarise a rung: medians over its runs, and ratios taken repeat by repeat."""
    mine = by_rung[name]
    head = {"rung": name, "adds": RUNGS[name].adds, "builds_on": before}
    refused = [run["refused"] for run in mine if run["refused"]]
    if refused:
        return {**head, "refused": refused[0]}
    rates = [run["images_per_second"] for run in mine]
    found: dict[str, Any] = {
        **head,
        "refused": None,
        "images_per_second": dataclasses.asdict(summary(rates)),
        "ratio": ratio_to(by_rung, rates, "reference"),
        "gain": ratio_to(by_rung, rates, before),
        "actual": mine[0]["actual"],
        "notes": mine[0]["notes"],
    }
    found["verdict"] = verdict(found["gain"])
    # Noise only ever lowers a measured peak: the highest that any run has seen is nearest.
    peak = max(run["peak_flops"] for runs in by_rung.values() for run in runs if not run["refused"])
    found["peak_share"] = statistics.median(rates) * mine[0]["flops_per_image"] / peak
    for fact in ("test_elbo", "peak_memory_bytes", "device_memory_bytes"):
        values = [run[fact] for run in mine if run[fact] is not None]
        found[fact] = statistics.median_high(values) if values else None
    return found


def ratio_to(
    by_rung: dict[str, list[Run]], rates: list[float], other: str | None
) -> dict[str, Any] | None:
    """Ratio of rates to another rung's, run beside them in each repeat; None without that rung."""
    theirs = by_rung.get(other, []) if other else []
    if not theirs or any(run["refused"] for run in theirs):
        return None
    return dataclasses.asdict(paired_ratio(rates, [run["images_per_second"] for run in theirs]))


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
    run = run or (lambda task: in_fresh_process("ladder", task))
    device = resolve_device(words.device)
    names = words.rungs or [rung.name for rung in ladder_for(device)]
    task = {key: getattr(words, key) for key in ("device", "data", "images", "epochs", "seed")}
    runs: list[Run] = []
    for repeat, name in schedule(names, words.repeats):
        runs.append(run({**task, "rung": name}))
        print(f"repeat {repeat + 1}, {name}: {brief(runs[-1])}", file=sys.stderr, flush=True)
    data = load_data(words.data, words.images, 1)
    return {
        "kind": "ladder",
        **described(words.device, data.name, "python -m benchmarks.ladder"),
        "images": len(data.train),
        "batch_size": BATCH,
        "epochs": words.epochs,
        "repeats": words.repeats,
        "samples": SAMPLES,
        "peak_flops": max((r["peak_flops"] for r in runs if not r["refused"]), default=None),
        "rows": rows(runs, device),
        "runs": [{k: r.get(k) for k in ("rung", "refused", "epoch_seconds")} for r in runs],
    }


def brief(run: Run) -> str:
    """Put a run in a few words."""
    if run["refused"]:
        return f"refused: {run['refused']}"
    return f"{run['images_per_second']:,.0f} images/s, test ELBO {run['test_elbo']:.2f}"


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ladder")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data", default="auto", help="auto: MNIST if on disk, else strokes")
    parser.add_argument("--images", type=int, default=None, help="fewer than all")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rungs", nargs="+", choices=list(RUNGS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/ladder.json")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Be a child if given a task as JSON, else run the ladder and store its result."""
    if argv and argv[0].startswith("{"):
        reply(train_rung(json.loads(argv[0])))
        return
    words = parse(argv)
    result = climb(words)
    words.out.parent.mkdir(parents=True, exist_ok=True)
    words.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
