"""The ladder of techniques; the only place where they are combined.

One technique, one file, one word: ``loader`` (data resident on the device), ``adam`` (fused),
``precision`` (``amp``), ``products`` (convolutions as matrix products), ``compiled``
(``compile``), ``denormals`` (``flush_denormal``, applied by the trainer, since it is a setting of
threads). To remove one, delete its file and its line here.
"""

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vaebench.elbo import Objective
from vaebench.fast.adam import AdamState
from vaebench.fast.compiled import CompiledStep, CompileError
from vaebench.fast.loader import gather, to_unit
from vaebench.fast.precision import choose
from vaebench.fast.products import lay_out, with_products
from vaebench.fast.step import Step, StepEngine, make_step
from vaebench.model import latent_size


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
    products: bool = True,
) -> Built:
    """Put model and images on the device and build the fast engine for them, warmed up.

    Args:
        model: with ``encode`` and ``decode``; trained in place, every parameter that wants a
            gradient.
        images: (N, ...) uint8, or float32.
        objective: the loss.
        batch_size: images per step.
        lr: Adam's learning rate.
        device: where everything runs.
        compile: compile the step. If that cannot be done the engine runs eagerly, with a warning
            and a note.
        amp: None, ``"auto"`` or ``"bf16"``; see :mod:`vaebench.fast.precision`.
        products: compute convolutions as matrix products, where that pays: on the CPU in float32.
            Their weights are then laid out channels last.
    """
    model.to(device)
    images = images.to(device)
    latent_dim = latent_size(model, to_unit(images[:1]))
    precision = choose(amp, device)
    notes = [f"--amp: {precision.reason}"] if amp else []
    # Elsewhere, and under autocast, a library's own convolutions are the faster or finer ones.
    suits = products and device.type == "cpu" and precision.dtype is None
    count = lay_out(model) if suits else 0
    if count:
        notes.append(f"--products: {count} convolutions as matrix products")
    adam = AdamState.of([p for p in model.parameters() if p.requires_grad], lr)

    def engine(step: Step) -> StepEngine:
        if count:
            step = with_products(step, model)
        return StepEngine(model, images, step, adam, batch_size, latent_dim)

    step = make_step(model, objective, adam, gather, precision.dtype)
    if compile:
        built = engine(CompiledStep(step, batch_size))
        try:
            built.warm_up()
            return Built(built, {"compile": True, "amp": precision.name}, notes)
        except CompileError as error:
            warnings.warn(f"{error}; training eagerly", stacklevel=2)
            notes.append(f"--compile: {error}; trained eagerly")
    built = engine(step)
    built.warm_up()
    return Built(built, {"compile": False, "amp": precision.name}, notes)
