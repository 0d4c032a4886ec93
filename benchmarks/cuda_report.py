"""Everything about a GPU in one command, under eight minutes: ``python -m benchmarks.cuda_report``.

Builds every rung's engine and checks it against the plain reference; times all of them in turns;
trains ten epochs, warm, from several seeds; sets the result beside what one would otherwise use;
and finds the batch size up to which each technique pays. What cannot run, or disagrees, is listed
with the reason and is not timed.

``--device cpu --size small --out FILE`` runs what of it the CPU has, to see that it runs.
"""

import argparse
import dataclasses
import os
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.bounded import Part, Report
from benchmarks.harness import (
    DEFAULT,
    RESULTS,
    SAMPLES,
    clock,
    described,
    differ,
    elbo,
    has_jax,
    load_data,
    new_model,
    numbers,
    prepared,
    restorer_of,
    take_turns,
)
from benchmarks.ladder import train
from benchmarks.peers import CONV, MAIN, PEERS, Running
from benchmarks.rungs import RungError, build_rung, exists, find, ladder, tolerance, top
from benchmarks.statistics import paired_ratio, summary
from vaebench import Dataset, InputError
from vaebench.engine import Engine
from vaebench.system.device import resolve_device
from vaebench.system.threads import available_cpus
from vaebench.system.timing import best_seconds, peak_flops

OUT = RESULTS / "cuda.json"
LIMIT = 450.0  # seconds
# A technique pays at a batch size if it is faster than what it builds on by more than this.
PAYS = 1.05
# Whole trainings that would take longer than so many seconds are left out: the time is for others.
LONGEST = 4.0
# Beside the ladder's rungs: what they are worth together, or without one another.
MORE = ("amp=bf16", "tf32+triton=off")


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
    conv: int  # the same of the workload, of which it takes a share
    conv_rungs: tuple[str, ...] = ("plain", "plain+compile", "plain+compile+amp")


SIZES = {
    "full": Size(
        None, None, 128, (512, 8192, 32, 2048, 60_000, 32_768), 10, 3, 15,
        {name: 10_000 if name == "pytorch/examples" else 60_000 for name in MAIN}, 60_000,
    ),
    "small": Size(300, 100, 64, (32, 300), 1, 2, 2, dict.fromkeys(MAIN, 200), 200, ()),
}  # fmt: skip


@dataclass
class Setting:
    """What all parts share; ``engines`` are those that passed the gate.

    ``home`` is the rung that stands for vaebench beside its peers; ``source`` is where the data are
    from, as :func:`benchmarks.harness.load_data` has it.
    """

    device: torch.device
    size: Size
    data: Dataset
    source: str = "auto"
    names: list[str] = field(default_factory=list)
    engines: dict[str, Engine] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # an epoch's, by engine
    home: str = ""

    def __post_init__(self) -> None:
        kind = self.device.type
        rungs = list(ladder(kind))[1:]  # the reference is what all are compared with
        self.names = self.names or rungs + [name for name in MORE if exists(name, kind)]
        self.home = self.home or top(kind)
        self.images = self.data.train.images


# Building, and the gate.


def build_all(part: Part, setting: Setting) -> None:
    """Build each rung's engine at the default batch size, and let it pass the gate."""
    batch, images, device = setting.size.batch, setting.images, setting.device
    plain, config = find("reference", device.type), DEFAULT.replace(batch_size=batch)
    reference, _, _ = build_rung(plain, new_model(), images, device, config)
    count = min(len(images), 10 * batch + batch // 2 + 1)
    order, noise = numbers(len(images), count, device)
    expected = elbo(reference.epoch(order, noise))

    def work(name: str) -> dict[str, Any]:
        row, engine = build_one(name, setting, batch)
        if engine is None:
            return row
        restore = restorer_of(engine)
        found = elbo(engine.epoch(order, noise))
        restore()
        row["refused"] = differ(found, expected, tolerance(row["actual"]))
        if not row["refused"]:
            setting.engines[name] = engine
        return row

    part.each(setting.names, 8, work)


def build_one(name: str, setting: Setting, batch: int) -> tuple[dict[str, Any], Engine | None]:
    """Build an engine; give what is to be told of it, and None in place of one not as asked for."""
    row: dict[str, Any] = {"name": name, "batch_size": batch, "refused": None}
    rung, config = find(name, setting.device.type), DEFAULT.replace(batch_size=batch)
    begun = clock()
    try:
        found = build_rung(rung, new_model(), setting.images, setting.device, config)
    except RungError as error:
        return {**row, "refused": str(error)}, None
    row["build_seconds"] = clock() - begun
    engine, row["actual"], row["notes"] = found
    if row["actual"].get("graph"):  # a step's time by the steps of a replay: its own race
        graph: Any = engine
        row["microseconds"] = {str(steps): 1e6 * took for steps, took in graph.seconds.items()}
        row["plain_microseconds"] = 1e6 * graph.plain_seconds
    return row, engine


# Steady rates.


def time_rungs(part: Part, setting: Setting) -> None:
    """Train whole epochs by all engines in turns, each from the same state."""
    order, noise = numbers(len(setting.images), len(setting.images), setting.device)
    seconds = take_turns(
        {name: partial(engine.epoch, order, noise) for name, engine in setting.engines.items()},
        setting.device,
        setting.size.rounds,
        budget=part.left - 1,
        around={n: prepared(restorer_of(e), e.training) for n, e in setting.engines.items()},
    )
    equal = [n for n in seconds if "amp" not in n and "tf32" not in n and "=" not in n]
    setting.seconds = {name: statistics.median(taken) for name, taken in seconds.items()}
    setting.home = min(equal, key=setting.seconds.__getitem__, default=setting.home)
    for name in seconds:
        builds_on = find(name, setting.device.type).builds_on
        steps = -(-len(order) // setting.size.batch)
        part.add(steady(name, builds_on, seconds, len(order), steps))


def steady(
    name: str, builds_on: str | None, seconds: dict[str, list[float]], images: int, steps: int
) -> dict[str, Any]:
    """Summarise a rung's epochs, and set them beside those of the same turns."""
    mine, ratios = seconds[name], {}
    for key, other in (("ratio", "resident"), ("gain", builds_on or "")):
        theirs = seconds.get(other)
        ratios[key] = dataclasses.asdict(paired_ratio(theirs, mine)) if theirs else None
    rates = dataclasses.asdict(summary([images / s for s in mine]))
    step = 1e6 * statistics.median(mine) / steps
    head = {"name": name, "builds_on": builds_on, "microseconds_per_step": step}
    return {**head, "images_per_second": rates, **ratios}


# Whole trainings.


def train_whole(part: Part, setting: Setting) -> None:
    """Train from several seeds by every rung, the fastest first; all has been compiled before."""
    size = setting.size

    def work(case: tuple[int, str]) -> dict[str, Any]:
        seed, name = case
        config = DEFAULT.replace(epochs=size.epochs, batch_size=size.batch, seed=seed)
        rung = find(name, setting.device.type)
        return {"name": name, "seed": seed, **train(rung, setting.data, setting.device, config)}

    took = {name: size.epochs * setting.seconds.get(name, 0.0) for name in setting.engines}
    names = sorted((name for name in took if took[name] < LONGEST), key=took.__getitem__)
    cases = [(seed, name) for seed in range(size.seeds) for name in names]
    part.each(cases, LONGEST + 2, work, lambda case: f"{case[1]}, seed {case[0]}")
    part.found["skipped"] += [name for name in took if name not in names]


# Peers.


def race_peers(part: Part, setting: Setting, start: Callable[..., Running] = Running) -> None:
    """Set vaebench beside each peer, in turns, on the same images; `conv` beside its original.

    All are started before the first race: they get ready side by side, and then wait.
    """
    # Otherwise JAX takes three quarters of the device's memory, whoever else is there.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    size, running = setting.size, dict[tuple[str, int], Running]()
    pairs = [(f"vaebench --{setting.home}", peer, size.peers[peer]) for peer in MAIN[1:]]
    pairs += [(f"vaebench, conv --{rung}", CONV, size.conv) for rung in size.conv_rungs]

    def started(name: str, count: int) -> Running:
        if (name, count) not in running:
            where = str(setting.device), setting.source, size.images
            running[name, count] = start(name, *where, count, limit=part.left)
        return running[name, count]

    def work(pair: tuple[str, str, int]) -> dict[str, Any]:
        ours, peer, count = pair
        if peer == "jax" and not has_jax():
            return {"name": peer, "refused": "jax is not installed"}
        mine, theirs = (started(name, count).ready() for name in (ours, peer))
        row = {"name": peer, "images": count, "ours": ours, "our_elbo": mine.elbo}
        return {**row, **race_one(mine, theirs, PEERS[peer].agrees, part, size.rounds)}

    try:
        for ours, peer, count in pairs:
            if peer != "jax" or has_jax():
                started(ours, count)
                started(peer, count)
        part.each(pairs, 12, work, lambda pair: pair[1])
    finally:
        for each in running.values():
            each.close()


def race_one(
    home: Running, theirs: Running, agrees: float, part: Part, rounds: int
) -> dict[str, Any]:
    """Race one peer, for a quarter of the part's time at most; its row."""
    wrong = differ(theirs.elbo, home.elbo, agrees)
    if wrong:
        return {"elbo": theirs.elbo, "refused": wrong}
    seconds = take_turns(
        {"home": home.epoch, "theirs": theirs.epoch},
        torch.device("cpu"),  # each waits for its own
        rounds,
        budget=min(part.left / 4, part.left - 5),
        around={"home": prepared(home.restore), "theirs": prepared(theirs.restore)},
    )
    rates = {n: summary([theirs.count / s for s in taken]) for n, taken in seconds.items()}
    return {
        "elbo": theirs.elbo,
        "refused": None,
        "ratio": dataclasses.asdict(paired_ratio(seconds["theirs"], seconds["home"])),
        "images_per_second": dataclasses.asdict(rates["theirs"]),
        "our_images_per_second": dataclasses.asdict(rates["home"]),
    }


# Batch sizes.


def sweep_batches(part: Part, setting: Setting) -> None:
    """Rates by batch size, and up to which one each technique pays."""
    images, device, default = setting.images, setting.device, setting.size.batch
    order, noise = numbers(len(images), len(images), device)

    def work(case: tuple[int, str]) -> dict[str, Any]:
        batch, name = case
        row: dict[str, Any] = {"name": name, "batch_size": batch, "refused": None}
        engine: Engine | None = setting.engines[name]
        if batch != default:
            row, engine = build_one(name, setting, batch)
        if engine is None:
            return row
        seconds = best_seconds(partial(engine.epoch, order, noise), device, budget=1, repeats=10)
        return {**row, "images_per_second": len(order) / seconds}

    batches = dict.fromkeys(min(b, len(images)) for b in (default, *setting.size.batches))
    cases = [(batch, name) for batch in batches for name in setting.engines]
    part.each(cases, 12, work, lambda case: f"{case[1]} at {case[0]}")
    below = {name: find(name, device.type).builds_on for name in setting.names}
    part.found["pays"] = pays(part.found["rows"], below)


def pays(rows: list[dict[str, Any]], below: Mapping[str, str | None]) -> list[dict[str, Any]]:
    """For each technique the last batch size at which it pays, with all smaller ones.

    ``until`` is None if it does not at the smallest; ``not_at`` is the next that was measured,
    None if there is none. ``below`` names what each builds on.
    """
    rates = {(r["name"], r["batch_size"]): r["images_per_second"] for r in rows if not r["refused"]}
    found = []
    for name, other in below.items():
        both = sorted(b for n, b in rates if n == name and (other, b) in rates)
        if not both:
            continue
        good = [rates[name, b] > PAYS * rates[other, b] for b in both]
        last = good.index(False) if False in good else len(both)
        until, not_at = [*both, None][last - 1] if last else None, [*both, None][last]
        found.append({"name": name, "builds_on": other, "until": until, "not_at": not_at})
    return found


# The command.


def goals(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that the report is for; None for one that was not measured."""
    whole, peers = (
        [row for row in parts.get(name, {}).get("rows", []) if not row["refused"]]
        for name in ("whole", "peers")
    )
    seconds: dict[str, list[float]] = {}
    for row in whole:
        seconds.setdefault(row["name"], []).append(row["train_seconds"])
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    best = min(medians, key=medians.__getitem__, default=None)
    ratios: dict[str, float] = {}
    for row in peers:  # of several beside one peer, the fastest
        ratios[row["name"]] = max(row["ratio"]["median"], ratios.get(row["name"], 0.0))
    return {
        "train_seconds": medians[best] if best else None,
        "by": best,
        "times_faster_than": {name: ratios.get(name) for name in (*MAIN[1:], CONV)},
    }


def measure(words: argparse.Namespace, setting: Setting) -> None:
    """Run all parts; the report is written as they go."""
    torch.set_num_threads(available_cpus())
    device, size = setting.device, setting.size
    about = described(str(device), setting.data.name, "python -m benchmarks.cuda_report")
    facts = {"size": words.size, "images": len(setting.images), "batch_size": size.batch,
             "epochs": size.epochs, "samples": SAMPLES}  # fmt: skip
    peaks = {t: peak_flops(device, getattr(torch, t)) for t in ("float32", "bfloat16")}
    report = Report(words.out, {"kind": "cuda", **about, **facts, "peak_flops": peaks}, words.limit)
    report.run("build", 0.45, build_all, setting)
    report.run("rungs", 0.15, time_rungs, setting)
    report.run("whole", 0.2, train_whole, setting)
    report.run("peers", 0.75, race_peers, setting)
    report.run("batches", 1.0, sweep_batches, setting)
    report.result |= {"goals": goals(report.result["parts"]), "complete": True}
    report.write()


def main(argv: list[str]) -> int:
    """Run the command line; give its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_report")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=list(SIZES), default="full")
    parser.add_argument("--data", default="auto", help="auto: MNIST if on disk, else strokes")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for all of it")
    parser.add_argument("--out", type=Path, default=OUT)
    words = parser.parse_args(argv)
    size = SIZES[words.size]
    try:
        device = resolve_device(words.device)
        if device.type == "cpu" and words.out == OUT:
            raise InputError(f"{OUT.name} is for CUDA's figures: name another file with --out")
        data = load_data(words.data, size.images, size.tests)
        measure(words, Setting(device, size, data, words.data))
    except InputError as error:
        print(f"benchmarks.cuda_report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
