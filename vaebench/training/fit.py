"""fit(): checks what it is given, builds an engine, and lets the loop train."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vaebench.config import BINARIZE, ENGINES, OPTIMIZERS, SCHEDULES, check_amp
from vaebench.data.binarize import NOTES, Sampler
from vaebench.data.binarize import binarize as binarized
from vaebench.data.images import to_unit
from vaebench.data.streaming import fits
from vaebench.engine import Engine
from vaebench.errors import (
    InputError,
    check_choice,
    check_count,
    check_real,
    check_seed,
    check_switch,
)
from vaebench.evaluation import check_images
from vaebench.fast import make_engine
from vaebench.fast.flush_denormal import run_flushed
from vaebench.models.protocol import as_vae, latent_size, likelihood_of
from vaebench.objective import Objective, elbo_terms
from vaebench.problem import device_of, try_out, untouched
from vaebench.reference import ReferenceEngine
from vaebench.system.device import resolve_device, synchronize
from vaebench.system.distributed import Group, count
from vaebench.system.random import TEST_PIXELS, TRAINING_PIXELS
from vaebench.system.timing import count_flops
from vaebench.training.history import EpochRecord, History, TrainingInterrupted
from vaebench.training.loop import Loop, Plan
from vaebench.training.memory import explaining_memory
from vaebench.training.state import TrainState


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
    native: bool = True,
    triton: bool = False,
    persistent: bool = False,
    tf32: bool = False,
    sparse: bool = True,
    fused_likelihood: bool = True,
    products: bool = True,
    graph: bool = True,
    flush_denormal: bool = True,
    test_images: Tensor | None = None,
    progress: bool = False,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    on_state: Callable[[TrainState], object] | None = None,
    resume: TrainState | None = None,
) -> History:
    """Train ``model`` in place by maximising the ELBO, or the importance-weighted bound.

    Args:
        model: any module with ``encode(x) -> (mu, logvar)`` and ``decode(z) -> output``.
        images: (N, ...) uint8, scaled to [0, 1], or floating; each epoch uses each once. They are
            kept on the device, or on the host and streamed if they do not fit there.
        epochs: passes over the images.
        batch_size: images per step, at most N. A short last batch is trained on.
        lr: learning rate.
        optimizer: ``"adam"`` or ``"adagrad"``.
        adam_eps: epsilon in Adam's denominator.
        schedule: ``"constant"``, ``"iwae"`` or ``"pythae"``; see
            :func:`vaebench.training.schedules.lr_factor`.
        likelihood: ``"bernoulli"`` or ``"gaussian"``; default: the model's own, else Bernoulli.
        sigma: standard deviation of the Gaussian likelihood.
        beta: weight of the KL in the loss; ELBOs are reported at 1.
        objective: ``"vae"`` or ``"iwae"``; see :class:`vaebench.objective.Objective`.
        samples: z drawn per image and step.
        binarize: ``"none"``, ``"threshold"``, ``"static"`` or ``"dynamic"``; for images and
            test_images; see :mod:`vaebench.data.binarize`.
        seed: of the order and the noise. One seed, device and set of options gives one result,
            bit for bit. The initial weights are the model's, whatever made them.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"``; the model is moved there.
        compile: compile the whole step. Where that is impossible, warn and train eagerly.
        amp: None, ``"auto"`` (bf16 autocast where it is measured to pay) or ``"bf16"``.
        engine: ``"fast"``, or ``"reference"`` for plain eager PyTorch.
        native: compile a :class:`vaebench.VAE` by a kernel written for it; on the CPU.
        triton: on CUDA, train a :class:`vaebench.VAE` by Triton kernels written for it.
        persistent: the same by one kernel that goes through many steps; tried before ``triton``.
        tf32: on CUDA, multiply factors of 10 bits instead of float32's 23: faster, but not equal.
        sparse: let the first layer leave out dark pixels where they are many; compiled, on the CPU.
        fused_likelihood: compute a Bernoulli likelihood and its gradient in one pass; likewise.
        products: on the CPU, compute small convolutions as matrix products; their weights are
            then laid out channels last in memory.
        graph: on CUDA, replay many steps at once from a CUDA graph, where that is measured to pay.
        flush_denormal: treat denormals as zero; on the CPU.
        test_images: evaluated after each epoch.
        progress: show a bar on stderr.
        on_epoch: called after each epoch with its record.
        on_state: called after each epoch, before ``on_epoch``, with all that is needed to go on
            from there; see :class:`vaebench.Checkpoints`.
        resume: go on from this state, of a training with the same arguments; ``epochs`` counts
            those already done. On the same machine the result is that of a training never
            interrupted, bit for bit. What ``amp="auto"`` decided then holds.

    Where torch.distributed is initialised, its processes train together: each calls this with the
    same arguments and images, trains its part of every batch, and is given the same result, but
    for rounding that of one process. The first one's initial weights count; it alone evaluates.

    Returns:
        History: a record per epoch, the time split, what was asked for and what really ran.

    Raises:
        InputError: an argument that cannot be; says which, and what is accepted.
        TrainingError: the ELBO or the parameters are no longer finite; says in which step.
        ResourceError: memory ran out; says which batch size fits.
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
    _check_words(optimizer=optimizer, schedule=schedule, binarize=binarize)
    kernels: dict[str, Any] = {
        "native": native,
        "triton": triton,
        "persistent": persistent,
        "tf32": tf32,
        "sparse": sparse,
        "fused_likelihood": fused_likelihood,
        "products": products,
        "graph": graph,
    }
    for switch, value in {**kernels, "flush_denormal": flush_denormal}.items():
        check_switch(switch, value)
        if engine == "reference" and value and switch in ("tf32", "triton", "persistent"):
            raise InputError(f"the reference engine is plain eager float32: drop {switch}")
    _check_call("on_epoch", on_epoch, "EpochRecord")
    _check_call("on_state", on_state, "TrainState")
    images, test_images = _check_data(images, test_images, aim, batch_size)
    device_of(model)
    _check_processes(count(), model, batch_size, engine)
    # New pixels are drawn where the images are kept: what does not fit on the device, on the host.
    home = target if count() > 1 or fits(images, target) else images.device
    sampler = Sampler(images, seed, home) if binarize == "dynamic" else None
    if binarize != "none":
        images = binarized(images, binarize, TRAINING_PIXELS)
        test_images = None if test_images is None else binarized(test_images, binarize, TEST_PIXELS)
    flush = flush_denormal and target.type == "cpu"
    history = History(
        requested={"engine": engine, "compile": compile, "amp": amp, "device": str(device)},
        actual={"engine": engine, "device": str(target), "flush_denormal": flush},
        notes=[NOTES[binarize]] if binarize in NOTES else [],
    )
    if resume:
        resume.check(epochs, engine, target)
        amp = resume.amp(amp)
    stop = threading.Event()
    group = Group(target) if count() > 1 else None
    plan = Plan(
        epochs,
        batch_size,
        lr,
        schedule,
        aim,
        seed,
        sampler,
        test_images,
        progress,
        on_epoch,
        on_state,
    )

    def train() -> None:
        with history.timed("compile"):
            model.to(target)
            if group:
                settings = (optimizer, adam_eps, schedule, aim, binarize, seed, compile, amp, flush)
                _set_out_alike(group, model, images, (epochs, batch_size, lr, *settings))
            sizes = {batch_size, len(images) % batch_size} - {0}
            latent_dim = try_out(model, aim, to_unit(images[:2].to(target)), sizes)
            build: Callable[..., tuple[Engine, dict[str, Any], list[str]]] = _build_reference
            if engine == "fast":
                build = partial(make_engine, **kernels, group=group)
            words = {"compile": compile, "amp": amp, "optimizer": optimizer, "adam_eps": adam_eps}
            trainee, actual, notes = build(model, images, aim, batch_size, lr, target, **words)
            if group:
                group.check_alike("what could be compiled", actual)
                actual = {**actual, "processes": group.size}
                notes = [*notes, f"{group.size} processes took parts of each batch of {batch_size}"]
            synchronize(target)
            history.flops_per_image = training_flops(model, images[:batch_size], samples)
        history.actual |= actual
        history.notes += notes
        loop = Loop(plan, model, trainee, len(images), latent_dim, history, group)
        loop.run(stop.is_set, resume)

    try:
        with explaining_memory(model, images, aim, batch_size, target):
            run_flushed(train, flush=flush, on_interrupt=stop.set)
    finally:
        if group:
            group.close()
    if len(history.epochs) < epochs:
        raise TrainingInterrupted(history)
    return history


def _check_call(name: str, call: object, takes: str) -> None:
    if call is not None and not callable(call):
        raise InputError(f"{name} is {call!r}: it must be a function of one {takes}")


def _check_words(**words: str) -> None:
    accepted = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "binarize": BINARIZE}
    for name, word in words.items():
        check_choice(name, word, accepted[name])


def _check_data(
    images: Tensor, test_images: Tensor | None, aim: Objective, batch_size: int
) -> tuple[Tensor, Tensor | None]:
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
    return images, test_images


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
