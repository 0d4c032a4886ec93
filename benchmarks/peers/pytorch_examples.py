"""What a user would otherwise run: the script of pytorch/examples ``vae/main.py``, written anew.

As there: a data set that makes a PIL image of every digit and a tensor of every image, DataLoader
batches of 128 in a shuffled order, eager float32, Adam 1e-3, binary cross-entropy of sigmoid
outputs summed over the batch, ``loss.item()`` after every step, a test pass after every epoch.
Run as a command, ``python -m benchmarks.peers.pytorch_examples --epochs 10 --data mnist``, it is
that script but for the pictures it saves.
"""

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.harness import (
    BATCH,
    LEARNING_RATE,
    load_data,
    memory_of,
    new_model,
    restorer,
)


class Digits(Dataset[tuple[Tensor, int]]):
    """Does per image what ``torchvision.datasets.MNIST`` does, on arrays read from disk."""

    def __init__(self, images: Tensor) -> None:
        self.data = images
        self.transform = transforms.ToTensor()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.data[index].numpy())
        return self.transform(image), 0


class ExampleVAE(nn.Module):
    """784-400-(20, 20)-400-784, the outputs after their sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 400)
        self.fc21 = nn.Linear(400, 20)
        self.fc22 = nn.Linear(400, 20)
        self.fc3 = nn.Linear(20, 400)
        self.fc4 = nn.Linear(400, 784)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give mu and logvar."""
        hidden = F.relu(self.fc1(x))
        return self.fc21(hidden), self.fc22(hidden)

    def decode(self, z: Tensor) -> Tensor:
        """Give pixel probabilities."""
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z))))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruct from one z per image."""
        mu, logvar = self.encode(x.view(-1, 784))
        std = torch.exp(0.5 * logvar)
        return self.decode(mu + torch.randn_like(std) * std), mu, logvar


def example_loss(output: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """Negative ELBO summed over the batch, in nats."""
    bce = F.binary_cross_entropy(output, x.view(-1, 784), reduction="sum")
    return bce - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())


def make_loader(images: Tensor, device: torch.device, *, shuffle: bool) -> DataLoader[Any]:
    """One worker and pinned memory on a GPU, as the script asks for there."""
    cuda = device.type == "cuda"
    return DataLoader(
        Digits(images), BATCH, shuffle=shuffle, num_workers=int(cuda), pin_memory=cuda
    )


def train_epoch(
    model: nn.Module, loader: DataLoader[Any], optimizer: optim.Optimizer, device: torch.device
) -> float:
    """Train one epoch; give the mean negative ELBO."""
    model.train()
    total, images = 0.0, 0
    for x, _ in loader:
        x = x.to(device)
        optimizer.zero_grad()
        output, mu, logvar = model(x)
        loss = example_loss(output, x, mu, logvar)
        loss.backward()
        total += loss.item()
        images += len(x)
        optimizer.step()
    return total / images


@torch.no_grad()
def test_epoch(model: nn.Module, loader: DataLoader[Any], device: torch.device) -> float:
    """Give the test images' mean negative ELBO, with z sampled."""
    model.eval()
    total, images = 0.0, 0
    for x, _ in loader:
        x = x.to(device)
        output, mu, logvar = model(x)
        total += example_loss(output, x, mu, logvar).item()
        images += len(x)
    return total / images


class Examples:
    """See :class:`benchmarks.peers.Contender`."""

    def __init__(self, images: Tensor, count: int, device: torch.device) -> None:
        self.device = device
        self.loader = make_loader(images[:count], device, shuffle=True)
        self.model = ExampleVAE()
        copy_weights(new_model(), self.model)
        self.optimizer = optim.Adam(self.model.to(device).parameters(), lr=LEARNING_RATE)
        self.restore = restorer(self.model, lambda: memory_of(self.optimizer))

    def epoch(self) -> float:
        """Train."""
        return -train_epoch(self.model, self.loader, self.optimizer, self.device)


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy parameters in order: both models list encoder, mu, logvar, decoder, output."""
    with torch.no_grad():
        for theirs, ours in zip(target.parameters(), source.parameters(), strict=True):
            theirs.copy_(ours)


def make(images: Tensor, count: int, device: torch.device) -> Examples:
    """Build it."""
    return Examples(images, count, device)


def main() -> None:
    """Train as the script does, printing its two lines per epoch."""
    parser = argparse.ArgumentParser(description="pytorch/examples' VAE")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--data", default="auto")
    words = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(1)
    data = load_data(words.data)
    train = make_loader(data.train.images, device, shuffle=True)
    test = make_loader(data.test.images, device, shuffle=False)
    model = ExampleVAE().to(device)
    optimizer = optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for epoch in range(1, words.epochs + 1):
        print(f"epoch {epoch}: train {train_epoch(model, train, optimizer, device):.4f}")
        print(f"epoch {epoch}: test {test_epoch(model, test, device):.4f}", flush=True)


if __name__ == "__main__":
    main()
