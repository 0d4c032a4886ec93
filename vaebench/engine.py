"""What an engine is: an epoch as a function of numbers.

The order of the images and the noise are drawn outside and handed in, so every engine sees the
same images in the same order with the same noise, and two engines differ by rounding alone.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import torch

from vaebench.errors import InputError


class Sums(NamedTuple):
    """Sums over the images of an epoch, or of a part of one; nats.

    ``recon`` and ``kl`` may be tensors on the device: turning them into floats waits for it, so
    the training loop does that once an epoch.
    """

    recon: torch.Tensor
    kl: torch.Tensor
    images: int


class Engine(Protocol):
    """Trains a model in place. The training loop knows engines by this alone."""

    @property
    def device(self) -> torch.device:
        """Where ``order`` and ``noise`` are expected."""

    @property
    def images(self) -> torch.Tensor:
        """What is trained on; may be overwritten in place between epochs."""

    @property
    def steps_at_once(self) -> int:
        """Steps that it likes to be handed at once, or a multiple of them; any number will do."""

    @property
    def holds_tensors(self) -> bool:
        """Whether it goes on with tensors that the model held, where others have taken their place.

        Parameters and buffers aside, for which any engine is made anew.
        """

    @property
    def remarks(self) -> Sequence[str]:
        """Lines on what it found out while it trained."""

    def set_lr(self, lr: float) -> None:
        """Use this learning rate from the next step on."""

    def set_beta(self, beta: float) -> None:
        """Weigh the KL by this from the next step on; only for an objective with a ``weight``."""

    def training(self) -> AbstractContextManager[None]:
        """Enter this around calls of :meth:`epoch`; outside, model and memory are the owner's."""

    def warm_up(self) -> None:
        """Do what is slow the first time (compile, capture); leave no trace in the model."""

    def epoch(self, order: torch.Tensor, noise: torch.Tensor) -> Sums:
        """Train on the images at ``order``, one optimiser step per batch; within `training`.

        Args:
            order: (n,) int64 image indices on the engine's device. Batches are cut from its
                front; a short last batch is trained on.
            noise: (n, Z) float32 standard-normal draws, a row per image of ``order``; (n, k, Z)
                where the objective takes k > 1 samples of z.
        """

    def state(self) -> dict[str, torch.Tensor]:
        """Name everything that the engine remembers from step to step, beside the model itself.

        The tensors are the engine's own, and change as it trains: clone what is to stay.
        """

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copy in what :meth:`state` of an engine of the same kind and model gave.

        Raises:
            InputError: it names other tensors, or other shapes.
        """


def copy_state(source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> None:
    """Copy tensors into those of the same names, in place: compiled code goes on using them.

    Raises:
        InputError: names or shapes are not the same; nothing was copied.
    """
    for name in sorted({*source, *target}):
        if name not in source or name not in target:
            where = "lacks" if name not in source else "has, but should not,"
            raise InputError(f"the optimiser's state {where} {name!r}: it is another model's")
        if source[name].shape != target[name].shape:
            raise InputError(
                f"the optimiser's state has {name!r} in shape {tuple(source[name].shape)}, not "
                f"{tuple(target[name].shape)}: it is another model's"
            )
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])
