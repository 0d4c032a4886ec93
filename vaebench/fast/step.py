"""One training step as a pure function: gather, convert, forward, backward, update.

No state but tensors changed in place, no random numbers, nothing that waits for the device: such
a function can be run eagerly, compiled into one graph, or captured.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from vaebench.engine import Sums, copy_state
from vaebench.models.protocol import as_vae
from vaebench.objective import Objective, loss_terms

# (images, index (B,) int64, eps (B, Z) or (B, k, Z), totals (2,) float64): trains one step on the
# images at index and adds the sums of recon and kl, in nats, to totals.
Step = Callable[[Tensor, Tensor, Tensor, Tensor], None]
# (gradients of the mean loss over some images, their number): the gradients to update by.
Exchange = Callable[[tuple[Tensor, ...], int], tuple[Tensor, ...]]


def alone(grads: tuple[Tensor, ...], images: int) -> tuple[Tensor, ...]:
    """Update by these very gradients: there is no other process to exchange them with."""
    return grads


class Optimizer(Protocol):
    """What an optimiser remembers; its update rule is a function of it and the gradients."""

    @property
    def params(self) -> list[Tensor]:
        """What it updates."""

    @property
    def lr(self) -> Tensor:
        """The learning rate, read from the device at every step."""

    def tensors(self) -> list[Tensor]:
        """All that an update changes."""

    def memory(self) -> dict[str, Tensor]:
        """What it remembers beside the parameters, by name."""

    def update(self, grads: tuple[Tensor, ...]) -> None:
        """Take one step, in place."""


class Moments(Protocol):
    """Adam's state, for kernels that update by it themselves; see :mod:`vaebench.fast.adam`."""

    params: list[Tensor]
    m: list[Tensor]
    v: list[Tensor]
    step: Tensor
    lr: Tensor
    eps: float


def make_step(
    model: nn.Module,
    objective: Objective,
    optimizer: Optimizer,
    gather: Callable[[Tensor, Tensor], Tensor],
    autocast: torch.dtype | None,
    exchange: Exchange = alone,
) -> Step:
    """Build the step function. ``autocast`` is the dtype for matrix products, None for float32."""
    vae = as_vae(model)
    device_type = optimizer.params[0].device.type

    def step(images: Tensor, index: Tensor, eps: Tensor, totals: Tensor) -> None:
        x = gather(images, index)
        # No weight cache: inside a captured graph it would outlive the update of the weights,
        # and a step uses each weight once.
        with torch.autocast(
            device_type, dtype=autocast, enabled=autocast is not None, cache_enabled=False
        ):
            loss, recon, kl = loss_terms(vae, objective, x, eps)
        grads = torch.autograd.grad(loss, optimizer.params)
        # Before the update: a compiled sum may read a bias only here; it must not have moved on.
        totals += torch.stack((recon.detach().sum(), kl.detach().sum()))
        optimizer.update(exchange(grads, len(index)))

    return step


class StepEngine:
    """Runs a step function over an epoch; see :class:`vaebench.engine.Engine`.

    Args:
        model: trained in place.
        images: (N, ...) resident on the device.
        step: from :func:`make_step`, as it is or compiled.
        optimizer: the state that ``step`` updates.
        batch_size: images per step.
        latent_dim: Z.
        samples: z drawn per image.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        step: Step,
        optimizer: Optimizer,
        batch_size: int,
        latent_dim: int,
        samples: int = 1,
    ) -> None:
        self.model = model
        self.images = images
        self.step = step
        self.optimizer = optimizer
        self.batch_size = batch_size
        self.latent_dim = latent_dim
        self.samples = samples
        self.device = images.device

    @property
    def steps_at_once(self) -> int:
        """Steps are run one by one."""
        return 1

    def set_lr(self, lr: float) -> None:
        """Use this learning rate from the next step on."""
        self.optimizer.lr.fill_(lr)

    def warm_up(self) -> None:
        """Run a step of each size an epoch has; leave no trace."""
        n = len(self.images)
        sizes = {min(self.batch_size, n), n % self.batch_size} - {0}
        with self.unchanged():
            for size in sorted(sizes, reverse=True):
                self.epoch(torch.arange(size, device=self.device), self.no_noise(size))

    def no_noise(self, images: int) -> Tensor:
        """Noise of zeros for so many images, in the shape that the step expects."""
        k = (self.samples,) if self.samples > 1 else ()
        return torch.zeros(images, *k, self.latent_dim, device=self.device)

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Put every tensor that training changes back at the end, in place."""
        state = [*self.optimizer.tensors(), *self.model.buffers()]
        before = [t.detach().clone() for t in state]
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(state, before, strict=True):
                    tensor.copy_(value)

    def epoch(self, order: Tensor, noise: Tensor) -> Sums:
        """Train on the images at ``order``; see :meth:`vaebench.engine.Engine.epoch`."""
        self.model.train()
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
        copy_state(state, self.optimizer.memory())
