"""The ladder's rungs, made from the register of techniques, and the gate before one is timed.

A rung bears its technique's name. First come those that are on by default, each upon the one
before; then what others need, with them; what else must be asked for stands by itself on top.
Several joined by ``+`` are a rung too, and ``=`` gives one another value: ``triton+graph=off``,
``amp=bf16``, ``compile+graph=off``. ``plain`` is that of no switch at all, ``plain+compile`` what
``--compile`` makes of any model.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import DEFAULT, TOLERANCE, build, differ, elbo, new_model, numbers
from vaebench import InputError, TrainConfig
from vaebench.engine import Engine
from vaebench.fast.register import TECHNIQUES, Technique
from vaebench.system.timing import race

# A rung below this share of the reference's speed would cost minutes to measure and tell no more.
HOPELESS = 0.25


@dataclass(frozen=True)
class Rung:
    """One step of the ladder: what it adds, to which rung, and all that it asks of ``fit``."""

    name: str
    adds: str
    builds_on: str | None
    switches: Mapping[str, Any]


def ladder(kind: str) -> dict[str, Rung]:
    """Give the rungs of a kind of device, in order."""
    off = {t.name: None if t.default is None else False for t in TECHNIQUES}
    plain = "plain eager PyTorch, DataLoader"
    rungs = {
        "reference": Rung("reference", plain, None, {"engine": "reference", **off}),
        "resident": Rung("resident", "data on the device, fused Adam", "reference", off),
    }
    here = [t for t in TECHNIQUES if kind in t.devices]
    needed = {t.needs for t in TECHNIQUES}
    firm: list[Technique] = []
    for technique in here:
        if technique.default and technique.needs in (None, *(t.name for t in firm)):
            firm.append(technique)
    # The register tries what is most particular first; the ladder ends with it.
    for technique in here[::-1]:
        if technique.name in needed and technique not in firm:
            firm += [technique, *(t for t in here[::-1] if t.needs == technique.name)]
    below = "resident"
    for technique in firm:
        rungs[technique.name] = _on(rungs[below], technique)
        below = technique.name
    alone = [t for t in here[::-1] if not t.default and not t.needs and t not in firm]
    return rungs | {t.name: _on(rungs[below], t) for t in alone}


def _on(below: Rung, technique: Technique) -> Rung:
    value = technique.option.get("const", True)
    adds = re.split("[:;]", technique.help)[0]
    return Rung(technique.name, adds, below.name, {**below.switches, technique.name: value})


def top(kind: str) -> str:
    """Name the rung of plain ``--compile``: all that it brings with it, and no more."""
    rungs = ladder(kind)
    wanted = {t.name: t.default for t in TECHNIQUES if t.name in rungs}
    wanted |= {"compile": True} if "compile" in rungs else {}
    return next(n for n, rung in rungs.items() if wanted.items() <= rung.switches.items())


def find(name: str, kind: str) -> Rung:
    """Give a rung by its name, or one made of several.

    Raises:
        InputError: there is no such rung on this kind of device.
    """
    rungs, defaults = ladder(kind), {t.name: t.default for t in TECHNIQUES}
    rungs["plain"] = Rung("plain", "no switch given", "resident", defaults)
    if name in rungs:
        return rungs[name]
    switches: dict[str, Any] = {}
    parts = [part.partition("=")[::2] for part in name.split("+")]
    for word, value in parts:
        if word not in rungs or word == "reference":
            there = ", ".join(rungs)
            raise InputError(f"there is no rung {name!r} on {kind}: choose from {there}")
        switches |= {k: v for k, v in rungs[word].switches.items() if v or k not in switches}
        if value:
            switches[word] = {"off": False, "on": True}.get(value, value)
    first = parts[0][0]
    if parts[1:]:
        return Rung(name, "these together", first, switches)
    return Rung(name, f"{rungs[first].adds}: {parts[0][1]}", rungs[first].builds_on, switches)


def exists(name: str, kind: str) -> bool:
    """Tell whether there is such a rung."""
    try:
        find(name, kind)
    except InputError:
        return False
    return True


class RungError(RuntimeError):
    """A rung cannot run here as what it is; the message says why."""


def build_rung(
    rung: Rung,
    model: nn.Module,
    images: Tensor,
    device: torch.device,
    config: TrainConfig = DEFAULT,
) -> tuple[Engine, dict[str, Any], list[str]]:
    """Build a rung's engine for a workload, warmed up; the result is as of :func:`harness.build`.

    Raises:
        RungError: it is not what the rung is named for.
    """
    engine, actual, notes = build(model, images, config.replace(**rung.switches), device)
    check(rung, actual, notes)
    return engine, actual, notes


def check(rung: Rung, actual: Mapping[str, Any], notes: Sequence[str]) -> None:
    """Raise RungError unless what runs is what the rung is named for, and compiled if asked to be.

    A fallback is never timed under another's name.
    """
    own = {part.partition("=")[0] for part in rung.name.split("+")}
    missing = []
    for technique in TECHNIQUES:
        asked, found = rung.switches.get(technique.name), actual.get(technique.name)
        if technique.kind == "thread" or not asked:
            continue
        if technique.default and technique.name not in own:
            continue
        if not found or (isinstance(asked, str) and asked != "auto" and found != asked):
            missing.append(technique.name)
    if missing:
        said = "; ".join(notes) or "it has nothing to do here"
        raise RungError(f"it ran without {', '.join(missing)}: {said}")


def refusal(
    rung: Rung,
    images: Tensor,
    device: torch.device,
    config: TrainConfig = DEFAULT,
    steps: int = 10,
) -> str | None:
    """Run a rung beside the reference; None if they agree, else why it may not be timed.

    Both train copies of one model on the same images in the same order with the same noise, over
    ``steps`` batches and a short last one; their ELBOs must agree to TOLERANCE. A rung that is
    far slower than the reference, as bf16 is where it is emulated, is not trained either.
    """
    model = new_model(config=config, image_shape=tuple(images.shape[1:]))
    batch = config.optimizer.batch_size
    count = min(len(images), steps * batch + batch // 2 + 1)
    order, noise = numbers(len(images), count, device, config)
    elbos, works, allowed = [], {}, TOLERANCE["float32"]
    for each in (find("reference", device.type), rung):
        try:
            engine, actual, _ = build_rung(each, copy.deepcopy(model), images, device, config)
        except RungError as error:
            return str(error)
        elbos.append(elbo(engine.epoch(order, noise)))
        works[each.name] = partial(engine.epoch, order, noise)
        allowed = tolerance(actual)
    wrong = differ(elbos[-1], elbos[0], allowed)
    if wrong:
        return f"{wrong}, after {count} images"
    seconds = race(works, device, budget=2)
    speed = seconds["reference"] / seconds[rung.name]
    if speed < HOPELESS:
        return f"agrees, but a trial of {count} images ran at {speed:.2f} of the reference's speed"
    return None


def tolerance(actual: Mapping[str, Any]) -> float:
    """Relative difference from the reference's ELBO that an engine is allowed."""
    return TOLERANCE["tf32" if actual.get("tf32") else actual.get("amp") or "float32"]
