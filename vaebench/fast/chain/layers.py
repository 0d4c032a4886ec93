"""A fully connected VAE as a chain of layers: what a kernel is told, and what it computes."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Activation(NamedTuple):
    """A name in ``torch.nn.functional``; the slope below 0 of a leaky one, ELU's alpha."""

    name: str
    slope: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Element by element."""
        if self.name in ("leaky_relu", "elu"):
            return getattr(F, self.name)(x, self.slope)  # type: ignore[no-any-return]
        where = F if self.name in ("softplus", "silu", "gelu") else torch
        return getattr(where, self.name)(x)  # type: ignore[no-any-return]


UNCHANGED = Activation("leaky_relu", 1.0)


class Spread(NamedTuple):
    """What makes logvar of its head's output.

    ``least`` is what is added to a standard deviation; logvar is cut off at ``lowest`` and
    ``highest``.
    """

    name: str = "plain"
    least: float = 0.0
    lowest: float = -math.inf
    highest: float = math.inf

    def __call__(self, h: Tensor) -> Tensor:
        """Element by element."""
        return self._free(h).clamp(self.lowest, self.highest)

    def _free(self, h: Tensor) -> Tensor:
        if self.name == "std_softplus":
            return 2 * torch.log(F.softplus(h) + self.least)
        if self.name == "logvar_softplus":
            return F.softplus(h)
        return 2 * h if self.name == "double" else h


class Linear(NamedTuple):
    """x W^T + b, with W and b the rows from ``first`` on of two parameters.

    ``activation`` is what follows, of a hidden layer; then a gate, if there is one: the values are
    multiplied by the sigmoid of that layer's.
    """

    weight: Tensor
    bias: Tensor
    first: int
    outputs: int
    activation: Activation | None = None
    gate: "Linear | None" = None

    @property
    def inputs(self) -> int:
        """Columns of W."""
        return self.weight.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        """(B, inputs) -> (B, outputs)."""
        rows = slice(self.first, self.first + self.outputs)
        return F.linear(x, self.weight[rows], self.bias[rows])


class Chain(NamedTuple):
    """The layers of a fully connected VAE, and how many numbers of a label they take too."""

    encoder: list[Linear]
    mu: Linear
    logvar: Linear
    decoder: list[Linear]
    output: Linear
    spread: Spread
    labels: int = 0

    @property
    def gates(self) -> list[Linear]:
        """Those of the hidden layers that have one."""
        return [layer.gate for layer in (*self.encoder, *self.decoder) if layer.gate]

    def in_order(self) -> list[Linear]:
        """All of them, in the order of the computation; then the gates."""
        return [*self.encoder, self.mu, self.logvar, *self.decoder, self.output, *self.gates]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give (mu, logvar), (B, Z), for x (B, D), and the label behind it if there is one."""
        hidden = self.through(self.encoder, x)
        return self.mu(hidden), self.spread(self.logvar(hidden))

    def decode(self, z: Tensor) -> Tensor:
        """Give the output, (B, D), for z (B, Z), and the label behind it if there is one."""
        return self.output(self.through(self.decoder, z))

    def through(self, layers: list[Linear], x: Tensor) -> Tensor:
        """Give the hidden values after these layers, (B, H)."""
        for layer in layers:
            assert layer.activation
            values = layer.activation(layer(x))
            x = values * torch.sigmoid(layer.gate(x)) if layer.gate else values
        return x
