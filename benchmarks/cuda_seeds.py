"""Many trainings at once, of one kind and several seeds: ``python -m benchmarks.cuda_seeds``.

A first trial. A GPU is far from busy with one small network; here the weights of all are stacked,
a step trains each on a batch of its own, and as many steps as there are in an epoch follow each
other from a CUDA graph. The first seed must end where it ends alone.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import (
    BATCH,
    DEFAULT,
    clock,
    described,
    differ,
    elbo,
    load_data,
    new_model,
    say,
    store,
)
from benchmarks.rungs import build_rung, find
from vaebench import InputError
from vaebench.engine import Sums
from vaebench.fast.capture import WARM_UPS, CudaCapture
from vaebench.fast.joint_update import update_jointly
from vaebench.fast.optimizer import OptimizerState, updates_by
from vaebench.system.device import full_float32, resolve_device

STEPS = 16  # of a replay


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply each network's layer, weight (S, out, in), to its own x (S, B, in)."""
    return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))


def losses(params: list[Tensor], x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over networks of each one's mean loss; recon and kl of each image, (S, B), in nats."""
    encoder, mu, logvar, decoder, output = zip(params[::2], params[1::2], strict=True)
    hidden = F.relu(linear(x, *encoder))
    means, logs = linear(hidden, *mu), linear(hidden, *logvar)
    z = means + torch.exp(0.5 * logs) * eps
    logits = linear(F.relu(linear(z, *decoder)), *output)
    recon = -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(2)
    kl = 0.5 * (means.square() + torch.expm1(logs) - logs).sum(2)
    return (kl - recon).mean(1).sum(), recon, kl


class Stack:
    """Networks of seeds 0 to S - 1, trained side by side.

    Args:
        seeds: S.
        images: (N, H, W) uint8, on the device.
    """

    def __init__(self, seeds: int, images: Tensor) -> None:
        self.images, device = images.flatten(1), images.device
        each = [list(new_model(seed).parameters()) for seed in range(seeds)]
        stacked = [torch.stack(tensors).detach() for tensors in zip(*each, strict=True)]
        self.params = [p.to(device).requires_grad_() for p in stacked]
        self.adam = OptimizerState.of(self.params, DEFAULT.optimizer)
        self.totals = torch.zeros(2, seeds, dtype=torch.float64, device=device)
        self.index = torch.zeros(seeds, STEPS * BATCH, dtype=torch.int64, device=device)
        self.noise = torch.zeros(seeds, STEPS * BATCH, DEFAULT.network.latent_dim, device=device)
        self.forward = torch.compile(losses, dynamic=False)

    def step(self, index: Tensor, eps: Tensor) -> None:
        """Train one step of each network on its images at index (S, B)."""
        x = self.images[index].float().div_(255)
        loss, recon, kl = self.forward(self.params, x, eps)
        grads = torch.autograd.grad(loss, self.params)
        self.totals += torch.stack((recon.detach().sum(1), kl.detach().sum(1)))
        self.adam.update(grads)

    def steps(self) -> None:
        """Train on what stands in ``index`` and ``noise``."""
        parts = self.index.split(BATCH, 1), self.noise.split(BATCH, 1)
        for index, eps in zip(*parts, strict=True):
            self.step(index.contiguous(), eps.contiguous())

    def record(self) -> None:
        """Record the steps of a replay; what this trains is put back."""
        state = self.adam.tensors()
        before = [t.detach().clone() for t in state]
        capture = CudaCapture(self.images.device)
        # Laid out as those of steps: else it would be compiled again, and that cannot be recorded.
        batch = self.index[:, :BATCH].contiguous(), self.noise[:, :BATCH].contiguous()
        self.step(*batch)
        for _ in range(WARM_UPS):
            capture.warm_up(lambda: self.step(*batch))
        self.replay = capture.record(self.steps)
        with torch.no_grad():
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)

    def epoch(self, order: Tensor, noise: Tensor) -> None:
        """Train on the images at ``order`` (S, N); a short last batch is left out."""
        self.totals.zero_()
        size = STEPS * BATCH
        for begin in range(0, order.shape[1] - size + 1, size):
            self.index.copy_(order[:, begin : begin + size])
            self.noise.copy_(noise[:, begin : begin + size])
            self.replay()


def trained_alone(images: Tensor, order: Tensor, noise: Tensor) -> float:
    """The ELBO of seed 0 on one epoch, by an engine of the package."""
    rung = find("graph", images.device.type)
    engine, _, _ = build_rung(rung, new_model(0), images, images.device)
    return elbo(engine.epoch(order, noise))


def numbers(generator: torch.Generator, seeds: int, images: int) -> tuple[Tensor, Tensor]:
    """An epoch's order (S, N) and noise (S, N, Z)."""
    device = generator.device
    used = images - images % (STEPS * BATCH)
    order = torch.stack(
        [torch.randperm(images, generator=generator, device=device)[:used] for _ in range(seeds)]
    )
    shape = (seeds, used, DEFAULT.network.latent_dim)
    return order, torch.randn(shape, generator=generator, device=device)


def measure(words: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Train all seeds at once, and tell how long it took."""
    data = load_data(words.data)
    images = data.train.images.to(device)
    generator = torch.Generator(device).manual_seed(0)
    with full_float32(), updates_by(update_jointly):
        stack = Stack(words.seeds, images)
        begun = clock()
        stack.record()
        built = clock() - begun
        order, noise = numbers(generator, words.seeds, len(images))
        stack.epoch(order, noise)
        recon, kl = stack.totals[:, 0]
        mine = elbo(Sums(recon, kl, order.shape[1]))
        alone = trained_alone(images, order[0], noise[0])
        wrong = differ(mine, alone, 1e-3)
        if wrong:
            raise InputError(f"seed 0 is not what it is alone: {wrong}")
        begun = clock()
        for _ in range(words.epochs):
            stack.epoch(*numbers(generator, words.seeds, len(images)))
        took = clock() - begun
    steps = words.epochs * (order.shape[1] // BATCH)
    found = {"seeds": words.seeds, "epochs": words.epochs, "build_seconds": built}
    found |= {"train_seconds": took, "microseconds_per_step": 1e6 * took / steps}
    found |= {"elbo": mine, "elbo_alone": alone}
    say(f"{words.seeds} trainings of {words.epochs} epochs: {took:.2f} s; {found}")
    return {
        "kind": "cuda seeds",
        **described(str(device), data.name, "python -m benchmarks.cuda_seeds"),
        **found,
    }


def main(argv: list[str]) -> int:
    """Run the command line; give its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_seeds")
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--data", default="auto", help="auto: MNIST if on disk, else strokes")
    parser.add_argument("--out", type=Path, required=True)
    words = parser.parse_args(argv)
    try:
        store(words.out, measure(words, resolve_device("cuda")))
    except InputError as error:
        print(f"benchmarks.cuda_seeds: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
