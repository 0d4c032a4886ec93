"""Everything about a GPU in one command, under eight minutes: ``python -m benchmarks.cuda_report``.

Builds every technique's engine and checks it against the plain reference; times all of them in
turns; lists what the race between lengths of graph measured; trains ten epochs, warm, from several
seeds; sets the result beside what one would otherwise use; and finds the batch size up to which
each technique pays. What cannot run, or disagrees, is listed with the reason and is not timed.

``--device cpu --size small --out FILE`` runs what of it the CPU has, to see that it runs.
"""

import argparse
import dataclasses
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.bounded import Part, Report
from benchmarks.intervals import paired_ratio, summary
from benchmarks.peers import AGREES, PEERS
from benchmarks.processes import ROOT, Child, ChildError, described, has_jax
from benchmarks.rungs import (
    LEARNING_RATE,
    RUNGS,
    TOLERANCE,
    build,
    load_data,
    make_engine,
    new_model,
)
from benchmarks.state import elbo, numbers, restorer
from vaebench import Dataset, InputError, evaluate, fit
from vaebench.engine import Engine
from vaebench.fast.graph import GraphEngine
from vaebench.objective import Objective
from vaebench.system.device import resolve_device, synchronize
from vaebench.system.threads import available_cpus
from vaebench.system.timing import peak_flops

OUT = ROOT / "benchmarks/results/cuda.json"
LIMIT = 450.0  # seconds
SAMPLES = 4  # z per test image
# A technique pays at a batch size if it is faster than what it builds on by more than this.
PAYS = 1.05
# Techniques of kernels written by hand may go wrong in such a way that their process is lost: on a
# GPU, another process tries them first, for so many seconds at most.
PATIENCE = 75.0
# Relative difference of ELBOs that passes where factors are rounded to 10 bits.
TF32_TOLERANCE = TOLERANCE["bf16"]


@dataclass(frozen=True)
class Technique:
    """The words that make its engine, and the technique that it adds to."""

    builds_on: str | None
    words: Mapping[str, Any] = field(default_factory=dict)

    @property
    def by_hand(self) -> bool:
        """Whether its kernels are written by hand."""
        return bool(self.words.get("triton") or self.words.get("persistent"))


_ALL: dict[str, Any] = {"compile": True, "graph": True}
TECHNIQUES: dict[str, Technique] = {
    "eager": Technique(None, {"graph": False}),
    "eager, graph": Technique("eager", {"graph": True}),
    "compile": Technique("eager", {"compile": True, "graph": False}),
    "compile, graph": Technique("compile", _ALL),
    "bf16": Technique("compile, graph", {**_ALL, "amp": "bf16"}),
    "tf32": Technique("compile, graph", {**_ALL, "tf32": True}),
    "triton": Technique("compile, graph", {"graph": True, "triton": True}),
    "triton, tf32": Technique("triton", {"graph": True, "triton": True, "tf32": True}),
    "persistent": Technique("triton", {"graph": False, "persistent": True}),
    "persistent, tf32": Technique("persistent", {"graph": False, "persistent": True, "tf32": True}),
}


# Those of them that stand for vaebench beside its peers, and their names there: in float32, as the
# peers are. The fastest does.
HOMES = {
    "compile, graph": "vaebench",
    "triton": "vaebench --triton",
    "persistent": "vaebench --persistent",
}


@dataclass(frozen=True)
class Size:
    """How much is measured; ``None`` images: all there are."""

    images: int | None
    tests: int | None
    batch: int
    batches: tuple[int, ...]  # the most telling first: time may run out
    epochs: int
    seeds: int
    rounds: int
    peers: Mapping[str, int]  # images per round


SIZES = {
    "full": Size(
        None, None, 128, (512, 8192, 32, 2048, 60_000, 32_768), 10, 3, 15,
        {name: 10_000 if name == "pytorch/examples" else 60_000 for name in PEERS},
    ),
    "small": Size(300, 100, 64, (32, 300), 1, 2, 2, dict.fromkeys(PEERS, 200)),
}  # fmt: skip


class Setting:
    """What all parts share; ``engines`` are those that passed the gate.

    ``home`` is what stands for vaebench beside its peers; ``source`` is where the data are from, as
    :func:`benchmarks.rungs.load_data` has it.
    """

    def __init__(
        self, device: torch.device, size: Size, data: Dataset, source: str = "auto"
    ) -> None:
        self.device, self.size, self.data, self.source = device, size, data, source
        self.engines: dict[str, Engine] = {}
        self.home = "vaebench"

    @property
    def images(self) -> Tensor:
        """What is trained on, on the host."""
        return self.data.train.images


# Building, and the gate.


def build_all(part: Part, setting: Setting) -> None:
    """Build each technique's engine at the default batch size, and let it pass the gate."""
    batch = setting.size.batch
    reference, _ = build(RUNGS["reference"], new_model(), setting.images, batch, setting.device)
    count = min(len(setting.images), 10 * batch + batch // 2 + 1)
    order, noise = numbers(len(setting.images), count, setting.device)
    expected = elbo(reference.epoch(order, noise))
    for name in TECHNIQUES:
        if not part.has(15, name):
            continue
        try:
            if TECHNIQUES[name].by_hand and setting.device.type == "cuda":
                wrong = tried_apart(name, part, setting)
                if wrong:
                    part.add({"name": name, "batch_size": batch, "refused": wrong})
                    continue
            row, engine = build_one(name, setting, batch)
            if engine is not None:
                restore = restorer(engine)
                row["gap"] = abs(elbo(engine.epoch(order, noise)) - expected) / abs(expected)
                restore()
                allowed = TF32_TOLERANCE if row["actual"].get("tf32") else None
                allowed = allowed or TOLERANCE[row["actual"]["amp"]]
                if not row["gap"] <= allowed:
                    row["refused"] = (
                        f"its ELBO after {count} images is {row['gap']:.1e} from the reference's, "
                        f"{allowed:.0e} allowed"
                    )
                else:
                    setting.engines[name] = engine
            part.add(row)
        except Exception as error:  # one technique that breaks leaves the others
            part.fail(name, error)


def tried_apart(name: str, part: Part, setting: Setting) -> str | None:
    """Build a technique and train an epoch in a process of its own; None, or what went wrong."""
    task = {"name": name, "device": str(setting.device), "data": setting.source}
    child = Child("attempt", {**task, "images": setting.size.images, "batch": setting.size.batch})
    timer = threading.Timer(min(PATIENCE, part.left), child.process.kill)
    timer.daemon = True
    timer.start()
    try:
        refused: str | None = child.answer()["refused"]
    except ChildError:  # it said why on standard error
        return f"the process that tried it ended with status {child.process.returncode}"
    finally:
        timer.cancel()
        child.close()
    return refused


def build_one(name: str, setting: Setting, batch: int) -> tuple[dict[str, Any], Engine | None]:
    """Build an engine; give what is to be told of it, and None in place of one not as asked for."""
    words = TECHNIQUES[name].words
    row: dict[str, Any] = {"name": name, "batch_size": batch, "refused": None}
    start = time.perf_counter()
    built = make_engine(
        new_model(), setting.images, Objective(), batch, LEARNING_RATE, setting.device, **words
    )
    synchronize(setting.device)
    row |= {"build_seconds": time.perf_counter() - start}
    row |= {"actual": built.actual, "notes": built.notes}
    off = dict.fromkeys(("compile", "graph", "tf32", "triton", "persistent"), False)
    asked = {**off, **words, "amp": words.get("amp")}
    ran = {**built.actual, "graph": bool(built.actual["graph"])}
    ran["amp"] = None if ran["amp"] == "float32" else ran["amp"]
    other = [word for word in asked if ran.get(word, False) != asked[word]]
    if other:
        row["refused"] = f"ran with another {', '.join(other)}: {'; '.join(built.notes)}"
        return row, None
    return row, built.engine


# Steady rates.


def time_rungs(part: Part, setting: Setting) -> None:
    """Train whole epochs by all engines in turns, each from the same state."""
    order, noise = numbers(len(setting.images), len(setting.images), setting.device)
    restores = {name: restorer(engine) for name, engine in setting.engines.items()}
    seconds: dict[str, list[float]] = {name: [] for name in setting.engines}
    for turn in range(setting.size.rounds + 1):
        if turn > 1 and not part.has(1, f"turn {turn}"):
            break
        names = list(setting.engines)
        for name in names if turn % 2 == 0 else names[::-1]:
            took = timed(setting, name, order, noise)
            restores[name]()
            if turn > 0:  # the first turn warms up
                seconds[name].append(took)
    times = {HOMES[n]: statistics.median(s) for n, s in seconds.items() if n in HOMES and s}
    setting.home = min(times, key=times.__getitem__, default=setting.home)
    for name in seconds:
        part.add(steady(name, seconds, len(order), -(-len(order) // setting.size.batch)))


def timed(setting: Setting, name: str, order: Tensor, noise: Tensor) -> float:
    """Seconds of an epoch."""
    synchronize(setting.device)
    start = time.perf_counter()
    setting.engines[name].epoch(order, noise)
    synchronize(setting.device)
    return time.perf_counter() - start


def steady(name: str, seconds: dict[str, list[float]], images: int, steps: int) -> dict[str, Any]:
    """Summarise a technique's epochs, and set them beside those of the same turns."""
    mine = seconds[name]
    below = TECHNIQUES[name].builds_on
    others = {"ratio": "eager", "gain": below}
    return {
        "name": name,
        "builds_on": below,
        "microseconds_per_step": 1e6 * statistics.median(mine) / steps,
        "images_per_second": dataclasses.asdict(summary([images / s for s in mine])),
        **{
            key: dataclasses.asdict(paired_ratio(seconds[other], mine))
            if other in seconds
            else None
            for key, other in others.items()
        },
    }


def sweep(part: Part, setting: Setting) -> None:
    """List what the engines' own race measured: a step's time by the steps of a replay."""
    for name, engine in setting.engines.items():
        if isinstance(engine, GraphEngine):
            part.add(
                {
                    "name": name,
                    "chosen": engine.steps_at_once,
                    "plain_microseconds": 1e6 * engine.plain_seconds,
                    "microseconds": {str(k): 1e6 * s for k, s in engine.seconds.items()},
                }
            )


# Whole trainings.


def train_whole(part: Part, setting: Setting) -> None:
    """Train from several seeds by every technique; what must be compiled was compiled before."""
    size = setting.size
    for seed in range(size.seeds):
        for name in setting.engines:
            if not part.has(10, f"{name}, seed {seed}"):
                continue
            try:
                part.add(train_one(name, seed, setting))
            except Exception as error:
                part.fail(name, error)


def train_one(name: str, seed: int, setting: Setting) -> dict[str, Any]:
    """One training by ``fit``; times in seconds, test ELBO in nats per image."""
    model = new_model(seed)
    history = fit(
        model,
        setting.images,
        epochs=setting.size.epochs,
        batch_size=setting.size.batch,
        lr=LEARNING_RATE,
        seed=seed,
        device=setting.device,
        **TECHNIQUES[name].words,
    )
    return {
        "name": name,
        "seed": seed,
        "refused": None,
        "train_seconds": history.seconds["train"],
        "build_seconds": history.seconds["compile"],
        "test_elbo": evaluate(model, setting.data.test.images, samples=SAMPLES, seed=seed).elbo,
        "actual": history.actual,
    }


# Peers.


class Process(Protocol):
    """What :class:`benchmarks.processes.Child` can do."""

    def tell(self, word: str) -> None:
        """Send a line."""

    def answer(self) -> dict[str, Any]:
        """Wait for its answer."""

    def close(self) -> None:
        """Let it end."""


Start = Callable[[dict[str, Any], Part], Process]


def in_process(task: dict[str, Any], part: Part) -> Process:
    """Start a contender's process; it is ended when the part's time is over."""
    child = Child("worker", task)
    timer = threading.Timer(part.left, child.process.kill)
    timer.daemon = True
    timer.start()
    return child


def race_peers(part: Part, setting: Setting, data: str, start: Start = in_process) -> None:
    """Set vaebench beside each peer: before each of its rounds it trains the same images."""
    # Otherwise JAX takes three quarters of the device's memory, whoever else is there.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    ours: dict[int, tuple[Process, float]] = {}  # by the images of a round
    task = {"device": str(setting.device), "data": data, "images": setting.size.images}
    try:
        for peer in PEERS[1:]:
            if peer == "jax" and not has_jax():
                part.add({"name": peer, "refused": "jax is not installed"})
            elif part.has(20, peer):
                try:
                    part.add(race_one(peer, part, setting, task, ours, start))
                except Exception as error:  # a peer that does not run here leaves the others
                    part.fail(peer, error)
    finally:
        for process, _ in ours.values():
            process.close()


def race_one(
    peer: str,
    part: Part,
    setting: Setting,
    task: dict[str, Any],
    ours: dict[int, tuple[Process, float]],
    start: Start,
) -> dict[str, Any]:
    """Race one peer; give its row. ``ours`` keeps vaebench's processes for the next."""
    count = setting.size.peers[peer]
    if count not in ours:
        process = start({**task, "peer": setting.home, "count": count}, part)
        ours[count] = (process, process.answer()["elbo"])
    home, expected = ours[count]
    theirs = start({**task, "peer": peer, "count": count}, part)
    try:
        found = theirs.answer()["elbo"]
        row: dict[str, Any] = {"name": peer, "images": count, "ours": setting.home}
        row |= {"elbo": found, "our_elbo": expected}
        if not abs(found - expected) <= AGREES[peer] * abs(expected):
            return {**row, "refused": f"its ELBO is {found:.4f}, not {expected:.4f}"}
        taken = list(rounds(home, theirs, part, setting.size.rounds))
    finally:
        theirs.close()
    mine, its = zip(*taken, strict=True)
    return {
        **row,
        "refused": None,
        "images_per_second": dataclasses.asdict(summary([count / s for s in its])),
        "our_images_per_second": dataclasses.asdict(summary([count / s for s in mine])),
        "ratio": dataclasses.asdict(paired_ratio(its, mine)),
    }


def rounds(home: Process, theirs: Process, part: Part, most: int) -> Iterator[tuple[float, float]]:
    """Give (vaebench's, the peer's) seconds of an epoch, until the time or the rounds are over."""
    spent = 0.0
    for turn in range(most):
        # At least one round, and no peer takes more than its part of the time.
        if turn and (part.left < 10 or spent > part.left / 3):
            return
        taken = []
        for process in (home, theirs):
            for word in ("restore", "epoch"):
                begun = time.perf_counter()
                process.tell(word)
                process.answer()
                seconds = time.perf_counter() - begun
            taken.append(seconds)
        spent += sum(taken)
        yield taken[0], taken[1]


# Batch sizes.


def sweep_batches(part: Part, setting: Setting) -> None:
    """Rates by batch size, and up to which one each technique pays."""
    default = Setting(setting.device, setting.size, setting.data)
    default.engines = dict(setting.engines)
    batches = [setting.size.batch, *setting.size.batches]
    for batch in dict.fromkeys(min(b, len(setting.images)) for b in batches):
        for name in setting.engines:
            if not part.has(12, f"{name} at {batch}"):
                continue
            try:
                if batch != setting.size.batch:
                    default.engines.pop(name, None)
                    row, engine = build_one(name, setting, batch)
                    if engine is None:
                        part.add(row)
                        continue
                    default.engines[name] = engine
                part.add(rate_at(batch, name, default))
            except Exception as error:  # such as one that does not fit in the memory
                part.fail(f"{name} at {batch}", error)
    part.found["pays"] = pays(part.found["rows"])


def rate_at(batch: int, name: str, setting: Setting) -> dict[str, Any]:
    """The best of a few epochs' rates: within a second, at least two."""
    order, noise = numbers(len(setting.images), len(setting.images), setting.device)
    best, end = 0.0, time.perf_counter() + 1
    for turn in range(10):
        best = max(best, len(order) / timed(setting, name, order, noise))
        if turn and time.perf_counter() > end:
            break
    return {"name": name, "batch_size": batch, "refused": None, "images_per_second": best}


def pays(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each technique the last batch size at which it pays, with all smaller ones.

    ``until`` is None if it does not at the smallest; ``not_at`` is the next that was measured,
    None if there is none.
    """
    rates = {(r["name"], r["batch_size"]): r["images_per_second"] for r in rows if not r["refused"]}
    found = []
    for name, technique in TECHNIQUES.items():
        below = technique.builds_on
        both = sorted(b for n, b in rates if n == name and (below, b) in rates)
        if below is None or not both:
            continue
        good = [rates[name, b] > PAYS * rates[below, b] for b in both]
        last = good.index(False) if False in good else len(both)
        found.append(
            {
                "name": name,
                "builds_on": below,
                "until": both[last - 1] if last else None,
                "not_at": both[last] if last < len(both) else None,
            }
        )
    return found


# The command.


def goals(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that the report is for; None for one that was not measured."""
    whole: dict[str, list[float]] = {}
    for row in parts.get("whole", {}).get("rows", []):
        if not row["refused"]:
            whole.setdefault(row["name"], []).append(row["train_seconds"])
    medians = {name: statistics.median(seconds) for name, seconds in whole.items()}
    best = min(medians, key=medians.__getitem__, default=None)
    peers = {
        row["name"]: row["ratio"]["median"]
        for row in parts.get("peers", {}).get("rows", [])
        if not row["refused"]
    }
    return {
        "train_seconds": medians[best] if best else None,
        "by": best,
        "times_faster_than": {name: peers.get(name) for name in PEERS[1:]},
    }


def measure(words: argparse.Namespace, device: torch.device, start: Start = in_process) -> Report:
    """Run all parts; give the report, which is written."""
    torch.set_num_threads(available_cpus())
    size = SIZES[words.size]
    data = load_data(words.data, size.images, size.tests)
    about = described(str(device), data.name, "python -m benchmarks.cuda_report")
    facts = {"size": words.size, "images": len(data.train), "batch_size": size.batch}
    facts |= {"epochs": size.epochs, "samples": SAMPLES}
    report = Report(words.out, {"kind": "cuda", **about, **facts}, words.limit)
    setting = Setting(device, size, data, words.data)
    report.result["peak_flops"] = {
        str(dtype).removeprefix("torch."): peak_flops(device, dtype)
        for dtype in (torch.float32, torch.bfloat16)
    }
    report.run("build", 0.4, lambda part: build_all(part, setting))
    report.run("rungs", 0.15, lambda part: time_rungs(part, setting))
    report.run("sweep", 0.5, lambda part: sweep(part, setting))
    report.run("whole", 0.3, lambda part: train_whole(part, setting))
    report.run("peers", 0.6, lambda part: race_peers(part, setting, words.data, start))
    report.run("batches", 1.0, lambda part: sweep_batches(part, setting))
    report.result["goals"] = goals(report.result["parts"])
    report.result["complete"] = True
    report.write()
    return report


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_report")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=list(SIZES), default="full")
    parser.add_argument("--data", default="auto", help="auto: MNIST if on disk, else strokes")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for all of it")
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Run the command line; give its exit status."""
    words = parse(argv)
    try:
        device = resolve_device(words.device)
        if device.type == "cpu" and words.out == OUT:
            raise InputError(f"{OUT.name} is for CUDA's figures: name another file with --out")
        measure(words, device)
    except InputError as error:
        print(f"benchmarks.cuda_report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
