"""The loop of danielwang7/MNIST-VAE, from which the workload ``conv`` is taken, written anew.

As there: PIL and ToTensor per image, DataLoader, eager, plain Adam, ``item`` thrice a step.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.harness import memory_of, new_model, restorer
from benchmarks.peers.pytorch_examples import Digits
from vaebench.config import recipe
from vaebench.objective import Objective

KL_WEIGHT = 128 / 60_000


class MnistVAE:
    """See :class:`benchmarks.peers.Contender`."""

    def __init__(self, images: Tensor, count: int, device: torch.device) -> None:
        config = recipe("conv")
        settings, self.device = config.optimizer, device
        self.model = new_model(config=config, image_shape=(1, 28, 28)).to(device)
        digits = Digits(images[:count])
        self.loader: DataLoader[Any] = DataLoader(digits, settings.batch_size, shuffle=True)
        optimizer = torch.optim.Adam(self.model.parameters(), lr=settings.lr)
        self.optimizer = optimizer
        self.restore = restorer(self.model, lambda: memory_of(optimizer))
        none = torch.zeros(1, 784)
        gaussian = Objective("gaussian", config.objective.sigma)
        self.at_zero_error = gaussian.log_likelihood(none, none).item()

    def epoch(self) -> float:
        """Train; its loss, squared error plus weighted KL, is told as the Gaussian's ELBO."""
        self.model.train()
        losses, errors, kls = 0.0, 0.0, 0.0
        for batch, _ in self.loader:
            x = batch.to(self.device)
            self.optimizer.zero_grad()
            mu, logvar = self.model.encode(x)
            std = torch.exp(0.5 * logvar)
            output = self.model.decode(torch.randn_like(std) * std + mu)
            error = F.mse_loss(output, x)
            kl = torch.mean(-0.5 * torch.sum(1 + logvar - mu**2 - logvar.exp(), dim=1), dim=0)
            loss = error + KL_WEIGHT * kl
            loss.backward()
            self.optimizer.step()
            losses += loss.item()
            errors += error.detach().item()
            kls += kl.detach().item()
        return self.at_zero_error - losses / len(self.loader) / KL_WEIGHT


def make(images: Tensor, count: int, device: torch.device) -> MnistVAE:
    """Build it."""
    return MnistVAE(images, count, device)
