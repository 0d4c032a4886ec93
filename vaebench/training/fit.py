"""fit(): checks what it is given, once, builds an engine, and lets the loop train."""

import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from vaebench.config import OPTIONS, TO_THE_END, TrainConfig, asks_for
from vaebench.data.binarize import NOTES
from vaebench.data.images import to_unit
from vaebench.errors import InputError
from vaebench.fast.given import ITS_OWN, check_given
from vaebench.fast.threads import thread_settings
from vaebench.likelihoods import UNIT_INTERVAL
from vaebench.models.adapt import as_module
from vaebench.models.protocol import likelihood_of
from vaebench.models.snapshot import untouched
from vaebench.objective import Objective, elbo_terms
from vaebench.problem import Problem, device_of
from vaebench.system.device import resolve_device, synchronize
from vaebench.system.distributed import Group, count
from vaebench.system.timing import count_flops
from vaebench.system.worker import Worker, after_fork
from vaebench.training.callbacks import Callback, OnEpoch, as_callbacks
from vaebench.training.follow import Follower
from vaebench.training.history import History, TrainingInterrupted
from vaebench.training.inputs import Inputs, Test
from vaebench.training.loop import Loop, Plan
from vaebench.training.memory import explaining_memory
from vaebench.training.schedules import Schedule, as_schedule, beta_factor, lr_factor
from vaebench.training.state import LR_ENDS, TrainState

Rate = float | Sequence[float] | Schedule


def fit(
    model: nn.Module | tuple[nn.Module, nn.Module],
    images: Tensor,
    *,
    labels: Tensor | None = None,
    test_images: Test = None,
    epochs: int | None = None,
    batch_size: int | Sequence[int] | None = None,
    lr: Rate | None = None,
    seed: int | None = None,
    compile: bool | None = None,
    amp: str | bool | None = None,
    progress: bool = False,
    on_epoch: OnEpoch = None,
    on_state: Callable[[TrainState], object] | None = None,
    resume: TrainState | None = None,
    config: TrainConfig | None = None,
    **options: Any,
) -> History:
    """Train ``model`` in place by maximising the ELBO, or the importance-weighted bound.

    Between epochs each part is in its own mode, and changes act from the next on. Processes of
    torch.distributed train together, each by this call; the first one's weights count.

    Args:
        model: a module with ``encode(x) -> (mu, logvar)`` and ``decode(z) -> output``; see
            :func:`vaebench.adapt` for others.
        images: (N, ...) uint8, scaled to [0, 1], or floating; tensor or NumPy array; never written.
        labels: (N, ...) handed to the model: ``encode(x, y)``, ``decode(z, y)``.
        test_images: evaluated after each epoch; a pair (images, labels) where there are labels.
        epochs: passes over the images (10).
        batch_size: images per step (128), or of each epoch's; the last batch may be short.
        lr: learning rate (0.001); as ``beta`` also a number for each epoch, or a function of the
            time since training began, in epochs, which is asked twenty times an epoch.
        seed: of order, noise and the model's own draws (0), not of its initial weights. One seed,
            device and set of options gives one result, bit for bit.
        compile: compile the whole step (False). Where that is impossible, warn and train eagerly.
        amp: ``"auto"`` or True (bf16 autocast where it is measured to pay), or ``"bf16"``.
        progress: show a bar on stderr.
        on_epoch: a function of each epoch's record, a :class:`vaebench.Callback`, or a list.
        on_state: called before that with what it takes to go on; see :class:`vaebench.Checkpoints`.
        resume: go on from this state, to the same bits; ``epochs`` counts those already done.
        config: settings, in place of the defaults above; arguments go before it.
        options: any of :class:`vaebench.TrainConfig`'s, ``beta=2``; ``optimizer`` also an object.

    Returns:
        History: a record per epoch, the time split, what was asked for and what ran.

    Raises:
        InputError: an argument that cannot be; says which, and what is accepted.
        TrainingError: the ELBO or parameters are no longer finite; says in which step.
        ResourceError: memory ran out; says which batch size fits.
        TrainingInterrupted: Ctrl-C, after the epoch under way.
    """
    everyday = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed}
    given, schedules = _apart({**_given(everyday, compile, amp), **options})
    optimizer = _own_optimizer(given, schedules)
    config = configured(config, given)
    training = Training(config, model, images, labels, test_images, schedules, optimizer)
    return training.run(progress, as_callbacks(on_epoch), on_state, resume)


def _given(
    everyday: dict[str, Any], compile: bool | None, amp: str | bool | None
) -> dict[str, Any]:
    """Give the everyday keywords that are not None, as a config has them."""
    if isinstance(everyday["batch_size"], list | tuple):
        everyday["batch_sizes"] = everyday.pop("batch_size")
    everyday = {**everyday, "compile": compile, "amp": amp if amp is not True else "auto"}
    given = {name: value for name, value in everyday.items() if value is not None}
    if amp is False:
        given.pop("amp")
        given |= {"amp": None} if "amp" in OPTIONS else {}
    return given


def _apart(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Schedule | None]]:
    """Settings, and those of them that are schedules apart."""
    each = {name: as_schedule(name, given.get(name), zero=True) for name in ("lr", "beta")}
    return {name: value for name, value in given.items() if not each.get(name)}, each


def _own_optimizer(
    given: dict[str, Any], schedules: Mapping[str, Schedule | None]
) -> torch.optim.Optimizer | None:
    """Take an optimiser object out of the options, if there is one."""
    found = given.get("optimizer")
    if isinstance(found, type) and issubclass(found, torch.optim.Optimizer):
        raise InputError(
            f"optimizer is the class {found.__name__}: give an object, "
            f"{found.__name__}(model.parameters(), lr=...)"
        )
    if not isinstance(found, torch.optim.Optimizer):
        return None
    twice = [name for name in ITS_OWN if name in given or schedules.get(name)]
    if twice:
        raise InputError(
            f"{' and '.join(twice)} cannot be given beside an optimiser object, which has its own: "
            "set them there"
        )
    del given["optimizer"]
    return found


def configured(config: TrainConfig | None, given: dict[str, Any]) -> TrainConfig:
    """Give a config with these options in it; what is wrong is said in the library's words.

    Raises:
        InputError: a value, or a name, that cannot be.
    """
    if config is not None and not isinstance(config, TrainConfig):
        raise InputError(f"config is {config!r}: it must be a vaebench.TrainConfig")
    if "device" in given:
        given = {**given, "device": str(resolve_device(given["device"]))}
    try:
        return (config or TrainConfig()).replace(**given)
    except TypeError as error:
        raise InputError(f"{error}: vaebench.TrainConfig lists them") from error
    except InputError as error:
        message = re.sub(r"--([a-z][a-z-]*)", lambda m: m[1].replace("-", "_"), str(error))
        raise InputError(message) from error


def objective_of(config: TrainConfig, model: nn.Module, weight: Tensor | None = None) -> Objective:
    """What a config asks to be maximised; the likelihood is the model's own if it names none."""
    asked = config.objective
    kind = likelihood_of(model) if asked.likelihood is None else asked.likelihood
    return Objective(
        kind, asked.sigma, asked.beta, asked.bound, asked.samples, asked.free_bits, weight
    )


class Training:
    """One call of :func:`fit`: its arguments, checked."""

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module | tuple[nn.Module, nn.Module],
        images: Tensor,
        labels: Tensor | None,
        test_images: Test,
        schedules: Mapping[str, Schedule | None],
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.forked = after_fork()
        self.config, self.model = config, as_module(model)
        model = self.model
        self.device = resolve_device(config.run.device)
        device_of(model)
        self.optimizer = optimizer
        if optimizer is not None:
            check_given(optimizer, model)
        self._schedule(schedules)
        self.objective = objective_of(config, model, self.weight)
        self.inputs = Inputs(
            config,
            model,
            images,
            labels,
            test_images,
            unit_interval=self.objective.likelihood in UNIT_INTERVAL,
            device=self.device,
        )
        _check_processes(
            count(), model, config.optimizer.smallest, config.run.engine, self.objective.free_bits
        )
        self.stop = threading.Event()

    def _schedule(self, given: Mapping[str, Schedule | None]) -> None:
        """Settle how learning rate and KL's weight change, by what was given, or by the config."""
        optimizer, objective = self.config.optimizer, self.config.objective

        def lr(time: float) -> float:
            epochs, warmup = optimizer.epochs, optimizer.warmup
            return optimizer.lr * lr_factor(optimizer.schedule, time, epochs, warmup)

        def beta(time: float) -> float:
            factor = beta_factor(objective.beta_schedule, time, objective.beta_epochs)
            return objective.beta * factor

        self.lr = given["lr"] or lr
        self.beta = given["beta"] or (beta if objective.beta_schedule != "constant" else None)
        self.changing = bool(
            given["lr"]
            or self.beta
            or optimizer.warmup
            or optimizer.ema_decay
            or optimizer.schedule in TO_THE_END
        )
        if self.beta and objective.bound == "iwae":
            raise InputError(
                "beta has a schedule, and the importance-weighted bound has no separate KL to "
                "weigh: drop it, or use the vae objective"
            )
        self.weight = torch.ones((), device=self.device) if self.beta else None
        falls = optimizer.schedule in TO_THE_END and not given["lr"]
        self.ends = {LR_ENDS: optimizer.epochs} if falls else {}

    def run(
        self,
        progress: bool,
        callbacks: Sequence[Callback],
        on_state: Callable[[TrainState], object] | None,
        resume: TrainState | None,
    ) -> History:
        """Train; see :func:`fit`."""
        if on_state is not None and not callable(on_state):
            raise InputError(f"on_state is {on_state!r}: it must be a function of one TrainState")
        config, device = self.config, self.device
        prepare, settings = thread_settings(config.fast, device)
        history = History(
            requested={
                "engine": config.run.engine,
                "compile": bool(asks_for(config.fast, "compile")),
                "amp": asks_for(config.fast, "amp"),
                "device": config.run.device,
            },
            actual={"engine": config.run.engine, "device": str(device), **settings, **self.ends},
            notes=[NOTES[how]] if (how := config.data.binarize) in NOTES else [],
        )
        if resume:
            resume.check(config.optimizer.epochs, config.run.engine, device)
            if asks_for(config.fast, "amp"):
                config = config.replace(amp=resume.amp(config.fast.amp))
        first = 1 + (len(resume.epochs) if resume else 0)
        config = config.replace(batch_size=config.optimizer.size_of(first))
        group = Group(device) if count() > 1 else None
        plan = Plan(
            config.optimizer,
            self.lr,
            self.beta,
            config.run.seed,
            self.inputs.sampler,
            self.inputs.test,
            self.inputs.held_out,
            progress,
            callbacks,
            on_state,
            self.changing,
        )
        memory = explaining_memory(
            self.model,
            self.inputs.images,
            self.inputs.labels,
            self.objective,
            config.optimizer.largest,
            device,
        )
        around = closing(group) if group else nullcontext()
        with memory, around, Worker(prepare, self.stop.set) as worker:
            with history.timed("compile"):
                follower = worker.run(lambda: self._build(config, history, group))
            loop = Loop(plan, follower, history, group, worker)
            loop.run(self.stop.is_set, resume)
        history.notes += [self.forked] if self.forked else []
        if len(history.epochs) < plan.epochs and not history.stopped_early:
            raise TrainingInterrupted(history)
        return history

    def _build(self, config: TrainConfig, history: History, group: Group | None) -> Follower:
        """Check the problem, and build the engine for it, in the thread that trains."""
        model, device = self.model, self.device
        if group:
            model.to(device)
            _set_out_alike(group, model, self.inputs.images, self.inputs.labels, config)
        problem = Problem.of(
            model,
            self.inputs.images,
            self.objective,
            config.optimizer,
            device,
            labels=self.inputs.labels,
            resident=self.inputs.resident,
            given=self.optimizer,
        )
        follower = Follower(problem, config, group)
        if group:
            group.check_alike("what could be compiled", follower.actual)
            follower.actual["processes"] = group.world_size
            follower.notes.append(
                f"{group.world_size} processes took parts of each batch of {problem.batch_size}"
            )
        synchronize(device)
        history.flops_per_image = training_flops(problem)
        history.actual |= follower.actual
        history.notes += follower.notes
        return follower


def training_flops(problem: Problem) -> float:
    """FLOP of one image's forward and backward pass: matrix products and convolutions.

    Counted by torch on the model, which is left as it was, eagerly, for the dense arithmetic that
    the model asks for: an engine that saves some of it is credited with all of it. Not a number
    where torch cannot count them.
    """
    objective, samples = problem.objective, problem.objective.samples
    size = min(problem.batch_size, 128)  # a step has room for that many
    x = to_unit(problem.images[:size].to(problem.device)).clone()
    y = () if problem.labels is None else (problem.labels[:size],)
    shape = Objective(samples=samples).noise_shape(size, problem.latent_dim)
    eps = torch.zeros(shape, device=x.device)

    def work() -> None:
        recon, kl = elbo_terms(problem.vae, Objective(objective.likelihood), x, eps, *y)
        torch.autograd.grad((kl - recon).mean(), problem.params, allow_unused=True)

    try:
        with untouched(problem.model):
            return count_flops(work) / size
    except torch.OutOfMemoryError:
        raise
    except Exception:  # torch's counter stumbles over what plain training does not
        return math.nan


def _check_processes(
    processes: int, model: nn.Module, batch_size: int, engine: str, free_bits: float = 0.0
) -> None:
    """Raise InputError for what several processes together cannot do as one does."""
    if processes == 1:
        return
    if free_bits:
        raise InputError(
            f"free_bits is {free_bits}, which goes by the mean over a whole batch, and {processes} "
            "processes have a part of it each: leave it at 0, or train in one process"
        )
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
    group: Group, model: nn.Module, images: Tensor, labels: Tensor | None, config: TrainConfig
) -> None:
    """Give all processes the first one's weights; InputError if they differ in anything else."""
    settings = {k: v for k, v in config.options().items() if k not in ("device", "out", "quiet")}
    group.check_alike("their settings", settings, images.shape, images.dtype)
    group.check_alike("their images", images.double().sum().item())
    group.check_alike("their labels", None if labels is None else labels.double().sum().item())
    group.check_alike("their model", str(model))
    group.copy_from_first([*model.parameters(), *model.buffers()])
