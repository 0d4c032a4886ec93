"""What follows a training: objects that are told of its start, steps, epochs and end.

To write one, derive from :class:`Callback` and leave out what is not needed. What it overrides is
called, in the thread that called ``fit``; what nobody overrides costs nothing.
"""

import csv
import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vaebench.errors import InputError, ResourceError, check_count
from vaebench.likelihoods import mean_pixels
from vaebench.models.adapt import adapted
from vaebench.models.protocol import as_vae, likelihood_of
from vaebench.models.snapshot import untouched
from vaebench.training.history import EpochRecord, History
from vaebench.training.state import TrainState


class Block(NamedTuple):
    """Some steps of an epoch, about a twentieth of it; means over their images, in nats.

    ``time`` is that at their end, in epochs since training began.
    """

    time: float
    elbo: float
    recon: float
    kl: float


class Running:
    """A training under way, as a callback sees it.

    ``model`` is the caller's own, trained so far; amid an epoch its parameters are the engine's,
    and are not to be read. ``history`` has the records so far.
    """

    def __init__(self, model: nn.Module, history: History, state: Callable[[], TrainState]) -> None:
        self.model, self.history, self._state = model, history, state
        self.stopped: str | None = None

    def state(self) -> TrainState:
        """All that it takes to go on from the end of the last epoch; not amid an epoch."""
        return self._state()

    def stop(self, reason: str = "a callback asked for it") -> None:
        """End the training after the epoch under way; the reason is told in its notes."""
        self.stopped = reason


class Callback:
    """Follows a training. Every method may be overridden; these do nothing."""

    def on_start(self, training: Running) -> None:
        """Be told that training begins, or goes on, before its first epoch."""

    def on_step_block(self, training: Running, block: Block) -> None:
        """Be told of some steps more. If it is overridden, a GPU is waited for each time."""

    def on_epoch(self, training: Running, record: EpochRecord) -> None:
        """Be told of an epoch, after it was evaluated, and kept where ``on_state`` keeps it."""

    def on_end(self, training: Running) -> None:
        """Be told that it has ended, by itself or interrupted; not if it failed."""


class _Function(Callback):
    """A function of an epoch's record."""

    def __init__(self, call: Callable[[EpochRecord], object]) -> None:
        self.call = call

    def on_epoch(self, training: Running, record: EpochRecord) -> None:
        self.call(record)


OnEpoch = Callable[[EpochRecord], object] | Callback | Sequence["OnEpoch"] | None


def as_callbacks(given: object) -> list[Callback]:
    """Make a list of callbacks of a function, a callback, a list of these, or None.

    Raises:
        InputError: it is none of these.
    """
    if given is None:
        return []
    if isinstance(given, Callback):
        return [given]
    if isinstance(given, list | tuple):
        return [callback for each in given for callback in as_callbacks(each)]
    if not callable(given) or isinstance(given, type):
        raise InputError(
            f"on_epoch is {given!r}: it must be a function of one EpochRecord, a vaebench.Callback "
            "or a list of these"
        )
    return [_Function(given)]


def told_of_blocks(callbacks: Sequence[Callback]) -> list[Callback]:
    """Those that want to know of blocks of steps."""
    return [c for c in callbacks if type(c).on_step_block is not Callback.on_step_block]


class CSVLog(Callback):
    """Writes a line of a CSV file for each epoch; the whole file anew, so that a resumed one fits.

    Args:
        path: the file; its folder must exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def on_start(self, training: Running) -> None:
        """See that the file can be written."""
        try:
            open(self.path, "a", encoding="utf-8").close()
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written ({error.strerror}): name another file"
            ) from error

    def on_epoch(self, training: Running, record: EpochRecord) -> None:
        """Write all epochs so far."""
        names = [field.name for field in dataclasses.fields(EpochRecord)]
        try:
            with open(self.path, "w", newline="", encoding="utf-8") as file:
                rows = csv.DictWriter(file, names)
                rows.writeheader()
                rows.writerows(dataclasses.asdict(each) for each in training.history.epochs)
        except OSError as error:
            raise ResourceError(
                f"{self.path} cannot be written: {error.strerror or error}"
            ) from error


class TensorBoard(Callback):
    """Writes what TensorBoard shows: ELBOs, recon and KL by epoch, and by blocks of steps.

    Args:
        folder: the log's; made if need be.

    Raises:
        InputError: the package ``tensorboard`` is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                "TensorBoard's log needs the package tensorboard: pip install tensorboard, or use "
                "vaebench.CSVLog"
            ) from error
        self.writer = SummaryWriter(os.fspath(folder))

    def on_step_block(self, training: Running, block: Block) -> None:
        """Write a block's means, at thousandths of epochs."""
        step = round(1000 * block.time)
        for name in ("elbo", "recon", "kl"):
            self.writer.add_scalar(f"step/{name}", getattr(block, name), step)

    def on_epoch(self, training: Running, record: EpochRecord) -> None:
        """Write an epoch's record."""
        for name, value in dataclasses.asdict(record).items():
            if value is not None and name != "epoch":
                self.writer.add_scalar(f"epoch/{name}", value, record.epoch)

    def on_end(self, training: Running) -> None:
        """Close the log."""
        self.writer.close()


class Frames(Callback):
    """Keeps what the decoder makes of the same latent points after each epoch, as pictures.

    They are ``epoch-000001.png`` and so on, grey or in colours; ``vaebench plot RUN film`` makes a
    film of a run's.

    Args:
        folder: where to put them; made if need be.
        image_shape: of an image as the model takes it: (H, W), (C, H, W), or (D,) of a square.
        z: (N, Z) latent points; by default, with two latents, a grid of 12 x 12 by equal steps of
            the prior's probability; else 144 draws of the prior.
        y: (N, ...) labels for them, for a model that takes labels.
        every: epochs from one picture to the next.
    """

    ACROSS = 12

    def __init__(
        self,
        folder: str | os.PathLike[str],
        image_shape: Sequence[int] = (28, 28),
        z: Tensor | None = None,
        y: Tensor | None = None,
        every: int = 1,
    ) -> None:
        self.folder, self.image_shape, self.z, self.y = Path(folder), tuple(image_shape), z, y
        self.every = check_count("every", every)

    def on_start(self, training: Running) -> None:
        """Make the folder: not before all else is known to be sound."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.folder} cannot be made ({error.strerror}): name another folder"
            ) from error

    def on_epoch(self, training: Running, record: EpochRecord) -> None:
        """Decode and write."""
        if record.epoch % self.every:
            return
        from PIL import Image

        pixels = self._decoded(training.model)
        path = self.folder / f"epoch-{record.epoch:06d}.png"
        try:
            Image.fromarray(pixels.numpy()).save(path)
        except OSError as error:
            raise ResourceError(f"{path} cannot be written: {error.strerror or error}") from error

    @torch.no_grad()
    def _decoded(self, model: nn.Module) -> Tensor:
        """A mosaic (rows x H, columns x W[, 3]) uint8."""
        device = next(model.parameters()).device
        side = math.isqrt(math.prod(self.image_shape))
        flat = len(self.image_shape) == 1
        channels, height, width = (1, side, side) if flat else (1, *self.image_shape)[-3:]
        x = torch.zeros((2, *self.image_shape), device=device)
        y = () if self.y is None else (self.y.to(device),)
        with untouched(model):
            found, _ = adapted(model.eval(), x, likelihood_of(model), *(t[:2] for t in y))
            vae = as_vae(found)
            mu, _ = vae.encode(x, *(t[:2] for t in y))
            z = grid_of(mu.shape[1], self.ACROSS) if self.z is None else self.z
            decoded = vae.decode(z.to(device), *y)
        mean = mean_pixels(likelihood_of(model), decoded).clamp(0, 1)
        images = mean.float().reshape(-1, channels, height, width).cpu()
        across = min(self.ACROSS, len(images))
        rows = len(images) // across
        images = images[: rows * across].reshape(rows, across, channels, height, width)
        sheet = images.permute(0, 3, 1, 4, 2).reshape(rows * height, across * width, channels)
        return (255 * sheet).round().to(torch.uint8).squeeze(2)


def square_of(ticks: Tensor) -> Tensor:
    """All pairs of ticks (T^2, 2), row by row: the first to the right, the second upwards."""
    down, right = torch.meshgrid(ticks.flip(0), ticks, indexing="ij")
    return torch.stack([right, down], -1).reshape(-1, 2)


def grid_of(latent_dim: int, across: int) -> Tensor:
    """Latent points (across^2, Z): a grid if there are two latents, else draws, always the same."""
    if latent_dim == 2:
        return square_of(torch.special.ndtri(torch.linspace(0.05, 0.95, across)))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(across**2, latent_dim, generator=generator)
