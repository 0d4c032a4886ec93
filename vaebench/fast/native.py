"""Whole steps of a fully connected VAE by one native kernel: forward, backward, update.

A compiled graph calls a library for each product, and passes its results from one operator to the
next through memory. Here (``native.cpp``) one team of threads goes through all of a step, and one
call through many steps: products are tiles that stay in registers until activation, likelihood or
the update has been applied to them; no gradient of a weight is stored, but where a step adds them
up or clips by their norm; the first layer leaves out dark pixels. The arithmetic is float32, as in
the eager step, which is its plain twin.
Under ``amp`` the output layer's three products, nine tenths of those that are left, take bfloat16
factors and add up in float32, where the processor has instructions for it (AVX-512 BF16). Where it
multiplies squares of them (AMX), so do hidden layers that are wide on both sides, the first with
all its pixels: that is sooner than leaving dark ones out.

It is C++, built in seconds when it is first used; the CPU only.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from ctypes import byref

import torch
from torch import Tensor, nn

from vaebench.engine import Sums
from vaebench.errors import InputError
from vaebench.fast.admit import Verdict
from vaebench.fast.chain.kernel import (
    ALIGNMENT,
    LIKELIHOODS,
    RULES,
    Net,
    Optimizer,
    describe,
    takes_squares,
)
from vaebench.fast.chain.kernel import kernel as _kernel
from vaebench.fast.chain.layers import Chain
from vaebench.fast.chain.read import as_numbers, read
from vaebench.fast.crew import LONG, TRIAL, Crew
from vaebench.fast.draft import Draft, Offer
from vaebench.fast.kernels.nonzero import dark
from vaebench.fast.layout import COLUMNS, LaidOut
from vaebench.fast.optimizer import ADAGRAD_EPS, RMSPROP_ALPHA, RMSPROP_EPS, OptimizerState
from vaebench.fast.step import Context, Step, StepEngine, has_hooks
from vaebench.models.protocol import is_altered
from vaebench.problem import Problem
from vaebench.system.toolchain import CompileError

MOST_LAYERS = 64
# Which of an optimiser's memories is the kernel's first moment, and which its second.
_FIRST, _SECOND = ("m", "momentum"), ("v", "sum")


def supports_bf16() -> bool:
    """Whether the kernel can be built here, and multiplies bfloat16."""
    try:
        return bool(_kernel().vaebench_native_bf16())
    except CompileError:
        return False  # building the engine will say so


def offer(draft: Draft) -> Offer | str:
    """Offer the kernel for what it supports; see :mod:`vaebench.fast.build`."""
    problem, optimizer = draft.problem, draft.optimizer
    if draft.whole or not draft.asks("compile"):
        return ""
    chain = read(problem)
    if chain is None and not _is_linear(problem.model):
        return ""
    reason = _unknown(problem, chain, optimizer) or _elsewhere(draft)
    if chain is None or reason:
        return f"the kernel does not know {reason}; the step is compiled as any other's"
    bf16 = draft.plan.autocast is not None
    if bf16 and not supports_bf16():
        return ""
    squares = bf16 and takes_squares(chain.encoder[0])
    sparse = draft.asks("sparse") and not squares
    note = dark(problem.images) if sparse else None
    step = draft.engine.step
    engine = NativeEngine(problem, chain, step, optimizer, sparse=bool(note), bf16=bf16)

    def said(verdict: Verdict) -> str:
        if not verdict.wins:
            times = verdict.candidate / verdict.other
            return (
                f"--native: a native step took {times:.2f}x an eager step's time here; the step is "
                "compiled as any other's"
            )
        return verdict.compiling(time.perf_counter() - draft.begun)

    actual = {"compile": True, "native": True, **({"sparse": True} if note else {})}
    notes = [note] if note else []
    if squares and draft.asks("sparse"):
        notes.append(
            "--sparse: AMX multiplies all pixels in bf16 sooner than dark ones are left out"
        )
    return Offer(engine, actual=actual, whole=True, said=said, notes=notes)


def _is_linear(model: nn.Module) -> bool:
    """Whether all that is trained are linear layers."""
    return all(type(m) is nn.Linear for m in model.modules() if list(m.parameters(recurse=False)))


def _unknown(problem: Problem, chain: Chain | None, optimizer: OptimizerState) -> str | None:
    """Name what the kernel does not know of a model of linear layers, if anything."""
    if chain is None:
        return (
            "linear layers but in a chain, with ReLU, leaky ReLU, ELU, SiLU, GELU, tanh, sigmoid, "
            "softplus or a gate after each hidden one"
        )
    return unsupported(problem, chain, optimizer)


def _elsewhere(draft: Draft) -> str | None:
    """Why the kernel does not train here, if so."""
    if draft.group:
        return "several processes"
    return None if draft.problem.resident else "streamed images"


def unsupported(problem: Problem, chain: Chain, optimizer: OptimizerState) -> str | None:
    """Name what of a problem with a fully connected network the kernel does not know, if anything.

    It knows the ELBO of one z per image under N(0, I); the optimisers by name, of all parameters,
    as float32; images of uint8 or float32, on the CPU. The module may be anybody's, but nothing may
    listen to its layers, which are not called.
    """
    model, objective = problem.model, problem.objective
    if not objective.is_simple:
        return "objectives of several samples, or with free bits"
    if objective.likelihood not in LIKELIHOODS or getattr(problem.vae, "mixture_prior", None):
        return "such a likelihood or prior"
    if problem.device.type != "cpu" or problem.images.dtype not in (torch.uint8, torch.float32):
        return "such images"
    if problem.told:
        return f"code that does more than compute ({problem.told[0]})"
    if problem.kept:
        return "modules that keep what they compute"
    if not problem.steady or any(is_altered(module) for module in model.modules()):
        return "modules with hooks, methods of their own in an instance, or a state that changes"
    if problem.labels is not None and not _exact(problem, chain.labels):
        return "such labels: of more classes than pixels, or numbers that a byte does not hold"
    layers = chain.in_order()
    used = [(id(p), layer.first) for layer in layers for p in (layer.weight, layer.bias)]
    params = {id(p): p for layer in layers for p in (layer.weight, layer.bias)}
    plain = all(p.dtype == torch.float32 and p.is_contiguous() for p in params.values())
    rows = sum(layer.outputs for layer in layers)
    whole = rows == sum(len(p) for p in params.values() if p.dim() == 1)
    if not plain or params.keys() != {id(p) for p in optimizer.params}:
        return "parameters that are frozen, or not plain float32"
    if not whole or len(set(used)) != len(used) or len(layers) > MOST_LAYERS:
        return "layers that share parameters, or so many"
    if problem.given is not None:
        return "an optimiser of the caller's"
    if has_hooks(list(params.values())) or not optimizer.even:
        return "hooks on gradients, or parameters updated more often than others"
    return None


def _exact(problem: Problem, width: int) -> bool:
    """Whether labels can stand behind the images' pixels, in the same type of number."""
    labels = problem.labels
    assert labels is not None
    if width > problem.images[0].numel():
        return False
    if not labels.is_floating_point():
        return 0 <= int(labels.min()) <= int(labels.max()) < width
    return problem.images.dtype != torch.uint8 or bool(((labels == 0) | (labels == 1)).all())


class NativeEngine(StepEngine):
    """Trains by the kernel; see :class:`vaebench.engine.Engine`.

    Args:
        problem: one that is not :func:`unsupported`.
        chain: its network.
        step: the plain twin.
        optimizer: Adam's state of all of the model's parameters.
        sparse: whether the first layer leaves out dark pixels.
        bf16: whether the output layer multiplies bfloat16, and, by squares (AMX), hidden ones that
            are wide on both sides; see :func:`supports_bf16`.

    Raises:
        vaebench.system.toolchain.CompileError: the kernel cannot be built.
    """

    def __init__(
        self,
        problem: Problem,
        chain: Chain,
        step: Step,
        optimizer: OptimizerState,
        *,
        sparse: bool,
        bf16: bool,
    ) -> None:
        self.chain = chain
        contexts: list[Context] = []
        if sparse:
            first = chain.encoder[0]
            weights = [layer.weight for layer in (first, first.gate) if layer]
            for weight in {id(w): w for w in weights}.values():
                contexts.append(LaidOut(optimizer.belonging_to(weight), COLUMNS))
        if chain.labels:
            contexts.append(self._labelled)
        super().__init__(problem, step, optimizer, contexts)
        self.images = self.images.contiguous()
        self.inputs = self.images
        if chain.labels:
            shape = (len(self.images), chain.encoder[0].inputs)
            self.inputs = torch.empty(shape, dtype=self.images.dtype)
        self.objective, self.sparse, self.bf16 = problem.objective, sparse, bf16
        floats = _kernel().vaebench_native_workspace(byref(self._net()), self.batch_size)
        workspace = torch.zeros(floats + ALIGNMENT // 4)
        self.workspace = workspace[-workspace.data_ptr() % ALIGNMENT // 4 :]
        self.crew = Crew(torch.get_num_threads())

    @contextlib.contextmanager
    def _labelled(self) -> Iterator[None]:
        """Put images and labels side by side, (N, D + L), as they are now: both may change."""
        labels, width = self.problem.labels, self.chain.labels
        assert labels is not None
        if not _exact(self.problem, width):
            raise InputError(
                "labels were changed to what the kernel cannot take: leave them as they are, or "
                "set native=False"
            )
        numbers = as_numbers(labels, width)
        self.inputs[:, :-width] = self.images.flatten(1)
        self.inputs[:, -width:] = numbers.mul(255) if self.images.dtype == torch.uint8 else numbers
        yield

    def _net(self) -> Net:
        """Describe the model as it is now: tensors may have been given other memory."""
        state = self.optimizer
        place = {id(p): i for i, p in enumerate(state.params)}

        def memory(param: Tensor) -> list[Tensor | None]:
            return [
                param,
                *(_moment(state, names, place[id(param)]) for names in (_FIRST, _SECOND)),
            ]

        described = describe(self.chain, self.objective, memory, sparse=self.sparse, bf16=self.bf16)
        described.optimizer = _rule(state)
        return described

    def warm_up(self) -> None:
        """See :meth:`vaebench.engine.Engine.warm_up`; find out how many threads are fastest."""
        super().warm_up()
        images = min(TRIAL * self.batch_size, len(self.images))
        order, noise = torch.arange(images), self.no_noise(images)
        with self.unchanged(), self.training():
            begun = time.perf_counter()
            self.run(order[: self.batch_size], noise[: self.batch_size])
            if time.perf_counter() - begun < LONG:
                for _ in self.crew.sizes:
                    self.run(order, noise)

    @property
    def remarks(self) -> Sequence[str]:
        """See :meth:`vaebench.engine.Engine.remarks`."""
        remark = self.crew.remark()
        return (remark,) if remark else ()

    def run(self, order: Tensor, noise: Tensor) -> Sums:
        """Train on the images at ``order``; see :meth:`vaebench.engine.Engine.epoch`."""
        totals = torch.zeros(2, dtype=torch.float64)
        order, noise = order.contiguous(), noise.contiguous()
        # The kernel reads where it is told to, without asking.
        if len(order) and not 0 <= int(order.min()) <= int(order.max()) < len(self.images):
            raise IndexError(f"order must be of indices from 0 to {len(self.images) - 1}")
        if noise.shape != (len(order), self.latent_dim) or noise.dtype != torch.float32:
            raise ValueError(f"noise must be float32 of {len(order)} x {self.latent_dim}")
        net, size = self._net(), self.batch_size
        if torch.get_num_threads() != self.crew.most:  # somebody allows more now, or fewer
            self.crew = Crew(torch.get_num_threads())

        def steps(first: int, count: int, threads: int) -> None:
            part = slice(first * size, (first + count) * size)
            _kernel().vaebench_native_steps(
                byref(net),
                self.workspace.data_ptr(),
                size,
                len(order[part]),
                self.images.element_size(),
                *(t.data_ptr() for t in (self.inputs, order[part], noise[part], totals)),
                threads,
            )

        self.crew.run(-(-len(order) // size), steps)
        return Sums(totals[0], totals[1], len(order))


def _moment(state: OptimizerState, names: tuple[str, ...], place: int) -> Tensor | None:
    """What an optimiser remembers of a parameter under one of these names, if anything."""
    return next((state.moments[name][place] for name in names if name in state.moments), None)


def _rule(state: OptimizerState) -> Optimizer:
    settings = state.settings
    eps, (beta1, beta2) = settings.adam_eps, settings.adam_betas
    if settings.name == "adagrad":
        eps = ADAGRAD_EPS
    elif settings.name == "rmsprop":
        eps, beta2 = RMSPROP_EPS, RMSPROP_ALPHA
    return Optimizer(
        RULES[settings.name],
        *(eps, beta1, beta2, settings.weight_decay, settings.momentum),
        *(settings.clip_norm or 0.0, settings.clip_value or 0.0),
        state.step.data_ptr(),
        state.lr.data_ptr(),
    )
