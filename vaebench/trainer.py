"""fit(): the only training loop. It hands order and noise to an engine and reads sums back."""

import contextlib
import copy
import dataclasses
import functools
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from vaebench.config import ENGINES, check_amp
from vaebench.data import as_images
from vaebench.elbo import Objective, elbo_terms
from vaebench.engine import TRAINING, Engine, random_stream
from vaebench.errors import InputError, TrainingError
from vaebench.evaluation import evaluate
from vaebench.fast import make_engine
from vaebench.fast.denormals import run_flushed
from vaebench.fast.loader import to_unit
from vaebench.machine import count_flops, resolve_device, synchronize
from vaebench.model import as_vae, latent_size, likelihood_of
from vaebench.reference import ReferenceEngine

# How often the progress bar moves in an epoch; an engine is called once per move.
MOVES_PER_EPOCH = 20

_PHASES = ("compile", "train", "eval")


@dataclass(frozen=True)
class EpochRecord:
    """One epoch. ELBO, recon and kl in nats per image; recon and kl are those of training.

    ``train_elbo`` is the mean over the epoch's steps, each with the parameters it started from.
    ``test_elbo`` is None where there are no test images. ``seconds`` is the training's alone.
    """

    epoch: int
    train_elbo: float
    test_elbo: float | None
    recon: float
    kl: float
    seconds: float
    images_per_second: float


@dataclass
class History:
    """What a training did.

    ``seconds`` splits its time into ``compile`` (building and warming up the engine), ``train``
    and ``eval``. ``requested`` and ``actual`` hold engine, compile, amp, device; ``notes`` says in
    words where and why they differ. ``flops_per_image`` counts one image's forward and backward
    pass; see :func:`training_flops`.
    """

    epochs: list[EpochRecord] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_PHASES, 0.0))
    requested: dict[str, Any] = field(default_factory=dict)
    actual: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    flops_per_image: float = math.nan

    @property
    def images_per_second(self) -> float:
        """Steady throughput: the median over the epochs, the first left out if there are more."""
        rates = [record.images_per_second for record in self.epochs]
        return statistics.median(rates[1:] or rates)


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C: the epoch under way was finished; ``history`` holds all that was done."""

    def __init__(self, history: History) -> None:
        super().__init__(f"interrupted after epoch {len(history.epochs)}")
        self.history = history


def fit(
    model: nn.Module,
    images: Tensor,
    *,
    epochs: int = 10,
    batch_size: int = 128,
    lr: float = 1e-3,
    likelihood: str | None = None,
    sigma: float = 1.0,
    beta: float = 1.0,
    seed: int = 0,
    device: str | torch.device = "auto",
    compile: bool = False,
    amp: str | None = None,
    engine: str = "fast",
    products: bool = True,
    flush_denormal: bool = True,
    test_images: Tensor | None = None,
    progress: bool = False,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> History:
    """Train ``model`` in place by maximising the ELBO with Adam.

    Args:
        model: any module with ``encode(x) -> (mu, logvar)`` and ``decode(z) -> output``.
        images: (N, ...) uint8, scaled to [0, 1], or floating; each epoch uses each once.
        epochs: passes over the images.
        batch_size: images per step, at most N. A short last batch is trained on.
        lr: Adam's learning rate.
        likelihood: ``"bernoulli"`` or ``"gaussian"``; default: the model's own, else Bernoulli.
        sigma: standard deviation of the Gaussian likelihood.
        beta: weight of the KL in the loss; ELBOs are reported at 1.
        seed: of the order and the noise. One seed, device and set of options gives one result,
            bit for bit. The initial weights are the model's, whatever made them.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"``; the model is moved there.
        compile: compile the whole step. Where that is impossible, warn and train eagerly.
        amp: None, ``"auto"`` (bf16 autocast where it is measured to pay) or ``"bf16"``.
        engine: ``"fast"``, or ``"reference"`` for plain eager PyTorch.
        products: on the CPU, compute small convolutions as matrix products; their weights are
            then laid out channels last in memory.
        flush_denormal: treat denormals as zero; on the CPU.
        test_images: evaluated after each epoch.
        progress: show a bar on stderr.
        on_epoch: called after each epoch with its record.

    Returns:
        History: a record per epoch, the time split, what was asked for and what really ran.

    Raises:
        InputError: an argument that cannot be; says which, and what is accepted.
        TrainingError: the ELBO is no longer finite.
        TrainingInterrupted: Ctrl-C. The epoch under way was finished first.
    """
    target = resolve_device(device)
    objective = Objective(likelihood or likelihood_of(model), sigma, beta)
    _check_settings(epochs, batch_size, lr, amp, engine, compile)
    images = check_images(images, objective, "images")
    if batch_size > len(images):
        raise InputError(
            f"batch_size is {batch_size}, more than the {len(images)} images: make it smaller"
        )
    if test_images is not None:
        test_images = check_images(test_images, objective, "test_images")
    flush = flush_denormal and target.type == "cpu"
    history = History(
        requested={"engine": engine, "compile": compile, "amp": amp, "device": str(device)},
        actual={"engine": engine, "device": str(target), "flush_denormal": flush},
    )
    stop = threading.Event()

    def train() -> None:
        with _timed(history, "compile"):
            model.to(target)
            latent_dim = latent_size(model, to_unit(images[:1].to(target)))
            fast = functools.partial(make_engine, products=products)
            build = _build_reference if engine == "reference" else fast
            trainee, actual, notes = build(
                model, images, objective, batch_size, lr, target, compile=compile, amp=amp
            )
            synchronize(target)
            history.flops_per_image = training_flops(model, images)
        history.actual |= actual
        history.notes += notes
        numbers = _Numbers(len(images), latent_dim, batch_size, seed, target)
        with _bar(epochs * len(images), progress) as bar:
            while len(history.epochs) < epochs and not stop.is_set():
                record = _train_epoch(trainee, numbers, history, bar)
                if test_images is not None:
                    with _timed(history, "eval"):
                        test = evaluate(
                            model,
                            test_images,
                            likelihood=objective.likelihood,
                            sigma=sigma,
                            seed=seed,
                        )
                    record = dataclasses.replace(record, test_elbo=test.elbo)
                history.epochs.append(record)
                if on_epoch:
                    on_epoch(record)

    run_flushed(train, flush=flush, on_interrupt=stop.set)
    if len(history.epochs) < epochs:
        raise TrainingInterrupted(history)
    return history


def check_images(images: Tensor, objective: Objective, name: str) -> Tensor:
    """Check an array of images and that the likelihood can take its values; give it as a tensor.

    Raises:
        InputError: see :func:`vaebench.data.as_images`; or floats outside [0, 1] for a Bernoulli
            likelihood.
    """
    images = as_images(images)
    if objective.likelihood == "bernoulli" and images.is_floating_point():
        low, high = images.min().item(), images.max().item()
        if low < 0 or high > 1:
            raise InputError(
                f"{name} holds values from {low:.4g} to {high:.4g}: a Bernoulli likelihood takes "
                "[0, 1] or uint8; rescale them, or use the gaussian likelihood"
            )
    return images


def training_flops(model: nn.Module, images: Tensor) -> float:
    """FLOP of one image's forward and backward pass, as matrix products and convolutions.

    Counted by torch on a copy of the model, eagerly, for the dense arithmetic that the model asks
    for: an engine that saves some of it is credited with all of it.
    """
    count = min(len(images), 128)
    model = copy.deepcopy(model)
    x = to_unit(images[:count].to(next(model.parameters()).device))
    eps = torch.zeros(count, latent_size(model, x[:1]), device=x.device)

    def work() -> None:
        recon, kl = elbo_terms(as_vae(model), Objective(likelihood_of(model)), x, eps)
        (kl - recon).mean().backward()

    return count_flops(work) / count


class _Numbers:
    """The random numbers of a training: each epoch's order and noise, from one stream."""

    def __init__(
        self, images: int, latent_dim: int, batch_size: int, seed: int, device: torch.device
    ) -> None:
        self.images, self.latent_dim, self.batch_size = images, latent_dim, batch_size
        self.generator = random_stream(seed, TRAINING, device)

    def epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw an epoch; give it in pieces of whole batches, so that a progress bar can move."""
        device = self.generator.device
        order = torch.randperm(self.images, generator=self.generator, device=device)
        noise = torch.randn(self.images, self.latent_dim, generator=self.generator, device=device)
        steps = math.ceil(self.images / self.batch_size)
        piece = math.ceil(steps / MOVES_PER_EPOCH) * self.batch_size
        return zip(order.split(piece), noise.split(piece), strict=True)


def _train_epoch(
    trainee: Engine, numbers: _Numbers, history: History, bar: "tqdm[NoReturn]"
) -> EpochRecord:
    start = time.perf_counter()
    sums = []
    for order, noise in numbers.epoch():
        sums.append(trainee.epoch(order, noise))
        bar.update(len(order))
    # Turning sums into floats waits for the device: only after this is the clock's reading true.
    recon = sum(float(part.recon) for part in sums) / numbers.images
    kl = sum(float(part.kl) for part in sums) / numbers.images
    seconds = time.perf_counter() - start
    history.seconds["train"] += seconds
    epoch = len(history.epochs) + 1
    if not math.isfinite(recon - kl):
        raise TrainingError(
            f"the training ELBO is {recon - kl} in epoch {epoch} (recon {recon:.4g}, kl {kl:.4g}): "
            "lower the learning rate, and check the images for outliers"
        )
    bar.set_postfix(elbo=f"{recon - kl:.2f}", refresh=False)
    return EpochRecord(epoch, recon - kl, None, recon, kl, seconds, numbers.images / seconds)


def _build_reference(
    model: nn.Module,
    images: Tensor,
    objective: Objective,
    batch_size: int,
    lr: float,
    device: torch.device,
    *,
    compile: bool,
    amp: str | None,
) -> tuple[Engine, dict[str, Any], list[str]]:
    engine = ReferenceEngine(
        model,
        images,
        batch_size=batch_size,
        lr=lr,
        likelihood=objective.likelihood,
        sigma=objective.sigma,
        beta=objective.beta,
        device=device,
    )
    return engine, {"compile": compile, "amp": amp or "float32"}, []


def _check_settings(
    epochs: int, batch_size: int, lr: float, amp: str | None, engine: str, compile: bool
) -> None:
    if epochs < 1:
        raise InputError(f"epochs is {epochs}: it must be at least 1")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}: it must be at least 1")
    if not (math.isfinite(lr) and lr > 0):
        raise InputError(f"lr is {lr}: it must be a finite number above 0")
    check_amp(amp)
    if engine not in ENGINES:
        raise InputError(f"engine is {engine!r}: choose from {', '.join(ENGINES)}")
    if engine == "reference" and (compile or amp):
        raise InputError("the reference engine is plain eager float32: drop compile and amp")


@contextlib.contextmanager
def _timed(history: History, phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    history.seconds[phase] += time.perf_counter() - start


def _bar(images: int, progress: bool) -> "tqdm[NoReturn]":
    """Show progress on stderr if it is wanted and there is a terminal; tqdm limits its own cost."""
    return tqdm(total=images, unit=" images", unit_scale=True, disable=None if progress else True)
