"""The ladder of techniques; the only place where they are combined.

One technique, one file, one word: ``loader`` (data resident on the device), ``stream`` (data that
does not fit there), ``adam`` and ``adagrad`` (fused), ``precision`` (``amp``), ``tf32``,
``compiled`` (``compile``), ``native`` (this package's own VAE by one kernel), ``triton_step``
(``triton``: by a few, on CUDA), ``graph`` (many steps replayed at once), ``sparse``, ``likelihood``
(``fused_likelihood``), ``products`` (convolutions as matrix products), ``parallel`` (several
processes), ``denormals`` (``flush_denormal``, applied by the trainer, since it is a setting of
threads). To remove one, delete its file and its lines here.
``payoff`` measures whether compiling pays; ``selfcheck`` tries an engine beside the plain one
before it is used.
"""

import contextlib
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from vaebench.data.images import gather, to_unit
from vaebench.data.streaming import explained, fits
from vaebench.fast.adagrad import AdagradState
from vaebench.fast.adam import AdamState
from vaebench.fast.amp import Precision, by_steps, choose
from vaebench.fast.compile import CompiledStep
from vaebench.fast.fused_likelihood import with_fused_likelihood
from vaebench.fast.graph import CaptureError, GraphEngine, capture_for, step_seconds
from vaebench.fast.native import NativeEngine, layers_of, takes, takes_halves
from vaebench.fast.parallel import ParallelEngine, ParallelStep, exchange
from vaebench.fast.payoff import race
from vaebench.fast.products import lay_out, with_products
from vaebench.fast.selfcheck import FLOAT32, ROUNDED, Tolerance, disagreement
from vaebench.fast.sparse import darkness, lay_out_by_columns, with_sparse_input
from vaebench.fast.step import Optimizer, Step, StepEngine, alone, make_step
from vaebench.fast.stream import StreamEngine
from vaebench.fast.tf32 import applies, with_tf32, without_tf32
from vaebench.fast.triton_step import FINE, PersistentEngine
from vaebench.fast.triton_step import takes as takes_triton
from vaebench.fast.triton_step import triton_step as by_triton
from vaebench.models.mlp import VAE
from vaebench.models.protocol import latent_size
from vaebench.objective import Objective
from vaebench.problem import reached
from vaebench.system.distributed import Group
from vaebench.system.toolchain import CompileError


class Built(NamedTuple):
    """A warmed-up engine and what it really is, against what was asked for.

    ``actual`` holds ``compile``, ``native``, ``triton``, ``persistent``, ``sparse``,
    ``fused_likelihood`` and ``tf32`` (bool), ``amp`` (``"bf16"`` or ``"float32"``), ``graph`` (the
    steps per replay, or False) and ``data_on`` (``"device"`` or ``"host, streamed"``); ``notes``
    one line for each request that could not be met, or was decided by measurement.
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
    native: bool = True,
    triton: bool = False,
    persistent: bool = False,
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
        amp: None, ``"auto"`` or ``"bf16"``; see :mod:`vaebench.fast.amp`.
        native: compile this package's own fully connected VAE by a kernel written for it; on the
            CPU; see :mod:`vaebench.fast.native`.
        triton: train it by Triton kernels written for it, without autocast, on CUDA, in place of
            a compiled step; see :mod:`vaebench.fast.triton_step`.
        persistent: by one launch of such a kernel for many steps, and so without a graph; tried
            before ``triton``.
        tf32: round the factors of float32 products; on CUDA; see :mod:`vaebench.fast.tf32`.
        products: compute convolutions as matrix products, where that pays: on the CPU in float32.
            Their weights are then laid out channels last.
        sparse: let the first layer leave out dark pixels where they are many; compiled, in
            float32, on the CPU; see :mod:`vaebench.fast.sparse`.
        fused_likelihood: compute a Bernoulli likelihood and its gradient in one pass; compiled, on
            the CPU; see :mod:`vaebench.fast.fused_likelihood`.
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
    begun = time.perf_counter()  # to compile: kernels may be built from here on
    by_hand = compile and native and optimizer == "adam" and resident and not group
    by_hand = by_hand and takes(model, images, objective)
    by_hand = by_hand and (precision.dtype is None or takes_halves())
    network, light, aim = model, None, objective
    if by_hand:
        light = darkness(images) if sparse else None
        if light:
            lay_out_by_columns(layers_of(cast(VAE, model)).encoder[0])
    elif compile:
        with contextlib.suppress(CompileError):  # compiling the step will say so
            if sparse and precision.dtype is None:
                network, light = with_sparse_input(model, images, shown)
            if fused_likelihood:
                aim = with_fused_likelihood(objective, device)
    built = time.perf_counter() - begun
    # Elsewhere, and under autocast, a library's own convolutions are the faster or finer ones.
    suits = products and device.type == "cpu" and precision.dtype is None
    count = lay_out(model) if suits else 0
    if count:
        notes.append(f"--products: {count} convolutions as matrix products")
    # After both: what the optimiser remembers is laid out in memory as the parameters are.
    latent_dim = latent_size(model, shown[:1])
    params = reached(model, objective, shown, latent_dim)
    state: Optimizer = AdamState.of(params, lr, adam_eps)
    if optimizer == "adagrad":
        state = AdagradState.of(params, lr)
    make = _Maker(
        images, device, batch_size, latent_dim, objective.samples, state, precision.dtype,
        bool(count), rounded, resident, group,
    )  # fmt: skip
    eager = make.engine(model, objective)
    fused = aim is not objective
    kernels = {"native": by_hand, "sparse": light is not None, "fused_likelihood": fused}
    common: dict[str, Any] = {"amp": precision.name, "tf32": rounded}
    common |= {"triton": False, "persistent": False}
    common["data_on"] = "device" if resident else "host, streamed"
    capturable = graph and group is None and resident
    unused = dict.fromkeys(kernels, False)
    for word, wanted in (("persistent", persistent), ("triton", triton)):
        written = make.triton(word, model, objective, eager, notes) if wanted else None
        if written:
            actual = {"compile": compile, **common, **unused, word: True}
            return _captured(written, actual, notes, wanted=capturable and word == "triton")
    if compile:
        compiled = partial(make.engine, network, aim, compile=True)
        if by_hand:
            ours = cast(VAE, model)
            compiled = partial(make.native, ours, objective, eager.step, sparse=light is not None)
        paying = _paying(compiled, eager, notes, built, alone=group is None)
        if paying:
            notes += [light] if light else []
            actual = {"compile": True, **common, **kernels}
            return _captured(paying, actual, notes, wanted=capturable)
    eager.warm_up()
    actual = {"compile": False, **common, **unused}
    return _captured(eager, actual, notes, wanted=capturable)


@dataclass(frozen=True)
class _Maker:
    """Makes engines that train one model: all update it by one state."""

    images: Tensor
    device: torch.device
    batch_size: int
    latent_dim: int
    samples: int
    state: Optimizer
    autocast: torch.dtype | None
    products: bool
    tf32: bool
    resident: bool
    group: Group | None

    @property
    def words(self) -> tuple[Any, ...]:
        """What every engine is given."""
        return self.state, self.batch_size, self.latent_dim, self.samples

    def engine(self, network: nn.Module, aim: Objective, *, compile: bool = False) -> StepEngine:
        """Make an engine of PyTorch's operators, eager or compiled."""
        group = self.group
        passed_on = exchange if group else alone
        step = make_step(network, aim, self.state, gather, self.autocast, passed_on)
        if compile:
            part = group.share(self.batch_size) if group else slice(0, self.batch_size)
            step = CompiledStep(step, part.stop - part.start)
        if self.products:
            step = with_products(step, network)
        if self.device.type == "cuda":
            step = with_tf32(step) if self.tf32 else without_tf32(step)
        if not self.resident:
            return StreamEngine(self.device, network, self.images, step, *self.words)
        if group is None:
            return StepEngine(network, self.images, step, *self.words)
        mine = ParallelStep(step, self.idle, group)
        return ParallelEngine(group, network, self.images, mine, *self.words)

    def native(self, model: VAE, aim: Objective, twin: Step, *, sparse: bool) -> StepEngine:
        """Make the engine of the native kernel."""
        halves = self.autocast is not None
        return NativeEngine(aim, sparse, halves, model, self.images, twin, *self.words)

    def triton(
        self, word: str, model: nn.Module, aim: Objective, eager: StepEngine, notes: list[str]
    ) -> StepEngine | None:
        """Make the engine of Triton's kernels, tried beside the eager one; note why there is none.

        ``word`` is the request, ``"triton"`` or ``"persistent"``. Which way to multiply float32 is
        the faster one is measured.
        """
        plain = self.autocast is None and self.resident and self.group is None
        if not (plain and takes_triton(model, self.images, aim, self.state)):
            notes.append(
                f"--{word}: Triton's kernels train a plain vaebench.VAE with one hidden layer and "
                "ReLU, without autocast, in one process, on CUDA; trained without"
            )
            return None
        at_once = word == "persistent"
        right: dict[str, StepEngine] = {}
        for precision in ("tf32",) if self.tf32 else FINE:
            step = by_triton(model, aim, self.state, precision)
            engine = (PersistentEngine if at_once else StepEngine)(
                model, self.images, step, *self.words
            )
            wrong = _wrong(engine, eager, ROUNDED if self.tf32 else FLOAT32)
            if wrong is None:
                right[precision] = engine
            else:
                notes.append(f"--{word}: Triton's kernels ({precision}) went wrong here ({wrong})")
        if not right:
            warnings.warn(f"{notes[-1][2:]}; training without", stacklevel=3)
            return None
        capture = None if at_once else capture_for(self.device)
        seconds = {name: step_seconds(engine, capture) for name, engine in right.items()}
        best = min(seconds, key=seconds.__getitem__)
        tried = ", ".join(f"{name} {1e6 * took:.1f}" for name, took in seconds.items())
        notes.append(f"--{word}: products in {best} (microseconds a step: {tried})")
        return right[best]

    def idle(self) -> None:
        """Take part in an exchange of gradients with no images."""
        nothing = tuple(torch.zeros_like(p) for p in self.state.params)
        self.state.update(exchange(nothing, 0))


def _wrong(engine: StepEngine, eager: StepEngine, tolerance: Tolerance) -> str | None:
    """Try a hand-written engine beside the eager one; say what is wrong with it, None if nothing.

    What is wrong on a machine that its kernels were never run on may show in any way.
    """
    sizes = [min(4 * eager.batch_size, len(eager.images)), len(eager.images) % eager.batch_size]
    try:
        engine.warm_up()
        return disagreement(engine, eager, [size for size in sizes if size], tolerance)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {(lines or ['no reason given'])[0]}"


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
        around = with_tf32 if rounded else without_tf32
        words = (state, batch_size, latent_dim, objective.samples)
        engine = StepEngine(model, images, around(step), *words)
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


def _paying(
    make: Callable[[], StepEngine],
    eager: StepEngine,
    notes: list[str],
    built: float,
    *,
    alone: bool,
) -> StepEngine | None:
    """Compile; give the engine if it pays, and add to the notes when it does, or why not.

    ``built`` is how many seconds building kernels for it has taken already.
    """
    start = time.perf_counter() - built
    try:
        compiled = make()
        compiled.warm_up()
    except CompileError as error:
        warnings.warn(f"{error}; training eagerly", stacklevel=3)
        notes.append(f"--compile: {error}; trained eagerly")
        return None
    if not alone:  # several processes would each measure, and wait for, another
        return compiled
    seconds = time.perf_counter() - start
    verdict = race(compiled, eager)
    notes.append(verdict.note(seconds))
    return compiled if verdict.compiled_wins else None
