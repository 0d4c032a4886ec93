"""The ladder's rungs, the gate each must pass before it is timed, and the data all are timed on.

A rung is a set of words for :func:`vaebench.fit`; to add a technique is to add a line to RUNGS.
"""

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vaebench import VAE, Dataset, InputError, load_dataset, load_mnist
from vaebench.config import FastConfig, OptimizerConfig
from vaebench.engine import Engine
from vaebench.fast.build import Built
from vaebench.fast.build import make_engine as made
from vaebench.objective import Objective
from vaebench.problem import Problem
from vaebench.reference import ReferenceEngine
from vaebench.system.timing import best_seconds

BATCH, LEARNING_RATE, LATENT = 128, 1e-3, 20
# Relative difference of the ELBO that the gate lets pass, by the precision that really ran.
TOLERANCE = {"float32": 1e-3, "bf16": 2e-3}
# A rung below this share of the reference's speed would cost minutes to measure and tell no more.
HOPELESS = 0.25


@dataclass(frozen=True)
class Rung:
    """One step of the ladder: what it asks of ``fit``, and the rung it builds on."""

    name: str
    adds: str
    builds_on: str | None
    words: Mapping[str, Any] = field(default_factory=dict)
    devices: tuple[str, ...] = ("cpu", "cuda")


_PLAIN: dict[str, Any] = {"flush_denormal": False}
_RESIDENT: dict[str, Any] = {"flush_denormal": False, "graph": False}
_LIKELIHOOD: dict[str, Any] = {"compile": True, "native": False}
_SPARSE: dict[str, Any] = {**_LIKELIHOOD, "fused_likelihood": False}
_GRAPH: dict[str, Any] = {**_SPARSE, "sparse": False}
RUNGS: dict[str, Rung] = {
    rung.name: rung
    for rung in (
        Rung("reference", "plain eager, DataLoader", None, {"engine": "reference", **_PLAIN}),
        Rung("resident", "data on the device, fused Adam", "reference", _RESIDENT),
        Rung("replayed", "many steps a CUDA graph", "resident", {"graph": True}, ("cuda",)),
        Rung("flush_denormal", "denormals are zero", "replayed", {}, ("cpu",)),
        Rung("graph", "whole step in one graph", "flush_denormal", _GRAPH, ("cpu",)),
        Rung("sparse", "dark pixels left out", "graph", _SPARSE, ("cpu",)),
        Rung("likelihood", "likelihood in one pass", "sparse", _LIKELIHOOD, ("cpu",)),
        Rung("compile", "whole step in one kernel (CPU)", "likelihood", {"compile": True}),
        Rung("triton", "five kernels a step", "compile", {"triton": True}, ("cuda",)),
        Rung("persistent", "one kernel, many steps", "triton", {"persistent": True}, ("cuda",)),
        Rung("amp", "bf16 where it pays", "compile", {"compile": True, "amp": "auto"}),
        Rung("bf16", "bf16 forced", "compile", {"compile": True, "amp": "bf16"}),
    )
}


class RungError(RuntimeError):
    """A rung cannot run here as what it is; the message says why."""


def ladder_for(device: torch.device) -> list[Rung]:
    """Give the rungs that mean something on this device, in order."""
    return [rung for rung in RUNGS.values() if device.type in rung.devices]


def previous(rung: Rung, device: torch.device) -> str | None:
    """Name the rung that this one builds on, among those that there are on this device."""
    name = rung.builds_on
    while name is not None and device.type not in RUNGS[name].devices:
        name = RUNGS[name].builds_on
    return name


def load_data(name: str = "auto", images: int | None = None, tests: int | None = None) -> Dataset:
    """MNIST if it is on disk, else the strokes; nothing is downloaded. Cut to so many images."""
    if name == "auto":
        try:
            data = load_mnist(download=False)
        except InputError:
            if os.environ.get("VAEBENCH_DATA"):  # somebody meant to measure on it
                raise
            data = load_dataset("strokes")
    else:
        data = load_dataset(name)
    train = type(data.train)(data.train.images[:images].clone())
    test = type(data.test)(data.test.images[:tests].clone())
    return Dataset(data.name, train, test)


def new_model(seed: int = 0, **sizes: Any) -> VAE:
    """Make the default workload's model with this seed's weights; ``sizes`` as of VAE."""
    torch.manual_seed(seed)
    return VAE(**sizes)


def make_engine(
    model: nn.Module,
    images: Tensor,
    objective: Objective,
    batch_size: int,
    lr: float,
    device: torch.device,
    *,
    optimizer: str = "adam",
    adam_eps: float = 1e-8,
    **switches: Any,
) -> Built:
    """Build the fast engine; techniques that are not named have their defaults."""
    settings = OptimizerConfig(batch_size=batch_size, lr=lr, name=optimizer, adam_eps=adam_eps)
    problem = Problem.of(model, images, objective, settings, device)
    return made(problem, FastConfig(**switches))


def build(
    rung: Rung, model: nn.Module, images: Tensor, batch: int, device: torch.device
) -> tuple[Engine, str]:
    """Build a rung's engine, warmed up, and name the precision it runs in.

    Raises:
        RungError: it is not what was asked for; a fallback is never timed under this name.
    """
    if rung.words.get("engine") == "reference":
        reference = ReferenceEngine(
            model,
            images,
            batch_size=batch,
            lr=LEARNING_RATE,
            likelihood="bernoulli",
            sigma=1.0,
            beta=1.0,
            device=device,
        )
        return reference, "float32"
    kernels = ("native", "triton", "persistent", "sparse", "fused_likelihood")
    accepted = ("compile", "amp", *kernels, "graph")
    words = {word: rung.words[word] for word in accepted if word in rung.words}
    built = make_engine(model, images, Objective(), batch, LEARNING_RATE, device, **words)
    if built.actual["compile"] != words.get("compile", False):
        raise RungError(f"rung {rung.name} was not compiled: {'; '.join(built.notes)}")
    for word in ("triton", "persistent"):
        if built.actual[word] != words.get(word, False):
            raise RungError(f"rung {rung.name} ran without {word}: {'; '.join(built.notes)}")
    if "graph" in words and bool(built.actual["graph"]) != words["graph"]:
        raise RungError(f"rung {rung.name} was not replayed: {'; '.join(built.notes)}")
    return built.engine, str(built.actual["amp"])


def refusal(
    rung: Rung, images: Tensor, batch: int, device: torch.device, steps: int = 10
) -> str | None:
    """Run the rung beside the reference; None if they agree, else why it may not be timed.

    Both train copies of one model on the same images in the same order with the same noise, over
    ``steps`` batches and a short last one; their ELBOs must agree to TOLERANCE. A rung that is
    far slower than the reference, as bf16 is where it is emulated, is not trained either.
    """
    model = new_model()
    numbers = torch.Generator().manual_seed(1)
    count = min(len(images), steps * batch + batch // 2 + 1)
    order = torch.randperm(len(images), generator=numbers)[:count].to(device)
    noise = torch.randn(count, LATENT, generator=numbers).to(device)
    elbos, seconds, precision = {}, {}, "float32"
    for each in (RUNGS["reference"], rung):
        try:
            engine, precision = build(each, copy.deepcopy(model), images, batch, device)
        except RungError as error:
            return str(error)
        sums = engine.epoch(order, noise)
        elbos[each.name] = (float(sums.recon) - float(sums.kl)) / sums.images
        seconds[each.name] = best_seconds(partial(engine.epoch, order, noise), device, budget=1)
    expected, found = elbos["reference"], elbos[rung.name]
    gap = abs(found - expected) / abs(expected)
    if gap > TOLERANCE[precision]:
        return (
            f"ELBO {found:.4f} against the reference's {expected:.4f} after {count} images: "
            f"{gap:.1e} relative, {TOLERANCE[precision]:.0e} allowed in {precision}"
        )
    speed = seconds["reference"] / seconds[rung.name]
    if speed < HOPELESS:
        return f"agrees, but a trial of {count} images ran at {speed:.2f} of the reference's speed"
    return None
