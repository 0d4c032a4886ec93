"""fit(): the only training loop. It hands order and noise to an engine and reads sums back."""

import contextlib
import dataclasses
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from vaebench.binarize import NOTES, Sampler
from vaebench.binarize import binarize as binarized
from vaebench.checks import check_choice, check_count, check_real, check_seed, check_switch
from vaebench.config import BINARIZE, ENGINES, OPTIMIZERS, SCHEDULES, check_amp
from vaebench.elbo import Objective, elbo_terms
from vaebench.engine import TEST_PIXELS, TRAINING, TRAINING_PIXELS, Engine, random_stream
from vaebench.errors import InputError, TrainingError
from vaebench.evaluation import check_images, evaluate
from vaebench.fast import make_engine
from vaebench.fast.denormals import run_flushed
from vaebench.fast.loader import to_unit
from vaebench.machine import count_flops, resolve_device, synchronize
from vaebench.model import as_vae, latent_size, likelihood_of
from vaebench.processes import Group, count
from vaebench.reference import ReferenceEngine
from vaebench.schedule import lr_factor
from vaebench.trial import device_of, try_out, untouched

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
    optimizer: str = "adam",
    adam_eps: float = 1e-8,
    schedule: str = "constant",
    likelihood: str | None = None,
    sigma: float = 1.0,
    beta: float = 1.0,
    objective: str = "vae",
    samples: int = 1,
    binarize: str = "none",
    seed: int = 0,
    device: str | torch.device = "auto",
    compile: bool = False,
    amp: str | None = None,
    engine: str = "fast",
    sparse: bool = True,
    flush_denormal: bool = True,
    test_images: Tensor | None = None,
    progress: bool = False,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> History:
    """Train ``model`` in place by maximising the ELBO, or the importance-weighted bound.

    Args:
        model: any module with ``encode(x) -> (mu, logvar)`` and ``decode(z) -> output``.
        images: (N, ...) uint8, scaled to [0, 1], or floating; each epoch uses each once.
        epochs: passes over the images.
        batch_size: images per step, at most N. A short last batch is trained on.
        lr: learning rate.
        optimizer: ``"adam"`` or ``"adagrad"``.
        adam_eps: epsilon in Adam's denominator.
        schedule: ``"constant"``, ``"iwae"`` or ``"pythae"``; see
            :func:`vaebench.schedule.lr_factor`.
        likelihood: ``"bernoulli"`` or ``"gaussian"``; default: the model's own, else Bernoulli.
        sigma: standard deviation of the Gaussian likelihood.
        beta: weight of the KL in the loss; ELBOs are reported at 1.
        objective: ``"vae"`` or ``"iwae"``; see :class:`vaebench.elbo.Objective`.
        samples: z drawn per image and step.
        binarize: ``"none"``, ``"threshold"``, ``"static"`` or ``"dynamic"``; for images and
            test_images; see :mod:`vaebench.binarize`.
        seed: of the order and the noise. One seed, device and set of options gives one result,
            bit for bit. The initial weights are the model's, whatever made them.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"``; the model is moved there.
        compile: compile the whole step. Where that is impossible, warn and train eagerly.
        amp: None, ``"auto"`` (bf16 autocast where it is measured to pay) or ``"bf16"``.
        engine: ``"fast"``, or ``"reference"`` for plain eager PyTorch.
        sparse: let the first layer leave out dark pixels where they are many; compiled, on the CPU.
        flush_denormal: treat denormals as zero; on the CPU.
        test_images: evaluated after each epoch.
        progress: show a bar on stderr.
        on_epoch: called after each epoch with its record.

    Where torch.distributed is initialised, its processes train together: each calls this with the
    same arguments and images, trains its part of every batch, and is given the same result, but
    for rounding that of one process. The first one's initial weights count; it alone evaluates.

    Returns:
        History: a record per epoch, the time split, what was asked for and what really ran.

    Raises:
        InputError: an argument that cannot be; says which, and what is accepted.
        TrainingError: the ELBO is no longer finite.
        TrainingInterrupted: Ctrl-C. The epoch under way was finished first.
    """
    target = resolve_device(device)
    as_vae(model)
    kind = likelihood_of(model) if likelihood is None else likelihood
    aim = Objective(kind, sigma, beta, objective, samples)
    epochs, batch_size = check_count("epochs", epochs), check_count("batch_size", batch_size)
    lr, seed = check_real("lr", lr), check_seed("seed", seed)
    adam_eps = check_real("adam_eps", adam_eps)
    _check_modes(amp, engine, compile)
    check_choice("optimizer", optimizer, OPTIMIZERS)
    check_choice("schedule", schedule, SCHEDULES)
    check_choice("binarize", binarize, BINARIZE)
    check_switch("sparse", sparse)
    check_switch("flush_denormal", flush_denormal)
    if on_epoch is not None and not callable(on_epoch):
        raise InputError(f"on_epoch is {on_epoch!r}: it must be a function of one EpochRecord")
    images = check_images(images, aim, "images")
    if batch_size > len(images):
        raise InputError(
            f"batch_size is {batch_size}, more than the {len(images)} images: make it smaller"
        )
    if test_images is not None:
        test_images = check_images(test_images, aim, "test_images")
        if test_images.shape[1:] != images.shape[1:]:
            raise InputError(
                f"test_images are of shape {tuple(test_images.shape[1:])} each, images of "
                f"{tuple(images.shape[1:])}: make them alike"
            )
    device_of(model)
    _check_processes(count(), model, batch_size, engine)
    sampler = Sampler(images, seed, target) if binarize == "dynamic" else None
    if binarize != "none":
        images = binarized(images, binarize, TRAINING_PIXELS)
        test_images = None if test_images is None else binarized(test_images, binarize, TEST_PIXELS)
    flush = flush_denormal and target.type == "cpu"
    history = History(
        requested={"engine": engine, "compile": compile, "amp": amp, "device": str(device)},
        actual={"engine": engine, "device": str(target), "flush_denormal": flush},
        notes=[NOTES[binarize]] if binarize in NOTES else [],
    )
    stop = threading.Event()
    group = Group(target) if count() > 1 else None
    leads = group is None or group.rank == 0

    def train() -> None:
        with _timed(history, "compile"):
            model.to(target)
            if group:
                settings = (epochs, batch_size, lr, optimizer, adam_eps, schedule, aim, binarize)
                _set_out_alike(group, model, images, (*settings, seed, compile, amp, flush))
            sizes = {batch_size, len(images) % batch_size} - {0}
            latent_dim = try_out(model, aim, to_unit(images[:2].to(target)), sizes)
            build: Callable[..., tuple[Engine, dict[str, Any], list[str]]] = _build_reference
            if engine == "fast":
                build = partial(make_engine, sparse=sparse, group=group)
            trainee, actual, notes = build(
                model,
                images,
                aim,
                batch_size,
                lr,
                target,
                compile=compile,
                amp=amp,
                optimizer=optimizer,
                adam_eps=adam_eps,
            )
            if group:
                group.check_alike("what could be compiled", actual)
                actual = {**actual, "processes": group.size}
                notes = [*notes, f"{group.size} processes took parts of each batch of {batch_size}"]
            synchronize(target)
            history.flops_per_image = training_flops(model, images, samples)
        history.actual |= actual
        history.notes += notes
        numbers = _Numbers(len(images), latent_dim, batch_size, seed, target, samples)
        with _bar(epochs * len(images), progress) as bar:
            while len(history.epochs) < epochs and not (
                group.any(stop.is_set()) if group else stop.is_set()
            ):
                epoch = len(history.epochs) + 1
                trainee.set_lr(lr * lr_factor(schedule, epoch))
                record = _train_epoch(trainee, numbers, sampler, history, bar)
                if test_images is not None:
                    with _timed(history, "eval"):
                        elbo = math.nan
                        if leads:
                            elbo = evaluate(
                                model,
                                test_images,
                                likelihood=aim.likelihood,
                                sigma=sigma,
                                seed=seed,
                            ).elbo
                        elbo = group.first_says(elbo) if group else elbo
                    record = dataclasses.replace(record, test_elbo=elbo)
                history.epochs.append(record)
                if on_epoch:
                    on_epoch(record)

    try:
        run_flushed(train, flush=flush, on_interrupt=stop.set)
    finally:
        if group:
            group.close()
    if len(history.epochs) < epochs:
        raise TrainingInterrupted(history)
    return history


def training_flops(model: nn.Module, images: Tensor, samples: int = 1) -> float:
    """FLOP of one image's forward and backward pass: matrix products and convolutions.

    Of ``samples`` z per image. Counted by torch on the model, which is left as it was, eagerly, for
    the dense arithmetic that the model asks for: an engine that saves some of it is credited with
    all of it.
    """
    count = min(len(images), 128)
    params = [p for p in model.parameters() if p.requires_grad]
    x = to_unit(images[:count].to(next(model.parameters()).device))
    shape = Objective(samples=samples).noise_shape(count, latent_size(model, x[:1]))
    eps = torch.zeros(shape, device=x.device)

    def work() -> None:
        recon, kl = elbo_terms(as_vae(model), Objective(likelihood_of(model)), x, eps)
        torch.autograd.grad((kl - recon).mean(), params, allow_unused=True)

    with untouched(model):
        return count_flops(work) / count


class _Numbers:
    """The random numbers of a training: each epoch's order and noise, from one stream."""

    def __init__(
        self,
        images: int,
        latent_dim: int,
        batch_size: int,
        seed: int,
        device: torch.device,
        samples: int,
    ) -> None:
        self.images, self.latent_dim, self.batch_size = images, latent_dim, batch_size
        self.samples = samples
        self.generator = random_stream(seed, TRAINING, device)

    def epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw an epoch; give it in pieces of whole batches, so that a progress bar can move.

        Of several samples per image the noise is drawn piece by piece: k = 50 of an epoch's 60,000
        images would be 600 MB.
        """
        device = self.generator.device
        order = torch.randperm(self.images, generator=self.generator, device=device)
        steps = math.ceil(self.images / self.batch_size)
        piece = math.ceil(steps / MOVES_PER_EPOCH) * self.batch_size
        if self.samples == 1:
            noise = self._draw(self.images)
            yield from zip(order.split(piece), noise.split(piece), strict=True)
        else:
            for part in order.split(piece):
                yield part, self._draw(len(part), self.samples)

    def _draw(self, *sizes: int) -> Tensor:
        shape = (*sizes, self.latent_dim)
        return torch.randn(shape, generator=self.generator, device=self.generator.device)


def _train_epoch(
    trainee: Engine,
    numbers: _Numbers,
    sampler: Sampler | None,
    history: History,
    bar: "tqdm[NoReturn]",
) -> EpochRecord:
    epoch = len(history.epochs) + 1
    start = time.perf_counter()
    if sampler:
        sampler.draw(epoch, trainee.images)
    sums = []
    for order, noise in numbers.epoch():
        sums.append(trainee.epoch(order, noise))
        bar.update(len(order))
    # Turning sums into floats waits for the device: only after this is the clock's reading true.
    recon = sum(float(part.recon) for part in sums) / numbers.images
    kl = sum(float(part.kl) for part in sums) / numbers.images
    seconds = time.perf_counter() - start
    history.seconds["train"] += seconds
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
    optimizer: str,
    adam_eps: float,
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
        bound=objective.bound,
        optimizer=optimizer,
        adam_eps=adam_eps,
    )
    return engine, {"compile": compile, "amp": amp or "float32"}, []


def _check_modes(amp: str | None, engine: str, compile: bool) -> None:
    check_amp(amp)
    check_choice("engine", engine, ENGINES)
    check_switch("compile", compile)
    if engine == "reference" and (compile or amp):
        raise InputError("the reference engine is plain eager float32: drop compile and amp")


def _check_processes(processes: int, model: nn.Module, batch_size: int, engine: str) -> None:
    """Raise InputError for what several processes together cannot do as one does."""
    if processes == 1:
        return
    if engine == "reference":
        raise InputError(
            f"the reference engine trains in one process, not in {processes}: use engine fast"
        )
    if batch_size < processes:
        raise InputError(
            f"batch_size is {batch_size}, for {processes} processes: give each at least one image"
        )
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    if any(isinstance(module, norms) for module in model.modules()):
        raise InputError(
            f"{type(model).__name__} has batch norm, which would see a part of each batch only "
            f"in {processes} processes: use GroupNorm or LayerNorm, or train in one process"
        )


def _set_out_alike(
    group: Group, model: nn.Module, images: Tensor, settings: tuple[object, ...]
) -> None:
    """Give all processes the first one's weights; InputError if they differ in anything else."""
    group.check_alike("their settings", *settings, images.shape, images.dtype)
    group.check_alike("their images", images.double().sum().item())
    group.check_alike("their model", str(model))
    group.copy_from_first([*model.parameters(), *model.buffers()])


@contextlib.contextmanager
def _timed(history: History, phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    history.seconds[phase] += time.perf_counter() - start


def _bar(images: int, progress: bool) -> "tqdm[NoReturn]":
    """Show progress on stderr if it is wanted and there is a terminal; tqdm limits its own cost."""
    return tqdm(total=images, unit=" images", unit_scale=True, disable=None if progress else True)
