"""The measuring stick: plain eager float32, an ordinary DataLoader, textbook formulas.

It may be slow, it must be obvious, and it shares no objective code and no optimiser code with the
fast path: what is wrong in one of them shows as a difference. It changes only to mend a fault.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from vaebench.engine import Sums


class ReferenceEngine:
    """Trains as a tutorial would.

    Args:
        model: module with ``encode(x) -> (mu, logvar)`` and ``decode(z) -> output``.
        images: (N, ...) uint8, scaled to [0, 1] here, or float32 as they are; stays on the CPU.
        batch_size: images per step.
        lr: Adam's learning rate.
        likelihood, sigma, beta: as in :class:`vaebench.elbo.Objective`.
        device: where the model trains.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        *,
        batch_size: int,
        lr: float,
        likelihood: str,
        sigma: float,
        beta: float,
        device: torch.device,
    ) -> None:
        self.model: Any = model.to(device)
        self.dataset = TensorDataset(images)
        self.batch_size = batch_size
        self.likelihood, self.sigma, self.beta = likelihood, sigma, beta
        self.device = device
        self.optimizer = torch.optim.Adam(model.parameters(), lr=lr)

    def warm_up(self) -> None:
        """Nothing is slow only the first time."""

    def epoch(self, order: Tensor, noise: Tensor) -> Sums:
        """Train on the images at ``order``; see :meth:`vaebench.engine.Engine.epoch`."""
        self.model.train()
        recon_sum, kl_sum = 0.0, 0.0
        loader = DataLoader(self.dataset, self.batch_size, sampler=order.tolist())
        for (batch,), eps in zip(loader, noise.split(self.batch_size), strict=True):
            x = batch.to(self.device)
            x = x.float() / 255 if x.dtype == torch.uint8 else x
            mu, logvar = self.model.encode(x)
            z = mu + torch.exp(logvar / 2) * eps
            recon = self.log_likelihood(self.model.decode(z), x)
            kl = -0.5 * torch.sum(1 + logvar - mu**2 - logvar.exp())
            loss = -(recon - self.beta * kl) / len(x)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            recon_sum += recon.item()
            kl_sum += kl.item()
        totals = torch.tensor([recon_sum, kl_sum], dtype=torch.float64)
        return Sums(totals[0], totals[1], len(order))

    def state(self) -> dict[str, Tensor]:
        """What the optimiser remembers; see :meth:`vaebench.engine.Engine.state`."""
        memory = self.optimizer.state_dict()["state"]
        return {f"{i}.{name}": t for i, values in memory.items() for name, t in values.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take it back; see :meth:`vaebench.engine.Engine.load_state`."""
        memory: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            i, name = key.split(".")
            memory.setdefault(int(i), {})[name] = value.clone()
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": memory, "param_groups": groups})

    def log_likelihood(self, output: Tensor, x: Tensor) -> Tensor:
        """Log p(x|z) summed over the batch; a scalar."""
        output = output.reshape(x.shape)
        if self.likelihood == "bernoulli":
            return -F.binary_cross_entropy_with_logits(output, x, reduction="sum")
        # Unchecked: numbers that go wrong are found, and told, where the sums are read.
        normal = torch.distributions.Normal(output, self.sigma, validate_args=False)
        return torch.sum(normal.log_prob(x))
