"""One training step as a pure function: gather, convert, forward, backward, update.

No state but tensors changed in place, no random numbers, nothing that waits for the device: such
a function can be run eagerly, compiled into one graph, or captured.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from vaebench.data.images import gather
from vaebench.engine import Sums
from vaebench.fast.optimizer import OptimizerState
from vaebench.models.protocol import EncoderDecoder
from vaebench.models.snapshot import untouched
from vaebench.objective import Objective, loss_terms
from vaebench.problem import Problem

# (images, index (B,) int64, eps (B, Z) or (B, k, Z), totals (2,) float64): trains one step on the
# images at index and adds the sums of recon and kl, in nats, to totals.
Step = Callable[[Tensor, Tensor, Tensor, Tensor], None]
# Gives what is entered while an engine trains.
Context = Callable[[], AbstractContextManager[object]]
# (gradients of the mean loss over some images, their number): the gradients to update by.
Exchange = Callable[[tuple[Tensor, ...], int], tuple[Tensor, ...]]


# Full batches that an engine is verified on.
TRIAL_BATCHES = 4


def alone(grads: tuple[Tensor, ...], images: int) -> tuple[Tensor, ...]:
    """Update by these very gradients: there is no other process to exchange them with."""
    return grads


def make_step(
    vae: EncoderDecoder,
    objective: Objective,
    optimizer: OptimizerState,
    autocast: torch.dtype | None = None,
    *,
    labels: Tensor | None = None,
    exchange: Exchange = alone,
    varies: bool = False,
    keepers: Sequence[tuple[nn.Module, str]] = (),
) -> Step:
    """Build the step function.

    Args:
        vae: encodes and decodes; its parameters are the optimiser's.
        objective: what is maximised.
        optimizer: updates.
        autocast: the dtype for matrix products, None for float32.
        labels: (N, ...) to be handed to the model, at the same index as the images.
        exchange: between backward pass and update, in several processes.
        varies: whether a step may leave parameters out; they are not updated then.
        keepers: modules, and their attributes that keep tensors from step to step.
    """
    device_type = optimizer.params[0].device.type
    hooked = [p for p in optimizer.params if getattr(p, "_post_accumulate_grad_hooks", None)]

    def step(images: Tensor, index: Tensor, eps: Tensor, totals: Tensor) -> None:
        x = gather(images, index)
        y = () if labels is None else (labels.index_select(0, index),)
        # No weight cache: inside a captured graph it would outlive the update of the weights,
        # and a step uses each weight once.
        with torch.autocast(
            device_type, dtype=autocast, enabled=autocast is not None, cache_enabled=False
        ):
            loss, recon, kl = loss_terms(vae, objective, x, eps, *y)
        grads = torch.autograd.grad(loss, optimizer.params, allow_unused=varies)
        if varies and exchange is not alone:  # which others may have gradients of
            grads = _filled(optimizer.params, grads)
        if hooked:
            grads = _after_hooks(optimizer.params, grads)
        # Before the update: a compiled sum may read a bias only here; it must not have moved on.
        totals += torch.stack((recon.detach().sum(), kl.detach().sum()))
        grads = exchange(grads, len(index))
        if varies:
            optimizer.update_by(grads)
        else:
            optimizer.update(grads)
        for module, name in keepers:  # a graph's result has no history that was used up
            if isinstance(kept := getattr(module, name, None), Tensor):
                setattr(module, name, kept.detach())

    return step


def _filled(params: list[Tensor], grads: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """Gradients with zeros for those that are none."""
    pairs = zip(params, grads, strict=True)
    return tuple(torch.zeros_like(p) if grad is None else grad for p, grad in pairs)


def has_hooks(params: Sequence[Tensor]) -> bool:
    """Whether anybody is to be called for a parameter's gradient."""
    names = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return any(getattr(p, name, None) for p in params for name in names)


def _after_hooks(params: list[Tensor], grads: tuple[Any, ...]) -> tuple[Any, ...]:
    """Run hooks that expect a parameter's gradient in its ``grad``, where backward() puts it."""
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
        if grad is None:
            continue
        for hook in tuple((getattr(param, "_post_accumulate_grad_hooks", None) or {}).values()):
            hook(param)
    left = tuple(
        torch.zeros_like(p) if p.grad is None and grad is not None else p.grad
        for p, grad in zip(params, grads, strict=True)
    )
    for param in params:
        param.grad = None
    return left


class StepEngine:
    """Runs a step function over an epoch; see :class:`vaebench.engine.Engine`.

    Args:
        problem: what is trained on what.
        step: from :func:`make_step`, as it is or compiled.
        optimizer: the state that ``step`` updates.
        contexts: entered while it trains, innermost last; each a function that gives one.
    """

    holds_tensors = False

    def __init__(
        self,
        problem: Problem,
        step: Step,
        optimizer: OptimizerState,
        contexts: Sequence[Context] = (),
    ) -> None:
        self.problem, self.model = problem, problem.model
        self.images = problem.images
        self.step = step
        self.optimizer = optimizer
        self.contexts, self.entered = tuple(contexts), False
        self.batch_size = problem.batch_size
        self.latent_dim = problem.latent_dim
        self.samples = problem.objective.samples
        self.device = problem.device

    @property
    def steps_at_once(self) -> int:
        """Steps are run one by one."""
        return 1

    @property
    def remarks(self) -> Sequence[str]:
        """Nothing is found out while steps are run one by one."""
        return ()

    def set_lr(self, lr: float) -> None:
        """Use this learning rate from the next step on."""
        self.optimizer.set_lr(lr)

    def set_beta(self, beta: float) -> None:
        """Weigh the KL by this from the next step on."""
        weight = self.problem.objective.weight
        assert weight is not None
        weight.fill_(beta)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """See :meth:`vaebench.engine.Engine.training`; entered within itself, it does nothing."""
        if self.entered:
            yield
            return
        with contextlib.ExitStack() as stack:
            for context in self.contexts:
                stack.enter_context(context())
            self.model.train()
            self.entered = True
            stack.callback(setattr, self, "entered", False)
            yield

    def warm_up(self) -> None:
        """Run a step of each size an epoch has; leave no trace."""
        with self.unchanged(), self.training():
            for size in self.problem.batch_sizes:
                self.epoch(torch.arange(size, device=self.device), self.no_noise(size))

    def no_noise(self, images: int) -> Tensor:
        """Noise of zeros for so many images, in the shape that the step expects."""
        k = (self.samples,) if self.samples > 1 else ()
        return torch.zeros(images, *k, self.latent_dim, device=self.device)

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Put everything that training changes back at the end, in place."""
        with untouched(self.model), self.optimizer.unchanged():
            yield

    @property
    def trial_sizes(self) -> list[int]:
        """Numbers of images that, handed over one after the other, show all that it does."""
        full, *short = self.problem.batch_sizes
        return [TRIAL_BATCHES * full, *short]

    def epoch(self, order: Tensor, noise: Tensor) -> Sums:
        """Train on the images at ``order``; see :meth:`vaebench.engine.Engine.epoch`."""
        with self.training():
            return self.run(order, noise)

    def run(self, order: Tensor, noise: Tensor) -> Sums:
        """Do what :meth:`epoch` does, within :meth:`training`."""
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        for index, eps in zip(
            order.split(self.batch_size), noise.split(self.batch_size), strict=True
        ):
            self.step(self.images, index, eps, totals)
        return Sums(totals[0], totals[1], len(order))

    def state(self) -> dict[str, Tensor]:
        """What the optimiser remembers; see :meth:`vaebench.engine.Engine.state`."""
        return self.optimizer.memory()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take it back, in place; see :meth:`vaebench.engine.Engine.load_state`."""
        self.optimizer.load(state)
