"""What a refusal is, its words, and what the cases spoil: a small sound model and its images."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vaebench
from vaebench.errors import InputError

PATIENCE = 5.0  # seconds for any one case
RECIPE: dict[str, Any] = {"image_shape": (4, 4), "hidden_dims": (5,), "latent_dim": 2}

COUNT = "whole number of at least 1"
REAL = "finite number"
SEED = "0 .. 2**63 - 1"
INT, FLOAT = "invalid int value", "invalid float value"
HELP = "--help lists the options"


def pixels(n: int = 20) -> Tensor:
    return torch.randint(0, 256, (n, 4, 4), generator=torch.manual_seed(1)).to(torch.uint8)


def small_vae(**words: Any) -> vaebench.VAE:
    torch.manual_seed(0)
    return vaebench.VAE(**{**RECIPE, **words})


class Own(nn.Module):
    """A sound VAE of another make."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(16, 4), nn.Linear(2, 16)

    def encode(self, x: Tensor) -> Any:
        mu, logvar = self.into(x.flatten(1)).chunk(2, 1)
        return mu, logvar

    def decode(self, z: Tensor) -> Any:
        return self.out(z)


def refusal(call: Callable[[], object], *words: str) -> None:
    """The call raises one InputError: one printable line that holds the words, in bounded time."""
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert time.monotonic() - start < PATIENCE
    assert message.isprintable()
    assert len(message) < 2000
    for word in words:
        assert word in message
