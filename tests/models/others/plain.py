"""The network itself, as the trainer wants it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHAPE, PIXELS, LATENTS = (6, 6), 36, 3


class Plain(nn.Module):
    """36-16-(3,3)-16-36, as the trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.mean, self.spread = nn.Linear(36, 16), nn.Linear(16, 3), nn.Linear(16, 3)
        self.fc3, self.fc4 = nn.Linear(3, 16), nn.Linear(16, 36)

    def hidden(self, x: Tensor) -> Tensor:
        return F.relu(self.fc1(x.flatten(1)))

    def encode(self, x: Tensor) -> Any:
        h = self.hidden(x)
        return self.mean(h), self.spread(h)

    def decode(self, z: Tensor) -> Any:
        return self.fc4(F.relu(self.fc3(z)))

    def drawn(self, mu: Tensor, logvar: Tensor) -> Tensor:
        return mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
