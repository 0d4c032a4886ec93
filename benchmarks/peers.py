"""What vaebench is measured against, each contender as its own users would run it.

All get the same arrays, the same initial weights, float32, the same threads and batch size. Those
that can take order and noise are given vaebench's, so that their ELBO must equal its own; the
example's loop draws its own, so that its ELBO is only near. None of the PyTorch peers flushes
denormals, since their users do not; XLA always does.
"""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.examples_vae import ExampleVAE, make_loader, train_epoch
from benchmarks.rungs import BATCH, LEARNING_RATE, RUNGS, build, new_model
from benchmarks.state import elbo, module_restorer, numbers, restorer
from vaebench import VAE
from vaebench.data.images import gather


class Contender(Protocol):
    """Something that trains: ``restore`` to the initial state, then an ``epoch``."""

    def restore(self) -> None:
        """Put the initial weights and optimiser state back."""

    def epoch(self) -> float:
        """Train on ``count`` images; give the mean ELBO, having waited for the device."""


class Ours:
    """vaebench as ``--compile`` runs it."""

    rung = "compile"

    def __init__(self, images: Tensor, count: int, device: torch.device) -> None:
        self.engine, _ = build(RUNGS[self.rung], new_model(), images, BATCH, device)
        self.restore = restorer(self.engine)
        self.order, self.noise = numbers(len(images), count, device)

    def epoch(self) -> float:
        """Train."""
        return elbo(self.engine.epoch(self.order, self.noise))


class OursWithAmp(Ours):
    """vaebench as ``--compile --amp`` runs it: in bfloat16 where that is measured to be faster."""

    rung = "amp"


class OursByTriton(Ours):
    """vaebench as ``--triton`` runs it, on CUDA."""

    rung = "triton"


class OursPersistent(Ours):
    """vaebench as ``--persistent`` runs it, on CUDA."""

    rung = "persistent"


class Examples:
    """pytorch/examples' loop: PIL and ToTensor per image, DataLoader, eager, ``item`` per step."""

    def __init__(self, images: Tensor, count: int, device: torch.device) -> None:
        self.device = device
        self.loader = make_loader(images[:count], device, shuffle=True)
        self.model = ExampleVAE().to(device)
        copy_weights(new_model(), self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE)
        self.restore = module_restorer(self.model, self.optimizer)

    def epoch(self) -> float:
        """Train."""
        return -train_epoch(self.model, self.loader, self.optimizer, self.device)


class TextbookVAE(nn.Module):
    """A model with an ordinary ``forward``, for ``torch.compile(model)``."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give logits, mu, logvar."""
        mu, logvar = self.vae.encode(x)
        return self.vae.decode(mu + torch.exp(0.5 * logvar) * eps), mu, logvar


class Eager:
    """What somebody writes who knows PyTorch well: data resident, fused Adam, no ``item``."""

    compile = False

    def __init__(self, images: Tensor, count: int, device: torch.device) -> None:
        self.images = images.to(device)
        self.order, self.noise = numbers(len(images), count, device)
        model = TextbookVAE(new_model()).to(device)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
        self.model: Callable[..., tuple[Tensor, Tensor, Tensor]] = model
        if self.compile:
            self.model = torch.compile(model)
        self.restore = module_restorer(model, self.optimizer)

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


class NaiveCompile(Eager):
    """The same loop with ``torch.compile(model)``: Adam and the loss stay outside the graph."""

    compile = True


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy parameters in order: both models list encoder, mu, logvar, decoder, output."""
    with torch.no_grad():
        for theirs, ours in zip(target.parameters(), source.parameters(), strict=True):
            theirs.copy_(ours)


def make(name: str, images: Tensor, count: int, device: torch.device) -> Contender:
    """Build a contender by its name in PEERS."""
    if name == "jax":
        from benchmarks.peers_jax import JaxScan

        return JaxScan(images, count, device)
    kinds: dict[str, Callable[[Tensor, int, torch.device], Contender]] = {
        "vaebench": Ours,
        "vaebench --amp": OursWithAmp,
        "vaebench --triton": OursByTriton,
        "vaebench --persistent": OursPersistent,
        "pytorch/examples": Examples,
        "eager, resident": Eager,
        "torch.compile(model)": NaiveCompile,
    }
    return kinds[name](images, count, device)


# In the order of the table. The first against itself shows what the instrument cannot tell apart.
PEERS = (
    "vaebench",
    "vaebench --amp",
    "pytorch/examples",
    "eager, resident",
    "torch.compile(model)",
    "jax",
)
# Largest relative difference from vaebench's ELBO: rounding, or other random numbers.
AGREES = {**dict.fromkeys(PEERS, 1e-3), "pytorch/examples": 0.05, "vaebench --amp": 2e-3}
