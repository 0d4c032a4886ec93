"""The ladder of techniques; the only place where they are combined.

One technique, one file, one word: ``loader`` (data resident on the device), ``stream`` (data that
does not fit there), ``adam`` and ``adagrad`` (fused), ``precision`` (``amp``), ``tf32``,
``compiled`` (``compile``), ``graph`` (many steps replayed at once), ``sparse``, ``likelihood``
(``fused_likelihood``), ``products`` (convolutions as matrix products), ``parallel`` (several
processes), ``denormals`` (``flush_denormal``, applied by the trainer, since it is a setting of
threads). To remove one, delete its file and its line here. ``payoff`` measures whether compiling
pays; ``selfcheck`` tries an engine beside the plain one before it is used.
"""

import contextlib
import time
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vaebench.elbo import Objective
from vaebench.fast.adagrad import AdagradState
from vaebench.fast.adam import AdamState
from vaebench.fast.compiled import CompiledStep, CompileError, compile_errors
from vaebench.fast.graph import CaptureError, GraphEngine, capture_for, step_seconds
from vaebench.fast.likelihood import with_fused_likelihood
from vaebench.fast.loader import gather, to_unit
from vaebench.fast.parallel import ParallelEngine, ParallelStep, exchange
from vaebench.fast.payoff import race
from vaebench.fast.precision import Precision, by_steps, choose
from vaebench.fast.products import lay_out, with_products
from vaebench.fast.selfcheck import disagreement
from vaebench.fast.sparse import with_sparse_input
from vaebench.fast.step import Optimizer, Step, StepEngine, alone, make_step
from vaebench.fast.stream import StreamEngine
from vaebench.fast.tf32 import applies, with_tf32
from vaebench.model import latent_size
from vaebench.processes import Group
from vaebench.streaming import explained, fits
from vaebench.trial import reached


class Built(NamedTuple):
    """A warmed-up engine and what it really is, against what was asked for.

    ``actual`` holds ``compile``, ``sparse`` and ``fused_likelihood`` (bool) and ``amp`` (``"bf16"``
    or ``"float32"``), ``tf32`` (bool), ``graph`` the steps per replay, or False, ``data_on``
    ``"device"`` or ``"host, streamed"``; ``notes`` one line for each request that could not be met,
    or was decided by measurement.
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
    tf32: bool = False,
    sparse: bool = True,
    fused_likelihood: bool = True,
    products: bool = True,
    graph: bool = True,
    optimizer: str = "adam",
    adam_eps: float = 1e-8,
    group: Group | None = None,
) -> Built:
    """Put model and images on the device and build the fast engine for them, warmed up.

    Images that the device's memory does not hold stay on the host and are streamed, unless several
    processes train together.

    Args:
        model: with ``encode`` and ``decode``; trained in place, every parameter that wants a
            gradient and that the loss depends on.
        images: (N, ...) uint8, or float32.
        objective: the loss.
        batch_size: images per step.
        lr: learning rate.
        device: where everything runs.
        compile: compile the step. If that cannot be done the engine runs eagerly, with a warning
            and a note; with a note alone if compiled steps are measured to be slower.
        amp: None, ``"auto"`` or ``"bf16"``; see :mod:`vaebench.fast.precision`.
        tf32: round the factors of float32 products; on CUDA; see :mod:`vaebench.fast.tf32`.
        products: compute convolutions as matrix products, where that pays: on the CPU in float32.
            Their weights are then laid out channels last.
        sparse: let the first layer leave out dark pixels where they are many; compiled, in
            float32, on the CPU; see :mod:`vaebench.fast.sparse`.
        fused_likelihood: compute a Bernoulli likelihood and its gradient in one pass; compiled, on
            the CPU; see :mod:`vaebench.fast.likelihood`.
        graph: replay many steps at once, where that pays; on CUDA, in one process; see
            :mod:`vaebench.fast.graph`.
        optimizer: ``"adam"`` or ``"adagrad"``.
        adam_eps: epsilon in Adam's denominator.
        group: the processes that train together, each with all of the images; None: this one.
    """
    model.to(device)
    resident = group is not None or fits(images, device)
    images = images.to(device) if resident else images
    shown = to_unit(images[:2].to(device))
    latent_dim = latent_size(model, shown[:1])
    rounded = tf32 and applies(device)
    some = images if resident else images[: 16 * batch_size].to(device)
    precision = _precision(amp, model, some, objective, batch_size, rounded=rounded, graph=graph)
    if group:  # one decision, by one measurement
        bf16 = group.first_says(float(precision.dtype is not None))
        precision = Precision(torch.bfloat16 if bf16 else None, precision.reason)
    notes = [f"--amp: {precision.reason}"] if amp else []
    if not resident:
        notes.append(explained(images, device))
    if tf32 and not rounded:
        notes.append(f"--tf32: {device} has no such products; trained in {precision.name}")
    network, light, aim = model, None, objective
    if compile:
        with contextlib.suppress(CompileError), compile_errors():  # compiling the step will say so
            if sparse and precision.dtype is None:
                network, light = with_sparse_input(model, images, shown)
            if fused_likelihood:
                aim = with_fused_likelihood(objective, device)
    # Elsewhere, and under autocast, a library's own convolutions are the faster or finer ones.
    suits = products and device.type == "cpu" and precision.dtype is None
    count = lay_out(model) if suits else 0
    if count:
        notes.append(f"--products: {count} convolutions as matrix products")
    # After both: what the optimiser remembers is laid out in memory as the parameters are.
    params = reached(model, objective, shown, latent_dim)
    state: Optimizer = AdamState.of(params, lr, adam_eps)
    if optimizer == "adagrad":
        state = AdagradState.of(params, lr)

    def idle() -> None:
        state.update(exchange(tuple(torch.zeros_like(p) for p in params), 0))

    def engine(network: nn.Module, step: Step) -> StepEngine:
        if count:
            step = with_products(step, network)
        if rounded:
            step = with_tf32(step)
        words = (state, batch_size, latent_dim, objective.samples)
        if not resident:
            return StreamEngine(device, network, images, step, *words)
        if group is None:
            return StepEngine(network, images, step, *words)
        return ParallelEngine(group, network, images, ParallelStep(step, idle, group), *words)

    def step(network: nn.Module, aim: Objective) -> Step:
        passed_on = exchange if group else alone
        return make_step(network, aim, state, gather, precision.dtype, passed_on)

    eager = engine(model, step(model, objective))
    kernels = {"sparse": light is not None, "fused_likelihood": aim is not objective}
    common = {"amp": precision.name, "tf32": rounded}
    common["data_on"] = "device" if resident else "host, streamed"
    capturable = graph and group is None and resident
    if compile:
        part = group.share(batch_size) if group else slice(0, batch_size)
        compiled = engine(network, CompiledStep(step(network, aim), part.stop - part.start))
        if _pays(compiled, eager, notes, alone=group is None):
            notes += [light] if light else []
            actual = {"compile": True, **common, **kernels}
            return _captured(compiled, actual, notes, wanted=capturable)
    eager.warm_up()
    actual = {"compile": False, **common, **dict.fromkeys(kernels, False)}
    return _captured(eager, actual, notes, wanted=capturable)


def _precision(
    amp: str | None,
    model: nn.Module,
    images: Tensor,
    objective: Objective,
    batch_size: int,
    *,
    rounded: bool,
    graph: bool,
) -> Precision:
    """Decide on a precision: on a GPU by whole steps, eager, replayed from a graph if wanted.

    Compiled they would be faster, but to compile both takes longer than it could ever save.
    """
    device = images.device
    if amp != "auto" or device.type == "cpu" or batch_size > len(images):
        return choose(amp, device)
    latent_dim = latent_size(model, to_unit(images[:1]))
    params = reached(model, objective, to_unit(images[:2]), latent_dim)

    def seconds(dtype: torch.dtype | None) -> float:
        state = AdamState.of(params, 0.0)
        step = make_step(model, objective, state, gather, dtype)
        words = (state, batch_size, latent_dim, objective.samples)
        engine = StepEngine(model, images, with_tf32(step) if rounded else step, *words)
        return step_seconds(engine, capture_for(device) if graph else None)

    return by_steps(seconds)


def _captured(
    plain: StepEngine, actual: dict[str, Any], notes: list[str], *, wanted: bool
) -> Built:
    """Replay a warmed-up engine's steps from a graph, where that can be, pays, and agrees."""
    actual["graph"] = False
    capture = capture_for(plain.device) if wanted else None
    if capture is None:
        return Built(plain, actual, notes)
    replayed = GraphEngine(plain, capture)
    try:
        replayed.warm_up()
    except CaptureError as error:
        warnings.warn(f"{error}; training without a graph", stacklevel=3)
        notes.append(f"--graph: {error}; trained without")
        return Built(plain, actual, notes)
    wrong = disagreement(replayed, plain, replayed.pieces)
    if wrong:
        warnings.warn(f"replayed steps go wrong ({wrong}); training without a graph", stacklevel=3)
        notes.append(f"--graph: replayed steps went wrong ({wrong}); trained without")
        return Built(plain, actual, notes)
    notes.append(replayed.note())
    if not replayed.pays:
        return Built(plain, actual, notes)
    actual["graph"] = replayed.steps_at_once
    return Built(replayed, actual, notes)


def _pays(compiled: StepEngine, eager: StepEngine, notes: list[str], *, alone: bool) -> bool:
    """Compile; say whether to train compiled, and add to the notes why not, or when it pays."""
    start = time.perf_counter()
    try:
        compiled.warm_up()
    except CompileError as error:
        warnings.warn(f"{error}; training eagerly", stacklevel=3)
        notes.append(f"--compile: {error}; trained eagerly")
        return False
    if not alone:  # several processes would each measure, and wait for, another
        return True
    seconds = time.perf_counter() - start
    verdict = race(compiled, eager)
    notes.append(verdict.note(seconds))
    return verdict.compiled_wins
