"""A model and a few of its images, and what the plain step, and any engine, make of them."""

import copy
import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vaebench.config import FastConfig, TrainConfig, without
from vaebench.data.arrays import checked
from vaebench.data.labels import check_labels
from vaebench.errors import InputError
from vaebench.fast import admit
from vaebench.fast.build import make_engine
from vaebench.fast.optimizer import RMSPROP_ALPHA, OptimizerState
from vaebench.fast.register import TECHNIQUES
from vaebench.likelihoods import UNIT_INTERVAL
from vaebench.models.adapt import as_module, classes_of
from vaebench.models.protocol import EncoderDecoder
from vaebench.problem import Problem
from vaebench.proof.rules import STEPS, Outcome, copies, float64, values
from vaebench.reference import ReferenceEngine
from vaebench.system.device import resolve_device
from vaebench.training.fit import objective_of
from vaebench.training.follow import reference_of

# Full batches of an epoch; a short one follows them.
BATCHES = 12
Numbers = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Run:
    """An engine, and the copy of the model that it trains.

    ``actual`` and ``notes`` are those of :class:`vaebench.fast.build.Built`.
    """

    engine: Any  # a StepEngine or a ReferenceEngine
    problem: Problem
    actual: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()

    def epoch(self, numbers: Numbers, seed: int = 0) -> tuple[float, float]:
        """Train on an order and noise; (recon, kl), summed over the images.

        ``seed`` is of what the model draws for itself.
        """
        order, noise = numbers
        if self.problem.params[0].dtype == torch.float64:
            noise = noise.double()
        device = self.problem.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for generator in _defaults(device):
                generator.manual_seed(seed)
            with self.engine.training():
                sums = self.engine.epoch(order, noise)
        return float(sums.recon), float(sums.kl)

    def step(self, numbers: Numbers, seed: int = 0) -> Outcome:
        """What the first step leaves: its numbers are those of one batch."""
        params = self.problem.params
        before = copies(params)
        recon, kl = self.epoch(numbers, seed)
        if isinstance(self.engine, ReferenceEngine):
            grads: Sequence[Tensor | None] = [p.grad for p in params]
        else:
            rounded = any(self.actual.get(t.name, t.idle) != t.idle for t in TECHNIQUES if t.rounds)
            grads = _gradients(self.engine.optimizer, before, rounded=rounded)
        kept = [None if g is None else g.detach().clone() for g in grads]
        buffers = values(dict(self.problem.model.named_buffers()))
        return Outcome(recon - kl, kept, copies(params), buffers)


def _defaults(device: torch.device) -> list[torch.Generator]:
    """Torch's own generators, of the host and of a device."""
    on_device = [torch.cuda.default_generators[device.index or 0]] if device.type == "cuda" else []
    return [torch.default_generator, *on_device]


# Of these optimisers' first gradients only the sizes can be told.
SIZES_ALONE = ("adagrad", "rmsprop")


def _gradients(
    state: OptimizerState, before: Sequence[Tensor], *, rounded: bool
) -> Sequence[Tensor | None]:
    """The gradients of an engine's first step, by what its optimiser remembers of them.

    Moments start at zero. Those of squares give the size. None where nothing of them is
    remembered: of SGD without momentum the change of the parameters, which rounding makes coarse.
    """
    settings, moments = state.settings, state.moments
    decay = 0.0 if settings.name == "adamw" else settings.weight_decay
    if settings.name in SIZES_ALONE:
        share, squares = (1.0, "sum") if settings.name == "adagrad" else (1 - RMSPROP_ALPHA, "v")
        return [None if decay else (t / share).sqrt() for t in moments[squares]]
    if "m" in moments:
        grads = [m / (1 - settings.adam_betas[0]) for m in moments["m"]]
    elif "momentum" in moments:
        grads = moments["momentum"]
    elif rounded:
        pairs = zip(before, state.params, strict=True)
        grads = [(b - p.detach()) / settings.lr for b, p in pairs]
    else:
        return [None] * len(before)
    return [g - decay * b for g, b in zip(grads, before, strict=True)]


class _Autocast(nn.Module):
    """Encodes and decodes under autocast to bfloat16, and gives float32."""

    def __init__(self, vae: EncoderDecoder, kind: str) -> None:
        super().__init__()
        self.vae, self.kind = vae, kind

    def encode(self, x: Tensor, *y: Tensor) -> Any:
        with torch.autocast(self.kind, torch.bfloat16):
            return tuple(t.float() for t in self.vae.encode(x, *y))

    def decode(self, z: Tensor, *y: Tensor) -> Any:
        with torch.autocast(self.kind, torch.bfloat16):
            output = self.vae.decode(z, *y)
        return output.float() if isinstance(output, Tensor) else tuple(t.float() for t in output)


class Subject:
    """What something is proved about; the caller's model is copied, and never trained.

    Args:
        model, images, labels: as for :func:`vaebench.fit`. Of the images the first are taken, a
            dozen batches and a short one.
        config: objective, optimiser, device.

    Raises:
        InputError: as ``fit`` does, or the model cannot be copied.
    """

    def __init__(
        self,
        model: nn.Module | tuple[nn.Module, nn.Module],
        images: Tensor,
        labels: Tensor | None,
        config: TrainConfig,
    ) -> None:
        self.model, self.config = as_module(model), config
        self.objective = objective_of(config, self.model)
        self.device = resolve_device(config.run.device)
        size = config.optimizer.batch_size
        unit = self.objective.likelihood in UNIT_INTERVAL
        pixels = checked(images, "images", unit_interval=unit).pixels
        if size > len(pixels):
            raise InputError(
                f"batch_size is {size}, more than the {len(pixels)} images: make it smaller"
            )
        used = min(len(pixels), BATCHES * size + math.ceil(size / 3))
        self.images, self.labels = pixels[:used], None
        if labels is not None:
            self.labels = check_labels(labels, len(pixels), classes=classes_of(self.model))[:used]
        self.epochs = math.ceil(STEPS / math.ceil(used / size))
        problem = self._problem()
        known = {id(p): name for name, p in problem.model.named_parameters()}
        self.names = [known[id(p)] for p in problem.params]
        self.before = copies(problem.params)
        self.has_channels = any(p.dim() == 4 for p in problem.params)
        self.latent_dim = problem.latent_dim

    def __str__(self) -> str:
        """Say what it is, in a line."""
        parameters = sum(p.numel() for p in self.before)
        shape = "x".join(map(str, self.images.shape[1:]))
        return (
            f"{type(self.model).__name__} of {parameters:,} parameters, {len(self.images):,} "
            f"images of {shape} in batches of {self.config.optimizer.batch_size}, "
            f"{self.objective.likelihood} likelihood, {self.config.optimizer.name}, on "
            f"{self.device}"
        )

    def _problem(self) -> Problem:
        """The problem, of a copy of the model."""
        try:
            model = copy.deepcopy(self.model)
        except Exception as error:  # whatever a model may do when it is copied
            raise InputError(
                f"{type(self.model).__name__} cannot be copied ({error}), and a proof trains copies"
            ) from error
        return Problem.of(
            model, self.images, self.objective, self.config.optimizer, self.device,
            labels=self.labels, resident=True,
        )  # fmt: skip

    def numbers(self, images: int | None = None, epoch: int = 0) -> Numbers:
        """An order of so many images (None: all), and their noise; of an epoch always the same."""
        images = len(self.images) if images is None else images
        generator = torch.Generator().manual_seed(epoch)
        order = torch.randperm(len(self.images), generator=generator)[:images]
        noise = torch.randn(
            self.objective.noise_shape(images, self.latent_dim), generator=generator
        )
        return order.to(self.device), noise.to(self.device)

    def plain(self, *, last: bool = False, autocast: bool = False) -> Run:
        """The reference engine.

        Args:
            last: let channels lie last in memory, which is another way for eager code to round.
            autocast: let encoder and decoder run under autocast to bfloat16.
        """
        problem = self._problem()
        vae: Any = problem.vae
        if last:
            vae.to(memory_format=torch.channels_last)
        if autocast:
            vae = _Autocast(vae, self.device.type)
        return Run(reference_of(dataclasses.replace(problem, vae=vae)), problem)

    def truth(self) -> Run:
        """The reference engine in float64."""
        problem = self._problem()
        vae: Any = problem.vae
        images = problem.images.double()
        images = images / 255 if problem.images.dtype == torch.uint8 else images
        labels = None if problem.labels is None else float64(problem.labels)
        vae.double()  # in place: the problem's parameters are these
        exact = dataclasses.replace(problem, images=images, labels=labels)
        return Run(reference_of(exact), problem)

    def build(self, names: Sequence[str]) -> Run:
        """The engine of some techniques, right or wrong, faster or slower; others are off."""
        problem = self._problem()
        with admit.opened(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            built = make_engine(problem, only(names))
        return Run(built.engine, problem, built.actual, built.notes)


def only(names: Sequence[str]) -> FastConfig:
    """Ask for these techniques, and for no others."""
    off = without(FastConfig(), *(t.name for t in TECHNIQUES))
    asked = {t.name: getattr(off, t.name) for t in TECHNIQUES}
    asked |= {t.name: "bf16" if t.option else True for t in TECHNIQUES if t.name in names}
    return FastConfig(**asked)
