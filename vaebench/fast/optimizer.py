"""Optimisers without hidden state, so that a compiler sees all of it.

A rule is a name, what it remembers of each parameter, and a function of tensors alone. The formulas
and the defaults are those of torch.optim's class of that name, at its version 2.14.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaebench.config import OptimizerConfig
from vaebench.engine import copy_state
from vaebench.fast.direct import implement
from vaebench.fast.layout import in_memory_order, laid_out_as, real

RMSPROP_ALPHA, RMSPROP_EPS, ADAGRAD_EPS = 0.99, 1e-8, 1e-10


class Numbers(NamedTuple):
    """What a rule is told beside tensors: compiled code has them as constants."""

    eps: float
    beta1: float
    beta2: float
    weight_decay: float
    momentum: float

    @classmethod
    def of(cls, settings: OptimizerConfig) -> "Numbers":
        """Those of a config."""
        decay, momentum = settings.weight_decay, settings.momentum
        return cls(settings.adam_eps, *settings.adam_betas, decay, momentum)


class Update(NamedTuple):
    """One update, of parameters by gradients, in place.

    ``moments`` are lists as long as the parameters', one of each kind, one behind the other.
    """

    params: list[Tensor]
    grads: list[Tensor]
    moments: list[Tensor]
    steps: list[Tensor]
    lr: Tensor
    numbers: Numbers

    @property
    def kinds(self) -> list[list[Tensor]]:
        """The moments of each kind."""
        size = len(self.params)
        return [self.moments[i : i + size] for i in range(0, len(self.moments), size)]

    @property
    def decayed(self) -> list[Tensor]:
        """The gradients with weight decay in them."""
        decay = self.numbers.weight_decay
        if not decay:
            return self.grads
        return list(torch._foreach_add(self.grads, self.params, alpha=decay))


Kernel = Callable[[Update], None]


@dataclass(frozen=True)
class OptimizerState:
    """Everything an optimiser remembers, in the order of the parameters.

    ``lr`` and ``steps`` are tensors on the device: a compiled or captured step then reads them
    anew each time, where a Python number would be frozen into it. Parameters that have been updated
    equally often share one count. ``moments`` are of the parameters' shapes, by name.
    """

    params: list[Tensor]
    moments: dict[str, list[Tensor]]
    steps: list[Tensor]
    lr: Tensor
    settings: OptimizerConfig
    # Of parameters that are not trained at the moment, by their id: the parameter, its count, its
    # moments.
    resting: dict[int, list[Tensor]] = field(default_factory=dict)

    # The different counts, each once. Known beforehand: a graph must not depend on identities.
    counts: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "counts", list({id(s): s for s in self.steps}.values()))

    @classmethod
    def of(
        cls, params: list[Tensor], settings: OptimizerConfig, *, apart: bool = False
    ) -> "OptimizerState":
        """Start: moments zero, step 0; ``apart``: each parameter has a count of its own."""
        device = params[0].device
        step = torch.zeros((), dtype=torch.float32, device=device)
        names = remembered(settings)
        return cls(
            params,
            {name: [torch.zeros_like(p) for p in params] for name in names},
            [step.clone() if apart else step for _ in params],
            torch.tensor(settings.lr, dtype=torch.float32, device=device),
            settings,
        )

    @property
    def step(self) -> Tensor:
        """The count of all parameters, where they share one."""
        return self.steps[0]

    @property
    def even(self) -> bool:
        """Whether all parameters share one count."""
        return all(step is self.step for step in self.steps)

    @property
    def is_adam(self) -> bool:
        """Whether this is Adam or AdamW of gradients as they are: some kernels have it in them."""
        return self.settings.name in ("adam", "adamw") and not self.settings.clips

    @property
    def is_plain_adam(self) -> bool:
        """Whether it is Adam with the usual betas and no weight decay."""
        usual = (self.settings.adam_betas, self.settings.weight_decay) == ((0.9, 0.999), 0)
        return self.is_adam and usual

    def following(self, params: list[Tensor], *, apart: bool = False) -> "OptimizerState":
        """Go on with these parameters: what is remembered of each goes with it.

        One that was not there before starts as at the beginning; one that is not there any more
        (a layer frozen) is remembered until it comes back, as torch.optim does.
        """
        entries = zip(self.params, self.steps, *self._lists, strict=True)
        known = self.resting | {id(entry[0]): list(entry) for entry in entries}
        trained = set(map(id, params))
        # Their counts are copies: the shared one goes on.
        resting = {
            key: [p, step.clone(), *moments]
            for key, (p, step, *moments) in known.items()
            if key not in trained
        }
        fresh = torch.zeros_like(self.lr)

        def begun(p: Tensor) -> list[Tensor]:
            return [p, fresh, *(torch.zeros_like(p) for _ in self.moments)]

        now = [known[id(p)] if id(p) in known else begun(p) for p in params]
        _, steps, *lists = map(list, zip(*now, strict=True))
        moments = dict(zip(self.moments, lists, strict=True))
        steps = [step.clone() for step in steps] if apart else steps
        return OptimizerState(params, moments, steps, self.lr, self.settings, resting)

    def set_lr(self, lr: float) -> None:
        """Use this learning rate from the next step on."""
        self.lr.fill_(lr)

    @contextlib.contextmanager
    def stepping(self) -> Iterator[None]:
        """What an engine enters while it trains."""
        yield

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Put everything that an update changes back at the end, in place."""
        tensors = self.tensors()
        before = [t.detach().clone() for t in tensors]
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(tensors, before, strict=True):
                    tensor.copy_(value)

    @property
    def _lists(self) -> list[list[Tensor]]:
        return list(self.moments.values())

    def belonging_to(self, param: Tensor) -> list[Tensor]:
        """A parameter, and what is remembered of it in its shape."""
        i = next(i for i, p in enumerate(self.params) if p is param)
        return [param, *(moments[i] for moments in self._lists)]

    def tensors(self) -> list[Tensor]:
        """All that an update changes."""
        return [*self.params, *(t for moments in self._lists for t in moments), *self.counts]

    def memory(self) -> dict[str, Tensor]:
        """What is remembered beside the parameters, by name; the learning rate is a setting."""
        named = {f"{word}.{i}": t for word, ts in self.moments.items() for i, t in enumerate(ts)}
        if self.even:
            return {**named, "step": self.step}
        return {**named, **{f"step.{i}": step for i, step in enumerate(self.steps)}}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Copy in what :meth:`memory` gave; raises as :func:`vaebench.engine.copy_state`."""
        copy_state(state, self.memory())

    def only(self, chosen: list[int]) -> "OptimizerState":
        """The same memory, of some of the parameters alone."""
        moments = {name: [ts[i] for i in chosen] for name, ts in self.moments.items()}
        params, steps = ([ts[i] for i in chosen] for ts in (self.params, self.steps))
        return OptimizerState(params, moments, steps, self.lr, self.settings)

    def update_by(self, grads: tuple[Tensor | None, ...]) -> None:
        """Take one step; parameters without a gradient stay as they are, as in torch.optim."""
        given = [grad for grad in grads if grad is not None]
        if len(given) == len(grads):
            self.update(tuple(given))
        elif given:
            self.only([i for i, g in enumerate(grads) if g is not None]).update(tuple(given))

    @torch.no_grad()
    def update(self, grads: tuple[Tensor, ...]) -> None:
        """Take one step, in place, by torch's own fused kernel or that of :func:`updates_by`.

        It goes once over parameters, gradients and moments. A compiled graph calls it as an opaque
        operator: written out as formulas for the compiler to fuse, Adam took three times as long
        on a CPU, and most of the time to compile.
        """
        for count in self.counts:
            count.add_(1)
        grads = clipped(grads, self.settings.clip_norm, self.settings.clip_value)
        opaque = torch.compiler.is_compiling() or _opaque.get()
        run = torch.ops.vaebench.update_ if opaque else _run
        alike = laid_out_as(self.params, grads)
        moments = [t for kind in self._lists for t in kind]
        numbers = list(Numbers.of(self.settings))
        run(self.settings.name, self.params, alike, moments, self.steps, self.lr, numbers)


def remembered(settings: OptimizerConfig) -> tuple[str, ...]:
    """Name what an optimiser keeps of each parameter."""
    momentum = ("momentum",) if settings.momentum else ()
    kept = {"adagrad": ("sum",), "sgd": momentum, "rmsprop": ("v", *momentum)}
    return kept.get(settings.name, ("m", "v"))


def clipped(
    grads: tuple[Tensor, ...], norm: float | None, value: float | None
) -> tuple[Tensor, ...]:
    """Shorten gradients to a norm of all together, then cut each number off, where asked to.

    As torch.nn.utils.clip_grad_norm_ and clip_grad_value_ do.
    """
    if norm is not None:
        total = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads]))
        factor = (norm / (total + 1e-6)).clamp(max=1.0)
        grads = tuple(g * factor for g in grads)
    if value is not None:
        grads = tuple(g.clamp(-value, value) for g in grads)
    return grads


# The rules.


def _adam(update: Update) -> None:
    """Kingma & Ba 2014 (arXiv 1412.6980); weight decay is added to the gradient."""
    _fused(update, torch._fused_adam_)


def _adamw(update: Update) -> None:
    """Loshchilov & Hutter 2017 (arXiv 1711.05101): weight decay shrinks the parameter itself."""
    _fused(update, torch._fused_adamw_)


def _fused(update: Update, kernel: Callable[..., None]) -> None:
    params, grads, _, steps, lr, numbers = update
    words: dict[str, Any] = {**numbers._asdict(), "amsgrad": False, "maximize": False}
    words.pop("momentum")
    kernel(params, grads, *update.kinds, [], steps, lr=lr, **words)


def _adagrad(update: Update) -> None:
    """Duchi et al. 2011 (JMLR 12). The fused kernel took a fifth of the time of the formulas."""
    params, grads, sums, steps, lr, numbers = update
    words: dict[str, Any] = {"lr_decay": 0.0, "eps": ADAGRAD_EPS, "maximize": False}
    decay = numbers.weight_decay
    torch._fused_adagrad_(params, grads, sums, steps, lr=lr, weight_decay=decay, **words)


def _sgd(update: Update) -> None:
    """Gradient descent, with heavy-ball momentum if asked for."""
    params, grads, moments, _, lr, numbers = update
    words: dict[str, Any] = {"dampening": 0.0, "nesterov": False, "maximize": False}
    words |= {"weight_decay": numbers.weight_decay, "momentum": numbers.momentum}
    # A momentum of zero at first makes the first step like all others.
    torch._fused_sgd_(params, grads, moments, lr=lr, is_first_step=False, **words)


def _rmsprop(update: Update) -> None:
    """Tieleman & Hinton 2012, lecture 6.5: by formulas, since torch has no fused kernel."""
    grads, (v, *momenta) = update.decayed, update.kinds
    torch._foreach_mul_(v, RMSPROP_ALPHA)
    torch._foreach_addcmul_(v, grads, grads, 1 - RMSPROP_ALPHA)
    roots = torch._foreach_sqrt(v)
    torch._foreach_add_(roots, RMSPROP_EPS)
    change = list(torch._foreach_div(grads, roots))
    if momenta:
        torch._foreach_mul_(momenta[0], update.numbers.momentum)
        torch._foreach_add_(momenta[0], change)
        change = momenta[0]
    torch._foreach_sub_(update.params, torch._foreach_mul(change, update.lr))


def _adamax(update: Update) -> None:
    """Kingma & Ba 2014, section 7.1: by formulas, since torch has no fused kernel."""
    (m, largest), grads, numbers = update.kinds, update.decayed, update.numbers
    torch._foreach_lerp_(m, grads, 1 - numbers.beta1)
    now = torch._foreach_abs(grads)
    torch._foreach_add_(now, numbers.eps)
    torch._foreach_mul_(largest, numbers.beta2)
    torch._foreach_maximum_(largest, now)
    change = torch._foreach_div(m, largest)
    rates = [update.lr / (1 - numbers.beta1**step) for step in update.steps]
    torch._foreach_mul_(change, rates)
    torch._foreach_sub_(update.params, change)


_RULES: dict[str, Kernel] = {
    "adam": _adam,
    "adamw": _adamw,
    "adamax": _adamax,
    "adagrad": _adagrad,
    "rmsprop": _rmsprop,
    "sgd": _sgd,
}
_kernel: ContextVar[Kernel | None] = ContextVar("kernel", default=None)


def rule_of(settings: OptimizerConfig) -> Kernel:
    """The formulas that a config names."""
    return _RULES[settings.name]


@contextlib.contextmanager
def updates_by(kernel: Kernel) -> Iterator[None]:
    """Let another kernel take the steps in the block; it is given what the rule's would be."""
    before = _kernel.set(kernel)
    try:
        yield
    finally:
        _kernel.reset(before)


# Whether updates are called as one operator, for who writes operators down: whether a kernel leaves
# something out is decided in each.
_opaque: ContextVar[bool] = ContextVar("opaque", default=False)


@contextlib.contextmanager
def opaque_updates() -> Iterator[None]:
    """Let updates be one operator in the block, as they are in a compiled graph."""
    before = _opaque.set(True)
    try:
        yield
    finally:
        _opaque.reset(before)


def _run(
    name: str,
    params: list[Tensor],
    grads: list[Tensor],
    moments: list[Tensor],
    steps: list[Tensor],
    lr: Tensor,
    numbers: list[float],
) -> None:
    params, grads, moments = (in_memory_order(real(t)) for t in (params, grads, moments))
    rule = _kernel.get() or _RULES[name]
    rule(Update(params, grads, moments, steps, lr, Numbers(*numbers)))


# The kernels read the learning rate from a tensor, and in that form torch has not told its
# compiler about them: as an operator of our own they are known.
_LIBRARY = torch.library.Library("vaebench", "FRAGMENT")
_LIBRARY.define(
    "update_(str name, Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] moments, "
    "Tensor[] steps, Tensor lr, float[] numbers) -> ()"
)
implement(_LIBRARY, "update_", _run, "CompositeExplicitAutograd")
torch.library.register_fake("vaebench::update_", lambda *_: None, lib=_LIBRARY)
