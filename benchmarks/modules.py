"""Anybody's modules: what ``fit`` makes of them, and how fast: ``python -m benchmarks.modules``.

A file of JSON lists the modules; see :class:`Module`. Each is trained in a fresh process, by the
reference engine and by ``compile=True``, from the same weights and seed, and their ELBOs are
compared. Then a plain eager loop and vaebench's engine go on from the trained weights, in turns, as
in ``turns``. Denormals are zero for both, which the loop's author would have had to think of.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vaebench
from benchmarks.harness import (
    Child,
    ChildError,
    build,
    described,
    elbo,
    load_data,
    numbers,
    prepared,
    problem_of,
    say,
    seconds_of,
    store,
    take_turns,
)
from benchmarks.peers.eager import Loop
from benchmarks.statistics import paired_ratio, summary
from vaebench import InputError, TrainConfig
from vaebench.config import FastConfig
from vaebench.fast.register import TECHNIQUES
from vaebench.fast.threads import thread_settings
from vaebench.models.adapt import as_module
from vaebench.system.device import resolve_device
from vaebench.system.worker import run_apart

SCHEMA = 1
EPOCHS, SEED = 3, 0
TURN, STEPS = 0.2, 24  # seconds that a turn of the loop should take; steps it has at most
HEADS = ("module", "adapter", "engine", "steps", "ELBO", "reference", "off")
Answer = dict[str, Any]


@dataclass(frozen=True)
class Module:
    """An entry of the file.

    Args:
        name: as the table has it.
        code: Python that leaves a module, or a pair of two, in ``model``.
        shape: of an image: digits are bordered or enlarged, and repeated, to have it.
        folder: where ``code`` finds its imports, from the file's own folder.
        adapt: an expression of ``model``, to be trained in its place.
        lines: that the author of ``adapt`` would write.
        labels: ``"int"`` or ``"one-hot"`` if it takes them.
        batch, images: of a step; of an epoch.
        options: more of ``fit``'s keywords.
    """

    name: str
    code: str
    shape: Sequence[int] = (28, 28)
    folder: str = "."
    adapt: str = ""
    lines: int = 0
    labels: str | bool = False
    batch: int = 128
    images: int = 12_900
    options: Mapping[str, Any] = field(default_factory=dict)

    def config(self, **options: Any) -> TrainConfig:
        """How it is trained."""
        mine = {"batch_size": self.batch, "epochs": EPOCHS, "seed": SEED}
        return TrainConfig().replace(**{**mine, **self.options, **options})

    def new(self) -> nn.Module:
        """Make it, with the same weights every time; a copy would lack what ``adapt`` names."""
        torch.manual_seed(SEED)
        names: dict[str, Any] = {"torch": torch, "vaebench": vaebench}
        exec(self.code, names)
        return as_module(eval(self.adapt, names) if self.adapt else names["model"])

    def data(self, name: str) -> tuple[Tensor, Tensor | None]:
        """Its images, and their labels if it takes them."""
        part = load_data(name, self.images, 1).train
        images = shaped(part.images, self.shape)
        if not self.labels or part.labels is None:
            return images, None
        labels = part.labels.long()
        return images, F.one_hot(labels, 10).float() if self.labels == "one-hot" else labels


def shaped(images: Tensor, shape: Sequence[int]) -> Tensor:
    """Square images (N, H, H) in another shape; a narrow border is dark, else they are enlarged."""
    x, border = images.unsqueeze(1), (shape[-1] - images.shape[-1]) // 2
    if len(shape) > 1 and border > 4:
        x = F.interpolate(x.float(), tuple(shape[-2:]), mode="bilinear").round().byte()
    elif len(shape) > 1:
        x = F.pad(x, (border,) * 4)
    channels = shape[0] if len(shape) == 3 else 1
    return x.expand(-1, channels, -1, -1).reshape(-1, *shape).contiguous()


def techniques(actual: Mapping[str, Any]) -> list[str]:
    """Name those that run."""
    engines = [t for t in TECHNIQUES if t.kind != "thread"]
    return [t.name for t in engines if actual.get(t.name, t.idle) != t.idle]


def measured(task: Answer) -> Answer:
    """Do all that is done with a module, in the child; give its row, or why there is none."""
    module = Module(**task["module"])
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for the answer
            sys.path.insert(0, module.folder)
            row = _row(module, task)
    except Exception as error:
        said = (str(error).strip() or "no message").splitlines()[0]
        return {"name": module.name, "refused": f"{type(error).__name__}: {said}"}
    return {"name": module.name, "refused": None, **row}


def _row(module: Module, task: Answer) -> Answer:
    images, labels = module.data(task["data"])
    elbos: dict[str, list[float]] = {}
    for engine in ("reference", "fast"):
        model = module.new()
        config = module.config(engine=engine, compile=engine == "fast", device=task["device"])
        history = vaebench.fit(model, images, labels=labels, config=config)
        elbos[engine] = [record.train_elbo for record in history.epochs]
    pairs = zip(elbos["fast"], elbos["reference"], strict=True)
    settings, _ = thread_settings(FastConfig(), resolve_device(task["device"]))
    return {
        "lines": module.lines,
        "engine": techniques(history.actual),
        "notes": history.notes,
        "steps": EPOCHS * -(-module.images // module.batch),
        "elbos": elbos,
        "off": max(abs(found - expected) / abs(expected) for found, expected in pairs),
        **run_apart(partial(in_turns, module, config, model, images, labels, task), *settings),
    }


def in_turns(
    module: Module,
    config: TrainConfig,
    trained: nn.Module,
    images: Tensor,
    labels: Tensor | None,
    task: Answer,
) -> Answer:
    """Let the loop and the engine take turns; give the seconds per step, and their ratio."""
    models, device = (module.new(), module.new()), resolve_device(task["device"])
    for model in models:
        model.load_state_dict(trained.state_dict())
    loop = Loop(problem_of(models[0], images, config, device, labels))
    engine, actual, _ = build(models[1], images, config, device, labels)
    config = config.replace(latent_dim=loop.problem.latent_dim)
    one, few = (numbers(len(images), module.batch * n, device, config) for n in (1, 3))
    works = {"loop": loop.epoch, "vaebench": engine.epoch}
    first = {}
    for name, epoch in works.items():
        torch.manual_seed(SEED)  # of what the module draws itself
        first[name] = elbo(epoch(*few))
    took = min(seconds_of(partial(loop.epoch, *one)) for _ in range(3))
    steps = max(1, min(STEPS, round(TURN / took)))
    turn = numbers(len(images), module.batch * steps, device, config)
    seconds = take_turns(
        {name: partial(epoch, *turn) for name, epoch in works.items()},
        device,
        task["turns"],
        budget=task["budget"],
        around={
            "loop": prepared(partial(loop.epoch, *one)),  # brings its weights into the cache
            "vaebench": prepared(partial(engine.epoch, *one), engine.training),
        },
    )
    each = {name: summary([s / steps for s in taken]) for name, taken in seconds.items()}
    ratios = [a / b for a, b in zip(seconds["loop"], seconds["vaebench"], strict=True)]
    return {
        "timed": techniques(actual),
        "loop_off": abs(first["loop"] - first["vaebench"]) / abs(first["vaebench"]),
        "seconds_per_step": {name: asdict(figure) for name, figure in each.items()},
        "ratio": asdict(paired_ratio(seconds["loop"], seconds["vaebench"])),
        "noise": summary(ratios).noise,
    }


def read(path: Path) -> list[Module]:
    """Read the file.

    Raises:
        InputError: it cannot be read, or is no list of modules.
    """
    try:
        modules = [Module(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: {error}") from error
    here = path.parent.resolve()
    return [dataclasses.replace(each, folder=str(here / each.folder)) for each in modules]


def row_of(module: Module, words: argparse.Namespace) -> Answer:
    """Measure a module in a process of its own, which is ended when its time is over."""
    task = {name: getattr(words, name) for name in ("device", "data", "turns", "budget")}
    try:
        with Child("modules:measured", {**task, "module": asdict(module)}, limit=words.limit) as it:
            row = it.answer()
    except ChildError as error:
        row = {"name": module.name, "refused": f"{error}; its limit is {words.limit:g} s"}
    say(f"{module.name}: {row['refused'] or times(row)}")
    return row


def times(row: Answer) -> str:
    """How many times vaebench's time the loop takes, in words."""
    if row["noise"] == "not quoted":
        return "too noisy to quote"
    words = "{median:.2f} ({low:.2f} to {high:.2f})".format(**row["ratio"])
    return words + " (noisy)" * bool(row["noise"] == "noisy")


def table(rows: Sequence[Answer]) -> str:
    """Make the table, and a line for each module that has no row."""
    lines = [[*HEADS, "× a plain loop (interval)"], ["---", "--:", "---", *["--:"] * 5]]
    for row in (each for each in rows if not each["refused"]):
        engine = ", ".join(row["engine"]) or "plain step"
        last = [f"{row['elbos'][name][-1]:.2f}" for name in ("fast", "reference")]
        off = f"{row['off']:.0e}"
        lines.append([row["name"], row["lines"], engine, row["steps"], *last, off, times(row)])
    refused = [f"{row['name']}: {row['refused']}" for row in rows if row["refused"]]
    shown = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
    return "\n".join([*shown, *[""] * bool(refused), *refused])


def main(argv: list[str]) -> int:
    """Measure, and print the table; 1 if a module has no row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.modules", description=__doc__)
    parser.add_argument("spec", type=Path, help="JSON: a list of modules")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="those whose names have one in it"
    )
    parser.add_argument("--turns", type=int, default=41)
    parser.add_argument("--budget", type=float, default=12, help="seconds of a module's turns")
    parser.add_argument("--limit", type=float, default=300, help="seconds of a module in all")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data", default="auto", help="auto: MNIST if on disk, else strokes")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    words = parser.parse_args(argv)
    try:
        modules = read(words.spec)
        data = load_data(words.data, 1, 1).name
    except InputError as error:
        say(str(error))
        return 2
    wanted = [m for m in modules if not words.only or any(part in m.name for part in words.only)]
    said = described(words.device, data, "python -m benchmarks.modules")
    rows: list[Answer] = []
    for module in wanted:
        rows.append(row_of(module, words))
        if words.out:  # each time, as the whole takes long
            store(words.out, {"kind": "modules", "schema": SCHEMA, **said, "rows": rows})
    print(table(rows))
    return int(any(row["refused"] for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
