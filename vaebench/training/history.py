"""What a training did, epoch by epoch."""

import contextlib
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_PHASES = ("compile", "train", "eval")


@dataclass(frozen=True)
class EpochRecord:
    """One epoch. ELBO, recon and kl in nats per image; recon and kl are those of training.

    ``train_elbo`` is the mean over the epoch's steps, each with the parameters it started from.
    ``test_elbo`` is None where there are no test images, ``validation_elbo``, that of the images
    held out, where there are none. ``seconds`` is the training's alone.
    """

    epoch: int
    train_elbo: float
    test_elbo: float | None
    recon: float
    kl: float
    seconds: float
    images_per_second: float
    validation_elbo: float | None = None


@dataclass(frozen=True, eq=False)
class Best:
    """The epoch whose ``validation_elbo`` is best, and a copy of the weights it left."""

    epoch: int
    elbo: float
    weights: "dict[str, Tensor]" = field(repr=False)


@dataclass
class History:
    """What a training did.

    ``seconds`` splits its time into ``compile`` (building and warming up the engine), ``train``
    and ``eval``. ``requested`` and ``actual`` hold engine, compile, amp, device; ``notes`` says in
    words where and why they differ. ``flops_per_image`` counts one image's forward and backward
    pass; see :func:`vaebench.training.fit.training_flops`. ``best`` is the best epoch, where images
    are held out; ``stopped_early`` says that ``patience`` ended the training.
    """

    epochs: list[EpochRecord] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_PHASES, 0.0))
    requested: dict[str, Any] = field(default_factory=dict)
    actual: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    flops_per_image: float = math.nan
    best: Best | None = None
    stopped_early: bool = False

    @property
    def images_per_second(self) -> float:
        """Steady throughput: the median over the epochs, the first left out if there are more."""
        rates = [record.images_per_second for record in self.epochs]
        return statistics.median(rates[1:] or rates)

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the block's time to a phase."""
        start = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - start


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C: the epoch under way was finished; ``history`` holds all that was done."""

    def __init__(self, history: History) -> None:
        super().__init__(f"interrupted after epoch {len(history.epochs)}")
        self.history = history
