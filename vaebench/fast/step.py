"""One training step as a pure function: gather, convert, forward, backward, Adam.

No state but tensors changed in place, no random numbers, nothing that waits for the device: such
a function can be run eagerly, compiled into one graph, or captured.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vaebench.elbo import Objective, elbo_terms
from vaebench.engine import Sums
from vaebench.fast.adam import AdamState, update
from vaebench.model import as_vae

# (images, index (B,) int64, eps (B, Z), totals (2,) float64): trains one step on the images at
# index and adds the sums of recon and kl, in nats, to totals.
Step = Callable[[Tensor, Tensor, Tensor, Tensor], None]


def make_step(
    model: nn.Module,
    objective: Objective,
    adam: AdamState,
    gather: Callable[[Tensor, Tensor], Tensor],
    autocast: torch.dtype | None,
) -> Step:
    """Build the step function. ``autocast`` is the dtype for matrix products, None for float32."""
    vae = as_vae(model)
    device_type = adam.params[0].device.type

    def step(images: Tensor, index: Tensor, eps: Tensor, totals: Tensor) -> None:
        x = gather(images, index)
        # No weight cache: inside a captured graph it would outlive the update of the weights,
        # and a step uses each weight once.
        with torch.autocast(
            device_type, dtype=autocast, enabled=autocast is not None, cache_enabled=False
        ):
            recon, kl = elbo_terms(vae, objective, x, eps)
        grads = torch.autograd.grad(objective.loss(recon, kl), adam.params)
        # Before the update: a compiled sum may read a bias only here, and must not find it moved on.
        totals += torch.stack((recon.detach().sum(), kl.detach().sum()))
        update(adam, grads)

    return step


class StepEngine:
    """Runs a step function over an epoch; see :class:`vaebench.engine.Engine`.

    Args:
        model: trained in place.
        images: (N, ...) resident on the device.
        step: from :func:`make_step`, as it is or compiled.
        adam: the state that ``step`` updates.
        batch_size: images per step.
        latent_dim: Z.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        step: Step,
        adam: AdamState,
        batch_size: int,
        latent_dim: int,
    ) -> None:
        self.model = model
        self.images = images
        self.step = step
        self.adam = adam
        self.batch_size = batch_size
        self.latent_dim = latent_dim
        self.device = images.device

    def warm_up(self) -> None:
        """Run a step of each size an epoch has, then put every tensor back as it was."""
        n = len(self.images)
        sizes = {min(self.batch_size, n), n % self.batch_size} - {0}
        state = [*self.adam.tensors(), *self.model.buffers()]
        before = [t.detach().clone() for t in state]
        try:
            for size in sorted(sizes, reverse=True):
                noise = torch.zeros(size, self.latent_dim, device=self.device)
                self.epoch(torch.arange(size, device=self.device), noise)
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
