"""Fully connected networks, read off what autograd recorded of them, however they are written.

A kernel for whole steps needs to know every layer. Names and classes do not tell what a model
computes; the graph of its ``encode`` and ``decode`` does: linear layers with an activation between
each two, and two heads, be they two layers or the halves of one. What the graph does not show, such
as images that are scaled before the first layer, shows in the values: the layers that were found
are run by themselves, and must give what the model gave.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vaebench.models.protocol import Gaussian
from vaebench.models.snapshot import untouched
from vaebench.problem import Problem

# An edge of autograd's graph: what made a tensor, and which of its results it is.
Edge = tuple[Any, int]
# Nodes that leave numbers and their order as they are.
_VIEWS = ("View", "UnsafeView", "ReshapeAlias", "Unsqueeze", "Squeeze", "Alias")
# Those that take a part of the columns; which, the values tell.
_PARTS = ("Split", "SplitWithSizes", "Slice", "Chunk")
_ACTIVATIONS = {"Relu": "relu", "Tanh": "tanh", "LeakyRelu": "leaky_relu"}
CLOSE = 1e-4


class Linear(NamedTuple):
    """x W^T + b, with W and b the rows from ``first`` on of two parameters."""

    weight: Tensor
    bias: Tensor
    first: int
    outputs: int

    @property
    def inputs(self) -> int:
        """Columns of W."""
        return self.weight.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        """(B, inputs) -> (B, outputs)."""
        rows = slice(self.first, self.first + self.outputs)
        return F.linear(x, self.weight[rows], self.bias[rows])


class Activation(NamedTuple):
    """A name in ``torch.nn.functional``, and the slope below 0 of a leaky one."""

    name: str
    slope: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Element by element."""
        if self.name == "leaky_relu":
            return F.leaky_relu(x, self.slope)
        return x.relu() if self.name == "relu" else x.tanh()


class Chain(NamedTuple):
    """The layers of a fully connected VAE; the activation follows each of the hidden ones."""

    encoder: list[Linear]
    mu: Linear
    logvar: Linear
    decoder: list[Linear]
    output: Linear
    activation: Activation

    def in_order(self) -> list[Linear]:
        """All of them, in the order of the computation."""
        return [*self.encoder, self.mu, self.logvar, *self.decoder, self.output]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give (mu, logvar), (B, Z), for x (B, D)."""
        hidden = self._through(self.encoder, x)
        return self.mu(hidden), self.logvar(hidden)

    def decode(self, z: Tensor) -> Tensor:
        """Give the output, (B, D), for z (B, Z)."""
        return self.output(self._through(self.decoder, z))

    def _through(self, layers: list[Linear], x: Tensor) -> Tensor:
        for layer in layers:
            x = self.activation(layer(x))
        return x


class _Other(Exception):
    """The network is another kind."""


def read(problem: Problem) -> Chain | None:
    """Read the network of a problem; None if it is not such a chain."""
    x, vae = problem.sample_batch, problem.vae
    z = torch.linspace(-1, 1, len(x) * problem.latent_dim, device=x.device, dtype=x.dtype)
    z = z.view(len(x), -1).requires_grad_()
    with untouched(problem.model), torch.enable_grad():
        problem.model.train()
        try:
            mu, logvar = vae.encode(x)
            output = vae.decode(z)
            if isinstance(output, Gaussian):
                return None
            chain = _chain(mu, logvar, output, z)
        except (
            _Other,
            RuntimeError,
        ):  # a saved tensor that was changed in place cannot be looked at
            return None
        with torch.no_grad():
            pairs = zip(
                (*chain.encode(x.flatten(1)), chain.decode(z)), (mu, logvar, output), strict=True
            )
            same = all(
                a.shape == b.flatten(1).shape and torch.allclose(a, b.flatten(1), CLOSE, CLOSE)
                for a, b in pairs
            )
    return chain if same else None


def _chain(mu: Tensor, logvar: Tensor, output: Tensor, z: Tensor) -> Chain:
    heads, below = _heads(mu, logvar)
    encoder, first = _hidden(below)
    (last,), below = _linear(_edge(output))
    decoder, second = _hidden(below, z)
    kinds = {kind for _, kind in (*encoder, *decoder)}
    if first is not None or second is not None or len(kinds) != 1 or not encoder or not decoder:
        raise _Other
    layers = [[layer for layer, _ in part] for part in (encoder, decoder)]
    return Chain(layers[0], *heads, layers[1], last, kinds.pop())


def _name(node: Any) -> str:
    """What a node undoes: View of ViewBackward0. The number is that of an overload."""
    return "" if node is None else str(node.name()).rpartition("Backward")[0]


def _edge(tensor: Tensor) -> Edge:
    return tensor.grad_fn, tensor.output_nr


def _past(edge: Edge, names: tuple[str, ...]) -> Edge:
    """Go back past nodes of these names."""
    while _name(edge[0]) in names:
        edge = edge[0].next_functions[0]
    return edge


def _heads(mu: Tensor, logvar: Tensor) -> tuple[tuple[Linear, Linear], Edge]:
    """The two heads, and what they take."""
    found = [_linear(_past(_edge(head), (*_VIEWS, *_PARTS))) for head in (mu, logvar)]
    if found[0][1] != found[1][1]:
        raise _Other
    given = _past(_edge(mu), (*_VIEWS, *_PARTS))[0]._saved_mat1
    with torch.no_grad():
        heads = [_part(mu, found[0][0], given), _part(logvar, found[1][0], given)]
    return (heads[0], heads[1]), found[0][1]


def _part(head: Tensor, layers: list[Linear], given: Tensor) -> Linear:
    """Which rows of a layer, or of several side by side, give a head."""
    width = head.shape[1]
    for layer in layers:
        for first in range(0, layer.outputs - width + 1, width):
            part = layer._replace(first=first, outputs=width)
            if torch.allclose(part(given), head, CLOSE, CLOSE):
                return part
    raise _Other


def _linear(edge: Edge) -> tuple[list[Linear], Edge]:
    """A linear layer, or several side by side, and what it takes."""
    node = _past(edge, _VIEWS)[0]
    if _name(node) != "Addmm" or (node._saved_alpha, node._saved_beta) != (1, 1):
        raise _Other
    bias, given, (turned, _) = node.next_functions
    if _name(turned) != "T":
        raise _Other
    weights = list(_parameters(turned.next_functions[0]))
    biases = list(_parameters(bias))
    shapes = [(w.dim(), len(w)) for w in weights] == [(2, len(b)) for b in biases]
    if not shapes or any(b.dim() != 1 for b in biases):
        raise _Other
    return [Linear(w, b, 0, len(w)) for w, b in zip(weights, biases, strict=True)], given


def _parameters(edge: Edge) -> Iterator[Tensor]:
    """The parameter at an edge, or those that are put together there."""
    node = edge[0]
    if _name(node) == "Cat" and node._saved_dim == 0:
        for each in node.next_functions:
            yield from _parameters(each)
    elif hasattr(node, "variable"):
        yield node.variable
    else:
        raise _Other


def _hidden(edge: Edge, z: Tensor | None = None) -> tuple[list[tuple[Linear, Activation]], Any]:
    """The hidden layers from the first to the last, and what is below that is not z; else None."""
    found: list[tuple[Linear, Activation]] = []
    while True:
        node = _past(edge, _VIEWS)[0]
        if node is None or (z is not None and getattr(node, "variable", None) is z):
            return found[::-1], None if (node is None) is (z is None) else node
        if _name(node) not in _ACTIVATIONS:
            raise _Other
        kind = Activation(_ACTIVATIONS[_name(node)], getattr(node, "_saved_negative_slope", 0.0))
        (layer, *more), edge = _linear(node.next_functions[0])
        if more:
            raise _Other
        found.append((layer, kind))
