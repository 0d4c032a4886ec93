"""The ladder of techniques; the only place where they are combined.

One technique, one file, one word: ``loader`` (data resident on the device), ``adam`` (fused),
``precision`` (``amp``), ``compiled`` (``compile``), ``parallel`` (several processes),
``denormals`` (``flush_denormal``, applied by the trainer, since it is a setting of threads). To
remove one, delete its file and its line here.
"""

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vaebench.elbo import Objective
from vaebench.fast.adam import AdamState, update
from vaebench.fast.compiled import CompiledStep, CompileError
from vaebench.fast.loader import gather, to_unit
from vaebench.fast.parallel import ParallelEngine, ParallelStep, exchange
from vaebench.fast.precision import Precision, choose
from vaebench.fast.step import Step, StepEngine, alone, make_step
from vaebench.model import latent_size
from vaebench.processes import Group
from vaebench.trial import reached


class Built(NamedTuple):
    """A warmed-up engine and what it really is, against what was asked for.

    ``actual`` holds ``compile`` (bool) and ``amp`` (``"bf16"`` or ``"float32"``); ``notes`` one
    line for each request that could not be met, or was decided by measurement.
    """

    engine: StepEngine
    actual: dict[str, Any]
    notes: list[str]


def make_engine(
    model: nn.Module,
    images: Tensor,
    objective: Objective,
    batch_size: int,
    lr: float,
    device: torch.device,
    *,
    compile: bool = False,
    amp: str | None = None,
    group: Group | None = None,
) -> Built:
    """Put model and images on the device and build the fast engine for them, warmed up.

    Args:
        model: with ``encode`` and ``decode``; trained in place, every parameter that wants a
            gradient and that the loss depends on.
        images: (N, ...) uint8, or float32.
        objective: the loss.
        batch_size: images per step.
        lr: Adam's learning rate.
        device: where everything runs.
        compile: compile the step. If that cannot be done the engine runs eagerly, with a warning
            and a note.
        amp: None, ``"auto"`` or ``"bf16"``; see :mod:`vaebench.fast.precision`.
        group: the processes that train together, each with all of the images; None: this one.
    """
    model.to(device)
    images = images.to(device)
    latent_dim = latent_size(model, to_unit(images[:1]))
    precision = choose(amp, device)
    if group:  # one decision, by one measurement
        bf16 = group.first_says(float(precision.dtype is not None))
        precision = Precision(torch.bfloat16 if bf16 else None, precision.reason)
    notes = [f"--amp: {precision.reason}"] if amp else []
    adam = AdamState.of(reached(model, objective, to_unit(images[:2]), latent_dim), lr)

    def engine(step: Step) -> StepEngine:
        words = (adam, batch_size, latent_dim)
        if group is None:
            return StepEngine(model, images, step, *words)
        return ParallelEngine(group, model, images, ParallelStep(step, idle, group), *words)

    def idle() -> None:
        update(adam, exchange(tuple(torch.zeros_like(p) for p in adam.params), 0))

    step = make_step(model, objective, adam, gather, precision.dtype, exchange if group else alone)
    if compile:
        part = group.share(batch_size) if group else slice(0, batch_size)
        built = engine(CompiledStep(step, part.stop - part.start))
        try:
            built.warm_up()
            return Built(built, {"compile": True, "amp": precision.name}, notes)
        except CompileError as error:
            warnings.warn(f"{error}; training eagerly", stacklevel=2)
            notes.append(f"--compile: {error}; trained eagerly")
    built = engine(step)
    built.warm_up()
    return Built(built, {"compile": False, "amp": precision.name}, notes)
