"""What somebody writes who knows PyTorch well, and the same with ``torch.compile(model)``."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import BATCH, LEARNING_RATE, memory_of, new_model, numbers, restorer
from vaebench.data.images import gather
from vaebench.engine import Sums
from vaebench.models.networks import Network
from vaebench.objective import elbo_terms
from vaebench.problem import Problem


class TextbookVAE(nn.Module):
    """A model with an ordinary ``forward``, for ``torch.compile(model)``."""

    def __init__(self, vae: Network) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give logits, mu, logvar."""
        mu, logvar = self.vae.encode(x)
        return self.vae.decode(mu + torch.exp(0.5 * logvar) * eps), mu, logvar


class Eager:
    """Data resident, fused Adam, no ``item``; compiled, Adam and loss stay outside the graph."""

    def __init__(self, images: Tensor, count: int, device: torch.device, *, compile: bool) -> None:
        self.images = images.to(device)
        self.order, self.noise = numbers(len(images), count, device)
        model = TextbookVAE(new_model()).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
        self.optimizer = optimizer
        self.model: Callable[..., tuple[Tensor, Tensor, Tensor]] = model
        if compile:
            self.model = torch.compile(model)
        self.restore = restorer(model, lambda: memory_of(optimizer))

    def epoch(self) -> float:
        """Train."""
        total = torch.zeros((), device=self.images.device)
        for index, eps in zip(self.order.split(BATCH), self.noise.split(BATCH), strict=True):
            x = gather(self.images, index)
            logits, mu, logvar = self.model(x, eps)
            loss = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
            loss = loss - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
            self.optimizer.zero_grad()
            # The mean, as vaebench has it: Adam's epsilon makes sum and mean differ a little.
            (loss / len(x)).backward()
            self.optimizer.step()
            total += loss.detach()
        return -float(total) / len(self.order)


class Loop:
    """The same for any module, of vaebench's own loss; what it is trained on is a problem.

    It is called as an engine is; see :class:`vaebench.engine.Engine`.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        lr = problem.optimizer.lr
        self.optimizer = torch.optim.Adam(problem.params, lr=lr, fused=True)

    def epoch(self, order: Tensor, noise: Tensor) -> Sums:
        """Train on the images at ``order``."""
        problem, size = self.problem, self.problem.batch_size
        problem.model.train()
        totals = torch.zeros(2, dtype=torch.float64, device=problem.device)
        for index, eps in zip(order.split(size), noise.split(size), strict=True):
            x = gather(problem.images, index)
            y = () if problem.labels is None else (problem.labels.index_select(0, index),)
            recon, kl = elbo_terms(problem.vae, problem.objective, x, eps, *y)
            self.optimizer.zero_grad()
            problem.objective.loss(recon, kl).backward()
            self.optimizer.step()
            totals += torch.stack((recon.detach().sum(), kl.detach().sum()))
        return Sums(totals[0], totals[1], len(order))


def make(images: Tensor, count: int, device: torch.device, compile: bool = False) -> Eager:
    """Build it."""
    return Eager(images, count, device, compile=compile)
